"""What `traffic.py` measures, line by line and in sum, and how it is shown.

The table is what `print(measure(trace))` shows. Under each line of the source stand its loads and
stores, in the order in which they are executed. `!` marks those that waste: efficiency below one
half, or bank conflicts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from layers.simulator.trace import GLOBAL, SHARED, Instruction
from tinyconv.lab.requests import SECTOR

OPERATIONS = ("read", "write", "atomic")
WASTEFUL = 0.5
"""A line whose efficiency is below this, or that has bank conflicts, is marked in the table."""


# --- what is measured


@dataclass(frozen=True)
class LineTraffic:
    """One load or store in the source: what all its requests came to."""

    instruction: Instruction
    array: str
    """Parameter name; several, with commas, where the instruction reaches several arrays."""
    space: str
    """GLOBAL or SHARED."""
    op: str
    """"read", "write" or "atomic"."""
    requests: int
    lanes: int
    """Active lanes of all requests: accesses by single threads."""
    bytes: int
    """What these asked for."""
    sectors: int
    """Global memory only, as is ideal_sectors; else 0."""
    ideal_sectors: int
    conflict_ways: int
    """Of the worst request; shared memory only, as are wavefronts and ideal_wavefronts; else 0."""
    wavefronts: int
    ideal_wavefronts: int
    """Without conflicts: one for each pass."""

    @property
    def efficiency(self) -> float | None:
        """ideal sectors / sectors; None for shared memory."""
        return self.ideal_sectors / self.sectors if self.sectors else None

    @property
    def sectors_per_request(self) -> float:
        """4 for 32 neighbouring float32, 32 when each lane needs a sector of its own."""
        return self.sectors / self.requests

    @property
    def wasteful(self) -> bool:
        """Whether the table marks it: efficiency below WASTEFUL, or a bank conflict."""
        efficiency = self.efficiency
        return self.conflict_ways > 1 or (efficiency is not None and efficiency < WASTEFUL)


@dataclass(frozen=True)
class Traffic:
    """One launch: its loads and stores in the order of the source, and their sums."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    lines: tuple[LineTraffic, ...]
    floor_read: int
    """Distinct bytes of global memory that the kernel reads before it writes them."""
    floor_written: int
    """Distinct bytes of global memory that it writes."""
    flops: int | None
    """Floating-point operations; None if they were not counted."""

    def total(self, what: str, space: str = GLOBAL, op: str | None = None) -> int:
        """The sum of a field of LineTraffic: `total("sectors", op="read")`."""
        chosen = (line for line in self.lines if line.space == space and op in (None, line.op))
        return sum(getattr(line, what) for line in chosen)

    @property
    def efficiency(self) -> float | None:
        """ideal sectors / sectors of all global accesses; None if there are none."""
        sectors = self.total("sectors")
        return self.total("ideal_sectors") / sectors if sectors else None

    @property
    def conflict_ways(self) -> int:
        """Of the worst request to shared memory; 1: no conflict; 0: no shared memory."""
        return max((line.conflict_ways for line in self.lines), default=0)

    @property
    def traffic_bytes(self) -> int:
        """Bytes in the sectors of all global requests."""
        return SECTOR * self.total("sectors")

    @property
    def floor_bytes(self) -> int:
        """Bytes that must move however good the caches are."""
        return self.floor_read + self.floor_written

    @property
    def wasteful(self) -> list[LineTraffic]:
        """The lines that the table marks with `!`."""
        return [line for line in self.lines if line.wasteful]

    def _per_byte(self, count: int) -> float | None:
        return self.flops / count if self.flops is not None and count else None

    @property
    def flops_per_floor_byte(self) -> float | None:
        """Arithmetic intensity with perfect caches; None if `flops` is."""
        return self._per_byte(self.floor_bytes)

    @property
    def flops_per_traffic_byte(self) -> float | None:
        """Arithmetic intensity without any cache; None if `flops` is."""
        return self._per_byte(self.traffic_bytes)

    def as_dict(self) -> dict[str, Any]:
        """Everything, sums and quotients too, in types that JSON knows."""
        lines = []
        for line in self.lines:
            entry = asdict(line)
            entry["instruction"]["source"] = line.instruction.source
            entry["efficiency"] = line.efficiency
            entry["sectors_per_request"] = line.sectors_per_request
            entry["wasteful"] = line.wasteful
            lines.append(entry)
        totals: dict[str, Any] = {}
        for space, fields in _TOTALS.items():
            for op in OPERATIONS:
                totals[f"{space}_{op}"] = {name: self.total(name, space, op) for name in fields}
        totals |= {name: getattr(self, name) for name in _QUOTIENTS}
        where = {"kernel": self.kernel, "grid": list(self.grid), "block": list(self.block)}
        return {**where, "lines": lines, "totals": totals}

    def __str__(self) -> str:
        return table(self)


