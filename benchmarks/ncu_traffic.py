"""The laboratory's counts for the textbook kernels, compared with Nsight Compute's on a GPU.

    python benchmarks/ncu_traffic.py [--ncu PATH]

Needs an NVIDIA GPU and `ncu` (of the CUDA toolkit; on most machines it has to be allowed to read
the GPU's counters, or run as root). Prints a Markdown table, predicted and measured, and exits with
1 if any two disagree; with 2, and one line, if there is no GPU or no ncu.

This process runs the kernels in the simulator and counts with `tinyconv/lab/traffic.py`. A second
one runs the same kernels, from `tests/helpers/textbook.py`, on the GPU under ncu. The numbers have
to be equal, because both count the requests of the instructions, independent of caches. One
exception: where the source reads neighbouring elements in turn, the compiler may read several at
once.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

RUN = "--run-the-kernels"
if __name__ == "__main__" and RUN not in sys.argv[1:]:
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from machine import gpu_count  # noqa: E402

METRICS = {
    "global read requests": "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum",
    "global read sectors": "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",
    "global write requests": "l1tex__t_requests_pipe_lsu_mem_global_op_st.sum",
    "global write sectors": "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum",
    "shared read wavefronts": "smsp__sass_l1tex_data_pipe_lsu_wavefronts_mem_shared_op_ld.sum",
    "shared write wavefronts": "smsp__sass_l1tex_data_pipe_lsu_wavefronts_mem_shared_op_st.sum",
}
"""By what `Traffic.total` is asked for, Nsight Compute's name for it."""

AT_MOST = {("matrix product", "shared read wavefronts")}
"""Where the compiler may do with fewer: a row of a_tile is read element after element."""


def predicted() -> dict[str, dict[str, int]]:
    """By textbook kernel, the laboratory's counts."""
    from textbook import TEXTBOOK

    from layers import simulator
    from tinyconv.lab.traffic import measure

    counts = {}
    for name, make in TEXTBOOK.items():
        kernel, grid, block, args, _ = make()
        with simulator.record() as traces:
            kernel[grid, block](*args)
        traffic = measure(traces[0])
        counts[name] = {}
        for title in METRICS:
            space, op, what = title.split()
            counts[name][title] = traffic.total(what, space, op)
    return counts


def run_the_kernels() -> None:
    """Launch each kernel once, on the GPU."""
    import numpy as np
    from numba import cuda
    from textbook import TEXTBOOK

    for make in TEXTBOOK.values():
        kernel, grid, block, args, _ = make()
        there = [cuda.to_device(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
        kernel[grid, block](*there)
    cuda.synchronize()


def parsed(text: str) -> list[tuple[str, dict[str, int]]]:
    """The kernels in the output of `ncu --csv`, in order: name, and metrics by their names.

    Lines before the header are ncu's own and the program's. A metric that the GPU does not have
    ("n/a") is left out. ValueError if there is no header.
    """
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith('"ID",')]
    if not starts:
        raise ValueError("no table in the output of ncu")
    kernels: dict[str, tuple[str, dict[str, int]]] = {}
    for row in csv.DictReader(line for line in lines[starts[0] :] if line.startswith('"')):
        _, metrics = kernels.setdefault(row["ID"], (row["Kernel Name"], {}))
        value = row["Metric Value"].replace(",", "")
        if value.replace(".", "", 1).isdigit():
            metrics[row["Metric Name"]] = round(float(value))
    return list(kernels.values())


def measured(ncu: str) -> dict[str, dict[str, int]]:
    """By textbook kernel, Nsight Compute's counts; RuntimeError if it has not run."""
    from textbook import TEXTBOOK

    command = [ncu, "--csv", "--print-units", "base", "--metrics", ",".join(METRICS.values())]
    command += ["--target-processes", "all", sys.executable, __file__, RUN]
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_ENABLE_CUDASIM"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ncu: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    kernels = parsed(done.stdout)
    functions = {name: make().kernel.__name__ for name, make in TEXTBOOK.items()}
    names = [name for name, _ in kernels]
    if len(kernels) != len(functions) or not all(
        function in name for function, name in zip(functions.values(), names, strict=True)
    ):
        raise RuntimeError(f"ncu saw {names}, not {list(functions.values())}")
    return {
        name: {title: metrics[metric] for title, metric in METRICS.items() if metric in metrics}
        for name, (_, metrics) in zip(functions, kernels, strict=True)
    }


def compared(
    ours: dict[str, dict[str, int]], theirs: dict[str, dict[str, int]]
) -> tuple[list[str], int]:
    """The rows of a Markdown table, and how many of them disagree."""
    rows = ["| kernel | counted | predicted | measured | |", "|---|---|---:|---:|---|"]
    wrong = 0
    for name, counts in ours.items():
        for title, count in counts.items():
            found = theirs[name].get(title)
            fewer = found is not None and found < count and (name, title) in AT_MOST
            verdict = "equal" if found == count else "fewer, as it may" if fewer else "DIFFERENT"
            if found is None:
                verdict = "NOT MEASURED"
            wrong += verdict.isupper()
            shown = "n/a" if found is None else f"{found:,}"
            rows.append(f"| {name} | {title} | {count:,} | {shown} | {verdict} |")
    return rows, wrong


def main(arguments: list[str] | None = None) -> int:
    """Print the comparison; 0: all agree, 1: some do not, 2: it cannot be made here."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ncu", default="ncu", help="where Nsight Compute's command line is")
    options = parser.parse_args(arguments)
    ncu = shutil.which(options.ncu)
    missing = [what for what, found in (("a GPU", gpu_count()), (options.ncu, ncu)) if not found]
    if missing or ncu is None:
        print(f"nothing to compare with: {' and '.join(missing)} not found", file=sys.stderr)
        return 2
    try:
        theirs = measured(ncu)
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    rows, wrong = compared(predicted(), theirs)
    print("\n".join(rows))
    print(f"\n{wrong} differ" if wrong else "\nall agree")
    return 1 if wrong else 0


if __name__ == "__main__":
    if RUN in sys.argv[1:]:
        run_the_kernels()
    else:
        sys.exit(main())
