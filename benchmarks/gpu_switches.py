"""The cases of `gpu_day.py` for switches of the tensor-core kernels that only a GPU can decide.

A switch is a constant in `layers/fast/conv`, some of which are read when a kernel is defined. So
its other value is tried in a second copy of the modules, beside the default in the same process.
Compiling takes most of the time: a process for each switch, which take turns when they time.
"""

import fcntl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np
from gpu_bench import IN_WORDS, Bench, compare
from gpu_cases import PRECISIONS, product_of, products_of
from gpu_report import SWITCHES
from runner import Case, Job

from layers import Conv2D
from layers.fast import conv
from layers.fast.bfloat16 import from_bits
from layers.fast.precision import BITS

SHARED = "ptx", "mma"
"""Modules of instructions: they know no switch, and the simulator knows them by name."""


@contextmanager
def alone() -> Iterator[None]:
    """Within it no other process of the stage is: they share the GPU."""
    with open(__file__, encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Alone:
    """A clock whose runs are timed while no other process of the stage has the GPU."""

    def __init__(self, clock: Any) -> None:
        self.clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.clock, name)

    def __call__(self, run: Callable[[], Any]) -> tuple[float, float]:
        """As the clock itself."""
        with alone():
            seconds: tuple[float, float] = self.clock(run)
            return seconds


def default_of(switch: str) -> bool:
    """Its value in the source; "tensor_tile.L1" is a constant's module and name."""
    module, name = switch.split(".")
    return bool(getattr(import_module(f"{conv.__name__}.{module}"), name))


@cache
def switched(switch: str) -> tuple[Callable[..., Any], ...]:
    """The functions for `gpu_cases.PRODUCTS`, of modules in which this switch is turned."""
    package, value = conv.__name__, not default_of(switch)
    shared = [f"{package}.{name}" for name in SHARED]
    known = {name: module for name, module in sys.modules.items() if name.startswith(f"{package}.")}
    module, constant = switch.split(".")
    try:
        for name in known.keys() - shared:
            del sys.modules[name]
        setattr(import_module(f"{package}.{module}"), constant, value)
        core = import_module(f"{package}.tensor_core")
        gradients = import_module(f"{package}.tensor_gradients")
    finally:
        sys.modules.update(known)
        for name, old in known.items():
            setattr(conv, name.rpartition(".")[2], old)
    return core.tensor_forward, core.tensor_input_gradient, gradients.tensor_filter_gradient


def switch_cases(
    bench: Bench, count: int, precisions: tuple[str, ...] = PRECISIONS
) -> Iterator[Case]:
    """All convolutions of a step of `count` images, TF32 first; of each switch both values.

    The cases of the switches take turns: as many shares of the stage have one switch each.
    """
    for precision in precisions:
        for layer, shape, direction in products_of(bench):
            for turned in (False, True):
                for switch in SWITCHES:
                    what = f"{switch}{IN_WORDS[precision]}: {layer.name} {direction}"
                    rest = layer, (count, *shape), direction, precision, switch, turned
                    who = str(default_of(switch) != turned)
                    yield Case("switches", what, who, partial(with_switch, bench, *rest))


def with_switch(
    bench: Bench,
    layer: Conv2D,
    x_shape: tuple,
    direction: str,
    precision: str,
    switch: str,
    turned: bool,
) -> Job:
    """One product; with the switch turned, after a check beside the default's result.

    Of factors in float32 that are rounded to TF32, as nearly all of a step's are.
    """
    with alone():
        out, run = product_of(bench, layer, x_shape, direction, precision)
    functions = switched(switch) if turned else None
    timed = partial(run, None, True, functions)
    if bench.on_gpu:
        timed()  # compiled while other processes time
    if not turned:
        return Job(timed)
    with alone():
        run(None, True)
        default = bench.device.to_host(out).copy()
        out[...] = 77  # so that a result that is not written differs
        timed()
        ours = bench.device.to_host(out)
    if SWITCHES[switch] and not np.array_equal(ours, default):
        raise ValueError(f"{switch} = {not default_of(switch)} gives other bits than the default")
    right = from_bits(default) if default.dtype == BITS else default
    compare(f"the result with {switch} turned", ours, right)
    return Job(timed)
