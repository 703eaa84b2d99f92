"""Running timed cases in order: each guarded, repeated, and within a budget of minutes.

A case creates its arrays, checks its result, and only then is timed. An error in one case is
written into its result, and the other cases still run. When time is short a case is repeated less
often, and cases without any time left are not run; both are reported.
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

LEAST_REPEATS = 3


class Job(NamedTuple):
    """What a case has made: `run` is timed; `operations` and `moved` bytes are what it has to do.

    No `run`: nothing to time. `notes()` is called afterwards, for what else there is to say. Both
    happen within `around()`.
    """

    run: Callable[[], Any] | None = None
    operations: int = 0
    moved: int = 0
    images: int = 0
    notes: Callable[[], dict[str, Any]] = dict
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass
class Case:
    """One row of a table: who does what in which section; `make()` gives its Job, checked."""

    section: str
    what: str
    who: str
    make: Callable[[], Job]


@dataclass
class Result:
    """What became of a case. `seconds` of every repeat; `why` it failed or was dropped."""

    section: str
    what: str
    who: str
    seconds: list[float] = field(default_factory=list)
    host_seconds: list[float] = field(default_factory=list)
    operations: int = 0
    moved: int = 0
    images: int = 0
    notes: dict[str, Any] = field(default_factory=dict)
    why: str = ""

    @property
    def median(self) -> float:
        """The middle of the repeats, in seconds; nan without any."""
        return statistics.median(self.seconds) if self.seconds else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class HostClock:
    """Times work that is done when the call returns, on the host or simulated: for rehearsals."""

    flushed = "nothing is flushed"
    warm_up, most_repeats = 1, 1  # a graph is recorded in the second run

    def __call__(self, run: Callable[[], Any]) -> tuple[float, float]:
        """Seconds of one run, and seconds that the host was busy with it: here the same."""
        start = time.perf_counter()
        run()
        took = time.perf_counter() - start
        return took, took

    def free(self) -> None:
        """Nothing to give back."""


class GpuClock:
    """Times what is queued on CuPy's current stream, between two CUDA events.

    Before each run a buffer of twice the L2 cache is written, so that nothing of the last run is
    found there.
    """

    warm_up, most_repeats = 2, 30

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy
        l2 = cupy.cuda.Device().attributes["L2CacheSize"]
        self.buffer = cupy.empty(2 * l2, "uint8")
        self.flushed = f"the L2 cache ({l2 / 2**20:.0f} MiB) is overwritten before each run"

    def __call__(self, run: Callable[[], Any]) -> tuple[float, float]:
        """Seconds of one run on the GPU, and seconds until the host had queued it."""
        events = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        self.buffer.fill(0)
        self.cupy.cuda.runtime.deviceSynchronize()
        events[0].record()
        start = time.perf_counter()
        run()
        queued = time.perf_counter() - start
        events[1].record()
        events[1].synchronize()
        return self.cupy.cuda.get_elapsed_time(*events) / 1e3, queued

    def free(self) -> None:
        """Give the memory of the last case back."""
        gc.collect()
        self.cupy.get_default_memory_pool().free_all_blocks()
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()


class Budget:
    """Minutes that all cases together may take; `now` is a clock in seconds."""

    def __init__(self, minutes: float, now: Callable[[], float] = time.monotonic) -> None:
        self.now, self.end = now, now() + 60 * minutes

    def left(self) -> float:
        """Seconds."""
        return self.end - self.now()

    def part(self, share: float) -> "Budget":
        """A budget of that share of what is left."""
        return Budget(share * self.left() / 60, self.now)


def repeats_within(seconds: float, one: float, most: int) -> int:
    """How often a run of `one` second may be made in so many seconds, between the two limits."""
    if one * most <= seconds:
        return most
    return min(most, max(LEAST_REPEATS, int(seconds / one)))


@contextmanager
def stopped_garbage() -> Iterator[None]:
    """Without Python's collector, which would start in the middle of a run."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def measure(run: Callable[[], Any], clock: Any, seconds: float, result: Result) -> None:
    """Warm up, and fill in the times of the repeats."""
    for _ in range(clock.warm_up):
        one, _ = clock(run)
        if one * LEAST_REPEATS > seconds:
            break
    for _ in range(repeats_within(seconds, one, clock.most_repeats)):
        took, queued = clock(run)
        result.seconds.append(took)
        result.host_seconds.append(queued)


def run_case(case: Case, clock: Any, seconds: float) -> Result:
    """Make, check, warm up, and time one case; whatever it raises ends up in `why`."""
    result = Result(case.section, case.what, case.who)
    try:
        job = case.make()
        result.operations, result.moved, result.images = job.operations, job.moved, job.images
        with stopped_garbage(), job.around():
            if job.run is not None:
                measure(job.run, clock, seconds, result)
            result.notes = job.notes()
    except Exception as error:  # of any library: a broken case must not end the report
        lines = str(error).strip().splitlines() or [""]
        result.why = f"failed: {type(error).__name__}: {lines[0][:200]}"
        result.seconds.clear()
    return result


def run_cases(
    cases: list[Case],
    clock: Any,
    budget: Budget,
    on_result: Callable[[Result], None] = lambda result: None,
) -> Iterator[Result]:
    """The results, in the order of the cases."""
    for place, case in enumerate(cases):
        left = budget.left()
        if left <= 0:
            result = Result(case.section, case.what, case.who, why="dropped: out of time")
        else:
            result = run_case(case, clock, left / (len(cases) - place))
            clock.free()
        on_result(result)
        yield result
