"""`tinyconv COMMAND`, or `python -m tinyconv COMMAND`: the project on the command line."""

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from layers import DeviceError, simulator
from layers.device import SIMULATED, SIMULATOR
from tinyconv.lab.issues import kernel_line
from tinyconv.run.first_use import compilation_announced

PROGRAMS = {
    "train": ("train_alexnet", "train AlexNet: examples/train_alexnet.py"),
    "evaluate": ("evaluate", "top-1 and top-5 of trained nets: examples/evaluate.py"),
}
"""Commands that are programs of examples/, with their own options."""

COMMANDS = {
    "predict": ("weights.predict_command", "the likeliest classes of photos, or their features"),
    "exercise": ("lab.exercise_command", "mark an exercise of examples/exercises"),
    "step": ("lab.step_command", "stop in the thread of a kernel that owns an output"),
    "draw-kernel": ("lab.picture_command", "write a page that shows a kernel step by step"),
    "gradcheck": ("tools.gradcheck_command", "compare every derivative with central differences"),
    "check": ("lab.check_command", "find races and other errors of memory access in every kernel"),
    "traffic": ("lab.traffic_command", "count a kernel's memory accesses by source line"),
    "plan": ("tools.plan_command", "which file computes which layer, by what kernel or library"),
    "draw": ("tools.draw_command", "the net, its first filters, or drawn pictures"),
    "doctor": ("tools.doctor", "can this machine train, and if not, why?"),
    "prepare": ("data.prepare_command", "decode photos once, into one file for training"),
    "export": ("weights.export", "trained weights as .safetensors, .onnx or .npz"),
    "import": ("weights.importing", "weights of PyTorch or Caffe, or exported ones, as a run"),
    "report": ("weights.report", "a page that shows what a net has learned"),
    "features": ("tools.features_command", "write what a layer computes for each photo"),
}
"""Commands by module, a learner's first: each has `options(parser)` and `main(options)`."""

IN_THE_SIMULATOR = "check", "traffic", "draw-kernel", "step", "exercise"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status (0, 1 for a failed check, 2 for wrong usage)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in PROGRAMS:
        return program(PROGRAMS[arguments[0]][0]).main(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="tinyconv", description=f"{__doc__} COMMAND --help lists the options."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, purpose) in PROGRAMS.items():
        commands.add_parser(name, help=purpose)
    modules = {}
    for name, (module, purpose) in COMMANDS.items():
        modules[name] = command = importlib.import_module(f"tinyconv.{module}")
        raw = argparse.RawDescriptionHelpFormatter
        description = command.__doc__
        command.options(
            commands.add_parser(name, help=purpose, description=description, formatter_class=raw)
        )
    options, unknown = parser.parse_known_args(arguments)
    if unknown:  # said with the command's own usage
        commands.choices[options.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    simulated = options.command in IN_THE_SIMULATOR or getattr(options, "simulate", False)
    try:
        if simulated:
            if not SIMULATED:
                restart_with_the_simulator(arguments)
            if not simulator.installed:
                raise DeviceError(
                    f"needs the simulator: pip install -e '.[simulator]' ({SIMULATOR})"
                )
        return modules[options.command].main(options)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt as error:
        if not simulated:
            raise
        print(f"tinyconv {options.command}: interrupted{kernel_line(error)}", file=sys.stderr)
        return 130
    except (DeviceError, ValueError, OSError) as error:
        print(f"tinyconv {options.command}: error: {error}", file=sys.stderr)
        return 2


def program(name: str) -> Any:
    """The module examples/NAME.py, of this clone or of the installed package."""
    for base in (Path(__file__).resolve().parents[2], Path(sys.prefix) / "share" / "tinyconv"):
        if (base / "examples" / f"{name}.py").is_file():
            sys.path.insert(0, str(base / "examples"))  # where processes of replicas find it, too
            return importlib.import_module(name)
    raise SystemExit(f"tinyconv: examples/{name}.py is not installed: pip install . once more")


def restart_with_the_simulator(arguments: list[str]) -> None:
    """Replace this process: Numba reads the setting only when it is first imported."""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    os.execve(sys.executable, [sys.executable, "-m", "tinyconv", *arguments], environment)


def run() -> None:
    """The console command: `main`, one line at the first compilation, and a closed pipe is fine."""
    try:
        with compilation_announced():
            sys.exit(main())
    except BrokenPipeError:
        # The reader is closed (`| head`); the flush at interpreter exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
