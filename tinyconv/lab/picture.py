"""What the page and pictures of `draw-kernel` show: launches, their source, the page.

`steps.py` says what a step is, `page.js` what becomes of the page's data.
"""

from __future__ import annotations

import inspect
import json
import linecache
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from layers import simulator
from layers.simulator.trace import Instruction, Trace
from tinyconv.lab.steps import Block, Launch

Sides = int | tuple[int, ...]

MOST_CELLS, MOST_ACCESSES = 20_000, 1_000_000
"""Of a page: beyond these a browser is slow and nothing can be found."""

# --- launches


def launched(title: str, kernel: Any, grid: Sides, block: Sides, args: tuple[Any, ...]) -> Launch:
    """Launch `kernel[grid, block](*args)` and make it ready to be drawn.

    ValueError if it is too large for that.
    """
    with simulator.record() as traces:
        kernel[grid, block](*args)
    return drawable(title, traces[0], kernel)


def drawable(title: str, trace: Trace, kernel: Any) -> Launch:
    """A recorded launch of `kernel`, ready to be drawn; ValueError if it is too large for that."""
    launch = Launch(title, trace, getattr(kernel, "fn", None))
    cells = sum(math.prod(array.shape) for array in launch.arrays)
    if cells > MOST_CELLS or len(trace.accesses) > MOST_ACCESSES:
        raise ValueError(
            f"{trace.kernel} touches {cells:,} elements {len(trace.accesses):,} times, too many "
            f"to be drawn ({MOST_CELLS:,} and {MOST_ACCESSES:,}): choose a smaller shape"
        )
    return launch


# --- the source beside it


@dataclass(frozen=True)
class Source:
    """The lines of one function, with the comment above it."""

    file: str
    """From the project's folder on, as far as it is in there."""
    function: str
    first: int
    lines: tuple[str, ...]


ROOT = Path(__file__).resolve().parents[2]


def short_path(file: str) -> str:
    """`file` from the project's folder on; its name alone if it is elsewhere."""
    path = Path(file).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def source_of(file: str, line: int, function: str) -> Source:
    """The function `function` around `line` of `file`; that line alone if it is not found."""
    lines = linecache.getlines(file)
    first = line
    while first > 1 and not re.match(rf"\s*def {re.escape(function)}\b", lines[first - 1]):
        first -= 1
    if not lines or not re.match(rf"\s*def {re.escape(function)}\b", lines[first - 1]):
        return Source(short_path(file), function, line, (linecache.getline(file, line).rstrip(),))
    while first > 1 and lines[first - 2].lstrip().startswith("@"):
        first -= 1
    code = inspect.getblock(lines[first - 1 :])
    comment = first - 1
    while comment > 0 and lines[comment - 1].strip() == "":
        comment -= 1
    while comment > 0 and lines[comment - 1].startswith("#"):
        comment -= 1
    if not lines[comment].startswith("#"):
        comment = first - 1
    above = lines[comment : first - 1]
    return Source(
        short_path(file),
        function,
        comment + 1,
        tuple(text.rstrip() for text in [*above, *code]),
    )


