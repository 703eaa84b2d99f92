"""A net as a list of layers: forward in order, backward in reverse. This loop is the chain rule.

    y = f_L( … f_2( f_1(x) ) … )        dL/dx = f_1'( f_2'( … f_L'(dL/dy) … ) )

`Sequential` holds no arithmetic and keeps no record of what was called: it walks the list one way
and then the other way. Layers that can be computed together are one step on that way
(`layers/fast/`), unless `net.fuse` is off.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from layers import Device, Layer, Parameter
from layers.fast.bfloat16 import round_bf16
from layers.fast.plan import plan
from layers.fast.precision import described
from layers.fast.step import FusedStep


class Sequential:
    """Layers that run one after another.

    layers: a list, or a mapping of names to layers ({"conv1": Conv2D(...), ...}); layers of a
    list are named after their kind and place ("conv2d1", "relu2"). input_shape: (H, W, C) of one
    image; with it shapes are checked at once and `print(net)` shows them.

    `layers` are the layers; `steps` is what `forward` and `backward` walk along: the same layers,
    those that are computed together in one step. `fuse = False` makes the two alike, to step
    through layer after layer with a debugger.

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
            named = {
                f"{type(layer).__name__.lower()}{place}": layer
                for place, layer in enumerate(layers, start=1)
            }
        self.layers: list[Layer] = list(named.values())
        self.input_shape = input_shape
        if not self.layers:
            raise ValueError("Sequential: needs at least one layer")
        if len({id(layer) for layer in self.layers}) < len(self.layers):
            raise ValueError("Sequential: a layer appears twice; make one object for each place")
        for name, layer in named.items():
            layer.name = name
            for parameter in layer.parameters():
                parameter.name = f"{name}.{parameter.name.rpartition('.')[2]}"
        if input_shape is not None:
            self.output_shapes(input_shape)
        self.fuse = True

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

    @property
    def precision(self) -> str:
        """What the layers round: "fp32", "tf32" or "bf16" (`layers/fast/precision.py`)."""
        return self.layers[0].precision

    @property
    def fuse(self) -> bool:
        """Whether layers that can be computed together are; may be set at any time."""
        return self._fuse

    @fuse.setter
    def fuse(self, fuse: bool) -> None:
        self._fuse = bool(fuse)
        self.steps: list[Layer | FusedStep] = plan(self.layers) if fuse else list(self.layers)

    def to(
        self,
        device: Device | str,
        dtype: Any = None,
        precision: str | None = None,
        fuse: bool | None = None,
    ) -> "Sequential":
        """Move every layer to `device`, computing in `dtype` and `precision`, fused or not.

        None: as before. Returns the net. Errors as `Layer.to`.
        """
        device = Device(device)
        for layer in self.layers:
            layer.to(device, dtype, precision)
        self.fuse = self.fuse if fuse is None else fuse
        return self

    def forward(self, x: Any, train: bool = True) -> Any:
        """x (N, ...) -> the last layer's output."""
        x = self.enter(x)
        for layer in self.steps:
            x = self.stored(layer.forward(x, train))
        return x

    def backward(self, dy: Any) -> Any:
        """dL/d output -> dL/dx; fills every parameter's `grad`.

        None if the first layer's `input_gradient` is off: nothing learns from the gradient with
        respect to the photo, and for AlexNet it is a fourteenth of the backward pass.
        """
        dy = self.enter(dy, "dy")
        for layer in reversed(self.steps):
            dy = self.stored(layer.backward(dy))
        return dy

    # In bf16 all arrays between two steps hold bfloat16: on a GPU in their 16 bits, on the host as
    # float32 that are rounded where they come about. What comes from outside may be float32.

    def check_input(self, x: Any) -> Any:
        """x, C-contiguous, after a check that the net takes it. ValueError says why it does not."""
        first = self.layers[0]
        return first.check_input(x, x.dtype if _is(first.dtype, x) else None)

    def enter(self, array: Any, what: str = "x") -> Any:
        """x as the first layer takes it, or dy as the last one does: in bf16 a rounded copy."""
        if self.precision != "bf16":
            return array
        layer = self.layers[0 if what == "x" else -1]
        array = layer.check_array(array, what, array.dtype if _is(layer.dtype, array) else None)
        return layer.operand(array, f"{what} of the net")

    def stored(self, array: Any) -> Any:
        """What a step has given, as the next one finds it: on the host bf16 rounds it in place."""
        if self.precision == "bf16" and not self.device.is_cuda and array is not None:
            round_bf16(array, array)
        return array

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

    def table(self, fused: bool = True) -> str:
        """The table: layer, output shape, parameters, multiply-adds of one image.

        fused: say of a layer that is computed together with the ones before it "in conv1", and of
        one whose faster rung is used, what that is called; and in the end the precision, if it
        is not fp32. Without, the table is the same on every device: the network and not how it is
        computed.
        """
        notes: dict[str, str] = {}
        for step in self.steps if fused else ():
            if isinstance(step, FusedStep):
                notes |= step.notes()
        shape = self.input_shape
        header = ("layer", "", "output", "parameters", "multiply-adds")
        rows = [("input", "", _times(shape), "", "")]
        parameters = operations = 0
        for layer in self.layers:
            count = sum(p.value.size for p in layer.parameters())
            work = layer.multiply_adds(shape) if shape else 0
            shape = layer.output_shape(shape) if shape else None
            parameters, operations = parameters + count, operations + work
            kind = f"{type(layer).__name__} {notes.get(layer.name, '')}".rstrip()
            rows.append((layer.name, kind, _times(shape), _number(count), _number(work)))
        rows.append(("total", "", "", _number(parameters), _number(operations)))
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(5)]
        lines = []
        for row in [header, *rows]:
            left = "  ".join(cell.ljust(w) for cell, w in zip(row[:3], widths, strict=False))
            right = "  ".join(cell.rjust(w) for cell, w in zip(row[3:], widths[3:], strict=True))
            lines.append(f"{left}  {right}".rstrip())
        if fused and self.precision != "fp32":
            lines.append(f"precision {described(self.precision, self.device)}")
        return "\n".join(lines)


def _is(dtype: Any, array: Any) -> bool:
    return getattr(array, "dtype", None) == dtype


def _times(shape: tuple[int, ...] | None) -> str:
    return "?" if shape is None else "×".join(str(side) for side in shape)


def _number(value: int) -> str:
    return f"{value:,}" if value else ""
