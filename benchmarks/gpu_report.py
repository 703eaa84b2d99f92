"""The report of `gpu_day.py`: Markdown and JSON, replaced after each result; the verdict."""

import json
import os
import statistics
import threading
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


COLUMNS = (
    *("ms", "fastest to slowest", "times", "images/s", "host ms"),
    *("TFLOP/s", "of the matrix product", "GB/s", "of the copy bandwidth", "notes"),
)


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.3f}"


def share(rate: float, ceiling: float | None) -> str:
    """`rate` as a share of the ceiling, if that was measured."""
    return f"{rate / ceiling:.0%}" if ceiling else ""


def cells_of(r: Result, ceilings: dict[str, float]) -> dict[str, str]:
    """What there is to say of a result, by column. ceilings: their rates, by name."""
    if r.why:
        return {"notes": r.why.replace("|", "/")}
    found: dict[str, str] = {}
    if r.seconds:
        found["ms"] = ms(r.median)
        found["fastest to slowest"] = f"{ms(min(r.seconds))} to {ms(max(r.seconds))}"
        found["times"] = f"{len(r.seconds)}"
    if r.images:
        found["images/s"] = f"{r.images / r.median:,.0f}"
        found["host ms"] = ms(statistics.median(r.host_seconds))
    if r.operations:
        words = next((words for words in (", TF32", ", BF16") if words in r.who), "")
        found["TFLOP/s"] = f"{r.operations / r.median / 1e12:,.2f}"
        product = ceilings.get(f"matrix product{words}")
        found["of the matrix product"] = share(r.operations / r.median, product)
    elif r.moved:
        found["GB/s"] = f"{r.moved / r.median / 1e9:,.1f}"
        copied = ceilings.get("copy bandwidth")
        found["of the copy bandwidth"] = share(r.moved / r.median, copied)
    notes = dict(r.notes)
    if "losses" in notes:
        notes["last losses"] = f"{notes.pop('losses')[-1]:.6f}, {notes.pop('beside')[-1]:.6f}"
    if "peak bytes" in notes:
        notes["peak MiB"] = f"{notes.pop('peak bytes') / 2**20:,.0f}"
    shown = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in notes.items()}
    found["notes"] = "; ".join(f"{k}: {v}" for k, v in shown.items()).replace("|", "/")
    return {column: cell for column, cell in found.items() if cell}


SWITCHES = {"tensor_tile.L1": True, "tensor_tile.TAPS_FIRST": False, "tile_table.CARVEOUT": True}
"""Constants of layers/fast/conv for a GPU to decide; whether both values give the same bits."""

SECTIONS: dict[str, tuple[str, str]] = {
    "kernels": (
        "Every kernel beside the host",
        "Each layer and step in every way of computing it, by itself, with fresh data and poisoned "
        "outputs, beside the host in float64. Only what failed is listed.",
    ),
    "losses": (
        "Losses of twenty steps",
        "Of the whole net on one batch: ours beside the simple kernels in float32, PyTorch beside "
        "ours. Equal bits: of the weights after a replay, and after plain launches.",
    ),
    "training": (
        "Training",
        "The README's first command, as a process of its own; and the loop on photos in memory.",
    ),
    "ceilings": (
        "Measured ceilings",
        "A copy counts its bytes twice, once read and once written. The products are the "
        "library's; a share below is of the product in the same precision.",
    ),
    "steps": (
        "Whole steps, by batch size",
        "Host ms: until everything of a step is queued. Peak: of the library's own memory pool "
        "(for ours, all that it holds). Pieces: calls that replay a recorded step, 0 if none was "
        "recorded. Images are on the GPU; our labels come from the host. PyTorch's LRN, groups and "
        "dropout are its own modules; BF16 is its autocast.",
    ),
    "columns": ("Two columns", "Both on this GPU, one after the other."),
    "convolutions": (
        "Convolutions",
        "Forward includes the bias; the filter gradient includes the bias gradient. What our "
        "kernels rearrange before they multiply is timed with them. Where the padding differs from "
        "side to side PyTorch's is done before, untimed; in BF16 all its arrays are bfloat16 "
        "before. Its backward passes are timed as autograd runs them.",
    ),
    "layers": (
        "The other layers",
        "GB/s: bytes that have to move (docs/limits.md) in the time taken; an array that is read "
        "twice counts once. Of PyTorch's passes both are timed as autograd runs them.",
    ),
    "sanitizer": ("compute-sanitizer", "The hostile checks of stage b under it."),
    "tiles": ("Tiles, round by round", "A product by its key in tiles.json."),
    "switches": (
        "Switches that a GPU decides",
        "Constants in layers/fast/conv, each with its default and turned, for the convolutions of "
        "a step. Sums are of the products that were timed with both values.",
    ),
}
"""Title, and what its columns mean."""


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


def section_table(rows: list[Result], ceilings: dict[str, float]) -> str:
    """A row for each result, those with one `what` together; the columns that any of them has."""
    order = list(dict.fromkeys(result.what for result in rows))
    rows = sorted(rows, key=lambda result: order.index(result.what))
    cells = [cells_of(row, ceilings) for row in rows]
    columns = [name for name in COLUMNS if any(name in cell for cell in cells)]
    lines = [[r.what, r.who, *map(c.get, columns)] for r, c in zip(rows, cells, strict=True)]
    return table(["what", "who", *columns], [[x or "" for x in line] for line in lines], text=2)


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


def switch_table(rows: list[Result]) -> str:
    """The sums of all convolutions' medians with both values of each switch, in milliseconds.

    A result's `what` is "switch, precision: product", its `who` the value, the default first.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    values: dict[str, list[str]] = {}
    for row in rows:
        switch, _, product = row.what.partition(": ")
        medians = found.setdefault(switch, {}).setdefault(product, {})
        if row.who not in values.setdefault(switch, []):
            values[switch].append(row.who)
        if row.seconds:
            medians[row.who] = 1e3 * row.median
    lines = []
    for switch, products in found.items():
        both = [medians for medians in products.values() if len(medians) == 2]
        sums = [sum(medians[who] for medians in both) for who in values[switch]]
        line = [switch, *values[switch], *[""] * (2 - len(sums)), f"{len(both)} of {len(products)}"]
        if both:
            better = values[switch][sums[1] < sums[0]]
            gain = 1 - min(sums) / max(sums)
            line += [*(f"{each:.3f}" for each in sums), f"{better}, by {gain:.1%}"]
        lines.append(line + [""] * (7 - len(line)))
    head = "switch", "default", "other", "products", "default, ms", "other, ms", "better"
    return table(head, lines, text=3)


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
        for name, (title, note) in SECTIONS.items():
            rows = [result for result in self.results if result.section == name]
            if rows:
                text = f"{sum(not r.why for r in rows)} of {len(rows)} checks passed."
                if name != "kernels":
                    text = section_table(rows, ceilings if name != "ceilings" else {})
                sums = [switch_table(rows)] if name == "switches" else []
                parts += [f"## {title}", note, *sums, text]
        for r in self.results:
            if r.section == "launches" and not r.why:
                parts.append(f"## Each launch of a step, {r.what}")
                parts.append(launch_table(r.notes["launches"], self.predicted.get(r.what, {})))
        lines = [f"- {r.section}: {r.what}, {r.who}: {r.why}." for r in self.results if r.why]
        parts += ["## What failed or is missing", "\n".join(lines) or "Nothing."]
        return "\n\n".join(parts) + "\n"
