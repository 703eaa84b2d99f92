"""The steps that compute a Conv2D on a GPU, and the ReLU behind it (paper §3.1, §3.5).

    y = relu(z)    z = conv(x) + b

    dz = dL/dy where y > 0, else 0, and dL/db, in one pass over dL/dy;  dL/dw and dL/dx from dz
    as in `layers/conv.py`

z is not stored: the derivative of the ReLU needs only y, and the kernels apply the ReLU to their
sums before they write them. Without a ReLU dz is dL/dy. Shapes: x (N, H, W, C), y, dy, dz (N, P, Q,
K).

    SharedMemoryConv   `shared_memory.py`              float32, float64
    TiledConv          `tiled.py`, `tiled_gradients.py`          float32
    TensorConv         `tensor_core.py`, `tensor_gradients.py`   TF32, bfloat16

Where one TensorConv with a ReLU follows another, its x is the other's y, and its dL/dx is what the
other masks first. It then writes dL/dx masked already, and the other has only dL/db to sum. The
bits are the same.

In TF32 what a TensorConv multiplies is rounded where it is written, once, if a step of this project
writes it: y of a TensorConv or a pooling before another TensorConv, and dz. The products keep their
bits. dL/db is the sum of dz before it is rounded, except where dL/dx came masked.
"""

from abc import abstractmethod
from typing import Any

from layers.conv import conv_input_gradient_kernel
from layers.device import grid_for
from layers.fast.bias_relu import bias_gradient, masked_gradient
from layers.fast.conv.ptx import BYTES
from layers.fast.conv.shared_memory import (
    shared_filter_gradient,
    shared_forward,
    shared_input_gradient,
)
from layers.fast.conv.space_to_depth import S2dImage, choose_side, s2d_shape
from layers.fast.conv.tensor_core import tensor_forward, tensor_input_gradient
from layers.fast.conv.tensor_gradients import tensor_filter_gradient
from layers.fast.conv.tiled import tiled_forward
from layers.fast.conv.tiled_gradients import tiled_filter_gradient, tiled_input_gradient
from layers.fast.max_pool import MaxPoolRows
from layers.fast.step import Step


class ConvStep(Step):
    """A Conv2D, then perhaps a ReLU; a subclass has the three products.

    masks_input: mask dL/dx with the ReLU that x came from. dy_is_masked: dL/dy comes masked.
    dz_is_rounded: dz is, to TF32. before: the step that computes x, if it is known.
    """

    masks_input = dy_is_masked = dz_is_rounded = False
    before: Any = None

    @abstractmethod
    def product(self, x, w, b, y, stride, before, groups, relu):
        """y = conv(x) + b, or relu of it."""

    @abstractmethod
    def gradients(self, dz, w, dx, dw, stride, before, groups):
        """dw, and dx unless it is None, from dz and the x of the last forward pass."""

    def forward(self, x, train=True):
        """x (N, H, W, C) -> y (N, P, Q, K)."""
        conv = self.layers[0]
        self.x = x = self.check_input(x)
        image = self.s2d.image if self.is_s2d(x) else x.shape[1:]
        self.x_shape = x.shape[0], *image
        y = self.output((x.shape[0], *conv.output_shape(image)))
        geometry = conv.stride, conv.before, conv.groups
        self.product(x, conv.weight.value, conv.bias.value, y, *geometry, len(self.layers) == 2)
        return y

    def backward(self, dy):
        """dy (N, P, Q, K) -> dx (N, H, W, C), or None if `input_gradient` is switched off."""
        conv = self.layers[0]
        dz = dy = self.check_gradient(dy)
        db = conv.bias.grad
        if len(self.layers) == 2 and not self.dy_is_masked:
            dz = self.buffer("dz", dy.shape, self.storage)
            y, dy, dz_rows = (array.reshape(-1, db.size) for array in (self.y, dy, dz))
            one, rounded = self.dtype.type(1), self.precision == "tf32"
            masked_gradient(self.device, y, dy, dz_rows, db, one, self.buffer, rounded)
            self.dz_is_rounded = rounded
        else:
            bias_gradient(self.device, dy.reshape(-1, db.size), db, self.buffer)
        dx = self.input_gradient(self.x_shape)
        geometry = conv.stride, conv.before, conv.groups
        self.gradients(dz, conv.weight.value, dx, conv.weight.grad, *geometry)
        return dx


