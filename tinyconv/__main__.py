"""`python -m tinyconv COMMAND`: the project's tools on the command line.

    gradcheck   compare every derivative with the slope of its function
"""

import argparse
import os
import sys

from layers import Device, DeviceError
from tinyconv.gradient_cases import gradient_cases
from tinyconv.gradient_check import HEADER, check_gradients


def gradcheck(device_name: str) -> int:
    """Print a row for each array of each layer; 1 if any derivative is wrong, else 0."""
    device = Device(device_name)
    print(f"central differences in float64 on {device}")
    wrong = 0
    for title, layer, x, labels in gradient_cases():
        print(f"\n{title}\n  {HEADER}")
        layer.to(device, "float64")
        for row in check_gradients(layer, x, labels):
            print(f"  {row}")
            wrong += not row.ok
    print(f"\n{wrong} wrong" if wrong else "\nall derivatives agree")
    return 1 if wrong else 0


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status (0, 1 for a failed check, 2 for wrong usage)."""
    parser = argparse.ArgumentParser(
        prog="python -m tinyconv", description="tinyconv's tools. COMMAND --help tells more."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser(
        "gradcheck",
        help="compare every derivative with the slope of its function",
        description=gradcheck.__doc__,
    )
    check.add_argument("--device", default="cpu", help="cpu (default), cuda:0 or auto")
    options = parser.parse_args(arguments)
    try:
        return gradcheck(options.device)
    except (DeviceError, ValueError) as error:
        print(f"python -m tinyconv {options.command}: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:
        # The reader has had enough (`| head`); the interpreter's last flush must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
