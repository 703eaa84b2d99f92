"""Compare every derivative with central differences, in float64.

tinyconv gradcheck                 every layer and a small net, host loops
tinyconv gradcheck conv2d lrn      some layers
tinyconv gradcheck --simulate      their kernels, in the simulator
"""

import argparse

from layers import Device, DeviceError
from layers.fast.plan import KERNELS
from tinyconv.gradient_check import HEADER, check_gradients
from tinyconv.lab.cases.book import gradient_cases
from tinyconv.sequential import Sequential

SHORT = {"lrn": "localresponsenorm", "pool": "maxpool2d", "net": "small"}
"""Other names of layers. The beginning of a name will do, with underscores or without: max_pool."""


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
        plain = name.lower().replace("_", "")
        found = [kind for kind in kinds if plain and kind.startswith(SHORT.get(plain, plain))]
        if not found:
            raise ValueError(
                f"no layer {name!r}: choose from {', '.join(kinds)}, or {', '.join(SHORT)}"
            )
        names += found
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
            failed, checked = failed + (not row.ok), checked + 1
    where = "kernels" if device.is_cuda else "host loops"
    other = "" if device.is_cuda else "; no kernel was run (--simulate runs them)"
    verdict = f"{failed} of {checked} derivatives are wrong" if failed else "all derivatives agree"
    print(f"\n{verdict}: {checked} arrays, {options.kernels} {where}{other}")
    return 1 if failed else 0
