"""Flatten: the feature maps of an image as one row, for the fully connected layers.

    y[n, (h·W + w)·C + c] = x[n, h, w, c]         dL/dx is dL/dy in x's shape

Shapes: x, dx (N, H, W, C) or any (N, ...); y, dy (N, H·W·C). No number moves: the result is the
same memory, seen in another shape.
"""

import math

from layers.layer import Layer


class Flatten(Layer):
    """(N, H, W, C) -> (N, H·W·C), a view; channels fastest."""

    def output_shape(self, input_shape):
        """(H, W, C) -> (H·W·C,)."""
        return (math.prod(input_shape),)

    def forward(self, x, train=True):
        """x (N, ...) -> y (N, product)."""
        self.x = x = self.check_input(x)
        self.y = x.reshape(x.shape[0], -1)
        return self.y

    def backward(self, dy):
        """dy (N, product) -> dx of x's shape."""
        return self.check_gradient(dy).reshape(self.x.shape)
