"""benchmarks/runner.py: cases are guarded, repeated, and kept within their time."""

import sys
from types import SimpleNamespace

import numpy as np
from runner import LEAST_REPEATS, Case, Dropped, GpuClock, Job, Result, run_cases


class FakeClock:
    """Every run takes `one` second of `now`, and the host half of it."""

    warm_up, most_repeats = 2, 30

    def __init__(self, one):
        self.seconds, self.one, self.freed = 100.0, one, 0

    def now(self):
        return self.seconds

    def __call__(self, run):
        run()
        self.seconds += self.one
        return self.one, self.one / 2

    def free(self):
        self.freed += 1


def case(name, run=lambda: None, **work):
    return Case("layers", name, "we", lambda: Job(run, **work))


def run(cases, minutes=60.0, one=1.0):
    clock = FakeClock(one)
    said = list(run_cases(cases, clock, 60 * minutes, clock.now))
    begun, results = said[::2], said[1::2]
    assert begun == cases and all(isinstance(each, Result) for each in results)
    assert clock.freed == sum(not r.why.startswith("dropped: out of time") for r in results)
    return results


def test_cases_run_in_order_warmed_up_and_repeated():
    calls = []
    cases = [case(name, lambda name=name: calls.append(name), moved=7) for name in "ab"]
    first, second = run(cases)
    times = FakeClock.warm_up + FakeClock.most_repeats
    assert calls == ["a"] * times + ["b"] * times
    assert first.what == "a" and first.moved == 7 and second.median == 1.0
    assert first.host_seconds == [0.5] * FakeClock.most_repeats


def test_a_case_that_fails_is_reported_and_the_next_ones_run():
    def breaks():
        raise RuntimeError("out of memory\nand a long story")

    def cannot_be_made():
        raise ValueError("wrong by 3")

    def not_here():
        raise Dropped("there is no tool")

    cases = [Case("layers", "b", "we", cannot_be_made), Case("layers", "c", "we", not_here)]
    before, made, dropped, broken, after = run([case("a"), *cases, case("d", breaks), case("e")])
    assert made.why == "failed: ValueError: wrong by 3" and not made.seconds
    assert dropped.why == "dropped: there is no tool"
    assert broken.why == "failed: RuntimeError: out of memory" and not broken.seconds
    assert before.seconds and after.seconds and not before.why and not after.why


def test_short_of_time_repeats_are_dropped_first_and_then_cases():
    # A minute for six cases of a second: ten seconds each, two of them for warming up.
    results = run([case(name) for name in "abcdef"], minutes=1)
    assert all(LEAST_REPEATS <= len(r.seconds) < 30 for r in results)
    # Ten seconds each, and only a minute: there is no time for all of them.
    results = run([case(name) for name in "abcdef"], minutes=1, one=10.0)
    kept = [bool(r.seconds) for r in results]
    assert kept == sorted(kept, reverse=True) and 0 < sum(kept) < 6
    assert all(len(r.seconds) == LEAST_REPEATS for r in results if r.seconds)
    assert {r.why for r in results if not r.seconds} == {"dropped: out of time"}


def test_a_case_without_a_run_has_notes_and_no_times():
    (result,) = run([Case("losses", "a", "we", lambda: Job(notes=lambda: {"found": 1}))])
    assert result.notes == {"found": 1} and not result.seconds and not result.why


def test_the_gpu_clock_flushes_waits_and_takes_cupys_times(monkeypatch):
    calls, sizes = [], []

    def benchmark(run, *, n_repeat, n_warmup, name):
        assert (n_repeat, n_warmup) == (1, 0) and isinstance(name, str)
        run()
        return SimpleNamespace(cpu_times=np.array([1e-3]), gpu_times=np.array([[2.5e-3]]))

    buffer = SimpleNamespace(fill=lambda value: calls.append("flush"))
    cuda = SimpleNamespace(
        Device=lambda: SimpleNamespace(attributes={"L2CacheSize": 2**20}),
        runtime=SimpleNamespace(deviceSynchronize=lambda: calls.append("wait")),
    )
    cupy = SimpleNamespace(cuda=cuda, empty=lambda size, dtype: sizes.append(size) or buffer)
    monkeypatch.setitem(sys.modules, "cupyx", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cupyx.profiler", SimpleNamespace(benchmark=benchmark))
    clock = GpuClock(cupy)
    assert clock(lambda: calls.append("run")) == (2.5e-3, 1e-3)
    assert calls == ["flush", "wait", "run"]
    assert sizes == [2**21] and "1 MiB" in clock.flushed
