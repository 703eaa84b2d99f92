"""A net as a list of layers: forward in order, backward in reverse. This loop is the chain rule.

    y = f_L( … f_2( f_1(x) ) … )        dL/dx = f_1'( f_2'( … f_L'(dL/dy) … ) )

`Sequential` has no arithmetic and records nothing: it walks the list forward and then backward.
What it walks along are `steps`: with kernels="simple" the layers themselves, with kernels="fast"
what `layers/fast/plan.py` puts in their place.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from layers import Device, Layer, Parameter, SoftmaxCrossEntropy
from layers.fast.plan import KERNELS, plan, plan_loss
from layers.fast.precision import settle
from tinyconv.data.arrays import array_on, check_channels_last
from tinyconv.summary import summary


class Sequential:
    """Layers that run one after another.

    layers: a list, or a mapping of names to layers ({"conv1": Conv2D(...), ...}); layers of a
    list keep the names that another net has given them (`list(net)[:-1]`), or are named after their
    kind and place ("conv2d1", "relu2"). input_shape: (H, W, C) of one
    image; with it shapes are checked at once and `print(net)` shows them.

    `layers` are the layers; `steps` is what `forward` and `backward` walk along. Attributes
    `kernels`, "fast" or "simple", and `precision`, "fp32", "tf32" or "bf16": as `to` set them.

    Raises ValueError for no layers, a layer that appears twice, or shapes that do not fit.
    """

    def __init__(
        self,
        layers: Sequence[Layer] | Mapping[str, Layer],
        input_shape: tuple[int, ...] | None = None,
    ) -> None:
        if isinstance(layers, Mapping):
            named = dict(layers)
        else:
            named = {}
            for place, layer in enumerate(layers, start=1):
                kind = type(layer).__name__.lower()
                own = layer.in_net and layer.name not in named
                named[layer.name if own else f"{kind}{place}"] = layer
        self.layers: list[Layer] = list(named.values())
        self.input_shape = input_shape
        if not self.layers:
            raise ValueError("Sequential: needs at least one layer")
        if len({id(layer) for layer in self.layers}) < len(self.layers):
            raise ValueError("Sequential: a layer appears twice; make one object for each place")
        for name, layer in named.items():
            layer.name, layer.in_net = name, True
            for parameter in layer.parameters():
                parameter.name = f"{name}.{parameter.name.rpartition('.')[2]}"
        if input_shape is not None:
            self.output_shapes(input_shape)
        self.kernels, self.precision = "fast", "fp32"
        self._steps: list[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_steps": None}  # a copy plans its own

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, which: int | str) -> Layer:
        """The layer at a place, or of a name. KeyError lists the names."""
        if isinstance(which, int):
            return self.layers[which]
        for layer in self.layers:
            if layer.name == which:
                return layer
        raise KeyError(f"no layer {which!r}; there are {', '.join(x.name for x in self.layers)}")

    @property
    def device(self) -> Device:
        """Where the layers live."""
        return self.layers[0].device

    @property
    def dtype(self) -> Any:
        """What the layers compute in, a NumPy dtype."""
        return self.layers[0].dtype

    def to(
        self,
        device: Device | str,
        dtype: Any = None,
        precision: str | None = None,
        kernels: str | None = None,
    ) -> "Sequential":
        """Move every layer to `device`, computing in `dtype`.

        precision: "fp32", "tf32", "bf16", or "auto" (docs/precision.md). kernels: "fast", the
        plan's, or "simple", each layer as its file in `layers/` shows it, in fp32. None: as
        before. Returns the net. Errors as `Layer.to`; ValueError for another precision or kernels,
        or ones that do not go together; DeviceError for a GPU without such tensor cores.
        """
        device, dtype = Device(device), self.dtype if dtype is None else dtype
        tier = settle_tier(
            self.kernels if kernels is None else kernels,
            self.precision if precision is None else precision,
            *(device, dtype),
        )
        steps = self._planned(*tier, device, dtype)  # refuses before anything has moved
        for layer in self.layers:
            layer.to(device, dtype)
        self.kernels, self.precision = tier
        self._steps = steps
        return self

    @property
    def steps(self) -> list[Any]:
        """What `forward` and `backward` walk along: layers, or steps in their place."""
        if self._steps is None:
            self._steps = self._planned(self.kernels, self.precision, self.device, self.dtype)
        return self._steps

    def _planned(self, kernels: str, precision: str, device: Device, dtype: Any) -> list[Any]:
        if kernels == "simple":
            return list(self.layers)
        return plan(self.layers, device, dtype, precision)

    def loss(self) -> SoftmaxCrossEntropy:
        """A softmax cross-entropy for the net's logits, on its device, of its kernels."""
        if self.kernels == "fast":
            return plan_loss(self.device, self.dtype)
        return SoftmaxCrossEntropy().to(self.device, self.dtype)

    def forward(self, x: Any, train: bool = True) -> Any:
        """x (N, ...), an array or anything with `__dlpack__` there -> the last layer's output."""
        x = array_on(self.device, x)
        check_channels_last(x.shape, self.input_shape)
        for step in self.steps:
            x = step.forward(x, train)
        return x

    def outputs(self, x: Any, train: bool = True) -> Iterator[tuple[str, Any]]:
        """The same, step by step: (name, output) of each, such as ("conv1+relu1", y)."""
        name = "the input"
        for step in self.steps:
            x = step.forward(x, train)
            if getattr(step, "layers", True):  # else a conversion of what the step before gave
                name = step.name
            yield name, x

    def backward(self, dy: Any) -> Any:
        """dL/d output -> dL/dx; fills every parameter's `grad`.

        None if a layer's `input_gradient` is off: the pass ends there. In training that is the
        first layer (for AlexNet, dL/d photo is a fourteenth of the pass), or the first that is
        not frozen (`run/fine_tune.py`).
        """
        for step in reversed(self.steps):
            if (dy := step.backward(dy)) is None:
                break
        return dy

    def check_input(self, x: Any) -> Any:
        """x, C-contiguous, after checking that the net takes it. ValueError says why not."""
        return self.steps[0].check_input(x)

    def parameters(self) -> list[Parameter]:
        """All learned arrays, first layer first."""
        return [parameter for layer in self.layers for parameter in layer.parameters()]

    def set_seed(self, seed: int) -> None:
        """Give every layer that draws random numbers the seed and its place in the net."""
        for stream, layer in enumerate(self.layers):
            layer.set_seed(seed, stream)

    def set_step(self, step: int) -> None:
        """Tell every layer that draws random numbers which training step comes next."""
        for layer in self.layers:
            layer.set_step(step)

    def output_shapes(self, input_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The output shape of each layer for one image of `input_shape`, without N."""
        shapes = []
        for layer in self.layers:
            input_shape = layer.output_shape(input_shape)
            shapes.append(input_shape)
        return shapes

    def __str__(self) -> str:
        return self.table()

    def table(self, computed: bool = True) -> str:
        """The table of `print(net)`; computed: say how each layer is computed (`summary.py`)."""
        return summary(self, computed)


def settle_tier(kernels: str, precision: str, device: Device, dtype: Any) -> tuple[str, str]:
    """(kernels, precision) for computing on `device`, after checking that they go together."""
    if kernels not in KERNELS:
        raise ValueError(f"kernels {kernels!r}: use 'fast' or 'simple'")
    if kernels == "fast":
        return kernels, settle(precision, device, dtype)
    if precision not in ("auto", "fp32"):
        raise ValueError(
            f"kernels 'simple' computes in precision 'fp32', not {precision!r}; use kernels 'fast'"
        )
    return kernels, "fp32"
