"""Every kernel as compiled: registers, spills, occupancy, instructions of the inner loop.

    python benchmarks/kernel_report.py [--arch 75,80,90,120] [--only conv] [--json] [--write]
    python benchmarks/kernel_report.py --launches [--recipe robust]

Needs no GPU: the kernels are compiled as a launch on each architecture compiles them, for float32,
or for bfloat16 if they take nothing else, and disassembled (`sass.py`). Prints Markdown tables for
each architecture, those for tensor cores from sm_80 on; `--json` prints all numbers instead,
`--write` writes benchmarks/results/<date>-kernels.md. Needs NVIDIA's assembler and disassembler,
which are wheels: without them it prints which to install, and exits with 2. Exits with 1 if a
kernel does not compile.

`--launches` prints how AlexNet's convolutions, and the sums of their bias gradients, fill four
GPUs: the tile that was chosen, registers, blocks of a multiprocessor, and waves of blocks.

The numbers do not predict time. Occupancy is how many warps a multiprocessor can hold at once, out
of its maximum; the share of FFMA is of the instructions in the loop, each counted once (also in a
branch that is seldom taken): other instructions take issue slots from FFMA, and a loop runs slower
still if its warps wait. An HMMA keeps a tensor core busy for many cycles, in which other
instructions are issued: what counts there is how many of them there are for each HMMA.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sass
from hot_path import hot_path
from machine import machine
from measuring import table

ROOT = Path(__file__).resolve().parents[1]
# The compiler's front end is called as in the tests.
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

ARCHITECTURES = tuple(each for each in sass.LIMITS if each != (8, 9))


def label(architecture: tuple[int, int]) -> str:
    """sm_75 for (7, 5)."""
    return f"sm_{architecture[0]}{architecture[1]}"


def report(
    architectures: Sequence[tuple[int, int]], only: str = ""
) -> tuple[list[sass.Kernel], list[str]]:
    """Every kernel whose full name holds `only`; and what did not compile, a line each."""
    from compile_kernels import ptx_of

    from tinyconv.lab.cases import CASES

    made, failed = [], []
    for case in CASES.values():
        if only not in case.full_name:
            continue
        arguments = case.argument_types(case.dtypes[0])  # float32, if it takes that
        for architecture in architectures:
            if architecture < case.architectures[0]:
                continue
            try:
                ptx = ptx_of(case.kernel, arguments, architecture)
                used, listing = sass.assemble(ptx, architecture)
            except Exception as error:  # any failure to compile is an issue
                what = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                failed.append(f"{case.full_name}, {label(architecture)}: {what}")
                continue
            made.append(described(case, architecture, used, listing))
    return made, failed


def described(
    case: Any, architecture: tuple[int, int], used: dict[str, int], listing: str
) -> sass.Kernel:
    """The row of one kernel, a KernelCase."""
    threads = case.threads
    blocks, share = sass.occupancy(architecture, threads, used["registers"], used["shared"])
    path = hot_path(listing)
    return sass.Kernel(
        name=case.full_name,
        architecture=architecture,
        **used,
        loop=sass.main_loop(listing),
        doubles=sass.doubles_in(listing),
        path=round(path.instructions),
        moved=round(path.moved),
        divisions=path.divisions,
        threads=threads,
        blocks=blocks,
        occupancy=share,
    )


# --- printing

TENSOR = "HMMA", "LDGSTS", "LDSM, LDS", "HMMA : shared loads : others"


def head(*of_loop: str) -> str:
    """The first two lines of a table, with these columns for what the loop consists of."""
    names = ["kernel", "registers", "shared", "spills", "warps", "path", "bytes", "divisions"]
    names += ["loop", *of_loop]
    rule = "|---|" + "---:|" * (len(names) - 1)
    return f"| {' | '.join(names)} | loads, stores | f64 |\n{rule}---|---|"


def on_tensor_cores(kernel: sass.Kernel) -> bool:
    """Whether its main loop multiplies on tensor cores."""
    return kernel.loop is not None and kernel.loop.mix[0] > 0


def row(kernel: sass.Kernel) -> str:
    """A kernel's line of its table."""
    loop = kernel.loop
    if loop is None:
        of_loop = ["", ""]
    elif on_tensor_cores(kernel):
        counts = loop.mix[0], loop.moved("LDGSTS"), loop.moved("LDSM", "LDS")
        ratio = " : ".join(f"{count / loop.mix[0]:.2g}" for count in loop.mix)
        of_loop = [str(loop.instructions), *(share(loop, n) for n in counts), ratio]
    else:
        of_loop = [str(loop.instructions), share(loop, loop.work.get("FFMA", 0))]
    cells = [
        kernel.name.rpartition(".")[2],
        str(kernel.registers),
        f"{kernel.shared:,}",
        f"{kernel.spills or (f'stack {kernel.stack}' if kernel.stack else 0)}",
        f"{kernel.occupancy:.0%}",
        *(f"{kernel.path:,}", f"{kernel.moved:,}", f"{kernel.divisions or ''}"),
        *of_loop,
        ", ".join(f"{count} {name}" for name, count in loop.memory.items()) if loop else "",
        ", ".join(kernel.doubles) or "none",
    ]
    return f"| {' | '.join(cells)} |"


