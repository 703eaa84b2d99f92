"""Registers, occupancy, and the main loop's instructions of a compiled kernel.

No GPU is needed: Numba writes PTX, `ptxas` assembles it for one architecture and reports what it
uses, and `nvdisasm` lists the machine code (SASS). `kernel_report.py` prints the tables.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

# --- the tools

INSTALL = {
    tool: f"pip install 'cuda-toolkit[{extra}]==13.*'"
    for tool, extra in {
        "ptxas": "nvcc",
        "nvdisasm": "nvdisasm",
        "compute-sanitizer": "sanitizer",
    }.items()
}
"""The command that brings each tool, of the same release as numba-cuda[cu13]'s compiler."""

ASSEMBLY = "ptxas", "nvdisasm"


def find_tool(name: str) -> str | None:
    """The path of one of NVIDIA's tools, out of a wheel or on PATH; None if it is missing."""
    for folder in sys.path:
        for path in Path(folder, "nvidia").glob(f"*/bin/{name}"):
            return str(path)
    return shutil.which(name)


def missing_tools(names: Iterable[str] = ASSEMBLY) -> list[str]:
    """For each tool that is missing, one line that says how to get it."""
    return [f"{name} is missing: {INSTALL[name]}" for name in names if find_tool(name) is None]


# --- occupancy


@dataclass(frozen=True)
class Limits:
    """What one multiprocessor has, by compute capability."""

    warps: int
    blocks: int
    shared: int
    """Bytes of shared memory for all its blocks."""
    reserved: int
    """Bytes of shared memory that CUDA takes of each block."""
    registers: int = 65536
    registers_unit: int = 256
    """Registers are given to warps in multiples of this."""
    shared_unit: int = 128


# CUDA C++ Programming Guide, "Compute Capabilities", table of technical specifications; the 1 KiB
# that CUDA reserves of each block since 8.0 is in the tuning guides of Ampere and Hopper.
LIMITS = {
    (7, 5): Limits(warps=32, blocks=16, shared=65536, reserved=0, shared_unit=256),
    (8, 0): Limits(warps=64, blocks=32, shared=167936, reserved=1024),
    (8, 9): Limits(warps=48, blocks=24, shared=102400, reserved=1024),
    (9, 0): Limits(warps=64, blocks=32, shared=233472, reserved=1024),
    (12, 0): Limits(warps=48, blocks=24, shared=102400, reserved=1024),
}


def occupancy(
    architecture: tuple[int, int], threads: int, registers: int, shared: int
) -> tuple[int, float]:
    """Blocks of a multiprocessor at a time, and their warps as a share of the most there can be."""
    limits = LIMITS[architecture]
    warps = math.ceil(threads / 32)
    of_warp = math.ceil(registers * 32 / limits.registers_unit) * limits.registers_unit
    # A multiprocessor is four, each with a quarter of the registers: whole warps in each.
    by_registers = limits.registers // 4 // of_warp * 4 // warps
    of_block = math.ceil((shared + limits.reserved) / limits.shared_unit) * limits.shared_unit
    by_shared = limits.shared // of_block if of_block else limits.blocks
    blocks = min(limits.warps // warps, limits.blocks, by_registers, by_shared)
    return blocks, blocks * warps / limits.warps


# --- ptxas


@dataclass
class Kernel:
    """A kernel, assembled for one architecture."""

    name: str
    architecture: tuple[int, int]
    registers: int
    shared: int
    """Bytes of static shared memory."""
    stack: int
    spills: int
    """Bytes stored and loaded because registers ran out."""
    loop: Loop | None = None
    doubles: list[str] = field(default_factory=list)
    """Instructions that compute in float64, anywhere in the kernel."""
    path: int = 0
    """Instructions of a thread, each loop counted once (`hot_path.py`)."""
    moved: int = 0
    """Bytes of global memory on that path."""
    divisions: int = 0
    """Divisions in 64 bits."""
    threads: int = 0
    blocks: int = 0
    occupancy: float = 0.0

    def as_dict(self) -> dict:
        """All fields, and the loop's share, for JSON."""
        return {**asdict(self), "share": self.loop.share if self.loop else None}


def assemble(ptx: str, architecture: tuple[int, int]) -> tuple[dict[str, int], str]:
    """What `ptxas -v` says, and the listing of `nvdisasm`. RuntimeError if a tool fails."""
    ptxas, nvdisasm = map(find_tool, ASSEMBLY)
    with tempfile.TemporaryDirectory() as folder:
        source, code = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        # From Hopper on a launch compiles for sm_90a, sm_120a: PTX of that target has no other.
        only = "a" if re.search(r"^\.target sm_\d+a", ptx, re.MULTILINE) else ""
        arch = "-arch=sm_{}{}{}".format(*architecture, only)
        said = _run(ptxas, "-v", arch, "-o", code, source)
        return resources(said), _run(nvdisasm, "-c", code)


def _run(*command) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name}: {(done.stderr or done.stdout).strip()}")
    return done.stdout + done.stderr


