"""Recording: every access in its place, and other orders of threads."""

import numpy as np
import pytest
from numba import cuda, float32
from simulated import line_of

from layers import simulator
from layers.simulator.trace import GLOBAL, LOCAL, SHARED


@cuda.jit
def reverse(x, y, factor):
    tile = cuda.shared.array(4, float32)
    mine = cuda.local.array(2, float32)
    i = cuda.threadIdx.x
    base = cuda.blockIdx.x * 4
    tile[i] = x[base + i]  # into the tile
    mine[0] = factor
    cuda.syncthreads()
    y[base + i, 1] = tile[3 - i] * mine[0]  # and out


def recorded():
    x, y = np.arange(8, dtype=np.float32), np.zeros((8, 3), np.float32)
    with simulator.record() as traces:
        reverse[2, 4](x, y, 2.0)
    (trace,) = traces
    return trace, x, y


def test_a_trace_has_every_access_in_order():
    trace, x, y = recorded()
    assert y[:, 1].tolist() == [6, 4, 2, 0, 14, 12, 10, 8]
    assert (trace.kernel, trace.blocks, trace.threads) == ("reverse", 2, 4)
    assert trace.arguments[0] is x and trace.arguments[1] is y and trace.arguments[2] == 2.0
    first, second = trace.arrays[0], trace.arrays[1]
    assert first.data is x or np.shares_memory(first.data, x)
    assert (first.name, first.space, second.name) == ("x", GLOBAL, "y")
    spaces = [(a.space, a.block, a.thread) for a in trace.arrays[2:]]
    assert spaces.count((SHARED, 0, None)) == spaces.count((SHARED, 1, None)) == 1
    assert [s for s in spaces if s[0] == LOCAL] == [(LOCAL, b, t) for b in (0, 1) for t in range(4)]
    # Each of 8 threads: x, tile, mine; then tile, mine, y.
    assert len(trace.accesses) == 48
    writes = trace.accesses[trace.accesses["write"]]
    out = writes[writes["array"] == 1]
    assert [second.index(o) for o in out["offset"]] == [(i, 1) for i in range(8)]
    segments = trace.segments[out["segment"]]
    assert segments["block"].tolist() == [0] * 4 + [1] * 4
    assert segments["thread"].tolist() == [0, 1, 2, 3] * 2
    assert (segments["epoch"] == 1).all()


def test_instructions_and_barrier_events_name_their_lines():
    trace, _, _ = recorded()
    lines = {trace.instructions[i].line for i in trace.accesses["instruction"]}
    assert line_of(reverse, "into the tile") in lines and line_of(reverse, "and out") in lines
    assert any("# and out" in each.source for each in trace.instructions)
    assert [(e.call, e.block, e.threads) for e in trace.barrier_events] == [
        ("syncthreads", 0, (0, 1, 2, 3)),
        ("syncthreads", 1, (0, 1, 2, 3)),
    ]


@cuda.jit
def ends_with_a_choice(x, y):
    i = cuda.threadIdx.x
    if i >= x.size:
        return
    y[i] = x[i] if not x[i] <= 0 else x.dtype.type(0)


def test_an_instruction_that_python_copies_for_two_branches_is_one():
    x, y = np.array([1, -1, 2, -2], np.float32), np.zeros(4, np.float32)
    with simulator.record() as traces:
        ends_with_a_choice[1, 4](x, y)
    (first, _, write), accesses = traces[0].instructions, traces[0].accesses
    assert (accesses["instruction"] == 2)[accesses["write"]].all()
    assert first.line == write.line and y.tolist() == [1, 0, 2, 0]


@cuda.jit
def rows_and_views(x, y):
    row = x[cuda.threadIdx.x]
    y[cuda.threadIdx.x] = row[1]


def test_offsets_are_places_in_memory_of_rows_and_of_views():
    whole = np.arange(24.0).reshape(4, 6)
    x, y = whole[::2, 1::2], np.zeros(4)[::-2]
    with simulator.record() as traces:
        rows_and_views[1, 2](x, y)
    (trace,) = traces
    reads = trace.accesses[~trace.accesses["write"]]
    # Two rows of six on, and two elements on.
    assert reads["offset"].tolist() == [2, 14]
    assert [trace.arrays[0].index(o) for o in (2, 14)] == [(0, 1), (1, 1)]
    assert trace.accesses[trace.accesses["write"]]["offset"].tolist() == [0, -2]


@cuda.jit
def warp_barriers(x):
    i = cuda.threadIdx.x
    x[i] = 1
    if i < 32:
        cuda.syncwarp()
        x[i] = 2
    cuda.syncthreads()
    x[i] = 3


def test_epochs_count_the_barriers_that_a_thread_has_passed():
    with simulator.record() as traces:
        warp_barriers[1, 34](np.zeros(34))
    accesses, segments = traces[0].accesses, traces[0].segments[traces[0].accesses["segment"]]
    of = {
        thread: [
            (int(s["epoch"]), int(s["warp_epoch"])) for s in segments[segments["thread"] == thread]
        ]
        for thread in (0, 33)
    }
    assert of == {0: [(0, 0), (0, 1), (1, 1)], 33: [(0, 0), (1, 0)]}
    assert len(accesses) == 34 + 32 + 34


@cuda.jit
def note_order(seen, at):
    seen[at[0]] = cuda.grid(1)
    at[0] += 1


def test_shuffled_orders_are_seeded_complete_and_different():
    def order(seed):
        seen, at = np.full(24, -1), np.zeros(1, int)
        with simulator.shuffled(seed):
            note_order[3, 8](seen, at)
        return seen.tolist()

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == list(range(24)) != order(1)
    seen, at = np.full(24, -1), np.zeros(1, int)
    note_order[3, 8](seen, at)
    assert seen.tolist() == list(range(24))


@cuda.jit
def too_far(x):
    x[cuda.threadIdx.x] = 1


def test_a_launch_that_fails_leaves_what_it_did():
    with simulator.record() as traces, pytest.raises(simulator.SimulatorIndexError):
        too_far[1, 5](np.zeros(3))
    assert traces[0].accesses["offset"].tolist() == [0, 1, 2]
