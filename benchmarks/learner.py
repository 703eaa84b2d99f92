"""What a learner waits for: the mark of an exercise, the commands of docs/start.md, the tests.

    python benchmarks/learner.py [--only exercises|commands|tests] [--repeats 3]

Every command runs in a process of its own, as a reader starts it. Exercises are marked with their
solutions, which takes longest: wrong ones stop at the first input. Prints Markdown tables of
seconds, medians: by the clock, which a busy machine stretches, and of the processor. Ends with exit
status 1 if an exercise took over 5 s of the processor.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from machine import machine

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "helpers"))
from solutions import FILES, filled  # noqa: E402

MOST = 5.0
"""Seconds of the processor that marking an exercise may take."""

COMMANDS = (
    "step max_pool --output 1,2,3,0",
    "draw-kernel max_pool",
    "gradcheck lrn",
    "gradcheck lrn --simulate",
    "check lrn",
    "check",
)
TESTS = "-m first_read", "-m gradients", ""
"""Arguments of pytest."""


def seconds(arguments: list[str], folder: str) -> tuple[float, float]:
    """Seconds by the clock and of the processor that `python ARGUMENTS` takes in `folder`.

    CalledProcessError if it fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("NUMBA_ENABLE_CUDASIM", None)  # the commands set it themselves
    begin, used = time.perf_counter(), processor_seconds()
    subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, check=True, text=True,
        input="c\n", capture_output=True,
    )  # fmt: skip
    return time.perf_counter() - begin, processor_seconds() - used


def processor_seconds() -> float:
    """Of all processes that were started here and have ended."""
    used = os.times()
    return used.children_user + used.children_system


def timed(arguments: list[str], folder: str, repeats: int) -> tuple[float, float]:
    """The medians of several runs."""
    clock, processor = zip(*(seconds(arguments, folder) for _ in range(repeats)), strict=True)
    return median(clock), median(processor)


def exercises(repeats: int) -> bool:
    """Print how long each exercise takes to mark; whether all are below MOST."""
    print("| exercise | marked in | processor |\n|---|---:|---:|")
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number, file in FILES.items():
            copy = Path(folder, file.name)
            copy.write_text(filled(number), encoding="utf-8")
            took, used = timed(["-m", "tinyconv", "exercise", file.name], folder, repeats)
            slowest = max(slowest, used)
            print(f"| {number}, `{file.name}` | {took:.1f} s | {used:.1f} s |", flush=True)
    print(f"\nThe slowest took {slowest:.1f} s of the processor; {MOST:g} s are allowed.\n")
    return slowest <= MOST


def commands(repeats: int) -> None:
    """Print how long the laboratory's commands take."""
    print("| command | time | processor |\n|---|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS:
            took, used = timed(["-m", "tinyconv", *command.split()], folder, repeats)
            print(f"| `python -m tinyconv {command}` | {took:.1f} s | {used:.1f} s |", flush=True)
    print()


def tests() -> None:
    """Print how long the tests without --full, and their quick subsets, take, once."""
    print("| tests | time | processor |\n|---|---:|---:|")
    for arguments in TESTS:
        took, used = seconds(["-m", "pytest", "-q", *arguments.split()], str(ROOT))
        print(f"| `pytest {arguments}".rstrip() + f"` | {took:.0f} s | {used:.0f} s |", flush=True)
    print()


def main() -> int:
    """Measure what was asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("exercises", "commands", "tests"))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    good = True
    if options.only in (None, "exercises"):
        good = exercises(options.repeats)
    if options.only in (None, "commands"):
        commands(options.repeats)
    if options.only in (None, "tests"):
        tests()
    print(f"{machine('numba-cuda', 'greenlet', 'numpy')}.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
