"""The results of `gpu_report.py` as Markdown."""

from collections.abc import Callable, Iterable
from typing import Any

from gpu_bench import IN_WORDS
from gpu_runner import Result
from gpu_steps import COLUMNS

WARNING = (
    "**A rehearsal: tiny shapes, and no GPU. It shows that every case runs and is checked; its "
    "times say nothing.**"
)


def rate(amount: float, seconds: float, unit: float) -> float:
    """`amount` a second, in units."""
    return amount / seconds / unit


def ceilings(results: Iterable[Result]) -> dict[str, float]:
    """What was measured: bytes a second, operations a second in each precision."""
    found = {}
    for result in results:
        if result.section == "ceilings" and result.seconds:
            found[result.what] = (result.moved or result.operations) / result.median
    return found


def product_ceiling(result: Result, limits: dict[str, float]) -> float | None:
    """The rate of the matrix product in the precision that the result's name tells."""
    (words,) = [words for words in IN_WORDS.values() if words and words in result.who] or [""]
    return limits.get(f"matrix product{words}")


def share(value: float, ceiling: float | None) -> str:
    """`value` as a share of the ceiling, if that was measured."""
    return f"{value / ceiling:.0%}" if ceiling else ""


def times(result: Result) -> list[str]:
    """Median, fastest to slowest, how often; or why there is none."""
    if not result.seconds:
        return [result.why or "?", "", ""]
    low, high = (f"{1e3 * pick(result.seconds):,.3f}" for pick in (min, max))
    return [f"{1e3 * result.median:,.3f}", f"{low} to {high}", f"{len(result.seconds)}"]


