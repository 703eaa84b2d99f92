"""The tables of `gpu_report.py`: results as Markdown and JSON."""

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu_cases import IN_WORDS
from gpu_runner import Result
from measuring import table

WARNING = (
    "**A rehearsal: tiny shapes, and no GPU. It shows that every case runs and is checked; its "
    "times say nothing.**"
)


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.3f}"


def share(rate: float, ceiling: float | None) -> str:
    """`rate` as a share of the ceiling, if that was measured."""
    return f"{rate / ceiling:.0%}" if ceiling else ""


def of_product(result: Result, ceilings: dict[str, float]) -> str:
    """The share of the matrix product's rate in the precision that the result's name tells."""
    words = next((words for words in IN_WORDS.values() if words and words in result.who), "")
    return share(result.operations / result.median, ceilings.get(f"matrix product{words}"))


def peak(result: Result, ceilings: dict[str, float]) -> str:
    found = result.notes.get("peak bytes")
    return f"{found / 2**20:,.0f}" if found else ""


def replayed(result: Result, ceilings: dict[str, float]) -> str:
    words = {None: "", True: "yes", False: "no: launched one by one"}
    return words[result.notes.get("replayed")]


Cell = Callable[[Result, dict[str, float]], str]
CELLS: dict[str, Cell] = {
    "ms": lambda r, _: ms(r.median),
    "fastest to slowest": lambda r, _: f"{ms(min(r.seconds))} to {ms(max(r.seconds))}",
    "times": lambda r, _: f"{len(r.seconds)}",
    "GB/s": lambda r, _: f"{r.moved / r.median / 1e9:,.1f}" if r.moved else "",
    "TFLOP/s": lambda r, _: f"{r.operations / r.median / 1e12:,.2f}" if r.operations else "",
    "of the copy bandwidth": lambda r, c: share(r.moved / r.median, c.get("copy bandwidth")),
    "of the matrix product": of_product,
    "images/s": lambda r, _: f"{r.images / r.median:,.0f}",
    "host ms": lambda r, _: ms(statistics.median(r.host_seconds)),
    "peak MiB": peak,
    "replayed": replayed,
}
"""By the name of a column, a result's cell, given what the ceilings are."""

TIMES = "ms", "fastest to slowest", "times"
PRODUCTS = "TFLOP/s", "of the matrix product"
SECTIONS = {
    "ceilings": (
        "Measured ceilings",
        ("GB/s", "TFLOP/s"),
        "A copy counts its bytes twice, once read and once written. The products are the "
        "library's; a share below is of the product in the same precision.",
    ),
    "steps": (
        "Whole steps, by batch size",
        ("images/s", *PRODUCTS, "host ms", "peak MiB", "replayed"),
        "Host ms: until everything of a step is queued. Peak: of the library's own memory pool "
        "(for ours, all that it holds). Images are on the GPU; our labels come from the host. "
        "PyTorch's LRN, groups and dropout are its own modules; BF16 is its autocast.",
    ),
    "convolutions": (
        "Convolutions",
        PRODUCTS,
        "Forward includes the bias; the filter gradient includes the bias gradient. What our "
        "kernels rearrange before they multiply is timed with them. Where the padding differs from "
        "side to side PyTorch's is done before, untimed; in BF16 all its arrays are bfloat16 "
        "before. Its backward passes are timed as autograd runs them.",
    ),
    "layers": (
        "The other layers",
        ("GB/s", "of the copy bandwidth"),
        "GB/s: bytes that have to move (docs/limits.md) in the time taken; an array that is read "
        "twice counts once. Of PyTorch's passes both are timed as autograd runs them.",
    ),
    "tiles": ("Tiles, round by round", (), "A product by its key in tiles.json."),
}
"""Title, columns, and what they mean."""


def section_table(name: str, results: list[Result], ceilings: dict[str, float]) -> str:
    """A row for each result; those with one `what` are together."""
    columns = *TIMES, *SECTIONS[name][1]
    rows = []
    for what in dict.fromkeys(result.what for result in results):
        for r in (result for result in results if result.what == what):
            cells = [r.why] + [""] * (len(columns) - 1)
            if r.seconds:
                cells = [CELLS[column](r, ceilings) for column in columns]
            rows.append([what, r.who, *cells])
    return table(["what", "who", *columns], rows, text=2)


def agreement(results: list[Result]) -> str:
    """What was compared, and how well it agrees."""
    lines = []
    for result in results:
        outcome, notes = result.why or "agree", result.notes
        if "ours" in notes:
            outcome += f", to {notes['largest relative difference']:.1e} of the loss"
            outcome += f"; the last is {notes['ours'][-1]:.6f} and {notes['theirs'][-1]:.6f}"
        if notes.get("equal bits"):
            outcome += " to the bit"
        lines.append(f"- {result.what}, {result.who}: {outcome}.")
    return "\n".join(lines)


def missing(results: list[Result], most: int) -> str:
    """Which cases failed, were dropped, or were repeated less than `most` times."""
    lines = [f"- {r.section}: {r.what}, {r.who}: {r.why}." for r in results if r.why]
    fewer = [r for r in results if r.seconds and len(r.seconds) < most]
    if fewer:
        text = ", ".join(f"{r.what} ({r.who}: {len(r.seconds)})" for r in fewer)
        lines.append(f"- Repeated less than {most} times, to keep to the minutes: {text}.")
    return "\n".join(lines) or "Nothing: every case ran as often as it should."


def markdown(facts: dict[str, Any], results: list[Result]) -> str:
    """The whole report."""
    parts = [f"# {facts['device']}", *([WARNING] if facts["rehearsal"] else [])]
    parts.append("\n".join(f"- {name}: {value}" for name, value in facts.items()))
    ceilings = {
        r.what: (r.moved or r.operations) / r.median
        for r in results
        if r.section == "ceilings" and r.seconds
    }
    agreed = [result for result in results if result.section == "agreement"]
    if agreed:
        parts += ["## Agreement", agreement(agreed)]
    for name, (title, _, note) in SECTIONS.items():
        if rows := [result for result in results if result.section == name]:
            parts += [f"## {title}", note, section_table(name, rows, ceilings)]
    parts += ["## What is missing", missing(results, facts["repeats"])]
    return "\n\n".join(parts) + "\n"


def write(path: Path, facts: dict[str, Any], results: list[Result]) -> None:
    """The report as Markdown and as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(markdown(facts, results), encoding="utf-8")
    content = json.dumps({"facts": facts, "results": [asdict(r) for r in results]}, indent=1)
    path.with_suffix(".json").write_text(content + "\n", encoding="utf-8")
