"""Cases that are timed in order: each guarded, repeated, within a budget of seconds.

A case creates its arrays, checks its result, and only then is timed. An error in one case is
written into its result, and the other cases still run. When time is short a case is repeated less
often, and cases without any time left are not run; both are reported.
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from measuring import seconds

LEAST_REPEATS = 3


class Job(NamedTuple):
    """What a case has made: `run` is timed; `operations` and `moved` bytes are what it has to do.

    No `run`: nothing to time. `notes()` is called afterwards.
    """

    run: Callable[[], Any] | None = None
    operations: int = 0
    moved: int = 0
    images: int = 0
    notes: Callable[[], dict[str, Any]] = dict


class Case(NamedTuple):
    """One row of a table: who does what in which section; `make()` gives its Job, checked."""

    section: str
    what: str
    who: str
    make: Callable[[], Job]


class Dropped(Exception):
    """Raised by a case that cannot run here, which isn't a failure: the reason."""


@dataclass
class Result:
    """The outcome of a case: `seconds` of every repeat, or `why` there are none."""

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
        """Of the repeats, in seconds."""
        return statistics.median(self.seconds)


# --- clocks


class HostClock:
    """Times work that is done when the call returns, on the host or simulated: for rehearsals."""

    flushed = "nothing is flushed"
    warm_up, most_repeats = 0, 1

    def __call__(self, run: Callable[[], Any]) -> tuple[float, float]:
        """Seconds of one run, and seconds that the host was busy with it: here the same."""
        took = seconds(run)
        return took, took

    def free(self) -> None:
        """There is no pool of memory to give back."""


class GpuClock:
    """Times what is queued on CuPy's current stream, by `cupyx.profiler.benchmark`.

    Before each run a buffer of twice the L2 cache is written, so that nothing of the last run is
    found there. (So `benchmark` is called once a run: it has no hook between its repeats.)
    """

    warm_up, most_repeats = 2, 30

    def __init__(self, cupy: Any) -> None:
        from cupyx.profiler import benchmark

        self.cupy, self.benchmark = cupy, benchmark
        l2 = cupy.cuda.Device().attributes["L2CacheSize"]
        self.buffer = cupy.empty(2 * l2, "uint8")
        self.flushed = f"the L2 cache ({l2 / 2**20:.0f} MiB) is overwritten before each run"

    def __call__(self, run: Callable[[], Any]) -> tuple[float, float]:
        """Seconds of one run on the GPU, and seconds until the host had queued it."""
        self.buffer.fill(0)
        self.cupy.cuda.runtime.deviceSynchronize()
        times = self.benchmark(run, n_repeat=1, n_warmup=0, name="run")
        return float(times.gpu_times[0, 0]), float(times.cpu_times[0])

    def free(self) -> None:
        """Give the memory of the last case back."""
        gc.collect()
        self.cupy.get_default_memory_pool().free_all_blocks()
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()


def run_case(case: Case, clock: Any, budget: float) -> Result:
    """Make, check, warm up, and time one case within `budget` seconds, but LEAST_REPEATS times.

    Whatever it raises ends up in `why`.
    """
    result = Result(case.section, case.what, case.who)
    try:
        job = case.make()
        result.operations, result.moved, result.images = job.operations, job.moved, job.images
        gc.disable()  # it would start in the middle of a run
        if job.run is not None:
            one = 0.0
            for _ in range(clock.warm_up):
                one, _ = clock(job.run)
                if one * LEAST_REPEATS > budget:
                    break
            while len(result.seconds) < clock.most_repeats and (
                len(result.seconds) < LEAST_REPEATS or sum(result.seconds) + one <= budget
            ):
                one, queued = clock(job.run)
                result.seconds.append(one)
                result.host_seconds.append(queued)
        result.notes = job.notes()
    except Exception as error:  # of any library: a broken case must not end the report
        lines = str(error).strip().splitlines() or [""]
        what = "dropped" if isinstance(error, Dropped) else f"failed: {type(error).__name__}"
        result.why = f"{what}: {lines[0][:200]}"
        result.seconds.clear()
    finally:
        gc.enable()
    return result


def run_cases(
    cases: Iterable[Case], clock: Any, limit: float, now: Callable[[], float] = time.monotonic
) -> Iterator[Case | Result]:
    """Each case, when it begins, and its result; all within `limit` seconds.

    Of the time that is left each has its share; what one does not need the next ones have.
    """
    until = now() + limit
    cases = list(cases)
    for number, case in enumerate(cases):
        budget = (until - now()) / (len(cases) - number)
        yield case
        if budget > 0:
            yield run_case(case, clock, budget)
            clock.free()
        else:
            yield Result(*case[:3], why="dropped: out of time")
