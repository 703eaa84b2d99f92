"""What a network computes: each layer an explicit forward / backward pair.

Every file of this folder shows one operation: the formula and its derivative, the host loops, the
CUDA kernels, and a small class that chooses between the two. Start with `lrn.py`; docs/tour.md has
the order. The faster versions are in `layers/fast/`, which no file here imports.
"""

# First, because `blas` has to come before NumPy.
from layers.process import blas, compiling, forks  # noqa: F401, I001

from layers.activation import ReLU, Tanh
from layers.cifar10.avg_pool import AvgPool2D
from layers.conv import Conv2D
from layers.device import Device, DeviceError
from layers.dropout import Dropout
from layers.flatten import Flatten
from layers.layer import Layer, Parameter
from layers.linear import Linear
from layers.cifar10.locally_connected import LocallyConnected2D
from layers.lrn import LocalResponseNorm
from layers.max_pool import MaxPool2D
from layers.softmax_cross_entropy import SoftmaxCrossEntropy

__all__ = [
    "AvgPool2D",
    "Conv2D",
    "Device",
    "DeviceError",
    "Dropout",
    "Flatten",
    "Layer",
    "Linear",
    "LocalResponseNorm",
    "LocallyConnected2D",
    "MaxPool2D",
    "Parameter",
    "ReLU",
    "SoftmaxCrossEntropy",
    "Tanh",
]
