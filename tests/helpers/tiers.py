"""The two tiers of `layers/`, for tests that hold both against one oracle.

What `computing` returns has forward, backward, device and dtype like a layer, so `oracles.run` and
`oracles.gradients` take it.
"""

import numpy as np
import pytest

from layers import SoftmaxCrossEntropy
from layers.fast.plan import plan, plan_loss

TIERS = "simple", "fast"

both_tiers = pytest.mark.parametrize("tier", TIERS)
"""The book's layer, and what the plan puts in its place (the layer itself if there is nothing)."""

tiers_of_conv = pytest.mark.parametrize(
    ("tier", "device"),
    [("simple", "cpu"), ("simple", "cuda:0"), ("fast", "cpu")],
    indirect=["device"],
)
"""Where a Conv2D in float64 has arithmetic of its own: on a GPU only the book has it."""


class Chain:
    """Layers or steps one after the other, as `tinyconv.Sequential` walks along them."""

    def __init__(self, steps, layers):
        self.steps, self.layers = list(steps), list(layers)
        self.device, self.dtype = layers[0].device, layers[0].dtype

    def forward(self, x, train=True):
        for step in self.steps:
            x = step.forward(x, train)
        return x

    def backward(self, dy):
        for step in reversed(self.steps):
            dy = step.backward(dy)
        return dy


def computing(layers, tier, precision="fp32", float32_ends=True):
    """What computes `layers`, one or a list, which are on their device already.

    tier "simple": the layers themselves; "fast": the steps of the plan. If it is a single one it is
    returned as it is, else a Chain.
    """
    layers = list(layers) if isinstance(layers, (list, tuple)) else [layers]
    steps = layers
    if tier == "fast":
        first = layers[0]
        steps = plan(layers, first.device, first.dtype, precision, float32_ends)
    return steps[0] if len(steps) == 1 else Chain(steps, layers)


def layers_of(thing):
    """The layers that a layer, a step or a Chain computes."""
    return getattr(thing, "layers", [thing])


def loss_of(tier, device, dtype=np.float64):
    """The softmax cross-entropy of a tier."""
    return plan_loss(device, dtype) if tier == "fast" else SoftmaxCrossEntropy().to(device, dtype)
