"""Convolution with the ReLU behind it (paper §3.1, §3.5).

    y = relu(z)    z = conv(x) + b

    dz = dL/dy where y > 0, else 0, and dL/db, in one pass over dL/dy;  dL/dw and dL/dx from dz
    as in `layers/conv/`

z is not kept: the derivative of the ReLU needs only y. Rung 2 of the convolution applies the ReLU
to its sums before it writes them; elsewhere the ReLU follows in place. Shapes: x (N, H, W, C), y,
dy, dz (N, P, Q, K).
"""

from layers.activation import relu_forward_host
from layers.fused import FusedStep
from layers.fused.epilogue import masked_gradient


class ConvStep(FusedStep):
    """A Conv2D, then a ReLU."""

    def __init__(self, conv, relu):
        super().__init__([conv, relu])
        self.conv, self.relu = conv, relu

    def forward(self, x, train=True):
        """x (N, H, W, C) -> y (N, P, Q, K)."""
        conv, relu = self.conv, self.relu
        y = conv.compute(x, relu=True)
        if not conv.device.is_cuda:
            relu_forward_host(y.reshape(-1), y.reshape(-1))
        elif conv.chosen(conv.x, y) != "tiled":
            conv.y = y = relu.forward(y, train)
        relu.y = y
        return y

    def backward(self, dy):
        """dy (N, P, Q, K) -> dx (N, H, W, C), or None if `input_gradient` is switched off."""
        conv = self.conv
        if not conv.device.is_cuda:
            return conv.backward(self.relu.backward(dy))
        dy, db = conv.check_gradient(dy), conv.bias.grad
        dz = conv.buffer("dz", dy.shape)
        y_rows, dy_rows, dz_rows = (array.reshape(-1, db.size) for array in (conv.y, dy, dz))
        one = conv.dtype.type(1)
        masked_gradient(conv.device, y_rows, dy_rows, dz_rows, db, one, conv.buffer)
        return conv.gradients(dz)
