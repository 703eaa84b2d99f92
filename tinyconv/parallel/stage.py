"""Layers over two columns: what every one of them shares, and two equal layers side by side.

A stage keeps the contract of `layers/layer.py`, with pairs in place of arrays: `forward` takes and
returns `Both`, x_0 on the first device and x_1 on the second. So the loop of `Sequential`, forward
in order and backward in reverse, is the chain rule of the two-column net as well.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from layers import Device, Layer
from layers.fast.bfloat16 import round_bf16
from layers.fast.plan import plan
from layers.fast.precision import BITS, round_into, storage_of
from layers.layer import Buffers
from tinyconv.parallel.link import Link
from tinyconv.parallel.split import SplitParameter

COLUMNS = (0, 1)


class Both(tuple):
    """The arrays of both columns at one place of the net."""

    def get(self) -> np.ndarray:
        """All their numbers in one row, on the host."""
        return np.concatenate([Device.to_host(array).reshape(-1) for array in self])

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.get() if dtype is None else self.get().astype(dtype)


def stored(stage: "Stage", arrays: Any) -> Any:
    """What a stage returned, as the next one reads it: on the host bf16 rounds it in place.

    stage: any, for its device and precision.
    """
    if stage.precision == "bf16" and not stage.device.is_cuda and arrays is not None:
        for array in arrays if isinstance(arrays, Both) else (arrays,):
            round_bf16(array, array)
    return arrays


class Stage(Layer):
    """A layer over both columns.

    Attributes: `devices`, one a column; `links`, links[c] leads from column c to the other one;
    `place` and `groups`, those of the layer that it stands for in the one-device net; `precision`;
    `storage`, the dtype of what crosses: uint16, the bits of bfloat16, in bf16 on GPUs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.precision, self.storage = "fp32", self.dtype
        self.place, self.groups = 0, 1
        self.devices = (Device("cpu"), Device("cpu"))
        self.connect((Link(*self.devices), Link(*self.devices)))

    def to(
        self, device: Any, dtype: Any = None, precision: str = "fp32", kernels: str = "fast"
    ) -> Any:
        """Move to two devices, a sequence of two. Returns itself.

        precision: "fp32", "tf32" or "bf16"; kernels: "fast" or "simple". The links stay as they
        are: `Columns.to` calls `connect` next.
        """
        first, second = (Device(each) for each in device)
        self.devices = (first, second)
        super().to(first, dtype)
        self.precision, self.storage = precision, storage_of(precision, first, self.dtype)
        self._forget_buffers()
        return self

    def check_array(self, array: Any, what: str) -> Any:
        """As `OnDevice.check_array`, of `storage`."""
        if self.storage == self.dtype:
            return super().check_array(array, what)
        if getattr(array, "dtype", None) != self.storage:
            found = getattr(array, "dtype", type(array).__name__)
            raise ValueError(f"{self.name}: {what} is {found}, in bf16 columns exchange uint16")
        return self.device.xp.ascontiguousarray(array)

    def connect(self, links: tuple[Link, Link]) -> None:
        """Copy over these from now on."""
        self.links = links
        self._forget_buffers()

    def _forget_buffers(self) -> None:
        # All that crosses are activations and gradients with respect to them.
        self.buffers = [Buffers(each, self.storage) for each in self.devices]

    def crossing(self, input_shape: Any) -> tuple[int, int]:
        """Numbers of one image that leave column 0 and column 1 in `forward`.

        input_shape: both shapes, without N. In `backward` as many go the other way.
        """
        return 0, 0

    def send(self, column: int, array: Any, name: str) -> Any:
        """Queue a copy of the column's `array` to buffer `name` of the other; returns the buffer.

        It may be read, and `array` overwritten, after `take`.
        """
        other = 1 - column
        with self.devices[other].current():
            into = self.buffers[other](name, array.shape)
        self.links[column].send(array, into)
        return into

    def take(self, *columns: int) -> None:
        """Let the devices wait for what these columns have sent."""
        for column in columns:
            self.links[column].take()

    def packed(self, column: int, name: str, part: Any) -> Any:
        """A part of an array as one run of memory, in the column's buffer `name`."""
        with self.devices[column].current():
            run = self.buffers[column](name, part.shape)
            run[...] = part
        return run

    def add(self, column: int, total: Any, more: Any) -> None:
        """total += more, of the column; bfloat16 are added as float32 and rounded once."""
        device = self.devices[column]
        with device.current():
            if total.dtype != BITS:
                total += more
                return
            # A bfloat16 is the upper half of a float32.
            words = (array.astype(np.uint32, order="C") << 16 for array in (total, more))
            first, second = (word.view(np.float32) for word in words)
            bits = self.buffers[column]("sum", more.shape)
            round_into(device, "bf16", first + second, bits)
            total[...] = bits

    def check_both(self, arrays: Any, what: str) -> Both:
        """The two arrays, after checking that they are halves of one batch. ValueError if not."""
        if not isinstance(arrays, Sequence) or len(arrays) != 2:
            raise ValueError(f"{self.name}: needs {what} as two arrays, one for each column")
        first, second = (np.shape(array) for array in arrays)
        if len(first) < 2 or len(first) != len(second) or first[:-1] != second[:-1]:
            raise ValueError(
                f"{self.name}: {what} has shapes {first} and {second}; they may differ only in "
                "the last axis, the channels"
            )
        checked = []
        for device, array in zip(self.devices, arrays, strict=True):
            with device.current():
                checked.append(self.check_array(array, what))
        return Both(checked)

    def check_same(self, dy: Any) -> Both:
        """dy, after checking that it fits the last output."""
        if self.y is None:
            raise RuntimeError(f"{self.name}: backward() needs a forward() before it")
        dy = self.check_both(dy, "dy")
        shapes, wanted = ([tuple(each.shape) for each in pair] for pair in (dy, self.y))
        if shapes != wanted:
            raise ValueError(f"{self.name}: dy has shapes {shapes}, the last output has {wanted}")
        return dy


