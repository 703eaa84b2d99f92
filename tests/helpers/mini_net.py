"""A net whose convolution is one tile of one or two slices: for the simulated tensor cores."""

from layers import Conv2D, Flatten, Linear, ReLU
from tinyconv import Sequential
from tinyconv.initialize import initialize


def mini_net() -> Sequential:
    """One convolution (5×4×8 to 4×3×3), ReLU, and two classes."""
    layers = {"conv1": Conv2D(8, 3, 2), "relu1": ReLU(), "flatten": Flatten(), "fc2": Linear(36, 2)}
    return initialize(Sequential(layers, (5, 4, 8)), "robust", seed=1)