_TOTALS = {
    GLOBAL: ("requests", "lanes", "bytes", "sectors", "ideal_sectors"),
    SHARED: ("requests", "lanes", "bytes", "wavefronts", "ideal_wavefronts"),
}
_QUOTIENTS = (
    *("efficiency", "conflict_ways", "traffic_bytes", "floor_read", "floor_written"),
    *("floor_bytes", "flops", "flops_per_floor_byte", "flops_per_traffic_byte"),
)


# --- as a table

HEADER = ("requests", "sectors", "/request", "ideal", "efficiency", "wavefronts", "conflict")


def table(traffic: Traffic) -> str:
    """A header, the loads and stores of each source line, and sums."""
    numbers: list[tuple[str, ...]] = [HEADER]
    for line in traffic.lines:
        if line.space == GLOBAL:
            sectors = str(line.sectors), f"{line.sectors_per_request:.2f}", str(line.ideal_sectors)
            numbers.append((str(line.requests), *sectors, _percent(line.efficiency), "", ""))
        else:
            ways = f"{line.conflict_ways} ways" if line.conflict_ways > 1 else "none"
            numbers.append((str(line.requests), "", "", "", "", str(line.wavefronts), ways))
    filled = [i for i in range(len(HEADER)) if any(row[i] for row in numbers[1:])]
    widths = [max(len(row[i]) for row in numbers) for i in range(len(HEADER))]
    rows = ["  ".join(row[i].rjust(widths[i]) for i in filled) for row in numbers]

    names = []
    for line in traffic.lines:
        array = line.array.replace("shared array", "shared")
        names.append(f"{'!' if line.wasteful else ' '}   {line.op} {array}")
    left = max(map(len, names), default=0)
    text = [f"{traffic.kernel}, grid {traffic.grid}, block {traffic.block}"]
    text.append(f"{'':{left}}  {rows[0]}")
    files = {line.instruction.file for line in traffic.lines}
    before = None
    for line, name, row in zip(traffic.lines, names, rows[1:], strict=True):
        instruction = line.instruction
        if before != (instruction.file, instruction.line):
            where = str(instruction.line)
            if len(files) > 1:
                where = f"{Path(instruction.file).name}:{where}"
            text.append(f"{where}: {instruction.source}")
            before = instruction.file, instruction.line
        text.append(f"{name:{left}}  {row}".rstrip())
    return "\n".join(text + _sums(traffic))


def _sums(traffic: Traffic) -> list[str]:
    text = []
    if traffic.total("requests"):
        requests, sectors = traffic.total("requests"), traffic.total("sectors")
        text.append(
            f"global: {requests:,} requests, {sectors:,} sectors, "
            f"ideal {traffic.total('ideal_sectors'):,}: efficiency {_percent(traffic.efficiency)}"
        )
        for op, floor in (("read", traffic.floor_read), ("write", traffic.floor_written)):
            text.append(
                f"  {op}: {traffic.total('bytes', op=op):,} bytes asked for, "
                f"{SECTOR * traffic.total('sectors', op=op):,} in sectors, {floor:,} at least"
            )
    if traffic.total("requests", SHARED):
        text.append(
            f"shared: {traffic.total('requests', SHARED):,} requests, "
            f"{traffic.total('wavefronts', SHARED):,} wavefronts, "
            f"{traffic.total('ideal_wavefronts', SHARED):,} without conflicts"
        )
    at_best, at_worst = traffic.flops_per_floor_byte, traffic.flops_per_traffic_byte
    if at_best is not None and at_worst is not None:
        text.append(
            f"{traffic.flops:,} floating-point operations: {at_best:.2f} for each byte that must "
            f"move, {at_worst:.2f} for each byte in sectors"
        )
    return text


def _percent(part: float | None) -> str:
    return "" if part is None else f"{100 * part:.1f}%"