class Pair(Stage):
    """A layer for each column, side by side; neither sees the other's numbers.

    columns: two layers of one kind. Its parameters are those of the one-device net, in two parts
    (`SplitParameter`), also as `weight` and `bias`.
    """

    def __init__(self, first: Layer, second: Layer) -> None:
        self.columns = (first, second)
        self._parameters = [
            SplitParameter(parts)
            for parts in zip(first.parameters(), second.parameters(), strict=True)
        ]
        self.steps: list[list[Any]] = [[first], [second]]
        super().__init__()
        if self._parameters:
            self.weight, self.bias = self._parameters

    def to(
        self, device: Any, dtype: Any = None, precision: str = "fp32", kernels: str = "fast"
    ) -> Any:
        """Move each layer to its device, and plan its steps. Returns itself."""
        super().to(device, dtype, precision, kernels)
        self.steps = []
        for layer, each in zip(self.columns, self.devices, strict=True):
            layer.name = self.name
            with each.current():
                layer.to(each, dtype)
                steps: list[Any] = [layer]
                if kernels == "fast":
                    steps = plan(steps, each, self.dtype, precision, float32_ends=False)
                self.steps.append(steps)
        return self

    def parameters(self) -> Any:
        """The joined parameters of both layers, weights before biases."""
        return self._parameters

    def output_shape(self, input_shape: Any) -> Any:
        """Both shapes."""
        shapes = zip(self.columns, input_shape, strict=True)
        return tuple(layer.output_shape(shape) for layer, shape in shapes)

    def multiply_adds(self, input_shape: Any) -> int:
        """Those of both columns."""
        shapes = zip(self.columns, input_shape, strict=True)
        return sum(layer.multiply_adds(shape) for layer, shape in shapes)

    def set_step(self, step: int) -> None:
        """As every layer."""
        for layer in self.columns:
            layer.set_step(step)

    def set_seed(self, seed: int, stream: int) -> None:
        """As every layer."""
        for layer in self.columns:
            layer.set_seed(seed, stream)

    def forward(self, x: Any, train: bool = True) -> Any:
        """x Both -> y Both."""
        y = []
        for c in COLUMNS:
            with self.devices[c].current():
                array = x[c]
                for step in self.steps[c]:
                    array = step.forward(array, train)
                y.append(array)
        return Both(y)

    def backward(self, dy: Any) -> Any:
        """dy Both -> dx Both, or None if `input_gradient` is switched off."""
        dx = []
        for c in COLUMNS:
            with self.devices[c].current():
                self.columns[c].input_gradient = self.input_gradient
                array = dy[c]
                for step in reversed(self.steps[c]):
                    array = step.backward(array)
                dx.append(array)
        return None if dx[0] is None else Both(dx)
