"""Fully connected, with what follows it: ReLU, and dropout behind the ReLU (paper §3.5, §4.2).

    p = x · wᵀ, and then in one pass over p   + b, ReLU, dropout       (`epilogue.py`)

    dz and dL/db in one pass over dL/dy;  dL/dw = dzᵀ · x;  dL/dx = dz · w

z = x · wᵀ + b is what enters the ReLU; without one dz is dL/dy. The products are announced
(`layers/fast/graph.py`), since a recording is cut there. Shapes: x (N, in), y, dy, dz (N, out).
"""

from layers.fast.bias_relu import add_bias, bias_gradient, bias_relu, masked_gradient
from layers.fast.graph import products
from layers.fast.step import FusedStep


class LinearStep(FusedStep):
    """A Linear, then perhaps a ReLU, then perhaps a Dropout."""

    def __init__(self, linear, relu=None, dropout=None):
        super().__init__([layer for layer in (linear, relu, dropout) if layer is not None])
        self.linear, self.relu, self.dropout = linear, relu, dropout

    def forward(self, x, train=True):
        """x (N, in) -> y (N, out)."""
        linear = self.linear
        device, b = linear.device, linear.bias.value
        p, y = linear.begin(x)
        products(device, (linear.x, linear.w.T, p), precision=linear.precision)
        if self.dropout is not None:
            self.dropout.begin_pass(train, linear.out_features)
        if self.relu is not None:
            bias_relu(device, p, b, y, self.dropout)
        else:
            add_bias(device, p, b, y)
        for layer in self.layers:
            layer.y = y
        return y

    def backward(self, dy):
        """dy (N, out) -> dx (N, in), or None if the Linear's `input_gradient` is switched off."""
        linear = self.linear
        dz = dy = linear.check_gradient(dy)
        device, dw, db = linear.device, linear.weight.grad, linear.bias.grad
        if self.relu is not None:
            dz = linear.buffer("dz", dy.shape, linear.storage)
            factor = linear.dtype.type(1) if self.dropout is None else self.dropout.factor
            masked_gradient(device, linear.y, dy, dz, db, factor, linear.buffer)
        else:
            bias_gradient(device, dy, db, linear.buffer)
        dz = linear.operand(dz, "dy for products")
        if not linear.input_gradient:
            products(device, (dz.T, linear.x, dw), precision=linear.precision)
            return None
        dx = linear.buffer("dx", linear.x.shape, linear.storage)
        pair = (dz.T, linear.x, dw), (dz, linear.w, dx)
        products(device, *pair, precision=linear.precision)
        return dx
