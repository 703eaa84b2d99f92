"""Parameters in two parts on two devices, seen as the one array that the one-device net has.

Half of a layer's filters are the first, or the last, half of its array along axis 0: filters are
(K, R, S, C / groups), fully connected weights (out, in), biases (K). With two groups, too: the
filters of the first group come first. So the two parts end to end are the one-device net's array,
number for number, and a checkpoint that holds them so can be read by either form.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from layers import Device, Parameter


class SplitArray:
    """Two arrays, end to end along axis 0, on whatever devices they are.

    Has what saving, loading and checking of weights ask of an array: `shape`, `size`, `dtype`,
    `get` (a copy on the host), `any`, and assignment to the whole, `a[...] = values`.
    """

    def __init__(self, parts: Sequence[tuple[Device, Any]]) -> None:
        self._parts = list(parts)
        first = self._parts[0][1]
        length = sum(array.shape[0] for _, array in self._parts)
        self.shape: tuple[int, ...] = (length, *first.shape[1:])
        self.size = math.prod(self.shape)
        self.ndim, self.dtype = len(self.shape), first.dtype

    def get(self) -> np.ndarray:
        """The whole, on the host."""
        return np.concatenate([Device.to_host(array) for _, array in self._parts])

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.get() if dtype is None else self.get().astype(dtype)

    def any(self) -> bool:
        """Is any number not 0?"""
        for device, array in self._parts:
            with device.current():
                if bool(array.any()):
                    return True
        return False

    def __setitem__(self, where: Any, values: Any) -> None:
        """a[...] = a number, or an array of the whole's shape on the host or on any device."""
        if where is not Ellipsis:
            raise TypeError(f"assign to the whole of a split array, a[...], not to a[{where!r}]")
        values = Device.to_host(values)
        if values.shape not in ((), self.shape):
            raise ValueError(f"values of shape {values.shape} do not fit an array of {self.shape}")
        start = 0
        for device, array in self._parts:
            stop = start + array.shape[0]
            with device.current():
                array[...] = device.array(values[start:stop] if values.ndim else values, self.dtype)
            start = stop


class SplitParameter:
    """A parameter of which each column holds a part; `parts` are the two real ones.

    What `Parameter` has, with `SplitArray`s as `value` and `grad`; its `device` is the host, from
    where the whole is written and to where it is read.
    """

    def __init__(self, parts: Sequence[Parameter]) -> None:
        self.parts = list(parts)
        self.device = Device("cpu")

    @property
    def name(self) -> str:
        """That of the one-device net, such as conv1.weight."""
        return self.parts[0].name

    @name.setter
    def name(self, name: str) -> None:
        for part in self.parts:
            part.name = name

    @property
    def lr_multiplier(self) -> float:
        """Scale of the learning rate."""
        return self.parts[0].lr_multiplier

    @property
    def decay_multiplier(self) -> float:
        """Scale of the weight decay."""
        return self.parts[0].decay_multiplier

    @property
    def value(self) -> SplitArray:
        """Both parts' values."""
        return SplitArray([(part.device, part.value) for part in self.parts])

    @property
    def grad(self) -> SplitArray:
        """Both parts' gradients."""
        return SplitArray([(part.device, part.grad) for part in self.parts])

    def to(self, device: Any, dtype: Any) -> None:
        """Nothing: the layers of the columns move their parts."""

    def __repr__(self) -> str:
        return f"SplitParameter({self.name!r}, {self.value.shape}, {self.value.dtype})"