def resources(said: str) -> dict[str, int]:
    """Registers, shared memory, stack and spills, out of the output of `ptxas -v`."""

    def most(pattern: str) -> int:
        # A kernel can have functions of its own: the worst of them counts.
        return max(map(int, re.findall(pattern, said)), default=0)

    return {
        "registers": most(r"Used (\d+) registers"),
        "shared": most(r"(\d+) bytes smem"),
        "stack": most(r"(\d+) bytes stack frame"),
        "spills": most(r"(\d+) bytes spill stores") + most(r"(\d+) bytes spill loads"),
    }


# --- nvdisasm

WORK = ("FFMA", "HMMA")
"""Beginnings of the instructions that a loop is there for: multiply-adds in float32, and those of
tensor cores."""

DOUBLE = re.compile(r"^(DADD|DMUL|DFMA|DSETP|DMNMX|F2F\.F64|F2F\.F32\.F64|I2F\.F64|MUFU\.\w*64H)")


@dataclass(frozen=True)
class Loop:
    """The instructions from the target of a backward branch to the branch."""

    instructions: int
    work: dict[str, int]
    """FFMA and HMMA, how many of each."""
    memory: dict[str, int]
    """Loads and stores by kind and width in bits, of one thread: {"LDS.128": 32}."""

    @property
    def share(self) -> float:
        """Of all its instructions, those that multiply and add. A branch not taken counts too."""
        return sum(self.work.values()) / self.instructions

    def moved(self, *kinds: str) -> int:
        """How many of its instructions are loads or stores of these kinds, of any width."""
        return sum(n for name, n in self.memory.items() if name.partition(".")[0] in kinds)

    @property
    def mix(self) -> tuple[int, int, int]:
        """HMMA, loads from shared memory, all others."""
        products, loads = self.work.get("HMMA", 0), self.moved("LDS", "LDSM")
        return products, loads, self.instructions - products - loads


def instructions_of(listing: str) -> tuple[list[str], dict[str, int]]:
    """The instructions in order, without predicates, and where each label points.

    A load that no thread ever executes (predicate !PT), of which the assembler puts some between
    others, is a NOP.
    """
    lines: list[str] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(lines)
        if code := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:(@!?\w+)\s+)?(.*?)\s*;", line):
            lines.append("NOP" if code[1] == "@!PT" else code[2])
    return lines, labels


def main_loop(listing: str) -> Loop | None:
    """The loop with the most multiply-adds of those that hold no other loop with any; or None."""
    lines, labels = instructions_of(listing)
    spans = set()
    for end, line in enumerate(lines, start=1):
        target = re.match(r"BRA\b.*?(\.L\w+)", line)
        start = labels.get(target[1], end) if target else end
        if start < end and _work(lines[start:end]):
            spans.add((start, end))
    inner = [
        lines[start:end]
        for start, end in sorted(spans)
        if not any((a, b) != (start, end) and start <= a and b <= end for a, b in spans)
    ]
    if not inner:
        return None
    body = max(inner, key=lambda body: _work(body).total())
    # "LDS RZ, [RZ]" loads nothing: ptxas puts some between a barrier and copies to shared memory.
    names = [line.split()[0] for line in body if not line.startswith("LDS RZ,")]
    memory = Counter(filter(None, map(_width, names)))
    return Loop(len(body), dict(_work(body)), dict(sorted(memory.items())))


def _work(lines: list[str]) -> Counter:
    names = (line.split()[0] for line in lines)
    return Counter(name.split(".")[0] for name in names if name.startswith(WORK))


def _width(name: str) -> str:
    """A load or store with its width in bits: "LDS.128"; empty for other instructions."""
    kind, *parts = name.split(".")
    if kind == "LDSM":  # LDSM.16.M88.4: four matrices, a word of each for a thread
        return f"LDSM.{32 * int(parts[-1]) if parts[-1].isdigit() else 32}"
    if kind in ("LDG", "STG", "LDS", "STS", "LDL", "STL", "LDGSTS"):
        return f"{kind}.{next((part for part in parts if part in ('64', '128')), '32')}"
    return ""


def doubles_in(listing: str) -> list[str]:
    """Instructions that compute in float64, each once."""
    lines, _ = instructions_of(listing)
    return sorted({line.split()[0] for line in lines if DOUBLE.match(line)})
