"""`python -m tinyconv doctor [--device NAME] [--json]`: can this machine train, and if not, why?

One line a check: ok, warning, wrong or absent, what was found, and below it the command that
mends it. What is absent and not needed is not wrong. Exit status 0 if the device can train, 1 if
it cannot, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial

from tinyconv.tools.doctor_checks import (
    ABSENT,
    OK,
    WARNING,
    WRONG,
    Finding,
    Machine,
    installed_versions,
    mpi,
    one_line,
    package,
    python,
    required_versions,
    simulator,
)
from tinyconv.tools.doctor_cuda import Cuda, cupy, driver, gpus, majors, nccl, tf32, toolkit
from tinyconv.tools.doctor_host import cores, current_folder, launch, memory, numba_cache

HOST, GPU, OPTIONAL = "host", "gpu", "optional"
"""Who needs what a check looks at: all training; training on a GPU; neither."""

Check = tuple[str, str, Callable[[], Finding]]


def options(parser: argparse.ArgumentParser) -> None:
    """Give the command's arguments to its parser."""
    parser.add_argument("--device", default="auto", help="auto (default), cpu, or cuda:0")
    parser.add_argument("--json", action="store_true", help="print the same as JSON")


def checks(machine: Machine) -> list[Check]:
    """(title, who needs it, check) in the order of the table."""
    cuda = Cuda(machine)
    return [
        ("Python", HOST, partial(python, machine)),
        ("NumPy", HOST, partial(package, "numpy", "numpy", machine)),
        ("numba", HOST, partial(package, "numba", "numba", machine)),
        # Imported by the test launch: `layers/device.py` is the only door to it.
        ("numba-cuda", HOST, partial(package, "numba-cuda", None, machine)),
        ("h5py", HOST, partial(package, "h5py", "h5py", machine)),
        ("Pillow", HOST, partial(package, "pillow", "PIL.Image", machine)),
        ("Matplotlib", HOST, partial(package, "matplotlib", "matplotlib.figure", machine)),
        ("tqdm", HOST, partial(package, "tqdm", "tqdm", machine)),
        ("driver", GPU, partial(driver, cuda)),
        ("GPUs", GPU, partial(gpus, cuda)),
        ("CuPy", GPU, partial(cupy, cuda)),
        ("CUDA libraries", GPU, partial(toolkit, cuda)),
        ("CUDA versions", OPTIONAL, partial(majors, cuda)),
        ("TF32", OPTIONAL, partial(tf32, cuda)),
        ("NCCL", OPTIONAL, partial(nccl, cuda)),
        ("MPI", OPTIONAL, partial(mpi, machine)),
        ("simulator", OPTIONAL, partial(simulator, machine)),
        ("folder", HOST, partial(current_folder, machine)),
        ("memory", HOST, partial(memory, machine)),
        ("cores", HOST, partial(cores, machine)),
        ("Numba's cache", HOST, partial(numba_cache, machine)),
        ("test launch", HOST, partial(launch, machine)),
    ]


def examine(machine: Machine) -> Iterator[tuple[str, str, Finding]]:
    """(title, who needs it, finding) of one check after the other; none of them can fail."""
    for title, need, check in checks(machine):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                finding = check()
        except Exception as error:
            finding = Finding(WARNING, f"could not be looked at: {one_line(error)}")
        if need == GPU and machine.wants_gpu and finding.state == ABSENT:
            finding = replace(finding, state=WRONG)
        yield title, need, finding


def verdict(machine: Machine, findings: list[tuple[str, str, Finding]]) -> tuple[bool, str]:
    """Whether the device can train, and the last line of the table.

    The test launch is among what the host needs: a device that computes can train, whatever else
    looks wrong there.
    """
    asked = {"auto": "this machine", "cpu": "the host"}.get(machine.device, machine.device)
    if any((need, finding.state) == (HOST, WRONG) for _, need, finding in findings):
        needs = (HOST, GPU, OPTIONAL) if machine.wants_gpu else (HOST,)
        title, found = next(
            (title, finding.found)
            for title, need, finding in findings
            if need in needs and finding.state == WRONG
        )
        return False, f"{asked} cannot train: {title}: {found} (what mends it stands above)"
    if machine.device != "auto" or machine.used != "cpu":
        on = f", on {machine.used}" if machine.device == "auto" else ""
        return True, f"{asked} can train{on}"
    lacking = [title for title, need, finding in findings if need == GPU and finding.state != OK]
    why = f" (see {', '.join(lacking)})" if lacking else ""
    return True, f"{asked} can train, on the host: no GPU is used{why}"


def main(options: argparse.Namespace) -> int:
    """Print the table; 0 if the device can train, else 1. ValueError for a name that is none."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", options.device):
        raise ValueError(f"device {options.device!r}: use 'cpu', 'cuda:0' or 'auto'")
    machine = Machine(options.device)
    machine.installed = installed_versions()
    try:
        machine.needs = required_versions()
    except Exception:  # neither installed nor a clone: nothing says which versions are needed
        machine.needs = {}
    findings = []
    for title, need, finding in examine(machine):
        findings.append((title, need, finding))
        if not options.json:  # line by line: the last check takes seconds, and may be the last
            print(f"{title:15} {finding.state:8} {finding.found}", flush=True)
            # On a machine without a GPU, or for one that stays idle, it would only be noise.
            if finding.mend and (need, finding.state) != (GPU, ABSENT):
                print(f"{'':24} -> {finding.mend}", flush=True)
    can_train, summary = verdict(machine, findings)
    if options.json:
        rows = [{"check": title, "needed_by": need} | asdict(f) for title, need, f in findings]
        result = {"device": options.device, "used": machine.used, "can_train": can_train}
        print(json.dumps(result | {"summary": summary, "checks": rows}, indent=1))
    else:
        print(summary)
    return 0 if can_train else 1


@contextmanager
def at_hand() -> Iterator[None]:
    """Around the imports of `tinyconv/__init__.py`: if one fails, the doctor can still be called.

    `python -m tinyconv doctor` imports the whole of tinyconv before it comes here. Where that
    fails, the doctor runs at once and Python ends; for any other command the error goes on.
    """
    try:
        yield
    except Exception:
        module = sys.orig_argv[len(sys.orig_argv) - len(sys.argv)]
        if sys.argv[:2] == ["-m", "doctor"] and module == "tinyconv":
            _run_alone()
        raise


def _run_alone() -> None:
    parser = argparse.ArgumentParser(prog="python -m tinyconv doctor", description=__doc__)
    options(parser)
    try:
        sys.exit(main(parser.parse_args(sys.argv[2:])))
    except ValueError as error:
        parser.error(str(error))