TIMES = ["ms", "fastest to slowest", "times"]


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose first two columns are text."""
    rule = "|---|---|" + "---:|" * (len(header) - 2)
    first, *others = ("| " + " | ".join(row) + " |" for row in (header, *rows))
    return "\n".join((first, rule, *others))


def ceiling_rows(result: Result, limits: dict[str, float]) -> list[str]:
    if not result.seconds:
        return [""]
    if result.moved:
        return [f"{rate(result.moved, result.median, 1e9):,.1f} GB/s"]
    return [f"{rate(result.operations, result.median, 1e12):,.2f} TFLOP/s"]


def conv_rows(result: Result, limits: dict[str, float]) -> list[str]:
    if not result.seconds:
        return ["", ""]
    reached = rate(result.operations, result.median, 1)
    return [f"{reached / 1e12:,.2f}", share(reached, product_ceiling(result, limits))]


def layer_rows(result: Result, limits: dict[str, float]) -> list[str]:
    if not result.seconds:
        return ["", ""]
    reached = rate(result.moved, result.median, 1)
    return [f"{reached / 1e9:,.1f}", share(reached, limits.get("copy bandwidth"))]


def step_rows(result: Result, limits: dict[str, float]) -> list[str]:
    if not result.seconds:
        return [""] * 6
    host = sorted(result.host_seconds)[len(result.host_seconds) // 2]
    peak = result.notes.get("peak bytes")
    replayed = result.notes.get("replayed")
    return [
        f"{rate(result.images, result.median, 1):,.0f}",
        *conv_rows(result, limits),
        f"{1e3 * host:,.3f}",
        f"{peak / 2**20:,.0f}" if peak else "",
        "" if replayed is None else ("yes" if replayed else "no: launched one by one"),
    ]


SHARE = ["TFLOP/s", "of the matrix product"]

SECTIONS: dict[str, tuple[list[str], Callable[[Result, dict[str, float]], list[str]]]] = {
    "ceilings": (["rate"], ceiling_rows),
    "steps": (["images/s", *SHARE, "host ms", "peak MiB", "replayed"], step_rows),
    "convolutions": (SHARE, conv_rows),
    "layers": (["GB/s", "of the copy bandwidth"], layer_rows),
}
TITLES = {
    "ceilings": "Measured ceilings",
    "steps": "Whole steps, by batch size",
    "convolutions": "Convolutions",
    "layers": "The other layers",
}
NOTES = {
    "ceilings": "A copy counts its bytes twice, once read and once written. The products are the "
    "library's; a share below is of the product in the same precision.",
    "steps": "Host ms: until everything of a step is queued. Peak: of the library's own memory "
    "pool (for ours, all that it holds). Images lie on the GPU; our labels come from the host. "
    "PyTorch's LRN, groups and dropout are its own modules; BF16 is its autocast.",
    "convolutions": "Forward includes the bias. The filter gradient includes the bias gradient. "
    "The input gradient is the difference of the medians of both gradients and the filter "
    "gradient alone. What our kernels rearrange before they multiply is timed with them. Where the "
    "padding differs from side to side PyTorch's is done before, untimed; in BF16 all its arrays "
    "are bfloat16 before.",
    "layers": "GB/s: bytes that have to move (docs/limits.md) in the time taken; an array that is "
    "read twice counts once. Of PyTorch's passes both are timed as autograd runs them.",
}


def input_gradients(results: list[Result]) -> list[Result]:
    """The results, and behind each pair of backward cases what the input gradient adds to one."""
    last = {(result.what, result.who): result for result in results}
    found = []
    for result in results:
        found.append(result)
        name, _, direction = result.what.partition(" ")
        filters = last.get((f"{name} filter gradient", result.who))
        if direction != "both gradients" or not (filters and filters.seconds and result.seconds):
            continue
        took = result.median - filters.median
        if took > 0:
            work = result.operations - filters.operations
            what = f"{name} input gradient, by difference"
            found.append(Result(result.section, what, result.who, [took], operations=work))
    return found


def agreement(results: list[Result]) -> str:
    """What was compared, and how well it agrees."""
    lines = []
    for result in results:
        outcome = result.why or "agree"
        if "largest relative difference" in result.notes:
            outcome += f", to {result.notes['largest relative difference']:.1e} of the loss"
            ours, theirs = result.notes["ours"], result.notes["theirs"]
            outcome += f"; the last is {ours[-1]:.6f} and {theirs[-1]:.6f}"
        if result.notes.get("equal bits"):
            outcome += " to the bit"
        lines.append(f"- {result.what}, {result.who}: {outcome}.")
    return "\n".join(lines)


def columns_beside_grouped(results: list[Result]) -> str:
    """What two columns on one GPU reach of the rate of the grouped net, in each precision."""
    found = {(result.what, result.who): result for result in results if result.seconds}
    lines = []
    for words in IN_WORDS.values():
        for (what, who), columns in found.items():
            grouped = found.get((what, f"tinyconv{words}"))
            if who == f"{COLUMNS}{words}" and grouped:
                lines.append(
                    f"- {who}, batch {what}: {grouped.median / columns.median:.0%} of the rate of "
                    f"tinyconv{words}."
                )
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
    parts = [f"# {facts['device']}"]
    if facts["rehearsal"]:
        parts.append(WARNING)
    parts.append("\n".join(f"- {name}: {value}" for name, value in facts.items()))
    by_section = {name: [r for r in results if r.section == name] for name in SECTIONS}
    limits = ceilings(results)
    agreed = [result for result in results if result.section == "agreement"]
    if agreed:
        parts += ["## Agreement", agreement(agreed)]
    for name, (columns, cells) in SECTIONS.items():
        rows = by_section[name]
        if name == "convolutions":
            rows = input_gradients(rows)
        if rows:
            body = [[r.what, r.who, *times(r), *cells(r, limits)] for r in rows]
            header = ["what", "who", *TIMES, *columns]
            parts += [f"## {TITLES[name]}", NOTES[name], table(header, body)]
            if name == "steps" and (beside := columns_beside_grouped(rows)):
                parts.append(beside)
    parts += ["## What is missing", missing(results, facts["repeats"])]
    return "\n\n".join(parts) + "\n"
