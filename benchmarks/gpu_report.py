"""The report of `gpu_day.py`: Markdown and JSON, replaced after each result; the verdict."""

import json
import os
import statistics
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from machine import machine
from measuring import table
from runner import Result

PACKAGES = "numba", "numba-cuda", "cupy-cuda12x", "cupy-cuda13x", "numpy", "h5py", "torch"
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
    words = next((words for words in (", TF32", ", BF16") if words in result.who), "")
    return share(result.operations / result.median, ceilings.get(f"matrix product{words}"))


def noted(result: Result, ceilings: dict[str, float]) -> str:
    """The notes that are for a reader, in one cell."""
    notes = dict(result.notes)
    if "losses" in notes:
        notes["last losses"] = f"{notes.pop('losses')[-1]:.6f}, {notes.pop('beside')[-1]:.6f}"
    if "peak bytes" in notes:
        notes["peak MiB"] = f"{notes.pop('peak bytes') / 2**20:,.0f}"
    shown = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in notes.items()}
    return "; ".join(f"{k}: {v}" for k, v in shown.items()).replace("|", "/")


CELLS: dict[str, Callable[[Result, dict[str, float]], str]] = {
    "ms": lambda r, _: ms(r.median),
    "fastest to slowest": lambda r, _: f"{ms(min(r.seconds))} to {ms(max(r.seconds))}",
    "times": lambda r, _: f"{len(r.seconds)}",
    "GB/s": lambda r, _: f"{r.moved / r.median / 1e9:,.1f}" if r.moved else "",
    "TFLOP/s": lambda r, _: f"{r.operations / r.median / 1e12:,.2f}" if r.operations else "",
    "of the copy bandwidth": lambda r, c: share(r.moved / r.median, c.get("copy bandwidth")),
    "of the matrix product": of_product,
    "images/s": lambda r, _: f"{r.images / r.median:,.0f}",
    "host ms": lambda r, _: ms(statistics.median(r.host_seconds)),
    "notes": noted,
}
"""By the name of a column, a result's cell, given what the ceilings are."""

TIMES = "ms", "fastest to slowest", "times"
PRODUCTS = "TFLOP/s", "of the matrix product"
STEP = (*TIMES, "images/s", *PRODUCTS, "host ms", "notes")
SECTIONS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "kernels": (
        "Every kernel beside the host",
        (),
        "Each layer and step in every way of computing it, by itself, with fresh data and poisoned "
        "outputs, beside the host in float64. Only what failed is listed.",
    ),
    "losses": (
        "Losses of twenty steps",
        ("notes",),
        "Of the whole net on one batch: ours beside the simple kernels in float32, PyTorch beside "
        "ours. Equal bits: of the weights after a replay, and after plain launches.",
    ),
    "training": (
        "Training",
        ("notes",),
        "The README's first command, as a process of its own; and the loop on photos in memory.",
    ),
    "ceilings": (
        "Measured ceilings",
        (*TIMES, "GB/s", "TFLOP/s"),
        "A copy counts its bytes twice, once read and once written. The products are the "
        "library's; a share below is of the product in the same precision.",
    ),
    "steps": (
        "Whole steps, by batch size",
        STEP,
        "Host ms: until everything of a step is queued. Peak: of the library's own memory pool "
        "(for ours, all that it holds). Pieces: calls that replay a recorded step, 0 if none was "
        "recorded. Images are on the GPU; our labels come from the host. PyTorch's LRN, groups and "
        "dropout are its own modules; BF16 is its autocast.",
    ),
    "columns": ("Two columns", STEP, "Both on this GPU, one after the other."),
    "convolutions": (
        "Convolutions",
        (*TIMES, *PRODUCTS),
        "Forward includes the bias; the filter gradient includes the bias gradient. What our "
        "kernels rearrange before they multiply is timed with them. Where the padding differs from "
        "side to side PyTorch's is done before, untimed; in BF16 all its arrays are bfloat16 "
        "before. Its backward passes are timed as autograd runs them.",
    ),
    "layers": (
        "The other layers",
        (*TIMES, "GB/s", "of the copy bandwidth"),
        "GB/s: bytes that have to move (docs/limits.md) in the time taken; an array that is read "
        "twice counts once. Of PyTorch's passes both are timed as autograd runs them.",
    ),
    "sanitizer": ("compute-sanitizer", ("notes",), "The hostile checks of stage b under it."),
    "tiles": ("Tiles, round by round", TIMES, "A product by its key in tiles.json."),
}
"""Title, columns, and what they mean; no columns: how many have passed."""


