"""Fully connected layer (paper §3.5: fc6, fc7, fc8).

    y = x · wᵀ + b            y[n, o] = b[o] + Σ_i x[n, i] · w[o, i]

    dL/dx = dL/dy · w         dL/dw = dL/dyᵀ · x         dL/db = Σ_n dL/dy[n]

Shapes: x, dx (N, in); w (out, in); b (out); y, dy (N, out). float32 or float64.

All three are plain matrix products. The vendor's library computes them: NumPy's BLAS on the host,
cuBLAS through CuPy on a GPU. So there is no kernel here, and one text serves both.
"""

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

    def forward(self, x, train=True):
        """x (N, in) -> y (N, out)."""
        self.x = x = self.check_input(x)
        self.y = y = self.buffer("y", (x.shape[0], self.out_features))
        self.device.xp.matmul(x, self.weight.value.T, out=y)
        y += self.bias.value
        return y

    def backward(self, dy):
        """dy (N, out) -> dx (N, in), or None if `input_gradient` is switched off."""
        dy = self.check_gradient(dy)
        matmul = self.device.xp.matmul
        matmul(dy.T, self.x, out=self.weight.grad)
        dy.sum(axis=0, out=self.bias.grad)
        if not self.input_gradient:
            return None
        dx = self.buffer("dx", self.x.shape)
        matmul(dy, self.weight.value, out=dx)
        return dx
