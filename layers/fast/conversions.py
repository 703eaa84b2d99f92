"""Steps that change how numbers are stored: to bfloat16 and back.

On a GPU in bf16 the fast steps take bfloat16 and the layers of the book float32. So the plan
inserts conversions before and after every layer of the book, and at both ends of the net, whose
input and output are float32; crops that were written as the first convolution multiplies them
(`S2dImage`) pass as they are. On the host bfloat16 is emulated: a rounding step follows every other
step.

`backward` of a conversion is the opposite conversion of the gradient.
"""

from typing import Any

from layers.device import Device
from layers.fast.bfloat16 import round_bf16
from layers.fast.precision import BITS, round_into, widen_into
from layers.fast.step import Step
from layers.layer import Layer


class Conversion(Step):
    """A step without a layer. first, last: those of the net, if x or dy comes from outside it.

    step: then the one that computes `first`.
    """

    def __init__(
        self,
        device: Device,
        dtype: Any,
        first: Layer | None = None,
        last: Layer | None = None,
        step: Step | None = None,
    ) -> None:
        super().__init__([], device, dtype, "bf16")
        self.first, self.last, self.step = first, last, step

    @property
    def name(self) -> str:
        """The conversion: "to bf16"."""
        return self.short

    def notes(self) -> dict[str, str]:
        """Empty: `print(net)` lists layers only."""
        return {}

    def check_input(self, x: Any) -> Any:
        """x, after the check of the net's first layer."""
        return x if self.first is None else self.first.check_input(x)

    def check_gradient(self, dy: Any) -> Any:
        """dy, after the check of the net's last layer."""
        return dy if self.last is None else self.last.check_gradient(dy)

    def _to_bits(self, name: str, array: Any) -> Any:
        if array is None:  # the first layer's `input_gradient` is off
            return None
        array = self._of_dtype(array, self.dtype)
        bits = self.buffer(name, array.shape, BITS)
        round_into(self.device, "bf16", array, bits)
        return bits

    def _of_dtype(self, array: Any, dtype: Any) -> Any:
        if array.dtype != dtype:
            raise ValueError(f"{self.name}: an array of {array.dtype}, expected {dtype}")
        return self.device.xp.ascontiguousarray(array)

    def _to_float32(self, name: str, bits: Any) -> Any:
        if bits is None:
            return None
        bits = self._of_dtype(bits, BITS)
        numbers = self.buffer(name, bits.shape)
        widen_into(bits, numbers)
        return numbers


class ToBFloat16(Conversion):
    """float32 -> bfloat16 on a GPU; its gradient bfloat16 -> float32."""

    short = "to bf16"
    computed_by = "to_bfloat16_kernel, from_bfloat16_kernel"

    def s2d_image(self, image: tuple[int, int, int], side: int) -> Any:
        """That of the next step: there is nothing to convert."""
        self.s2d = self.step and self.step.s2d_image(image, side)
        return self.s2d

    def check_input(self, x: Any) -> Any:
        """x, after the check of the net's first layer, or of its step."""
        return self.step.check_input(x) if self.step and self.is_s2d(x) else super().check_input(x)

    def forward(self, x: Any, train: bool = True) -> Any:
        """x float32 -> y uint16; an `S2dImage` as it is."""
        x = self.check_input(x)
        return x if self.is_s2d(x) else self._to_bits("y", x)

    def backward(self, dy: Any) -> Any:
        """dy uint16 -> dx float32."""
        return self._to_float32("dx", dy)


class ToFloat32(Conversion):
    """bfloat16 -> float32 on a GPU; its gradient float32 -> bfloat16."""

    short = "to float32"
    computed_by = "from_bfloat16_kernel, to_bfloat16_kernel"

    def forward(self, x: Any, train: bool = True) -> Any:
        """x uint16 -> y float32."""
        return self._to_float32("y", x)

    def backward(self, dy: Any) -> Any:
        """dy float32 -> dx uint16."""
        return self._to_bits("dx", self.check_gradient(dy))


class RoundToBFloat16(Conversion):
    """On the host: rounds to bfloat16, in place; a copy of what comes from outside the net."""

    short = "round to bf16"
    computed_by = "round_bf16"

    def forward(self, x: Any, train: bool = True) -> Any:
        """x float32 -> y float32, rounded."""
        x = self.check_input(x)
        return round_bf16(x, x if self.first is None else self.buffer("y", x.shape))

    def backward(self, dy: Any) -> Any:
        """dy float32 -> dx float32, rounded."""
        if dy is None:
            return None
        dy = self.check_gradient(dy)
        return round_bf16(dy, dy if self.last is None else self.buffer("dx", dy.shape))


class FlattenStep(Step):
    """A Flatten of bfloat16: no number moves, so nothing is converted."""

    short = "a view"
    computed_by = "reshape"

    def forward(self, x: Any, train: bool = True) -> Any:
        """x (N, ...) -> y (N, product)."""
        x = self.check_input(x)
        self.x_shape = x.shape
        self.y = self.layers[0].y = x.reshape(x.shape[0], -1)
        return self.y

    def backward(self, dy: Any) -> Any:
        """dy (N, product) -> dx of x's shape."""
        return self.check_gradient(dy).reshape(self.x_shape)
