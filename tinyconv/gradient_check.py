"""Compare a layer's backward pass with numerical derivatives of its forward pass.

Take random numbers r of the output's shape and the scalar f(x, w) = Σ r · y. By the chain rule
backward(r) must return ∂f/∂x and leave ∂f/∂w in the parameters. The slope of f in one variable t is
measured by central differences,

    ∂f/∂t ≈ ( f(t + h) − f(t − h) ) / 2h        error about h²/6 · f''' + ε/h · |f|

with ε = 1.1e-16 in float64. h = 1e-5 keeps both terms near 1e-10, far below the tolerance of 1e-6;
in float32 (ε = 6e-8) the second term would exceed it. The 2012 training program contained such a
check.

The function must be smooth within h of x: with a ReLU input within h of 0, or two equal numbers in
a pooling window, the measured slope is wrong although the derivative is right.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from layers import Layer, SoftmaxCrossEntropy
from tinyconv.sequential import Sequential

STEP = 1e-5
TOLERANCE = 1e-6


@dataclass(frozen=True)
class GradientRow:
    """The result for one array: the input "x", or a parameter."""

    name: str
    shape: tuple[int, ...]
    checked: int
    """How many of its elements were checked."""
    error: float
    """Largest relative |measured − computed|."""
    where: tuple[int, ...]
    """Index of the element with that error."""
    measured: float
    computed: float
    tolerance: float
    wrong: int
    """How many of those checked have a larger error than the tolerance."""

    @property
    def ok(self) -> bool:
        """True if the error is not NaN and not above the tolerance."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        found = f"WRONG in {self.wrong} of {self.checked}: here {self.computed:.9g}"
        verdict = "ok" if self.ok else f"{found}, measured {self.measured:.9g}"
        shape = "×".join(str(side) for side in self.shape)
        where = ", ".join(str(i) for i in self.where)
        cells = f"{self.name:<18} {shape:<14} {self.checked:>6} {self.error:9.1e}"
        return f"{cells}  [{where}]  {verdict}"


HEADER = f"{'array':<18} {'shape':<14} {'checked':>6} {'error':>9}  where  verdict"


def check_gradients(
    layer: Layer | Sequential,
    x: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    train: bool = True,
    samples: int | None = None,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> list[GradientRow]:
    """Compare backward() with central differences, in float64, for x and for every parameter.

    layer: a layer or a whole net, in float64 (`.to(device, "float64")`), on any device.
    x: host array (N, ...). labels: (N,) to check the net together with SoftmaxCrossEntropy;
    without them f = Σ r · y for a random r. train: the forward pass to check; dropout keeps one
    mask throughout. samples: check this many elements of each array instead of all (two forward
    passes each). seed: of r and of the sampled elements.

    Returns a row for each array. Weights and inputs are unchanged afterwards.
    ValueError if the layer does not compute in float64, or x does not fit.
    """
    if layer.dtype != np.float64:
        raise ValueError(
            f"check_gradients: the layer computes in {layer.dtype}; "
            "call .to(device, 'float64') first"
        )
    rng = np.random.default_rng(seed)
    device = layer.device
    x_device = device.array(x, np.float64)
    output, gradient = _objective(layer, x_device, labels, train, rng)

    first = layer.layers[0] if isinstance(layer, Sequential) else layer
    had_input_gradient, first.input_gradient = first.input_gradient, True
    dx = gradient()
    first.input_gradient = had_input_gradient
    # Copies: the following forward passes overwrite buffers.
    checked = [("x", x_device, device.to_host(dx).copy())]
    for parameter in layer.parameters():
        checked.append((parameter.name, parameter.value, device.to_host(parameter.grad).copy()))

    rows = []
    for name, array, computed in checked:
        indices = _choose(computed.shape, samples, rng)
        measured = np.array([_slope(output, array, index) for index in indices])
        backward = np.array([computed[index] for index in indices])
        errors = _relative_errors(measured, backward)
        worst = int(np.argmax(errors))
        rows.append(
            GradientRow(
                name=name,
                shape=computed.shape,
                checked=len(indices),
                error=float(errors[worst]),
                where=indices[worst],
                measured=float(measured[worst]),
                computed=float(backward[worst]),
                tolerance=tolerance,
                wrong=int(np.count_nonzero(~(errors <= tolerance))),
            )
        )
    return rows


def _objective(
    layer: Layer | Sequential,
    x: Any,
    labels: np.ndarray | None,
    train: bool,
    rng: np.random.Generator,
) -> tuple[Callable[[], float], Callable[[], Any]]:
    """Functions without arguments for f and its gradient; x and w are changed in place."""
    device = layer.device

    def forward() -> Any:
        layer.set_step(0)
        return layer.forward(x, train)

    if labels is not None:
        if isinstance(layer, Sequential):
            loss = layer.loss()
        else:
            loss = SoftmaxCrossEntropy().to(device, np.float64)

        def output() -> float:
            return loss.forward(forward(), labels)

        def gradient() -> Any:
            output()
            return layer.backward(loss.backward())

        return output, gradient

    r = rng.standard_normal(forward().shape)

    def projected() -> float:
        return float(np.sum(r * device.to_host(forward())))

    def projected_gradient() -> Any:
        forward()
        return layer.backward(device.array(r))

    return projected, projected_gradient


def _choose(
    shape: tuple[int, ...], samples: int | None, rng: np.random.Generator
) -> list[tuple[int, ...]]:
    """Every index of an array, or `samples` of them."""
    size = int(np.prod(shape))
    flat = np.arange(size)
    if samples is not None and samples < size:
        flat = np.sort(rng.choice(size, samples, replace=False))
    return [tuple(int(i) for i in np.unravel_index(j, shape)) for j in flat]


def _relative_errors(measured: np.ndarray, computed: np.ndarray) -> np.ndarray:
    """|measured − computed| relative to the larger of the two.

    Slopes below a thousandth of the array's largest are compared with that thousandth: where the
    derivative is 0 the measured slope is rounding noise, about 1e-10 of f.
    """
    larger = np.maximum(np.abs(measured), np.abs(computed))
    floor = 1e-3 * larger.max() + 1e-12
    return np.asarray(np.abs(measured - computed) / np.maximum(larger, floor))


def _slope(output: Callable[[], float], array: Any, index: tuple[int, ...]) -> float:
    """The central difference of f in array[index], whose value is restored afterwards."""
    value = float(array[index])
    array[index] = value + STEP
    above = output()
    array[index] = value - STEP
    below = output()
    array[index] = value
    return (above - below) / (2 * STEP)
