"""Convolution with the ReLU behind it (paper §3.1, §3.5).

    y = relu(z)    z = conv(x) + b

    dz = dL/dy where y > 0, else 0, and dL/db, in one pass over dL/dy;  dL/dw and dL/dx from dz
    as in `layers/fast/conv/`

z is not kept: the derivative of the ReLU needs only y. Rungs 2 and 3 of the convolution apply the
ReLU to their sums before they write them; elsewhere the ReLU follows in place. Shapes: x (N, H, W,
C), y, dy, dz (N, P, Q, K).

Where one such step follows another, its x is the other's y, and its dL/dx is what the other masks
first. Rung 3 then writes dL/dx masked already, dL/dx where x > 0, else 0, and the other has only
dL/db to sum (`plan.py` finds the pairs). The bits are the same.
"""

from layers.activation import relu_forward_host
from layers.fast.bias_relu import bias_gradient, masked_gradient
from layers.fast.step import FusedStep


class ConvStep(FusedStep):
    """A Conv2D, then a ReLU.

    masks_input: mask dL/dx with the ReLU that x came from. dy_is_masked: dL/dy comes masked.
    """

    def __init__(self, conv, relu):
        super().__init__([conv, relu])
        self.conv, self.relu = conv, relu
        self.masks_input = self.dy_is_masked = False

    def follow(self, before):
        """`before` is the step whose output this one takes: mask for it, if rung 3 is at work."""
        if isinstance(before, ConvStep) and self.conv.on_tensor_cores:
            self.masks_input = before.dy_is_masked = True

    def forward(self, x, train=True):
        """x (N, H, W, C) -> y (N, P, Q, K)."""
        conv, relu = self.conv, self.relu
        y = conv.compute(x, relu=True)
        if not conv.device.is_cuda:
            relu_forward_host(y.reshape(-1), y.reshape(-1))
        elif conv.chosen(conv.x, y) == "direct":
            conv.y = y = relu.forward(y, train)
        relu.y = y
        return y

    def backward(self, dy):
        """dy (N, P, Q, K) -> dx (N, H, W, C), or None if `input_gradient` is switched off."""
        conv = self.conv
        if not conv.device.is_cuda:
            return conv.backward(self.relu.backward(dy))
        dy, db = conv.check_gradient(dy), conv.bias.grad
        mask = conv.x if self.masks_input else None
        if self.dy_is_masked:
            bias_gradient(conv.device, dy.reshape(-1, db.size), db, conv.buffer)
            return conv.gradients(dy, mask)
        dz = conv.buffer("dz", dy.shape, conv.storage)
        y_rows, dy_rows, dz_rows = (array.reshape(-1, db.size) for array in (conv.y, dy, dz))
        one = conv.dtype.type(1)
        masked_gradient(conv.device, y_rows, dy_rows, dz_rows, db, one, conv.buffer)
        return conv.gradients(dz, mask)