def verdict(results: list[Result], kernels: list[str]) -> str:
    """One line: which kernels are right, and which checks failed, with how."""
    checks = [r for r in results if r.section == "kernels"]
    if not checks:
        return "no verdict: the kernels have not been checked"
    failed = [r for r in checks if r.why]
    launched = {name for r in checks for name in r.notes.get("kernels", ())}
    doubtful = {name for r in failed for name in r.notes.get("kernels", ())}
    fine = [name for name in kernels if name in launched - doubtful]
    line = f"{len(fine)} of {len(kernels)} kernels are right in all of their checks"
    if failed:
        shown = "; ".join(f"{r.what}, {r.who}: {r.why}" for r in failed[:4])
        more = f"; and {len(failed) - 4} more" if len(failed) > 4 else ""
        line = f"WRONG: {len(failed)} of {len(checks)} checks failed. {shown}{more}. {line}"
    never = [name for name in kernels if name not in launched]
    return line + (f"; not launched: {', '.join(never)}" if never else "")


def section_table(columns: tuple[str, ...], rows: list[Result], ceilings: dict[str, float]) -> str:
    """A row for each result; those with one `what` are together."""
    lines = []
    order = list(dict.fromkeys(result.what for result in rows))
    for r in sorted(rows, key=lambda result: order.index(result.what)):
        cells = [CELLS[column](r, ceilings) for column in columns] if not r.why else []
        failure = [r.why.replace("|", "/")] + [""] * (len(columns) - 1)
        lines.append([r.what, r.who, *(cells or failure)])
    return table(["what", "who", *columns], lines, text=2)


def launch_table(launches: list[tuple[str, float]], predicted: dict[str, float]) -> str:
    """The launches of one step, by kernel, slowest first; milliseconds."""
    found: dict[str, list[float]] = {}
    for name, seconds in launches:
        found.setdefault(name, []).append(1e3 * seconds)
    slowest = sorted(found, key=lambda name: -sum(found[name]))
    rows = [[n, f"{len(found[n])}", f"{sum(found[n]):.3f}"] for n in slowest]
    rows.append(["all", f"{len(launches)}", f"{sum(map(sum, found.values())):.3f}"])
    for row in rows:
        row.append(f"{predicted[row[0]]:.3f}" if row[0] in predicted else "")
    return table(["kernel", "launches", "ms", "predicted ms"], rows)


class Report:
    """What has been found, in two files that are replaced after each addition."""

    def __init__(self, path: Path, rehearsal: bool, **facts: Any) -> None:
        self.path, self.rehearsal = path, rehearsal
        self.facts: dict[str, Any] = {"machine": machine(*PACKAGES), **facts}
        self.kernels: list[str] = []
        self.predicted: dict[str, dict[str, float]] = {}
        self.results: list[Result] = []
        self._lock = threading.Lock()

    def add(self, message: dict[str, Any]) -> None:
        """A result, facts, kernels' names or predictions, from the process of a stage."""
        with self._lock:
            if "section" in message:
                self.results.append(Result(**message))
            self.facts |= message.get("facts", {})
            self.predicted |= message.get("predicted", {})
            self.kernels = message.get("kernels", self.kernels)
            content = {
                "verdict": verdict(self.results, self.kernels),
                "rehearsal": self.rehearsal,
                "facts": self.facts,
                "kernels": self.kernels,
                "predicted": self.predicted,
                "results": [asdict(result) for result in self.results],
            }
            for suffix, text in {".json": json.dumps(content), ".md": self.markdown()}.items():
                new = self.path.with_suffix(f"{suffix}.new")
                new.write_text(text, encoding="utf-8")
                os.replace(new, self.path.with_suffix(suffix))

    def markdown(self) -> str:
        """The whole report."""
        parts = [f"# {self.facts.get('device', 'a GPU')}", *([WARNING] * self.rehearsal)]
        parts.append(f"**{verdict(self.results, self.kernels)}.**")
        parts.append("\n".join(f"- {name}: {value}" for name, value in self.facts.items()))
        ceilings = {
            r.what: (r.moved or r.operations) / r.median
            for r in self.results
            if r.section == "ceilings" and r.seconds
        }
        for name, (title, columns, note) in SECTIONS.items():
            rows = [result for result in self.results if result.section == name]
            if rows:
                checked = f"{sum(not r.why for r in rows)} of {len(rows)} checks passed."
                text = section_table(columns, rows, ceilings) if columns else checked
                parts += [f"## {title}", note, text]
        for r in self.results:
            if r.section == "launches" and not r.why:
                parts.append(f"## Each launch of a step, {r.what}")
                parts.append(launch_table(r.notes["launches"], self.predicted.get(r.what, {})))
        lines = [f"- {r.section}: {r.what}, {r.who}: {r.why}." for r in self.results if r.why]
        parts += ["## What failed or is missing", "\n".join(lines) or "Nothing."]
        return "\n\n".join(parts) + "\n"
