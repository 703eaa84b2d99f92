"""A kernel's traffic as a table: what `print(measure(trace))` shows.

Under each line of the source stand its loads and stores, in the order in which they are executed.
`!` marks those that waste: efficiency below one half, or bank conflicts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from layers.simulator.trace import GLOBAL, SHARED
from tinyconv.lab.requests import SECTOR

if TYPE_CHECKING:
    from tinyconv.lab.traffic import Traffic

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
    files = {line.place.file for line in traffic.lines}
    before = None
    for line, name, row in zip(traffic.lines, names, rows[1:], strict=True):
        place = line.place
        if before != (place.file, place.line):
            where = f"{Path(place.file).name}:{place.line}" if len(files) > 1 else str(place.line)
            text.append(f"{where}: {place.source}")
            before = place.file, place.line
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
