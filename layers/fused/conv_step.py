"""Convolution with the ReLU behind it (paper §3.1, §3.5).

    y = relu(z)    z = conv(x) + b        dz = dL/dy where y > 0, else 0

The derivative of the ReLU needs only y: on the host the ReLU works in place, and z is not kept. On
a GPU both run as they do by themselves. What the convolution does with dz is in `layers/conv/`.
Shapes: x (N, H, W, C), y, dy, dz (N, P, Q, K).
"""

from layers.activation import relu_forward_host
from layers.fused import FusedStep


class ConvStep(FusedStep):
    """A Conv2D, then a ReLU."""

    def __init__(self, conv, relu):
        super().__init__([conv, relu])
        self.conv, self.relu = conv, relu

    def forward(self, x, train=True):
        """x (N, H, W, C) -> y (N, P, Q, K)."""
        conv, relu = self.conv, self.relu
        z = conv.forward(x, train)
        if conv.device.is_cuda:
            conv.y = relu.forward(z, train)
        else:
            relu_forward_host(z.reshape(-1), z.reshape(-1))
            relu.y = z
        return relu.y

    def backward(self, dy):
        """dy (N, P, Q, K) -> dx (N, H, W, C), or None if `input_gradient` is switched off."""
        return self.conv.backward(self.relu.backward(dy))
