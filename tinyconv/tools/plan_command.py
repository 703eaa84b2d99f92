"""`python -m tinyconv plan`: which file computes which layer, and by what kernel or library."""

import argparse
import sys
from types import CodeType
from typing import Any

import numpy as np

from layers import Device, DeviceError, SoftmaxCrossEntropy
from layers.fast.plan import KERNELS, loss_kind, plan
from layers.fast.precision import PRECISIONS, described
from layers.fast.step import Step, source_file
from tinyconv.alexnet import alexnet
from tinyconv.data.augment import Augment
from tinyconv.recipes import RECIPES
from tinyconv.sequential import Sequential, settle_tier
from tinyconv.sgd import SGD


class MissingGPU:
    """As much of a `Device` as a plan for a GPU needs, on a machine without one."""

    name, is_cuda, is_simulated = "cuda:0", True, False

    def __str__(self) -> str:
        return "a GPU of compute capability 8.0 or more (this machine has none)"


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("--device", default="auto", help="cpu, cuda:0, or auto (default)")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="default auto")
    parser.add_argument("--kernels", choices=KERNELS, default="fast", help="default fast")
    parser.add_argument("--recipe", choices=RECIPES, default="robust", help="default robust")


def main(options: argparse.Namespace) -> int:
    """Print a row for each step of training AlexNet; DeviceError, ValueError for wrong usage.

    A plan for a GPU can be printed on a machine without one, because nothing is computed.
    """
    try:
        device: Any = Device(options.device)
    except DeviceError:
        device = MissingGPU()
    kernels, precision = options.kernels, options.precision
    if isinstance(device, MissingGPU):
        automatic = "tf32" if kernels == "fast" else "fp32"
        precision = automatic if precision == "auto" else precision
        if kernels == "simple":
            settle_tier(kernels, precision, Device("cpu"), np.float32)
    else:
        kernels, precision = settle_tier(kernels, precision, device, np.float32)
    net = alexnet(1000, recipe=options.recipe, width=0.25)
    print(f"{device}; kernels {kernels}; precision {described(precision, device)}\n")
    rows = [("", "file", "computed by", "replaces"), *plan_rows(net, device, kernels, precision)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    return 0


def plan_rows(
    net: Sequential, device: Any, kernels: str, precision: str
) -> list[tuple[str, str, str, str]]:
    """(layer, file, computed by, files replaced) for each part of a training step, in order."""
    steps: list[Any] = list(net.layers)
    loss: Any = SoftmaxCrossEntropy
    if kernels == "fast":
        steps, loss = plan(net.layers, device, np.float32, precision), loss_kind(device)
    loss_by = getattr(loss, "computed_by", None) or names_in(loss, device.is_cuda)
    replaced = "" if loss is SoftmaxCrossEntropy else source_file(SoftmaxCrossEntropy)
    return [
        ("crop", source_file(Augment), names_in(Augment, device.is_cuda), ""),
        *(row_of(step, device.is_cuda) for step in steps),
        ("loss", source_file(loss), loss_by, replaced),
        ("update", source_file(SGD), names_in(SGD, device.is_cuda), ""),
    ]


def row_of(step: Any, on_gpu: bool) -> tuple[str, str, str, str]:
    """The row of a step, or of a layer that its own file in layers/ computes."""
    if isinstance(step, Step):
        return step.name, step.file, step.computed_by, ", ".join(step.replaces)
    return step.name, source_file(step), names_in(type(step), on_gpu), ""


def names_in(kind: type, on_gpu: bool) -> str:
    """The kernels or host loops that the methods of a class launch, or its matrix products."""
    names: list[str] = []
    for function in vars(kind).values():
        names += _names(getattr(function, "__code__", None))
    ending = "_kernel" if on_gpu else "_host"
    found = list(dict.fromkeys(name for name in names if name.endswith(ending)))
    if not found and "matmul" in names:
        found = ["cuBLAS" if on_gpu else "BLAS"]
    module = sys.modules[kind.__module__]
    return ", ".join(name for name in found if hasattr(module, name) or "BLAS" in name) or "a view"


def _names(code: CodeType | None) -> tuple[str, ...]:
    return () if code is None else code.co_names
