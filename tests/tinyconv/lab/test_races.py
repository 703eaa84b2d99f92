"""Races: planted ones are found with their lines and threads, correct kernels raise no alarm."""

from random import Random

import numpy as np
import planted
import pytest
from numba import cuda
from planted import N
from simulated import line_of
from textbook import TEXTBOOK

from layers import simulator
from layers.simulator import recorder
from tinyconv.lab.checks import check_kernel, check_trace


def floats(n=N):
    return np.arange(1, n + 1, dtype=np.float32)


def zeros(n=N):
    return np.zeros(n, np.float32)


def races(kernel, *args, grid=1, block=N):
    """The races in one launch, and nothing but races."""
    with simulator.record() as traces:
        kernel[grid, block](*args)
    issues = check_trace(traces[0])
    assert {issue.kind for issue in issues} <= {"race"}
    return issues


def lines(issue):
    return [line.line for line in issue.lines]


@pytest.mark.parametrize("name", TEXTBOOK)
def test_no_false_alarm_on_textbook_kernels(name):
    report = check_kernel(*TEXTBOOK[name](), orders=1)
    assert report.ok, str(report)


def test_a_missing_barrier():
    (race,) = races(planted.missing_barrier, floats(), zeros())
    kernel = planted.missing_barrier
    declared = line_of(kernel, "cuda.shared.array")
    assert (race.kind, race.array) == ("race", f"shared array of line {declared}")
    assert lines(race) == [line_of(kernel, "# fills"), line_of(kernel, "# reverses")]
    # The first that the simulator came upon: thread 0 read what thread 63 was to write.
    assert race.count == N
    assert {thread.thread for thread in race.threads} in [
        {(t, 0, 0), (N - 1 - t, 0, 0)} for t in range(N)
    ]
    assert {thread.block for thread in race.threads} == {(0, 0, 0)}
    text = str(race)
    for part in ("tile[i] = x[i]", "y[i] = tile[N - 1 - i]", "planted.py", "63 more", "No barrier"):
        assert part in text


def test_a_missing_second_barrier_in_a_loop():
    (race,) = races(planted.missing_second_barrier, floats(2 * N), zeros())
    kernel = planted.missing_second_barrier
    assert sorted(lines(race)) == [line_of(kernel, "# the next"), line_of(kernel, "# the last")]
    # The read of round 0 against the write of round 1: a race of the pair, whichever ran first.
    assert race.count == N


def test_two_blocks_write_one_element():
    (race,) = races(planted.two_blocks_one_element, floats(3 * N), zeros(3 * N), grid=3)
    assert (race.array, race.index, race.count) == ("y", (N - 1,), 2)
    assert lines(race) == 2 * [line_of(planted.two_blocks_one_element, "# block 0")]
    assert [(thread.block[0], thread.thread[0]) for thread in race.threads] == [(0, N - 1), (1, 0)]
    assert "never ordered" in str(race) and "same value" in str(race)


