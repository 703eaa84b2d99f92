"""Fully connected layer (paper §3.5: fc6, fc7, fc8).

    y = x · wᵀ + b            y[n, o] = b[o] + Σ_i x[n, i] · w[o, i]

    dL/dx = dL/dy · w         dL/dw = dL/dyᵀ · x         dL/db = Σ_n dL/dy[n]

Shapes: x, dx (N, in); w (out, in); b (out); y, dy (N, out). float32 or float64; x, y and their
gradients may be bfloat16 on a GPU.

All three are plain matrix products, and nobody multiplies matrices better than the vendor's
library: NumPy's BLAS on the host, cuBLAS on a GPU (`products.py`). What is left, the bias and its
gradient, is in `fused/epilogue.py`. There is no kernel here, and so one text serves both.
"""

from layers.fast.bias_relu import add_bias, bias_gradient
from layers.fast.gemm import multiply
from layers.layer import Layer, Parameter


class Linear(Layer):
    """y = x · wᵀ + b (paper §3.5).

    Attributes `weight` (out_features, in_features) and `bias` (out_features) are Parameters, zero
    until `tinyconv.initialize` draws them. ValueError if a size is below 1.
    """

    def __init__(self, in_features, out_features):
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(
                f"Linear: sizes must be at least 1, not {in_features} and {out_features}"
            )
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter("weight", (out_features, in_features))
        self.bias = Parameter("bias", (out_features,))

    def parameters(self):
        """weight, bias."""
        return [self.weight, self.bias]

    def output_shape(self, input_shape):
        """(in,) -> (out,)."""
        if input_shape != (self.in_features,):
            raise ValueError(
                f"{self.name}: an input of shape {input_shape} does not fit weights of shape "
                f"{self.weight.value.shape}; expected ({self.in_features},), see Flatten"
            )
        return (self.out_features,)

    def multiply_adds(self, input_shape):
        """in · out."""
        return self.weight.value.size

    def begin(self, x):
        """Take x (N, in), as the products do, and w; returns an array for x · wᵀ, and y (N, out).

        The two are one array, except in bf16 on a GPU, where the product is float32 and y is not.
        """
        x = self.check_input(x)
        self.x = self.operand(x, "x for products")
        self.w = self.operand(self.weight.value, "w for products")
        self.y = y = self.buffer("y", (x.shape[0], self.out_features), self.storage)
        return y if self.storage == self.dtype else self.buffer("product", y.shape), y

    def forward(self, x, train=True):
        """x (N, in) -> y (N, out)."""
        p, y = self.begin(x)
        multiply(self.device, (self.x, self.w.T, p), precision=self.precision)
        add_bias(self.device, p, self.bias.value, y)
        return y

    def backward(self, dy):
        """dy (N, out) -> dx (N, in), or None if `input_gradient` is switched off."""
        dy = self.check_gradient(dy)
        bias_gradient(self.device, dy, self.bias.grad, self.buffer)
        dy = self.operand(dy, "dy for products")
        dw = dy.T, self.x, self.weight.grad
        if not self.input_gradient:
            multiply(self.device, dw, precision=self.precision)
            return None
        dx = self.buffer("dx", self.x.shape, self.storage)
        multiply(self.device, (dy, self.w, dx), dw, precision=self.precision)
        return dx