class SharedMemoryConv(ConvStep):
    """By tiles of 16×16 in shared memory, one output a thread."""

    short = "shared memory"
    source = "layers/fast/conv/shared_memory.py"
    computed_by = "shared_forward_kernel, shared_{input,filter}_gradient_kernel"

    def product(self, x, w, b, y, stride, before, groups, relu):
        """As `ConvStep.product`."""
        shared_forward(x, w, b, y, stride, before, groups, relu)

    def gradients(self, dz, w, dx, dw, stride, before, groups):
        """As `ConvStep.gradients`."""
        if dx is not None:
            shared_input_gradient(dz, w, dx, stride, before, groups)
        shared_filter_gradient(self.x, dz, dw, stride, before, groups)


class TiledConv(ConvStep):
    """By register tiles in float32; dL/dx with a stride is the book's."""

    short = "tiled"
    source = "layers/fast/conv/tiled.py"
    computed_by = "tiled_forward_*_kernel, tiled_filter_*_kernel, sum_parts_kernel"

    def product(self, x, w, b, y, stride, before, groups, relu):
        """As `ConvStep.product`."""
        tiled_forward(x, w, b, y, stride, before, groups, relu)

    def gradients(self, dz, w, dx, dw, stride, before, groups):
        """As `ConvStep.gradients`."""
        if dx is not None and stride == 1:
            tiled_input_gradient(dz, w, dx, before, groups, self.buffer)
        elif dx is not None:
            conv_input_gradient_kernel[grid_for(dx.size)](dz, w, dx, stride, before, groups)
        tiled_filter_gradient(self.x, dz, dw, stride, before, groups, self.buffer)


class TensorConv(ConvStep):
    """On tensor cores, in TF32 or bfloat16."""

    short = "tensor cores"
    source = "layers/fast/conv/tensor_core.py"
    computed_by = "tensor_forward_*_kernel, tensor_filter_*_kernel, sum_parts_kernel"

    def follow(self, before):
        """`before` is the step whose output this one takes: mask dL/dx for its ReLU.

        In TF32 a convolution or pooling then rounds its output.
        """
        if isinstance(before, TensorConv) and len(before.layers) == 2:
            self.masks_input = before.dy_is_masked = True
        self.before = before if isinstance(before, Step) else None
        if self.precision == "tf32" and isinstance(before, TensorConv | MaxPoolRows):
            before.rounds_output = True

    def s2d_image(self, image, side):
        """As `Step.s2d_image`."""
        conv, per_chunk = self.layers[0], BYTES // self.storage.itemsize
        size, stride, groups = conv.kernel_size, conv.stride, conv.groups
        y_shape = 1, *conv.output_shape(image)
        _, *shape = s2d_shape((1, *image), y_shape, size, stride, side, groups, per_chunk)
        chosen = choose_side(size, stride, image[2] // groups, per_chunk)
        fits = chosen == side and shape[2] == side * side * image[2]
        self.s2d = S2dImage(image, tuple(shape), conv.before, self.storage) if fits else None
        return self.s2d

    def check_input(self, x):
        """As `Step.check_input`."""
        return self.device.xp.ascontiguousarray(x) if self.is_s2d(x) else super().check_input(x)

    def product(self, x, w, b, y, stride, before, groups, relu):
        """As `ConvStep.product`."""
        self.x_is_rounded = self.before is not None and self.before.y_is_rounded
        self.y_is_rounded = self.rounds_output
        self.x_s2d = tensor_forward(
            *(x, w, b, y, stride, before, groups, self.buffer, relu),
            rounded=self.x_is_rounded,
            round_y=self.rounds_output,
            x_shape=self.x_shape,
        )

    def gradients(self, dz, w, dx, dw, stride, before, groups):
        """As `ConvStep.gradients`."""
        if dx is not None:
            mask = self.x if self.masks_input else None
            round_dx = self._rounds_dx(stride)
            tensor_input_gradient(
                *(dz, w, dx, stride, before, groups, self.buffer, mask),
                rounded=self.dz_is_rounded,
                round_dx=round_dx,
            )
            if self.masks_input:
                self.before.dz_is_rounded = round_dx
        tensor_filter_gradient(
            *(self.x, dz, dw, stride, before, groups, self.buffer),
            x_s2d=self.x_s2d,
            rounded=(self.x_is_rounded, self.dz_is_rounded),
            x_shape=self.x_shape,
        )

    def _rounds_dx(self, stride):
        """Whether dL/dx is what the convolution before this one multiplies."""
        return self.masks_input and self.precision == "tf32" and stride == 1
