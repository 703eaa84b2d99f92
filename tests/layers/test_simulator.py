"""The simulator: its order, its barriers, its memory, and the sentences with which it refuses."""

import math
import os
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from numba import config, cuda, float32, int32

from layers import simulator

if not config.ENABLE_CUDASIM:
    pytest.skip("the simulator is off: set NUMBA_ENABLE_CUDASIM=1", allow_module_level=True)
IN_FORCE = simulator.install()
if not simulator.installed:
    pytest.skip(IN_FORCE, allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).name


def line_of(kernel, text):
    """The number of the line with `text` in the source of `kernel`."""
    code = kernel.py_func.__code__
    lines = Path(code.co_filename).read_text().splitlines()
    return next(n for n in range(code.co_firstlineno, len(lines)) if text in lines[n - 1])


def refusal(kernel, blocks, threads, *args):
    """What the simulator says to a launch that must fail."""
    with pytest.raises(simulator.SimulatorError) as caught:
        kernel[blocks, threads](*args)
    return str(caught.value)


def run_script(script, *, typed=""):
    """The output of a Python script in a process of its own, given `typed` at its prompts."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONBREAKPOINT", None)
    done = subprocess.run(
        [sys.executable, str(script)],
        input=typed,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- results, arguments, order


@cuda.jit
def add_neighbours(x, y):
    i = cuda.grid(1)
    if 0 < i < x.shape[0] - 1:
        y[i] = x[i - 1] + x[i + 1]


def test_elements_are_computed_in_place():
    x = np.arange(10, dtype=np.float32)
    y = np.zeros(10, np.float32)
    add_neighbours[3, 4](x, y)
    np.testing.assert_array_equal(y[1:-1], x[:-2] + x[2:])


@pytest.mark.parametrize("blocks", [3, (3,), (3, 1), (3, 1, 1), np.int64(3), [3]])
def test_dimensions_may_be_numbers_or_tuples(blocks):
    x = np.arange(10, dtype=np.float32)
    y = np.zeros(10, np.float32)
    add_neighbours[blocks, 4](x, y)
    assert y[8] == 16


def test_views_are_written_through_whatever_their_strides():
    x = np.arange(20, dtype=np.float32)[::2]
    whole = np.zeros((10, 3), np.float32)
    y = whole[::-1, 1]
    add_neighbours[1, 10](x, y)
    np.testing.assert_array_equal(y[1:-1], x[:-2] + x[2:])
    assert not whole[:, 0].any() and not whole[:, 2].any()


def test_device_arrays_and_hints():
    x, y = cuda.to_device(np.arange(10, dtype=np.float32)), np.zeros(10, np.float32)
    add_neighbours[1, 10](x, cuda.Out(y))
    assert y[8] == 16
    add_neighbours[1, 10](cuda.In(y), x)
    assert x.copy_to_host()[7] == y[6] + y[8]
    add_neighbours[1, 10](x, cuda.In(y))
    assert y[8] == 16, "what goes in only must not come out"


@cuda.jit
def note_order(seen, at):
    n = cuda.atomic.add(at, 0, 1)
    x, y, z = cuda.grid(3)
    seen[n, 0], seen[n, 1], seen[n, 2] = x, y, z


def test_order_is_x_fastest_block_after_block():
    grid, block = (2, 1, 2), (2, 3, 2)
    at = np.zeros(1, np.int32)
    seen = np.zeros((48, 3), np.int32)
    note_order[grid, block](seen, at)
    expected = [
        [bx * 2 + tx, by * 3 + ty, bz * 2 + tz]
        for bz in range(2) for by in range(1) for bx in range(2)
        for tz in range(2) for ty in range(3) for tx in range(2)
    ]  # fmt: skip
    assert at[0] == 48
    assert seen.tolist() == expected


@cuda.jit
def note_sizes(out):
    x, y = cuda.gridsize(2)
    out[0], out[1], out[2] = cuda.gridsize(1), x, y
    out[3], out[4], out[5] = cuda.gridsize(3)
    out[6], out[7], out[8] = cuda.blockDim.y, cuda.gridDim.z, cuda.warpsize
    out[9] = cuda.laneid


def test_sizes():
    out = np.zeros(10, np.int64)
    note_sizes[(2, 3, 4), (5, 7, 1)](out)
    assert out.tolist() == [10, 10, 21, 10, 21, 4, 7, 4, 32, 34 % 32]


@cuda.jit
def arithmetic(out, hashed, tenth, step, pair):
    out[0] = out[0] / float32(0) + float32(1)
    out[1] = math.exp(float32(0)) * tenth
    out[2] = pair[0][1] + pair[1]
    hashed[0] = hashed[0] * hashed[1] + np.uint32(step)


def test_arithmetic_is_that_of_the_gpu_and_silent():
    out = np.array([1, 0, 0], np.float32)
    hashed = np.array([4000000000, 4000000000], np.uint32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arithmetic[1, 1](out, hashed, np.float32(0.1), 7, (np.arange(3.0), 0.5))
    assert out.tolist() == [np.inf, np.float32(0.1), 1.5]
    assert hashed[0] == (4000000000 * 4000000000 + 7) % 2**32


@cuda.jit
def types_kept(x, same):
    same[0] = (x[0] * x[1] + float32(0.5)).dtype == x.dtype
    same[1] = x.ndim == 2 - 1 and x.size == 2 and len(x) == 2


def test_float32_stays_float32():
    same = np.zeros(2, np.bool_)
    types_kept[1, 1](np.ones(2, np.float32), same)
    assert same.all()


@cuda.jit
def sum_rows(x, out):
    i = cuda.grid(1)
    row = x[i]
    for j in range(row.shape[0]):
        out[i] += row[j]


def test_rows():
    x = np.arange(12.0).reshape(3, 4)
    out = np.zeros(3)
    sum_rows[1, 3](x, out)
    np.testing.assert_array_equal(out, x.sum(axis=1))


def test_a_configured_kernel_keeps_its_dimensions():
    x, y = np.ones(10, np.float32), np.zeros(10, np.float32)
    small, large = add_neighbours[1, 3], add_neighbours[1, 10]
    small(x, y)
    assert y.sum() == 2 * 2
    large(x, y)
    assert y.sum() == 2 * 8


@pytest.mark.parametrize(
    "configuration, text",
    [
        ((0, 32), "blocks must be positive"),
        ((1, (32, 0)), "threads must be positive"),
        ((1, (32, 33)), "1024 at most"),
        ((1, 1.5), "integers"),
        ((1, (1, 1, 1, 1)), "one to three"),
        (1, "blocks, threads"),
    ],
)
def test_impossible_dimensions_are_refused(configuration, text):
    with pytest.raises(ValueError, match=text):
        add_neighbours[configuration]


def test_a_kernel_without_dimensions_is_refused():
    with pytest.raises(ValueError, match="add_neighbours"):
        add_neighbours(np.ones(3), np.ones(3))


# --- barriers


@cuda.jit
def reverse_and_vote(x, votes):
    shared = cuda.shared.array(64, float32)
    i = cuda.threadIdx.x
    shared[i] = x[i]
    cuda.syncthreads()
    x[i] = shared[cuda.blockDim.x - 1 - i]
    votes[0, i] = cuda.syncthreads_count(i % 3 == 0)
    votes[1, i] = cuda.syncthreads_and(i < 50)
    votes[2, i] = cuda.syncthreads_or(i == 49)


@pytest.mark.parametrize("threads", [50, 51])
def test_block_barriers(threads):
    x = np.arange(threads, dtype=np.float32)
    votes = np.full((3, threads), -1)
    reverse_and_vote[1, threads](x, votes)
    np.testing.assert_array_equal(x, np.arange(threads)[::-1])
    assert (votes[0] == 17).all()
    assert (votes[1] == (threads == 50)).all()
    assert (votes[2] == 1).all()


@cuda.jit
def sum_of_warp(x):
    scratch = cuda.shared.array(80, int32)
    i = cuda.threadIdx.x
    scratch[i] = x[i]
    cuda.syncwarp()
    step = 16
    while step > 0:
        other = scratch[i ^ step] if i ^ step < cuda.blockDim.x else 0
        cuda.syncwarp()
        scratch[i] += other
        cuda.syncwarp()
        step //= 2
    x[i] = scratch[i]


def test_syncwarp_with_a_last_warp_that_is_not_whole():
    x = np.arange(80, dtype=np.int32)
    sums = [np.arange(32).sum(), np.arange(32, 64).sum(), np.arange(64, 80).sum()]
    sum_of_warp[1, 80](x)
    np.testing.assert_array_equal(x, np.repeat(sums, [32, 32, 16]))


@cuda.jit
def halves_of_a_warp(x):
    scratch = cuda.shared.array(32, int32)
    i = cuda.threadIdx.x
    scratch[i] = i
    if i < 16:
        cuda.syncwarp(0x0000FFFF)
        x[i] = scratch[15 - i]
    elif i < 30:
        cuda.syncwarp(0xFFFF0000)  # the last two lanes have returned, which exempts them
        x[i] = scratch[45 - i]


def test_syncwarp_of_part_of_a_warp():
    x = np.zeros(32, np.int32)
    halves_of_a_warp[1, 32](x)
    assert x.tolist() == [*range(15, -1, -1), *range(29, 15, -1), 0, 0]


@cuda.jit
def each_warp_at_its_own_pace(x):
    i = cuda.threadIdx.x
    for _ in range(i // 32):
        cuda.syncwarp()
    cuda.syncthreads()
    x[i] = 1


def test_warps_may_pass_different_numbers_of_their_barriers():
    x = np.zeros(128, np.int32)
    each_warp_at_its_own_pace[1, 128](x)
    assert x.all()


@cuda.jit
def halve_until_all_are_odd(x):
    i = cuda.threadIdx.x
    while cuda.syncthreads_or(x[i] % 2 == 0):
        if x[i] % 2 == 0:
            x[i] //= 2


def test_a_barrier_in_the_condition_of_a_loop():
    x = np.array([5, 12, 64, 6])
    halve_until_all_are_odd[1, 4](x)
    assert x.tolist() == [5, 3, 1, 3]


@cuda.jit
def some_return_early(x):
    i = cuda.threadIdx.x
    if i >= 5:
        return
    cuda.syncthreads()  # never opens
    x[i] = 1


def test_a_thread_that_returned_before_the_barrier():
    x = np.zeros(8)
    text = refusal(some_return_early, 1, 8, x)
    assert "kernel some_return_early, block (0, 0, 0)" in text
    line = line_of(some_return_early, "never opens")
    assert f"{HERE}:{line}: 5 threads: (0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0), ..." in text
    assert "have returned: 3 threads: (5, 0, 0), (6, 0, 0), (7, 0, 0)" in text
    assert not x.any()


@cuda.jit
def barrier_in_both_branches(x):
    if cuda.threadIdx.x == 2:
        cuda.syncthreads()  # one
    else:
        cuda.syncthreads()  # many


@cuda.jit
def barriers_of_two_kinds_on_one_line(x):
    cuda.syncthreads() if cuda.threadIdx.x == 2 else cuda.syncthreads_or(1)


def test_barriers_in_branches_are_different_barriers():
    text = refusal(barrier_in_both_branches, 1, 4, np.zeros(1))
    one, many = (line_of(barrier_in_both_branches, f"# {s}") for s in ("one", "many"))
    assert f"wait at syncthreads() in {__file__}:{one}: 1 thread: (2, 0, 0)" in text
    assert f"{HERE}:{many}: 3 threads: (0, 0, 0), (1, 0, 0), (3, 0, 0)" in text
    text = refusal(barriers_of_two_kinds_on_one_line, 1, 4, np.zeros(1))
    assert "syncthreads()" in text and "syncthreads_or()" in text


@cuda.jit
def warp_diverges(x):
    i = cuda.threadIdx.x
    if i % 2 == 0:
        cuda.syncwarp()
    else:
        cuda.syncthreads()


@cuda.jit
def lane_outside_its_mask(x):
    cuda.syncwarp(0x7)


def test_divergence_inside_a_warp():
    text = refusal(warp_diverges, 1, 64, np.zeros(1))
    assert "syncwarp(0xffffffff)" in text and "16 threads: (0, 0, 0), (2, 0, 0)" in text
    assert "syncthreads()" in text and "32 threads: (1, 0, 0)" in text
    assert "by lane 3" in refusal(lane_outside_its_mask, 1, 4, np.zeros(1))


@cuda.jit
def loop_of_unequal_length(x):
    for _ in range(2 + (cuda.threadIdx.x == 1)):
        cuda.syncthreads()


def test_one_barrier_too_many():
    text = refusal(loop_of_unequal_length, (1, 1, 2), 4, np.zeros(1))
    assert "1 thread: (1, 0, 0)" in text and "have returned: 3 threads" in text


# --- memory


@cuda.jit
def read_at(x, k, out):
    if cuda.grid(1) == 2:
        out[0] = x[k]


@cuda.jit
def write_at(x, k):
    if cuda.grid(1) == 2:
        x[k] = 1


@pytest.mark.parametrize("shape, k", [(5, -1), (5, 5), ((2, 5), (1, -1)), ((2, 5), (2, 0)),
                                      ((2, 3, 5), (0, -1, 0)), ((2, 3, 5), (0, 0, 5)),
                                      (5, np.int64(-1)), ((2, 5), -1)])  # fmt: skip
def test_global_indices(shape, k):
    for text in (
        refusal(read_at, 1, 4, np.zeros(shape), k, np.zeros(1)),
        refusal(write_at, 1, 4, np.zeros(shape), k),
    ):
        inside = str(k).strip("()")
        assert f"x[{inside}] of shape {np.zeros(shape).shape}" in text
        assert "thread (2, 0, 0) of block (0, 0, 0)" in text


@cuda.jit
def one_too_far(y):
    i = cuda.grid(1)
    if i <= y.shape[0]:
        y[i] = i  # once too often


def test_the_last_thread_writes_past_the_end():
    y = np.zeros(11)
    text = refusal(one_too_far, 3, 4, y)
    assert "kernel one_too_far, thread (3, 0, 0) of block (2, 0, 0)" in text
    assert f"{__file__}:{line_of(one_too_far, 'once too often')}: IndexError: y[11]" in text
    np.testing.assert_array_equal(y, np.arange(11))


def test_an_index_error_is_an_index_error():
    with pytest.raises(IndexError) as caught:
        one_too_far[3, 4](np.zeros(11))
    assert isinstance(caught.value, simulator.SimulatorIndexError)
    assert isinstance(caught.value.__cause__, IndexError)


@cuda.jit
def shared_and_local_at(k):
    shared = cuda.shared.array((2, 4), float32)
    local = cuda.local.array(4, float32)
    if k < 0:
        shared[0, k] = 1
    local[k] = 1


@cuda.jit
def row_at(x, k):
    row = x[1]
    row[k] = 1


def test_indices_of_shared_and_local_arrays_and_of_rows():
    text = refusal(shared_and_local_at, 1, 1, -2)
    assert "shared array of line" in text and "[0, -2] of shape (2, 4): negative index" in text
    assert "local array[4] of shape (4,)" in refusal(shared_and_local_at, 1, 1, 4)
    assert "x[1][-1] of shape (3,)" in refusal(row_at, 1, 1, np.zeros((2, 3)), -1)
    assert "TypeError" in refusal(row_at, 1, 1, np.zeros((2, 3)), slice(1))


@cuda.jit
def read_unwritten(floats, ints, unsigned):
    shared = cuda.shared.array(2, float32)
    local = cuda.local.array((1, 2), float32)
    b = cuda.blockIdx.x
    floats[b, 0], floats[b, 1] = shared[1], local[0, 1]
    shared[1] = local[0, 1] = 1
    ints[b] = cuda.shared.array(1, np.int16)[0]
    unsigned[b] = cuda.local.array(1, np.uint8)[0]


def test_fresh_memory_is_poisoned_in_every_block():
    floats, ints, unsigned = np.zeros((3, 2)), np.zeros(3, np.int64), np.zeros(3, np.int64)
    read_unwritten[3, 1](floats, ints, unsigned)
    assert np.isnan(floats).all()
    assert (ints == -(2**15)).all() and (unsigned == 255).all()


@cuda.jit
def two_on_one_line(out):
    a, b = cuda.shared.array(1, float32), cuda.shared.array(1, float32)
    own = cuda.local.array(1, float32)
    i = own[0] = cuda.threadIdx.x
    if i == 0:
        a[0] = 1
        b[0] = 2
    cuda.syncthreads()
    out[i, 0], out[i, 1], out[i, 2] = a[0], b[0], own[0]


def test_two_shared_arrays_on_one_line_are_two():
    out = np.zeros((3, 3))
    two_on_one_line[1, 3](out)
    assert out.tolist() == [[1, 2, 0], [1, 2, 1], [1, 2, 2]]


@cuda.jit
def dynamic_shared(out):
    words = cuda.shared.array(0, int32)
    i = cuda.threadIdx.x
    out[i] = words[i]
    words[i] = i
    cuda.syncthreads()
    out[i] += words[3 - i]


def test_dynamic_shared_memory():
    out = np.zeros(4, np.int64)
    dynamic_shared[1, 4, 0, 16](out)
    assert out.tolist() == [2, 1, 0, -1]
    assert "[0] of shape (0,)" in refusal(dynamic_shared, 1, 4, out)  # none was asked for


@cuda.jit
def count_multiples(counts):
    cuda.atomic.add(counts, cuda.grid(1) % 3, 1)
    cuda.atomic.max(counts, 3, cuda.grid(1))


def test_atomics():
    counts = np.zeros(4, np.int32)
    count_multiples[4, 25](counts)
    assert counts.tolist() == [34, 33, 33, 99]


# --- errors, and after them


@cuda.jit(device=True, inline="always")
def fails_on_thread_three(i):
    if i == 3:
        raise KeyError("three")  # here
    return cuda.threadIdx.x


@cuda.jit
def calls_device_function(x):
    cuda.syncthreads()
    x[cuda.grid(1)] = fails_on_thread_three(cuda.grid(1))


def test_an_error_in_a_device_function_names_kernel_and_line():
    x = np.full(8, -1)
    text = refusal(calls_device_function, 4, 2, x)
    assert "kernel calls_device_function, thread (1, 0, 0) of block (1, 0, 0)" in text
    assert f"{__file__}:{line_of(fails_on_thread_three, '# here')}: KeyError: 'three'" in text
    assert x.tolist() == [0, 1, 0, -1, -1, -1, -1, -1]


def test_a_device_function_is_plain_python_on_the_host():
    with pytest.raises(KeyError):
        fails_on_thread_three(3)


def test_the_next_launch_does_not_feel_the_last_error():
    for kernel, args in ((some_return_early, (np.zeros(8),)), (calls_device_function, ([0] * 8,))):
        refusal(kernel, 1, 8, *args)
        assert globals()["cuda"] is sys.modules["numba.cuda"]
        test_block_barriers(50)


def test_a_wrong_number_of_arguments():
    assert "add_neighbours() missing" in refusal(add_neighbours, 1, 1, np.zeros(1))


@cuda.jit
def launches_another(x):
    add_neighbours[1, 1](x, x)


@cuda.jit
def wait_for_host(started, go_on):
    started.set()
    go_on.wait(30)


def test_one_kernel_at_a_time():
    assert "one kernel at a time" in refusal(launches_another, 1, 1, np.zeros(3))
    started, go_on = threading.Event(), threading.Event()
    other = threading.Thread(target=wait_for_host[1, 1], args=(started, go_on))
    other.start()
    try:
        assert started.wait(30)
        with pytest.raises(RuntimeError, match="cannot launch add_neighbours while another"):
            add_neighbours[1, 1](np.zeros(3), np.zeros(3))
    finally:
        go_on.set()
        other.join()


# --- installing, debugging


def test_installing_again_changes_nothing():
    before = type(add_neighbours).__call__
    assert simulator.install() == IN_FORCE
    assert type(add_neighbours).__call__ is before
    assert "greenlets" in IN_FORCE


@pytest.mark.parametrize(
    "spoil, says",
    [
        ("sys.modules['greenlet'] = None", "pip install greenlet"),
        ("metadata.version = lambda name: '0.31.0'", "numba-cuda==0.30.*"),
    ],
)
def test_numbas_own_simulator_is_the_fallback(tmp_path, spoil, says):
    script = tmp_path / "fallback.py"
    script.write_text(
        textwrap.dedent(f"""
            import sys
            from importlib import metadata
            {spoil}
            import numpy as np
            from numba import cuda
            from layers import simulator

            @cuda.jit
            def double(x):
                x[cuda.grid(1)] *= 2

            said = simulator.install()
            x = np.ones(4)
            double[2, 2](x)
            print(simulator.installed, x.tolist(), said)
        """)
    )
    output = run_script(script)
    assert output.startswith("False [2.0, 2.0, 2.0, 2.0] Numba's own")
    assert says in output


def test_pdb_steps_over_a_barrier_and_into_a_device_function(tmp_path):
    script = tmp_path / "debugged.py"
    script.write_text(
        textwrap.dedent("""
            import numpy as np
            from numba import cuda, float32
            from layers import simulator

            simulator.install()

            @cuda.jit(device=True)
            def twice(v):
                return v + v

            @cuda.jit
            def reverse(x):
                shared = cuda.shared.array(4, float32)
                i = cuda.threadIdx.x
                if i == 1:
                    breakpoint()
                shared[i] = x[i]
                cuda.syncthreads()
                y = shared[3 - i]
                x[i] = twice(y)

            x = np.arange(4, dtype=np.float32)
            reverse[1, 4](x)
            print("result", x.tolist())
        """)
    )
    typed = ["w", "n", "n", "p shared", "n", "p float(y), cuda.threadIdx", "s", "s", "p v", "c"]
    output = run_script(script, typed="\n".join(typed) + "\n")
    where, barrier, after, shared, following, thread, call, inside, value, end = output.split(
        "(Pdb) "
    )[1:]
    assert where.count("scheduler.py") == 1 and "debugged.py" in where.splitlines()[2]
    assert "-> cuda.syncthreads()" in barrier
    assert "-> y = shared[3 - i]" in after
    assert "array([0., 1., 2., 3.], dtype=float32)" in shared  # all four have written
    assert "-> x[i] = twice(y)" in following
    assert thread.startswith("(2.0, Dim3(x=1, y=0, z=0))")
    assert "--Call--" in call and "twice()" in call
    assert "-> return v + v" in inside
    assert "2.0" in value
    assert end.startswith("result [6.0, 4.0, 2.0, 0.0]")