def columns_of(instruction: Instruction, function: Callable | None) -> tuple[int, int] | None:
    """Where in its line the instruction's expression is, as far as Python (3.11 on) tells."""
    code = getattr(function, "__code__", None)
    if code is not None and code.co_name != instruction.function:
        function = getattr(function, "__globals__", {}).get(instruction.function)
        code = getattr(getattr(function, "fn", function), "__code__", None)
    if code is None or code.co_filename != instruction.file or not hasattr(code, "co_positions"):
        return None
    positions = list(code.co_positions())
    if instruction.offset // 2 >= len(positions):
        return None
    first, last, start, end = positions[instruction.offset // 2]
    if first is None or first != last or start is None or end is None:
        return None
    text = linecache.getline(instruction.file, first).encode()
    return len(text[:start].decode()), len(text[:end].decode())


# --- the page


def page(name: str, drawn: list[Launch]) -> str:
    """The whole page for these launches of `name`, as text: `page.html`, filled in."""
    here = Path(__file__).parent
    html, css, arrays, js = (
        (here / name).read_text(encoding="utf-8")
        for name in ("page.html", "page.css", "page_arrays.js", "page.js")
    )
    data = json.dumps(page_data(name, drawn), ensure_ascii=False, separators=(",", ":"))
    # Inside a script nothing but "<" can end it, or open a comment.
    data = data.replace("<", "\\u003c")
    parts = {"title": escape(f"{name} · tinyconv"), "css": css, "js": arrays + js, "data": data}
    before, *pieces = html.split("{{")
    return before + "".join(
        parts[key] + rest for key, rest in (piece.split("}}", 1) for piece in pieces)
    )


def page_data(name: str, drawn: list[Launch]) -> dict[str, Any]:
    """Everything the page shows, as JSON knows it."""
    return {"name": name, "launches": [_launch_data(launch) for launch in drawn]}


def _launch_data(launch: Launch) -> dict[str, Any]:
    trace = launch.trace
    sources: dict[Source, int] = {}
    code = getattr(launch.function, "__code__", None)
    # A kernel that a function has made is called otherwise in its source.
    kernel = source_of(trace.file, trace.line + 1, code.co_name if code else trace.kernel)
    sources[kernel] = 0
    places = []
    for instruction in trace.instructions:
        source = source_of(instruction.file, instruction.line, instruction.function)
        places.append(
            {
                "source": sources.setdefault(source, len(sources)),
                "line": instruction.line,
                "text": instruction.source,
                "columns": columns_of(instruction, launch.function),
            }
        )
    blocks = [launch.block(number) for number in range(trace.blocks)]
    return {
        "title": launch.title,
        "kernel": trace.kernel,
        "grid": [trace.grid.x, trace.grid.y, trace.grid.z],
        "block": [trace.block.x, trace.block.y, trace.block.z],
        "arrays": [
            {
                "name": array.name,
                "space": array.space,
                "shape": array.shape,
                "dtype": array.dtype,
                "itemsize": array.itemsize,
                "in_order": array.in_order,
                "skew": array.skew,
                "values": {
                    "all" if block is None else str(block): [_number(v) for v in values.tolist()]
                    for block, values in array.values.items()
                },
            }
            for array in launch.arrays
        ],
        "sources": [
            {"file": s.file, "function": s.function, "first": s.first, "lines": s.lines}
            for s in sources
        ],
        "places": places,
        "blocks": [_block_data(block) for block in blocks],
        "totals": totals(launch),
    }


def _number(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}") if np.isfinite(value) else str(value)
    return value


def _block_data(block: Block) -> dict[str, Any]:
    return {
        "number": block.number,
        "marks": [[m.after, m.call, m.line, short_path(m.file)] for m in block.marks],
        # Lists without names, for there are many: instruction, k, whether it writes, requests.
        "steps": [
            [
                step.instruction,
                step.occurrence,
                int(step.write),
                [
                    [r.warp, r.array, r.lanes, r.cells, r.sectors, r.ideal, r.ways, int(r.bad)]
                    for r in step.requests
                ],
            ]
            for step in block.steps
        ],
    }


def totals(launch: Launch) -> list[dict[str, Any]]:
    """For each load and store of the source, over all blocks: requests and what they cost.

    What an asynchronous copy costs is counted where it is begun.
    """
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for number in range(launch.trace.blocks):
        for step in launch.block(number).steps:
            if launch.trace.instructions[step.instruction].arrival:
                continue
            for r in step.requests:
                row = rows.setdefault(
                    (step.instruction, r.array),
                    {
                        "place": step.instruction,
                        "array": r.array,
                        "write": step.write,
                        **dict.fromkeys(("requests", "sectors", "ideal", "ways", "bad"), 0),
                    },
                )
                row["requests"] += 1
                row["sectors"] += r.sectors
                row["ideal"] += r.ideal
                row["ways"] = max(row["ways"], r.ways)
                row["bad"] += r.bad
    return [rows[key] for key in sorted(rows)]
