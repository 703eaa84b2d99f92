"""Every kernel of the project under NVIDIA's compute-sanitizer: a table, kernel by tool.

    python benchmarks/sanitize.py                # memcheck, racecheck and synccheck, on a GPU
    python benchmarks/sanitize.py --rehearse     # the same launches, checked in the simulator

The launches are those of `python -m tinyconv check`, small random inputs of hostile shapes, but in
every dtype, and more of the tensor cores. They are recorded in the simulator (greenlet is needed:
the extra `simulator`) and made again on the GPU, in one process for each tool.
memcheck finds stray and misaligned accesses, racecheck unordered ones in shared memory, synccheck
wrong use of barriers; `python -m tinyconv check` finds what the tools cannot, such as races in
global memory.

Exit status 0: nothing found; 1: something was found, or a kernel did not run; 2, and one line: no
GPU, or no compute-sanitizer (on PATH, or in NVIDIA's wheel).
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

RUN = "--run-the-launches"
if __name__ == "__main__" and RUN not in sys.argv[1:]:
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import sass  # noqa: E402
from machine import gpu_count  # noqa: E402

TOOLS = "memcheck", "racecheck", "synccheck"
SANITIZER = "compute-sanitizer"
FOUND = 86
"""Exit status that compute-sanitizer is told to end with if it has found something."""

OPTIONS = (
    *("--destroy-on-device-error", "kernel"),  # the launches after a faulty one can still be made
    *("--demangle", "no", "--report-api-errors", "no", "--print-limit", "0"),
    *("--error-exitcode", str(FOUND)),
)
MINUTES = 10
"""For all launches under one tool, after which they are taken to hang."""

LINES = 200
"""Of what a tool wrote, so many are shown."""

OK, NOT_RUN = "ok", "did not run"


class Launch(NamedTuple):
    """`kernel[grid, block](*args)`, the kernel by its name without the module."""

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    args: tuple[Any, ...]


# --- on a GPU


def run_the_launches(file: str) -> None:
    """Make each launch on the GPU, and print its kernel's name when it is done."""
    import numpy as np

    from layers.device import cuda
    from tinyconv.lab.cases import CASES

    for launch in pickle.loads(Path(file).read_bytes()):
        there = [cuda.to_device(a) if isinstance(a, np.ndarray) else a for a in launch.args]
        CASES[launch.kernel].kernel[launch.grid, launch.block](*there)
        cuda.synchronize()
        print(launch.kernel, flush=True)


def reports(log: str, kernels: set[str]) -> tuple[Counter[str], list[str]]:
    """What a tool has written: reports about each kernel, and those that name none of them.

    A report is a line that begins right behind the tool's mark, and the indented lines below it.
    """
    found: Counter[str] = Counter()
    nameless = []
    for text in re.split(r"^=+ (?=\S)", log, flags=re.MULTILINE)[1:]:
        if text.startswith(("COMPUTE-SANITIZER", "ERROR SUMMARY", "RACECHECK SUMMARY")):
            continue
        # In a mangled name the length stands before it, and something in capitals behind it.
        named = [k for k in kernels if re.search(rf"(?<![A-Za-z_]){k}(?![a-z_])", text)]
        found.update(named)
        if not named:
            nameless.append(text.partition("\n")[0])
    return found, nameless


def verdicts(
    launched: Counter[str], finished: Counter[str], log: str
) -> tuple[dict[str, str], list[str]]:
    """By kernel, what one tool says of it; and its reports that name no kernel."""
    found, nameless = reports(log, set(launched))
    said = {}
    for kernel, count in launched.items():
        ran = OK if finished[kernel] == count else NOT_RUN
        said[kernel] = f"{found[kernel]} found" if found[kernel] else ran
    return said, nameless


