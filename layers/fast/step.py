"""Steps: what a plan runs instead of layers.

A step computes one layer, or several successive ones, with the same results except for rounding. It
has `forward` and `backward` like a layer. The layers stay in the net with their parameters, seeds
and shapes; the step has the arithmetic. `plan.py` chooses the steps of a net,
`tinyconv/sequential.py` runs them.

A step on a GPU whose precision is bf16 takes and returns arrays of `storage`, uint16: the bits of
bfloat16 (`bfloat16.py`). In every other case activations have the dtype of the arithmetic.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from layers.device import Device
from layers.fast.precision import round_into, storage_of
from layers.layer import Buffers, Layer


class Step(ABC):
    """One or more successive layers, computed together.

    layers: in the net's order, on `device` and of `dtype` when the step runs; precision: "fp32",
    "tf32" or "bf16". A subclass implements `forward` and `backward` and names its kernels or
    library in `computed_by`. The arrays belong to the step; `y` is the last output, also that of
    each layer.
    """

    computed_by = ""
    """Kernels, host loops or library, for readers of `python -m tinyconv plan`."""
    short = ""
    """The same in one or two words, for `print(net)`."""
    rounds_output = y_is_rounded = False
    """In TF32: whether the step after this one multiplies y, so that it may be rounded as it is
    written; and whether it was."""
    source = ""
    """The file of the kernels, where it is not that of the class."""
    s2d: Any = None
    """The `S2dImage` as which x may come, too."""

    def __init__(
        self, layers: Sequence[Layer], device: Device, dtype: Any, precision: str = "fp32"
    ) -> None:
        self.layers: list[Any] = list(layers)
        self.device, self.dtype, self.precision = device, np.dtype(dtype), precision
        self.storage = storage_of(precision, device, dtype)
        self.buffer = Buffers(device, dtype)
        self.y: Any = None

    @property
    def name(self) -> str:
        """The layers' names: "conv2+relu2"."""
        return "+".join(layer.name for layer in self.layers)

    @property
    def file(self) -> str:
        """Where the step is computed: "layers/fast/lrn.py"."""
        return self.source or source_file(self)

    @property
    def replaces(self) -> list[str]:
        """The files of the layers that it replaces: ["layers/conv.py", "layers/activation.py"]."""
        return [source_file(layer) for layer in self.layers]

    def notes(self) -> dict[str, str]:
        """What `print(net)` adds to each of its layers, by name."""
        first, *others = self.layers
        return {first.name: f"({self.short})"} | {x.name: f"(in {first.name})" for x in others}

    @abstractmethod
    def forward(self, x: Any, train: bool = True) -> Any:
        """y of the last layer from x of the first."""

    @abstractmethod
    def backward(self, dy: Any) -> Any:
        """dL/dx of the first layer from dL/dy of the last; fills the parameters' gradients."""

    def s2d_image(self, image: tuple[int, int, int], side: int) -> Any:
        """The `S2dImage` as which images (H, W, C) may come from now on; None: as they are alone.

        side: of the squares of pixels that the caller can write, without channels of zeros.
        """
        return None

    def is_s2d(self, x: Any) -> bool:
        """Whether x came as that."""
        s2d, shape = self.s2d, getattr(x, "shape", ())
        return s2d is not None and shape[1:] == s2d.shape and x.dtype == s2d.dtype

    def check_input(self, x: Any) -> Any:
        """x, C-contiguous, after checking kind, dtype and shape. ValueError names what is wrong."""
        x = self._checked(x, "x")
        if x.ndim < 2 or x.shape[0] < 1:
            raise ValueError(f"{self.name}: x has shape {x.shape}, expected (N, ...) with N >= 1")
        self.layers[0].output_shape(x.shape[1:])
        return x

    def check_gradient(self, dy: Any) -> Any:
        """dy, C-contiguous, after checking that it fits the last output, `self.y`."""
        if self.y is None:
            raise RuntimeError(f"{self.name}: backward() needs a forward() before it")
        dy = self._checked(dy, "dy")
        if dy.shape != self.y.shape:
            raise ValueError(
                f"{self.name}: dy has shape {dy.shape}, the last output has {self.y.shape}"
            )
        return dy

    def _checked(self, array: Any, what: str) -> Any:
        if self.storage == self.dtype:
            return self.layers[0].check_array(array, what)
        if getattr(array, "dtype", None) != self.storage:
            found = getattr(array, "dtype", type(array).__name__)
            raise ValueError(f"{self.name}: {what} is {found}, this step takes bfloat16 as uint16")
        return self.device.xp.ascontiguousarray(array)

    def output(self, shape: tuple[int, ...]) -> Any:
        """The buffer for y, noted as the last output of the step and of each layer."""
        self.y = self.buffer("y", shape, self.storage)
        for layer in self.layers:
            layer.y = self.y
        return self.y

    def input_gradient(self, shape: tuple[int, ...]) -> Any:
        """The buffer for dx; None where the first layer's `input_gradient` is switched off."""
        if not self.layers[0].input_gradient:
            return None
        return self.buffer("dx", shape, self.storage)

    def operand(self, array: Any, name: str) -> Any:
        """`array` as a product takes it in this precision: itself, or a copy rounded to it.

        In tf32 the products on a GPU round by themselves. The copy is in buffer `name`.
        """
        rounds_itself = self.device.is_cuda and self.precision == "tf32"
        if self.precision == "fp32" or rounds_itself or array.dtype != self.dtype:
            return array
        copy = self.buffer(name, array.shape, self.storage)
        round_into(self.device, self.precision, array, copy)
        return copy

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"


def source_file(thing: Any) -> str:
    """The file of a class, or of an object's class, from the project's root: "layers/lrn.py"."""
    module = (thing if isinstance(thing, type) else type(thing)).__module__
    path = module.replace(".", "/")
    package = getattr(sys.modules.get(module), "__path__", None)
    return f"{path}/__init__.py" if package else f"{path}.py"
