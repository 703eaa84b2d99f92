"""`python -m tinyconv COMMAND`: the project's tools on the command line.

    doctor        can this machine train, and if not, why?
    prepare       decode photos once, into one file for training
    gradcheck     compare every derivative with central differences
    plan          which file computes which layer, and by what kernel or library
    check         find races, accesses out of bounds and outputs not written in every kernel
    traffic       count a kernel's memory accesses and bank conflicts by source line
    draw-kernel   write a page that shows a kernel step by step
    draw          the net as boxes and arrows, on one device or two; or its first filters

check, traffic and draw-kernel run kernels in the simulator and need no GPU.
"""

import argparse
import os
import sys

from layers import Device, DeviceError, simulator
from layers.device import SIMULATED, SIMULATOR
from layers.fast.plan import KERNELS
from tinyconv.gradient_check import HEADER, check_gradients
from tinyconv.run.first_use import compilation_announced
from tinyconv.sequential import Sequential
from tinyconv.tools import doctor
from tinyconv.tools.gradient_cases import gradient_cases


def gradcheck(device_name: str, kernels: str = "simple") -> int:
    """Compare every derivative with central differences: a row for each array of each layer.

    Returns 1 if any derivative is wrong, else 0.
    """
    device = Device(device_name)
    print(f"central differences in float64 on {device}, kernels {kernels}")
    wrong = 0
    for title, layer, x, labels in gradient_cases():
        print(f"\n{title}\n  {HEADER}")
        net = layer if isinstance(layer, Sequential) else Sequential({layer.name: layer})
        net.to(device, "float64", kernels=kernels)
        for row in check_gradients(net, x, labels):
            print(f"  {row}")
            wrong += not row.ok
    print(f"\n{wrong} wrong" if wrong else "\nall derivatives agree")
    return 1 if wrong else 0


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status (0, 1 for a failed check, 2 for wrong usage)."""
    from tinyconv.data import prepare_command
    from tinyconv.lab import check_command, picture_command, traffic_command
    from tinyconv.tools import draw_command, plan_command

    parser = argparse.ArgumentParser(
        prog="python -m tinyconv", description="tinyconv's tools; COMMAND --help lists the options."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    doctor.options(
        commands.add_parser(
            "doctor",
            help="can this machine train, and if not, why?",
            description=doctor.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    prepare_command.options(
        commands.add_parser(
            "prepare",
            help="decode photos once, into one file for training",
            description=prepare_command.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    gradients = commands.add_parser(
        "gradcheck",
        help="compare every derivative with central differences",
        description="Compare every derivative with central differences. Status 1 if any differs.",
    )
    gradients.add_argument("--device", default="cpu", help="cpu (default), cuda:0 or auto")
    gradients.add_argument(
        "--kernels",
        choices=KERNELS,
        default="simple",
        help="simple (default): the kernels in layers/*.py; fast: those of the plan",
    )
    purpose = "which file computes which layer, and by what kernel or library"
    plan_command.options(
        commands.add_parser("plan", help=purpose, description=plan_command.__doc__)
    )
    laboratory = {
        "check": (check_command, "find races, accesses out of bounds and outputs not written"),
        "traffic": (
            traffic_command,
            "count a kernel's memory accesses and bank conflicts by source line",
        ),
        "draw-kernel": (picture_command, "write a page that shows a kernel step by step"),
    }
    for name, (module, purpose) in laboratory.items():
        module.options(commands.add_parser(name, help=purpose, description=module.__doc__))
    purpose = "the net as boxes and arrows, on one device or two; or its first filters"
    draw_command.options(
        commands.add_parser("draw", help=purpose, description=draw_command.__doc__)
    )
    options = parser.parse_args(arguments)
    try:
        if options.command == "doctor":
            return doctor.main(options)
        if options.command == "prepare":
            return prepare_command.main(options)
        if options.command == "gradcheck":
            return gradcheck(options.device, options.kernels)
        if options.command == "plan":
            return plan_command.main(options)
        if options.command == "draw":
            return draw_command.main(options)
        if not SIMULATED:
            _start_again_with_the_simulator()
        if not simulator.installed:
            raise DeviceError(f"needs the simulator: pip install -e '.[simulator]' ({SIMULATOR})")
        return laboratory[options.command][0].main(options)
    except BrokenPipeError:
        raise
    except (DeviceError, ValueError, OSError) as error:
        print(f"python -m tinyconv {options.command}: error: {error}", file=sys.stderr)
        return 2


def _start_again_with_the_simulator() -> None:
    """Restart the command: Numba reads the setting only when it is first imported."""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    command = [sys.executable, "-m", "tinyconv", *sys.argv[1:]]
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    try:
        with compilation_announced():
            sys.exit(main())
    except BrokenPipeError:
        # The reader is closed (`| head`); the flush at interpreter exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