def sanitized(program: str, tool: str, launches: list[Launch]) -> tuple[dict[str, str], str]:
    """By kernel, what `tool` says; and what it wrote, unless that is that nothing was found."""
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder, "launches"), Path(folder, "log")
        file.write_bytes(pickle.dumps(launches))
        log.touch()
        command = [program, "--tool", tool, *OPTIONS, "--log-file", str(log)]
        libraries = Path(program).resolve().parents[1] / "lib"
        if (libraries / "libsanitizer-collection.so").exists():  # CUDA 12's wheel has them apart
            command += ["--injection-path", str(libraries)]
        command += [sys.executable, __file__, RUN, str(file)]
        environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            printed, errors = process.communicate(timeout=60 * MINUTES)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the tool, and the process that it looks at
            printed, errors = process.communicate()
            errors += f"killed after {MINUTES} minutes\n"
        text = log.read_text()
    launched = Counter(launch.kernel for launch in launches)
    said, nameless = verdicts(launched, Counter(printed.split()), text)
    if process.returncode == 0 and not nameless and set(said.values()) == {OK}:
        return said, ""
    lines = [f"{tool}, exit status {process.returncode}", *(text + errors).splitlines()]
    more = [f"... and {len(lines) - LINES} lines more"] if len(lines) > LINES else []
    return said, "\n".join([*lines[:LINES], *more])


# --- in the simulator


def rehearsed(everything: list[Any]) -> tuple[dict[str, str], str]:
    """By kernel, what the simulator finds in the same launches; and the issues."""
    found: Counter[str] = Counter()
    text = []
    for launch in everything:
        report = launch.check(orders=0)
        found[launch.name] += len(report.issues)
        text += [f"{launch.name}, {launch.title}\n{report}"] if not report.ok else []
    said = {name: f"{count} found" if count else OK for name, count in found.items()}
    return said, "\n".join(text)


def table(launches: list[Launch], columns: dict[str, dict[str, str]]) -> str:
    """Markdown: a row for each kernel, a column for each tool."""
    rows = [f"| kernel | launches | {' | '.join(columns)} |", "|---|---:|" + "---|" * len(columns)]
    for kernel, count in Counter(launch.kernel for launch in launches).items():
        cells = " | ".join(said[kernel] for said in columns.values())
        rows.append(f"| {kernel} | {count} | {cells} |")
    return "\n".join(rows)


def missing_here(program: str | None, rehearse: bool) -> str:
    """What keeps this from being done here, in one line; "" if nothing does."""
    from layers import simulator

    if not rehearse and not gpu_count():
        return "no GPU found; --rehearse runs without one"
    if not rehearse and not program:
        return f"{SANITIZER} is missing: {sass.INSTALL[SANITIZER]}"
    if not simulator.installed:
        return f"launches are recorded in the simulator, which is {simulator.install()}"
    return ""


def every_launch() -> Iterator[Any]:
    """Every group in every dtype; and each tile of tensor cores where it needs rearrangements."""
    from layers import Conv2D
    from layers.fast.conv.tile_table import TILES
    from tinyconv.lab.cases import GROUPS, launches, recorded
    from tinyconv.lab.cases.conv import KINDS, tensor

    for name, group in GROUPS.items():
        for dtype in group.dtypes:
            yield from launches(name, dtype=dtype)
    for (dtype, kind), tile in product(KINDS.items(), TILES):
        # Its channels, three a group, are no whole chunks.
        conv = Conv2D(6, 10, 3, stride=2, padding=(0, 1), groups=2)
        run = tensor(conv, (2, 5, 4, 6), dtype, tile)
        yield from recorded(f"tensor cores, {kind}, {tile} tile", run)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 0: nothing found, 1: something, 2: it cannot be done here."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sanitizer", default=SANITIZER, help="where compute-sanitizer is")
    parser.add_argument("--rehearse", action="store_true", help="in the simulator, without a GPU")
    parser.add_argument(RUN, metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.run_the_launches:
        run_the_launches(options.run_the_launches)
        return 0
    program = sass.find_tool(options.sanitizer)
    if missing := missing_here(program, options.rehearse):
        print(f"sanitize.py: error: {missing}", file=sys.stderr)
        return 2
    everything = list(every_launch())
    launches = [Launch(each.name, each.grid, each.block, each.args) for each in everything]
    columns, details = {}, []
    for tool in ("simulator",) if options.rehearse else TOOLS:
        if options.rehearse:
            columns[tool], detail = rehearsed(everything)
        else:
            columns[tool], detail = sanitized(str(program), tool, launches)
        details += [detail] if detail else []
    print("\n\n".join([table(launches, columns), *details]))
    return 1 if details else 0


if __name__ == "__main__":
    sys.exit(main())
