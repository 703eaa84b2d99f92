"""A KernelCase for each kernel, and a KernelGroup for kernels that are launched together.

A kernel's arguments, grid and block are made by the layer that launches it. So a group says which
layers to run on which shapes; the launches are recorded, and each becomes a CaseLaunch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numba import types

from tinyconv.lab.checks import check_kernel
from tinyconv.lab.issues import Report

Shape = tuple[int, ...]
Runs = Callable[[Shape, str], dict[str, Callable[[], Any]]]
"""From the shape of an input and a dtype of STORED: what to run, by title. ValueError for a shape
that does not fit."""

STORED = {"float32": types.float32, "float64": types.float64, "bfloat16": types.uint16}
"""What activations are stored as, by the name of their dtype."""

EVERY: tuple[tuple[int, int], ...] = ((7, 5), (8, 0), (9, 0))
"""Compute capabilities for which a kernel is compiled in the tests."""
AMPERE = EVERY[1:]
TENSOR_CORES = (*AMPERE, (12, 0))
"""For Blackwell the compiler unrolls other loops. That once cost the kernels for tensor cores their
registers, so they are compiled for it as well."""


@dataclass(frozen=True)
class KernelCase:
    """What the checks, figures, compile tests and reports know of one kernel."""

    kernel: Any
    types: str = ""
    """Of its parameters, in order: "3*number[2] 2*int64 number" are three arrays of two axes, two
    integers and a scalar. "number" is the dtype of the arithmetic, "stored" that of activations
    (bfloat16 is stored as uint16, with float32 as number); other names are Numba's."""
    fills: str = ""
    """Names of its outputs: parameters that come in empty and go out full. What is updated in place
    is none."""
    figure: tuple[int, int] | None = None
    """The picture in docs/pictures: block and step, both from 0, of the kernel's first launch on
    the group's small shape. None: it has none."""
    operations: Callable[..., int] | None = None
    """From the arguments of a launch its floating-point operations: + − · / and powers are one
    each, those of the formula in the layer's docstring as the kernel computes it. Convolutions are
    2 N P Q K R S C / groups, as if padding were multiplied. None where there are none (pooling,
    ReLU), or most of the time is spent in functions of the library."""
    rewritten: Mapping[str, str] = field(default_factory=dict)
    """By output, why its elements are written more than once; all others are written once."""
    only: tuple[str, ...] = ()
    """The dtypes of activations, keys of STORED, with which it is launched, where `types` do not
    tell: "stored" stands for all three, "number" alone for float32 and float64, neither for
    float32."""
    architectures: tuple[tuple[int, int], ...] = EVERY
    threads: int = 128
    """In a block, of large launches."""

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.__name__)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names in `fills`."""
        return tuple(self.fills.split())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Keys of STORED with which it is launched."""
        known = 3 if "stored" in self.types else 2 if "number" in self.types else 1
        return self.only or tuple(STORED)[:known]

    @property
    def full_name(self) -> str:
        """The same with its module."""
        return f"{self.kernel.__module__}.{self.name}"

    def argument_types(self, dtype: str) -> tuple[Any, ...]:
        """Numba's types of the arguments where activations are stored in `dtype`."""
        known = {"stored": STORED[dtype]}
        known["number"] = types.float32 if dtype == "bfloat16" else known["stored"]
        found: list[Any] = []
        words = r"(?:(\d+)\*)?(\w+)(?:\[(\d)\])?(?: |$)"
        for count, name, axes in re.findall(words, self.types):
            kind = known.get(name) or getattr(types, name)
            found += [types.Array(kind, int(axes), "C") if axes else kind] * int(count or 1)
        return tuple(found)

    def architectures_of(self, dtype: str) -> list[tuple[int, int]]:
        """Those for which it is compiled with activations in `dtype`: all that launch it."""
        oldest = AMPERE[0] if dtype == "bfloat16" else self.architectures[0]
        return [each for each in self.architectures if each >= oldest]


@dataclass(frozen=True)
class KernelGroup:
    """Kernels that are launched together: a NAME of the laboratory's commands."""

    runs: Runs
    """The first one shows most."""
    shapes: tuple[Shape, ...]
    """Of inputs, hostile ones: sides that differ and are multiples of nothing, a single element,
    one more than a block of threads. Of images (N, H, W, C)."""
    small: Shape
    """One that shows well: 8 channels of float32 fill a sector."""
    cases: tuple[KernelCase, ...]
    """Of the kernels that are launched by no group before it."""
    largest: int = 100_000
    """Elements of an input: each access is recorded, which takes some hundred bytes."""

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Those of its kernels."""
        return tuple(dict.fromkeys(dtype for case in self.cases for dtype in case.dtypes))

    def run(self, shape: Shape, dtype: str | None = None) -> dict[str, Callable[[], Any]]:
        """What to run, by title; in float32 if its kernels know that."""
        return self.runs(shape, dtype or self.dtypes[0])


@dataclass(frozen=True)
class CaseLaunch:
    """A launch of a kernel: `case.kernel[grid, block](*args)`."""

    title: str
    """Of the layer, its settings and its input, for a row of a table."""
    case: KernelCase
    grid: int | tuple[int, ...]
    block: int | tuple[int, ...]
    args: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.case.name

    def check(self, orders: int = 3) -> Report:
        """What `check_kernel` reports; its arguments as there."""
        case = self.case
        return check_kernel(
            *(case.kernel, self.grid, self.block, self.args, case.outputs),
            rewritten=case.rewritten,
            orders=orders,
        )
