"""The contract that every layer keeps: forward, backward, parameters, and buffers made once.

A layer is a function y = f(x; w) and its derivative. `forward(x)` computes y and remembers what
the derivative will need. `backward(dy)` takes dL/dy, the gradient of the loss L with respect to
the layer's output, writes dL/dw into `Parameter.grad` (overwriting what was there), and returns
dL/dx. Nothing is recorded behind the scenes: the chain rule is the loop in
`tinyconv/sequential.py`.

The arrays that `forward` and `backward` return belong to the layer and are overwritten by its
next call: a training step allocates nothing. Copy what is to be kept.
"""

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from layers.device import Device

if TYPE_CHECKING:
    from typing_extensions import Self

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


class Parameter:
    """A learned array and the gradient of the loss with respect to it.

    `value` and `grad` have one shape and live on the layer's device. The update is scaled by
    `lr_multiplier` (learning rate) and `decay_multiplier` (weight decay), as the 2012 code did
    for biases (twice the rate, no decay).
    """

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name = name
        self.device = Device("cpu")
        self.value: Any = np.zeros(shape, np.float32)
        self.grad: Any = np.zeros(shape, np.float32)
        self.lr_multiplier = 1.0
        self.decay_multiplier = 1.0

    def to(self, device: "Device | str", dtype: Any) -> None:
        """Move value and gradient to `device` as `dtype`."""
        self.device = Device(device)
        self.value = self.device.array(self.value, dtype)
        self.grad = self.device.array(self.grad, dtype)

    def __repr__(self) -> str:
        return f"Parameter({self.name!r}, {tuple(self.value.shape)}, {self.value.dtype})"


class Buffers:
    """Named arrays on a device, allocated once and reused from step to step."""

    def __init__(self, device: Device, dtype: Any) -> None:
        self.device, self.dtype = device, dtype
        self._flat: dict[str, Any] = {}
        self._views: dict[str, Any] = {}

    def __reduce__(self) -> Any:
        return Buffers, (self.device, self.dtype)  # a copy has its own, made when they are needed

    def __call__(self, name: str, shape: tuple[int, ...], dtype: Any = None) -> Any:
        """The array called `name`, in `shape`; its contents are undefined.

        A smaller request (the last batch of an evaluation) is a view of the larger array; only
        a larger one allocates again.
        """
        view = self._views.get(name)
        if view is not None and view.shape == shape:
            return view
        size = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or flat.size < size:
            flat = self.device.empty((size,), self.dtype if dtype is None else dtype)
            self._flat[name] = flat
        self._views[name] = flat[:size].reshape(shape)
        return self._views[name]


class OnDevice:
    """Something that lives on a device and computes in a dtype, with buffers of its own.

    Attributes: `device`; `dtype`, of its arrays and its arithmetic.
    """

    def __init__(self) -> None:
        self.name = type(self).__name__.lower()
        self.device = Device("cpu")
        self.dtype = np.dtype(np.float32)
        self.y: Any = None
        self.buffer = Buffers(self.device, self.dtype)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: `backward` needs a `forward` there first."""
        return vars(self) | dict.fromkeys({"x", "y"} & vars(self).keys())

    def to(self, device: "Device | str", dtype: Any = None) -> "Self":
        """Move to `device` ("cpu", "cuda:0", ...), computing in `dtype` from now on.

        dtype: float32 for training, float64 for checking; None keeps the present one. Returns
        itself. Raises ValueError for another dtype, DeviceError if there is no such device.
        """
        dtype = np.dtype(self.dtype if dtype is None else dtype)
        if dtype not in DTYPES:
            raise ValueError(f"{self.name}: dtype {dtype} is not supported, use float32 or float64")
        self.device, self.dtype = Device(device), dtype
        self.y = None
        self.buffer = Buffers(self.device, dtype)
        for parameter in self.parameters():
            parameter.to(self.device, dtype)
        return self

    def parameters(self) -> list[Parameter]:
        """The learned arrays, weights before biases."""
        return []

    def check_array(self, array: Any, what: str) -> Any:
        """`array`, C-contiguous, after a check that it is on this device and of this dtype."""
        xp = self.device.xp
        if not isinstance(array, xp.ndarray):
            raise ValueError(
                f"{self.name} is on {self.device.name} and needs {what} as a {xp.__name__} array, "
                f"not {type(array).__module__}.{type(array).__name__}; use layer.device.array(...)"
            )
        if array.dtype != self.dtype:
            raise ValueError(
                f"{self.name}: {what} is {array.dtype}, the layer computes in {self.dtype}"
            )
        return array if array.flags.c_contiguous else xp.ascontiguousarray(array)


class Layer(OnDevice, ABC):
    """Base class of all layers: their interface and the checks of their arguments.

    A subclass implements `forward`, `backward`, `output_shape`, and, where it learns,
    `parameters` and `multiply_adds`. Weights start at zero; `tinyconv.initialize` draws them.
    """

    input_gradient = True
    """False: `backward` may return None instead of dL/dx (the first layer of a net in training)."""

    in_net = False
    """Whether a net has named the layer; another net then keeps the name."""

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one image's output for one image's input, both without N."""
        return input_shape

    def multiply_adds(self, input_shape: tuple[int, ...]) -> int:
        """Multiplications with a learned weight in one image's forward pass."""
        return 0

    @abstractmethod
    def forward(self, x: Any, train: bool = True) -> Any:
        """y = f(x); `train` matters only to layers that differ in testing (dropout)."""

    @abstractmethod
    def backward(self, dy: Any) -> Any:
        """dL/dx from dL/dy of the last forward pass; dL/dw is written into the parameters."""

    def set_step(self, step: int) -> None:
        """Tell layers that draw random numbers which training step comes next."""

    def set_seed(self, seed: int, stream: int) -> None:
        """Tell layers that draw random numbers the run's seed and a number of their own."""

    def check_input(self, x: Any) -> Any:
        """`x`, C-contiguous, after checking its kind, dtype and shape. ValueError names both."""
        x = self.check_array(x, "x")
        if x.ndim < 2 or x.shape[0] < 1:
            raise ValueError(f"{self.name}: x has shape {x.shape}, expected (N, ...) with N >= 1")
        self.output_shape(x.shape[1:])
        return x

    def check_gradient(self, dy: Any) -> Any:
        """`dy`, C-contiguous, after checking that it fits the last output, `self.y`."""
        if self.y is None:
            raise RuntimeError(f"{self.name}: backward() needs a forward() before it")
        dy = self.check_array(dy, "dy")
        if dy.shape != self.y.shape:
            raise ValueError(
                f"{self.name}: dy has shape {dy.shape}, the last output has {self.y.shape}"
            )
        return dy
