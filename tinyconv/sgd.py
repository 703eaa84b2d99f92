"""Stochastic gradient descent with momentum and weight decay, by the paper's rule (§5).

    v ← momentum · v − weight_decay · ε · w − ε · dL/dw
    w ← w + v

ε is the learning rate. (Others write v ← momentum · v + g, w ← w − ε · v; the two agree as long
as ε does not change. Here a change of ε acts on new gradients only, as in the paper.)

All parameters of a net are in one flat array, all gradients in another, all velocities in a third,
and each `Parameter.value` and `.grad` becomes a view of a range. A step is then one pass over
three arrays instead of one for each of 16 parameters. Every range starts at a multiple of BLOCK
elements, so that a block of threads works on one parameter, and a table has the rate and decay of
each block: in the 2012 code, biases learn at twice the rate and without decay.

The gradients of a loss that is not finite must not reach the weights, or its origin could no longer
be found. The host leaves such a step out; if the loss is still on the device, the kernel does, by a
flag that was set there.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit, prange

from layers import Parameter
from layers.device import cuda, grid_of

BLOCK = 256
"""Elements in a block, and threads in a CUDA block."""

# --- host


@njit(parallel=True, cache=True)
def sgd_host(w, dw, v, rates, decays, lr, momentum):
    for block in prange(rates.size):
        rate = lr * rates[block]
        for i in range(block * BLOCK, (block + 1) * BLOCK):
            v[i] = momentum * v[i] - decays[block] * rate * w[i] - rate * dw[i]
            w[i] += v[i]


# --- kernel
#
# One thread per element, one block per BLOCK elements of one parameter. All loads and stores are
# coalesced: three reads and two writes of each element, 20 bytes in float32, so memory bandwidth is
# the limit. One thread owns each element: no races, deterministic. With `skip` set all return.


@cuda.jit
def sgd_kernel(w, dw, v, rates, decays, lr, momentum, skip):
    i = cuda.grid(1)
    if skip[0] != 0:
        return
    rate = lr * rates[cuda.blockIdx.x]
    v[i] = momentum * v[i] - decays[cuda.blockIdx.x] * rate * w[i] - rate * dw[i]
    w[i] += v[i]


# --- optimizer


class SGD:
    """Momentum SGD over one flat buffer (paper §5: lr 0.01, momentum 0.9, weight decay 5e-4).

    parameters: `net.parameters()`, after `net.to(device)`; they are moved into the flat buffer.
    If `net.to` is called again, `step` raises RuntimeError. `lr` may be changed between steps.
    Attributes `values`, `grads`, `velocities` are the flat arrays; gaps between parameters stay
    zero. ValueError without parameters, or for numbers out of range.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
    ) -> None:
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError("SGD: no parameters to train")
        if not (0 <= lr < math.inf and 0 <= momentum < 1 and 0 <= weight_decay < math.inf):
            raise ValueError(
                "SGD: needs lr >= 0, 0 <= momentum < 1 and weight_decay >= 0, "
                f"not {lr}, {momentum}, {weight_decay}"
            )
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.device = self.parameters[0].device
        self.dtype = self.parameters[0].value.dtype
        blocks = [-(-p.value.size // BLOCK) for p in self.parameters]
        size = BLOCK * sum(blocks)
        self.values, self.grads, self.velocities = (
            self.device.zeros((size,), self.dtype) for _ in range(3)
        )
        self._starts = [BLOCK * sum(blocks[:place]) for place in range(len(blocks))]
        self._gather()
        self._rates, self._decays = (
            self.device.array(np.repeat(np.array(column, self.dtype), blocks))
            for column in (
                [p.lr_multiplier for p in self.parameters],
                [weight_decay * p.decay_multiplier for p in self.parameters],
            )
        )
        self._never = self.device.zeros((1,), np.int32)

    def _gather(self) -> None:
        """Move the parameters into the flat buffer."""
        self._views: list[tuple[Any, Any]] = []
        for parameter, start in zip(self.parameters, self._starts, strict=True):
            shape, part = parameter.value.shape, slice(start, start + parameter.value.size)
            value, grad = self.values[part].reshape(shape), self.grads[part].reshape(shape)
            value[...], grad[...] = parameter.value, parameter.grad
            parameter.value, parameter.grad = value, grad
            self._views.append((value, grad))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._gather()  # in a copy, arrays are no views of each other

    def freeze(self, parameters: Sequence[Parameter]) -> None:
        """Exclude these parameters from all further steps: rate and velocity become 0."""
        for parameter in parameters:
            first = self._starts[self.parameters.index(parameter)]
            blocks = slice(first // BLOCK, -(-(first + parameter.value.size) // BLOCK))
            self._rates[blocks] = 0
            self.velocities[first : first + parameter.value.size] = 0

    def velocity(self, parameter: Parameter) -> Any:
        """The velocities of `parameter`, a view in its shape."""
        first = self._starts[self.parameters.index(parameter)]
        return self.velocities[first : first + parameter.value.size].reshape(parameter.value.shape)

    def step(self, loss: Any = 0.0) -> None:
        """Update every parameter from its gradient, in place, unless `loss` is not finite.

        loss: of these gradients; a number, or a `Pending` one (`layers/fast/streams.py`), whose
        flag the device reads.
        """
        for parameter, (value, grad) in zip(self.parameters, self._views, strict=True):
            if parameter.value is not value or parameter.grad is not grad:
                raise RuntimeError(
                    f"SGD: {parameter.name} moved after SGD was made; call net.to() before SGD()"
                )
        skip = getattr(loss, "skip", None)
        if skip is None and not math.isfinite(loss):
            return
        arguments = (
            *(self.values, self.grads, self.velocities, self._rates, self._decays),
            *(self.dtype.type(self.lr), self.dtype.type(self.momentum)),
        )
        if self.device.is_cuda:
            skip = self._never if skip is None else skip
            sgd_kernel[grid_of(self._rates.size, BLOCK)](*arguments, skip)
        else:
            sgd_host(*arguments)
