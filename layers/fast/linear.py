"""Fully connected, with the ReLU and the dropout behind it (paper §3.5, §4.2).

    p = x · wᵀ, and then in one pass over p   + b, ReLU, dropout       (`bias_relu.py`)

    dz and dL/db in one pass over dL/dy;  dL/dw = dzᵀ · x;  dL/dx = dz · w

z = x · wᵀ + b is the input of the ReLU; without one dz is dL/dy. The products go through
`graph.products`, because a recorded step is cut there. Shapes: x (N, in), y, dy, dz (N, out).
"""

from layers.fast.bias_relu import add_bias, bias_gradient, bias_relu, masked_gradient
from layers.fast.graph import products
from layers.fast.step import Step


class LinearStep(Step):
    """A Linear, then perhaps a ReLU, then perhaps a Dropout."""

    def __init__(self, layers, device, dtype, precision="fp32"):
        super().__init__(layers, device, dtype, precision)
        self.linear, self.relu, self.dropout = [*self.layers, None, None][:3]
        self.short, where = ("cuBLAS", "kernel") if device.is_cuda else ("BLAS", "host")
        epilogue = "bias" if device.is_cuda else "bias_relu"
        epilogue = epilogue if self.dropout is None else "bias_relu_dropout"
        self.computed_by = f"{self.short}, {epilogue}_{where}, masked_gradient_{where}"
        if self.relu is None:
            self.computed_by = "cuBLAS, bias_kernel, sum_rows_kernel" if device.is_cuda else "BLAS"

    def forward(self, x, train=True):
        """x (N, in) -> y (N, out)."""
        linear, device = self.linear, self.device
        x = self.check_input(x)
        self.x = self.operand(x, "x for products")
        self.w = self.operand(linear.weight.value, "w for products")
        y = self.output((x.shape[0], linear.out_features))
        # In bf16 on a GPU the product is float32 and y is not.
        p = y if self.storage == self.dtype else self.buffer("product", y.shape)
        products(device, (self.x, self.w.T, p), precision=self.precision)
        if self.dropout is not None:
            self.dropout.begin_pass(train, linear.out_features)
        if self.relu is not None:
            bias_relu(device, p, linear.bias.value, y, self.dropout)
        else:
            add_bias(device, p, linear.bias.value, y)
        return y

    def backward(self, dy):
        """dy (N, out) -> dx (N, in), or None if the Linear's `input_gradient` is switched off."""
        linear, device = self.linear, self.device
        dz = dy = self.check_gradient(dy)
        dw, db = linear.weight.grad, linear.bias.grad
        if self.relu is not None:
            dz = self.buffer("dz", dy.shape, self.storage)
            factor = self.dtype.type(1) if self.dropout is None else self.dropout.factor
            masked_gradient(device, self.y, dy, dz, db, factor, self.buffer)
        else:
            bias_gradient(device, dy, db, self.buffer)
        dz = self.operand(dz, "dy for products")
        dx = self.input_gradient(self.x.shape)
        triples = [(dz.T, self.x, dw)] + ([] if dx is None else [(dz, self.w, dx)])
        products(device, *triples, precision=self.precision)
        return dx