def test_two_threads_write_the_same_value():
    (race,) = races(planted.two_threads_one_element, floats(), zeros())
    assert (race.index, race.count) == ((0,), N // 2)
    assert [thread.thread for thread in race.threads] == [(0, 0, 0), (1, 0, 0)]
    assert lines(race) == 2 * [line_of(planted.two_threads_one_element, "# i and i + 1")]
    assert "Writing the same value would be a race all the same" in str(race)


def test_an_element_shared_by_two_views_of_one_memory():
    whole = floats(N + 1)
    (race,) = races(planted.unguarded_edge, whole[:-1], whole[1:])
    assert race.count == N - 1
    assert "y[0], which is also x[1]" in str(race) and "N" not in race.array


def test_a_stencil_in_place():
    x = floats(2 * N)
    found = races(planted.stencil, x, x, grid=2)
    (race,) = found  # a pair of lines makes one issue, in one block or two
    assert lines(race) == 2 * [line_of(planted.stencil, "# neighbours")]
    assert not races(planted.stencil, x, x.copy(), grid=2)


def test_views_that_interleave_do_not_race():
    whole = floats(2 * N)
    assert not races(planted.stencil, whole[::2], whole[1::2])


def test_atomics_race_with_plain_accesses_only():
    x = np.arange(2 * N) % 5
    bins = np.zeros(5, int)
    assert not races(planted.histogram, x, bins, grid=2)
    assert bins.sum() == 2 * N
    kernel = planted.histogram_read_early
    (race,) = races(kernel, x, bins, np.zeros_like(x), grid=2)
    assert sorted(lines(race)) == [line_of(kernel, "# counts"), line_of(kernel, "# and reads")]
    assert (race.array, race.count) == ("bins", 5) and "changes it atomically" in str(race)


def test_appending_through_a_plain_counter():
    kernel = planted.append
    found = races(kernel, floats(), zeros(), np.zeros(1, int))
    counts = line_of(kernel, "# counts")
    assert {issue.array for issue in found} == {"count"}  # `found` itself went well today
    assert (counts, counts) in {tuple(lines(issue)) for issue in found}


# --- warps


def test_lanes_of_a_warp_are_not_ordered_by_themselves():
    kernel = planted.lanes_unsynced
    (race,) = races(kernel, floats(), zeros())
    assert sorted(lines(race)) == [line_of(kernel, "# fills"), line_of(kernel, "# swaps")]
    assert race.count == N
    assert not races(planted.lanes_synced, floats(), zeros())


def test_syncwarp_does_not_order_two_warps():
    kernel = planted.other_warp
    (race,) = races(kernel, floats(), zeros())
    assert sorted(lines(race)) == [line_of(kernel, "# fills"), line_of(kernel, "# of the other")]
    assert {thread.thread[0] // 32 for thread in race.threads} == {0, 1}


def test_a_warp_sum_needs_both_its_barriers():
    y = zeros()
    assert not races(planted.warp_sum, np.ones(N, np.float32), y)
    assert (y == 32).all()
    kernel = planted.warp_sum_hasty
    (race,) = races(kernel, floats(), zeros())
    assert lines(race) == 2 * [line_of(kernel, "# while its partner")]


def test_masks_of_half_a_warp_order_their_own_lanes():
    kernel = planted.half_warps
    assert not races(kernel, floats(), zeros(), 8)
    (race,) = races(kernel, floats(), zeros(), 16)
    assert sorted(lines(race)) == [line_of(kernel, "# fills"), line_of(kernel, "# in reach")]
    assert {thread.thread[0] % 32 // 16 for thread in race.threads} == {0, 1}


def test_order_is_handed_on_from_barrier_to_barrier():
    kernel, y = planted.handed_on, zeros(1)
    assert not races(kernel, y, False, block=32)
    assert y[0] == 7
    (race,) = races(kernel, y, True, block=32)
    assert sorted(lines(race)) == [line_of(kernel, "# after the"), line_of(kernel, "# in the end")]
    assert {thread.thread[0] for thread in race.threads} == {0, 2}


def test_races_are_found_whatever_the_order_that_was_recorded():
    with simulator.shuffled(3):
        assert len(races(planted.missing_barrier, floats(), zeros())) == 1
        assert not races(planted.half_warps, floats(), zeros(), 8)
        assert len(races(planted.two_blocks_one_element, floats(3 * N), zeros(3 * N), grid=3)) == 1


def test_many_threads_at_one_element_are_found_quickly():
    with simulator.record() as traces:
        planted.append[16, 256](floats(4096), zeros(4096), np.zeros(1, int))
    assert traces[0].accesses.size > 4 * 4096
    assert all(issue.count == 1 for issue in check_trace(traces[0]))


# --- programs drawn at random, against the definition taken literally


@cuda.jit
def run_program(program, x):
    """Each thread does what `program` (a list, for Python runs this) says, phase by phase."""
    t = cuda.threadIdx.x
    for does, masks in program:
        for write, i in does[t]:
            if write:
                x[i] = t  # writes
            else:
                x[i]  # reads
        if masks is None:
            cuda.syncthreads()
        elif masks[t]:
            cuda.syncwarp(masks[t])


def random_program(random, threads=36, phases=7, elements=40):
    program = []
    for _ in range(phases):
        does = [
            [
                (random.random() < 0.5, random.randrange(elements))
                for _ in range(random.randrange(2))
            ]
            for _ in range(threads)
        ]
        if random.random() < 0.3:
            program.append((does, None))
            continue
        # Lanes of each warp in up to four groups that meet, and a fifth that does not.
        group = [random.randrange(5) for _ in range(threads)]
        masks = [
            sum(
                1 << other % 32
                for other in range(threads)
                if group[other] == group[t] and other // 32 == t // 32
            )
            * (group[t] != 4)
            for t in range(threads)
        ]
        program.append((does, masks))
    return program


def literal_races(program):
    """Elements of write-write and of read-write races: those with no way from one to the other."""
    threads, phases = len(program[0][0]), len(program)
    # before[p, t, q, u]: what t does in phase p comes before what u does in phase q.
    n = threads * phases
    before = np.zeros((n, n), bool)
    for p, (_, masks) in enumerate(program[:-1]):
        for t in range(threads):
            for u in range(threads):
                met = masks is None or (masks[t] and masks[t] == masks[u] and t // 32 == u // 32)
                if t == u or met:
                    before[p * threads + t, (p + 1) * threads + u] = True
    for _ in range(phases.bit_length()):
        before |= before @ before
    done = [
        (p * threads + t, t, write, i)
        for p, (does, _) in enumerate(program)
        for t in range(threads)
        for write, i in does[t]
    ]
    both, one = set(), set()
    for number, (a, t, write, i) in enumerate(done):
        for b, u, writes_too, j in done[number + 1 :]:
            if i == j and t != u and not before[a, b] and not before[b, a]:
                if write and writes_too:
                    both.add(i)
                elif write or writes_too:
                    one.add(i)
    return len(both), len(one)


@pytest.mark.parametrize("seed", range(8))
def test_random_programs_race_where_the_definition_says(seed):
    program = random_program(Random(seed))
    found = races(run_program, program, np.zeros(40, int), block=36)
    writes = line_of(run_program, "# writes")
    counts = {lines(issue) == [writes, writes]: issue.count for issue in found}
    assert (counts.get(True, 0), counts.get(False, 0)) == literal_races(program)


def test_a_trace_worked_out_in_batches_is_the_same(monkeypatch):
    def recorded():
        kernel, grid, block, args, _ = TEXTBOOK["transpose"]()
        with simulator.record() as traces:
            kernel[grid, block](*args)
        return traces[0]

    whole = recorded()
    monkeypatch.setattr(recorder, "BATCH", 50)
    batches = recorded()
    assert (whole.segments == batches.segments).all()
    for column in ("array", "offset", "write", "segment"):
        assert (whole.accesses[column] == batches.accesses[column]).all()
    numbers = (trace.accesses["instruction"] for trace in (whole, batches))
    for one, other in zip(*numbers, strict=True):
        assert whole.instructions[one] == batches.instructions[other]
