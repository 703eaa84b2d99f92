"""Compare every derivative with central differences, in float64.

tinyconv gradcheck                 every layer and a small net, host loops
tinyconv gradcheck conv2d lrn      some layers
tinyconv gradcheck --simulate      their kernels, in the simulator
"""

import argparse
import inspect

import numpy as np

from layers import Device, DeviceError
from layers.fast.plan import KERNELS
from tinyconv.gradient_check import HEADER, GradientRow, check_gradients
from tinyconv.lab.cases import GROUPS, LAYERS, book, named, plain, unknown
from tinyconv.lab.cases.book import gradient_cases
from tinyconv.sequential import Sequential

NET = "net"
"""The name of the small net."""

COMPUTED_BY = {"x": ("dx", "dlogits"), "weight": ("dw",), "bias": ("db",)}
"""For an array of a layer, the outputs of a kernel that may hold its derivative."""


def options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="layers such as conv2d, relu, net (default: all)")
    add("--device", default="cpu", help="cpu (default), cuda:0 or auto")
    add("--simulate", action="store_true", help="the kernels in the simulator, which needs no GPU")
    add("--kernels", choices=KERNELS, default="simple", help="simple (default): those in "
        "layers/*.py; fast: those of the plan")  # fmt: skip


def main(options: argparse.Namespace) -> int:
    """Print a row for each array of each layer; 1 if any derivative is wrong, else 0.

    ValueError for a name that no layer has.
    """
    try:
        device = Device("cuda:0" if options.simulate else options.device)
    except DeviceError as error:
        raise DeviceError(f"{error}; or --simulate, which needs no GPU") from None
    cases = list(gradient_cases())
    kinds = list(dict.fromkeys(title.split()[0].lower() for title, *_ in cases))
    names = kinds if not options.names else []
    for name in options.names:
        names += kinds_named(name, kinds)
    print(f"central differences in float64 on {device}, kernels {options.kernels}")
    failed = checked = 0
    for title, layer, x, labels in cases:
        if title.split()[0].lower() not in names:
            continue
        print(f"\n{title}\n  {HEADER}")
        net = layer if isinstance(layer, Sequential) else Sequential({layer.name: layer})
        net.to(device, "float64", kernels=options.kernels)
        for row in check_gradients(net, x, labels):
            print(f"  {row}")
            kind = "" if row.ok or options.kernels != "simple" else title.split()[0].lower()
            if command := step_command(kind, row, x.shape):
                does = "stop in" if device.is_cuda else "compare with"
                print(f"    {does} its kernel: {command}")
            failed, checked = failed + (not row.ok), checked + 1
    where = "kernels" if device.is_cuda else "host loops"
    other = "" if device.is_cuda else "; no kernel was run (--simulate runs them)"
    verdict = f"{failed} of {checked} derivatives are wrong" if failed else "all derivatives agree"
    print(f"\n{verdict}: {checked} arrays, {options.kernels} {where}{other}")
    return 1 if failed else 0


def kinds_named(name: str, kinds: list[str]) -> list[str]:
    """Those of `kinds`, classes of layers in lower case, that a user means; ValueError for none.

    name: the beginning of one or more, or what the laboratory's commands take.
    """
    start = "small" if name == NET else plain(name)
    if found := [kind for kind in kinds if start and kind.startswith(start)]:
        return found
    try:
        group, _ = named(name)
    except ValueError:
        group = ""
    if found := [kind for kind in kinds if group and LAYERS.get(kind) == group]:
        return found
    raise unknown(
        "layer", name, [*kinds, NET], [key for key in book.GROUPS if key in LAYERS.values()]
    )


def step_command(kind: str, row: GradientRow, shape: tuple[int, ...]) -> str:
    """The command that stops in the thread of the row's worst element; "" if no kernel has it.

    shape: of the layer's input. A kernel that takes dx as rows, or as one axis, gets its own index.
    Other arrays have the shape that the command's own layer gives them: their first element.
    """
    group = LAYERS.get(kind)
    for case in GROUPS[group].cases if group in book.GROUPS else ():
        for output in COMPUTED_BY.get(row.name.rpartition(".")[2], ()):
            if output not in case.outputs:
                continue
            sides = ",".join(map(str, shape))
            command = f"python -m tinyconv step {case.name} --shape {sides}"
            if row.name != "x":
                return command
            place = list(inspect.signature(case.kernel.py_func).parameters).index(output)
            axes = case.argument_types("float64")[place].ndim
            rows = (-1, *shape[len(shape) - axes + 1 :])
            flat = np.ravel_multi_index(row.where, shape)
            index = np.unravel_index(flat, np.empty(shape, np.bool_).reshape(rows).shape)
            return f"{command} --output {','.join(str(int(i)) for i in index)}"
    return ""
