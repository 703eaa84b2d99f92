"""What the benchmarks share: seconds of a call, contestants in turn, Markdown tables."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def seconds(run: Callable[[], object], clock: Callable[[], float] | None = None) -> float:
    """The wall-clock time of run(), or its time by another clock."""
    clock = clock or time.perf_counter
    start = clock()
    run()
    return clock() - start


def in_turns(contestants: dict[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """By name, what each contestant returned in each round.

    They alternate: a machine that slows down slows all of them.
    """
    found: dict[str, list[T]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            found[name].append(run())
    return found


def table(header: Sequence[str], rows: Iterable[Sequence[str]], text: int = 1) -> str:
    """A Markdown table; the first `text` columns are aligned to the left, the others to the right.

    ValueError for a row that does not have a cell for each column.
    """
    rule = "|---" * text + "|---:" * (len(header) - text) + "|"
    lines = []
    for row in (header, *rows):
        if len(row) != len(header):
            raise ValueError(f"{row} has {len(row)} cells for {len(header)} columns")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([lines[0], rule, *lines[1:]])
