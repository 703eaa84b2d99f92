"""benchmarks/gpu_runner.py: cases are guarded, repeated, and kept within their minutes."""

from types import SimpleNamespace

import gpu_runner
from gpu_runner import Budget, Case, GpuClock, Job


class Time:
    """A clock in seconds that only moves when it is told to."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


class FakeClock:
    """Every run takes `one` second of `time`, and the host half of it."""

    warm_up, most_repeats = 2, 30

    def __init__(self, time, one=1.0):
        self.time, self.one, self.freed = time, one, 0

    def __call__(self, run):
        run()
        self.time.seconds += self.one
        return self.one, self.one / 2

    def free(self):
        self.freed += 1


def case(name, run=lambda: None, **work):
    return Case("layers", name, "we", lambda: Job(run, **work))


def run(cases, minutes=60.0, one=1.0):
    time = Time()
    clock = FakeClock(time, one)
    results = list(gpu_runner.run_cases(cases, clock, Budget(minutes, time)))
    assert clock.freed == sum(not r.why.startswith("dropped") for r in results)
    return results


def test_cases_run_in_order_warmed_up_and_repeated():
    calls = []
    cases = [case(name, lambda name=name: calls.append(name), moved=7) for name in "ab"]
    first, second = run(cases)
    times = FakeClock.warm_up + FakeClock.most_repeats
    assert calls == ["a"] * times + ["b"] * times
    assert first.what == "a" and first.moved == 7 and second.median == 1.0
    assert first.host_seconds == [0.5] * FakeClock.most_repeats


def test_a_case_that_fails_is_reported_and_the_others_go_on():
    def breaks():
        raise RuntimeError("out of memory\nand a long story")

    def cannot_be_made():
        raise ValueError("wrong by 3")

    before, made, broken, after = run(
        [case("a"), Case("layers", "b", "we", cannot_be_made), case("c", breaks), case("d")]
    )
    assert made.why == "failed: ValueError: wrong by 3" and not made.seconds
    assert broken.why == "failed: RuntimeError: out of memory" and not broken.seconds
    assert before.seconds and after.seconds and not before.why and not after.why


def test_short_of_time_repeats_are_dropped_first_and_then_cases():
    # A minute for six cases of a second: ten seconds each, two of them for warming up.
    results = run([case(name) for name in "abcdef"], minutes=1)
    assert all(gpu_runner.LEAST_REPEATS <= len(r.seconds) < 30 for r in results)
    # Ten seconds each, and only a minute: there is no time for all of them.
    results = run([case(name) for name in "abcdef"], minutes=1, one=10.0)
    kept = [bool(r.seconds) for r in results]
    assert kept == sorted(kept, reverse=True) and 0 < sum(kept) < 6
    assert all(len(r.seconds) == gpu_runner.LEAST_REPEATS for r in results if r.seconds)
    assert {r.why for r in results if not r.seconds} == {"dropped: out of time"}


def test_a_case_without_a_run_has_notes_and_no_times():
    (result,) = run([Case("agreement", "a", "we", lambda: Job(notes=lambda: {"found": 1}))])
    assert result.notes == {"found": 1} and not result.seconds and not result.why


def test_a_part_of_a_budget_ends_before_the_whole():
    time = Time()
    budget = Budget(2.0, time)
    part = budget.part(0.25)
    time.seconds += 20
    assert (budget.left(), part.left()) == (100.0, 10.0)


def test_the_gpu_clock_flushes_waits_and_reads_its_events():
    calls = []

    class Event:
        def record(self):
            calls.append("record")

        def synchronize(self):
            calls.append("synchronize")

    buffer = SimpleNamespace(fill=lambda value: calls.append("flush"))
    sizes = []
    cuda = SimpleNamespace(
        Device=lambda: SimpleNamespace(attributes={"L2CacheSize": 2**20}),
        Event=Event,
        get_elapsed_time=lambda start, end: 2.5,
        runtime=SimpleNamespace(deviceSynchronize=lambda: calls.append("wait")),
    )
    cupy = SimpleNamespace(cuda=cuda, empty=lambda size, dtype: sizes.append(size) or buffer)
    clock = GpuClock(cupy)
    seconds, queued = clock(lambda: calls.append("run"))
    assert calls == ["flush", "wait", "record", "run", "record", "synchronize"]
    assert seconds == 2.5e-3 and 0 <= queued < 1
    assert sizes == [2**21] and "1 MiB" in clock.flushed