def share(loop: sass.Loop, count: int) -> str:
    """`count` of the loop's instructions as a percentage; empty for none."""
    return f"{count / loop.instructions:.1%}" if count else ""


def tables(kernels: list[sass.Kernel], failed: list[str]) -> str:
    """Markdown tables for each architecture, tensor cores apart, and what did not compile."""
    text = []
    for architecture in sorted({kernel.architecture for kernel in kernels}):
        here = [kernel for kernel in kernels if kernel.architecture == architecture]
        text.append(f"## {label(architecture)}")
        for columns, tensor in ((("FFMA",), False), (TENSOR, True)):
            rows = [row(kernel) for kernel in here if on_tensor_cores(kernel) == tensor]
            if rows:
                text.append("\n".join([head(*columns), *rows]))
    if failed:
        text.append("\n".join(["Did not compile:", "", *(f"- {line}" for line in failed)]))
    return "\n\n".join(text)


# --- the launches of AlexNet

GPUS = ("H200", "tf32"), ("RTX 4090", "tf32"), ("RTX 5090", "tf32"), ("T4", "fp32")
SHOWN = "tensor_", "tiled_", "conv_", "sum_", "masked_gradient"
"""Beginnings of the kernels that `--launches` shows."""


def launch_table(gpu: str, precision: str, recipe: str, batch: int = 128) -> str:
    """A row for each launch of a convolution in a training step on `gpu`."""
    import gpu_model

    here = gpu_model.MACHINES[gpu]
    rows = []
    for launch in gpu_model.launches_of(here, precision, batch, recipe):
        if launch.title.startswith("conv") and launch.name.startswith(SHOWN):
            found, at_once, waves = gpu_model.residency(launch, here)
            numbers = (f"{n:,}" for n in (found.registers, at_once, launch.blocks))
            rows.append([launch.title, launch.name, *numbers, f"{waves:.2f}"])
    names = ["step", "kernel", "registers", "blocks of a multiprocessor", "blocks", "waves"]
    return f"## {gpu}, {precision}, batch {batch}\n\n{table(names, rows)}"


EXPLAINED = """\
Registers of a thread; bytes of shared memory of a block; bytes spilled (or of a stack, where an
array did not fit registers); warps that a multiprocessor can hold, of the most it can; instructions
of a thread's hot path, each loop once (`hot_path.py`), the bytes of global memory that they move,
and divisions in 64 bits; the innermost loop with the most multiply-adds: its instructions, the
share of FFMA among them, its memory instructions by width in bits of a thread; instructions that
compute in float64, anywhere in the kernel. Kernels for tensor cores stand apart: the shares of
HMMA (products of fragments), LDGSTS (copies from global to shared memory) and LDSM or LDS (loads
from shared memory), and what there is for each HMMA. Printed by `benchmarks/kernel_report.py`;
nothing was run."""


def architectures_in(text: str) -> list[tuple[int, int]]:
    """The architectures of "75,90". ArgumentTypeError, which argparse prints, for others."""
    known = {f"{major}{minor}": (major, minor) for major, minor in ARCHITECTURES}
    parts = text.split(",")
    if wrong := [part for part in parts if part not in known]:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(known)}")
    return [known[part] for part in parts]


def main(arguments: list[str] | None = None) -> int:
    """Print or write the report; 0: done, 1: a kernel does not compile, 2: a tool is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", type=architectures_in, default=list(ARCHITECTURES))
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels whose name holds TEXT")
    parser.add_argument("--launches", action="store_true", help="of AlexNet, on four GPUs, instead")
    parser.add_argument("--recipe", default="robust")
    parser.add_argument("--json", action="store_true", help="all numbers, as a list")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/<date>-...")
    options = parser.parse_args(arguments)
    if missing := sass.missing_tools():
        print("\n".join(missing), file=sys.stderr)
        return 2
    if options.launches:
        for place, each in enumerate(GPUS):
            print(("\n" if place else "") + launch_table(*each, options.recipe), flush=True)
        return 0
    kernels, failed = report(options.arch, options.only)
    if options.json:
        print(json.dumps([kernel.as_dict() for kernel in kernels], indent=1))
    else:
        print(tables(kernels, failed))
    if options.write:
        where = machine("numba-cuda", "nvidia-nvvm", "nvidia-cuda-nvcc", "nvidia-cuda-nvdisasm")
        today = datetime.date.today().isoformat()
        out = ROOT / "benchmarks" / "results" / f"{today}-kernels.md"
        parts = [f"# Kernels, as compiled, {today}", EXPLAINED, tables(kernels, failed), where]
        out.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        print(f"{out.relative_to(ROOT)} written", file=sys.stderr)
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.pop("NUMBA_ENABLE_CUDASIM", None)  # the simulator has no compiler
    sys.exit(main())
