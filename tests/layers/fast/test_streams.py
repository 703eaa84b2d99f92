"""Streams, pinned memory and uploads: what a GPU does in which order."""

import ast
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_gpus import Gpus

from layers import Device
from layers import device as door
from layers.device import SIMULATED, THREADS, grid_for, grid_of
from layers.fast.streams import Downloads, Pending, Uploads, pinned

ROOT = Path(__file__).resolve().parents[3]

# --- streams


@pytest.mark.skipif(not SIMULATED, reason="there is a GPU")
def test_in_the_simulator_there_is_no_stream():
    assert grid_for(1)[2] == grid_of((2, 3), (4, 5))[2] == door.stream() == 0
    assert grid_of((2, 3), (4, 5))[:2] == ((2, 3), (4, 5))


@pytest.fixture
def cupy(monkeypatch):
    """Stands for CuPy: streams with a pointer, one of them current; and Numba's side of it."""
    made = []

    class Stream:
        def __init__(self, ptr=None):
            self.ptr, self.device_id = 100 + len(made) if ptr is None else ptr, 0
            made.append(self)

        def use(self):
            fake.current = self

    fake = SimpleNamespace(current=Stream(0), wrapped=[])
    fake.cuda = SimpleNamespace(Stream=Stream, get_current_stream=lambda: fake.current)
    monkeypatch.setattr(door, "_cupy", None)
    monkeypatch.setattr(door, "_own_streams", {})
    monkeypatch.setattr(door, "_numba_streams", {})

    def external_stream(pointer):
        fake.wrapped.append(pointer)
        return f"Numba's {pointer}"

    monkeypatch.setattr(door, "cuda", SimpleNamespace(external_stream=external_stream))
    return fake


def test_launches_go_to_cupys_current_stream_wrapped_once(cupy):
    assert door.stream() == 0
    door._use_own_stream(cupy, 0)
    own = cupy.current.ptr
    assert own != 0
    assert grid_for(5) == (1, THREADS, f"Numba's {own}") == grid_for(7)
    assert cupy.wrapped == [own]
    other = cupy.cuda.Stream()
    other.use()
    assert grid_of(2, 3) == (2, 3, f"Numba's {other.ptr}")
    assert cupy.wrapped == [own, other.ptr]


def test_a_gpu_has_one_stream_and_one_that_was_chosen_is_left_alone(cupy):
    default = cupy.current
    door._use_own_stream(cupy, 0)
    own = cupy.current
    door._use_own_stream(cupy, 0)
    assert cupy.current is own
    default.use()  # as another thread begins
    door._use_own_stream(cupy, 0)
    assert cupy.current is own
    default.use()
    door._use_own_stream(cupy, 1)
    assert cupy.current is not own
    chosen = cupy.cuda.Stream()
    chosen.use()
    door._use_own_stream(cupy, 0)
    assert cupy.current is chosen


def launches_without_a_stream(path):
    """The lines of a file with a launch whose configuration is not made by a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        kernel = node.value if isinstance(node, ast.Subscript) else None
        if getattr(kernel, "id", "").endswith("_kernel") and not isinstance(node.slice, ast.Call):
            yield node.lineno


def test_every_launch_names_its_stream():
    """A graph does not hold what goes to another stream, and nothing would say so."""
    assert list((ROOT / "layers").glob("conv.py"))
    wrong = {
        f"{path.relative_to(ROOT)}:{line}"
        for folder in ("layers", "tinyconv")
        for path in (ROOT / folder).rglob("*.py")
        for line in launches_without_a_stream(path)
    }
    assert not wrong, "launch as kernel[grid_for(n)](...) or kernel[grid_of(blocks, threads)](...)"


# --- uploads


@pytest.mark.parametrize("shape", [(3, 5, 5, 3), (1,), (2, 7)])
def test_pinned_memory_is_an_array_like_any_other(device, shape):
    array = pinned(device, shape, np.uint8)
    assert isinstance(array, np.ndarray) and array.shape == shape and array.dtype == np.uint8
    array[...] = 7
    assert (array == 7).all() and array.flags.c_contiguous


def test_for_a_gpu_pinned_memory_is_asked_of_cupy(monkeypatch):
    gpu = Gpus(monkeypatch, count=1)
    array = pinned(Device("cuda:0"), (2, 3), np.float64)
    array[...] = 0.5
    assert gpu.pinned_bytes == 48 and (array == 0.5).all()


@pytest.mark.parametrize("seed", range(30))
def test_uploads_and_computing_are_in_order_however_late_the_gpu_does_them(seed, monkeypatch):
    """Uploads run ahead of the computing, and neither array nor source is overwritten early."""
    gpu, device = Gpus(monkeypatch, count=1, seed=seed), Device("cuda:0")
    uploads = Uploads(device, 2, (4, 3), np.int64)
    sources = [pinned(device, (4, 3), np.int64) for _ in range(2)]
    seen, counts = [], [4, 1, 3, 4, 2, 4, 4, 3, 4]
    for k, count in enumerate(counts):
        slot = k % 2
        uploads.wait(slot)
        sources[slot][...] = k
        uploads.begin(slot, sources[slot][:count])
        gpu.run_some()
        rows = uploads.take(slot, count)
        rows.compute(lambda values: seen.append(values.copy()))
        gpu.run_some()
        rows.compute(lambda values: seen.append(values.copy()))
    uploads.synchronize()
    gpu.run_all()
    for k, values in enumerate(seen):
        np.testing.assert_array_equal(values, np.full((counts[k // 2], 3), k // 2))
    assert len(seen) == 2 * len(counts)


@pytest.mark.parametrize("left_out", ["wait_event", "wait", "free"])
def test_the_stand_in_for_the_gpu_shows_a_missing_order(left_out, monkeypatch):
    """Without any one of the three waits some draw of the order computes with wrong numbers."""
    if left_out == "wait":
        monkeypatch.setattr(Uploads, "wait", lambda self, slot: None)
    if left_out == "wait_event":  # of the computing for the copy
        monkeypatch.setattr(Uploads, "take", lambda self, slot, n: self._arrays[slot][:n])
    if left_out == "free":

        def begin(self, slot, rows):
            self._arrays[slot][: len(rows)].set(rows, stream=self._stream)
            self._copied[slot].record(self._stream)

        monkeypatch.setattr(Uploads, "begin", begin)
    wrong = 0
    for seed in range(30):
        try:
            test_uploads_and_computing_are_in_order_however_late_the_gpu_does_them(
                seed, monkeypatch
            )
        except AssertionError:
            wrong += 1
    assert wrong


# --- downloads


@pytest.mark.parametrize("seed", range(10))
def test_a_pending_number_is_that_of_its_step_however_late_the_gpu_is(seed, monkeypatch):
    """Read one step later, as training does: the array is overwritten by then, the copy is not."""
    gpu = Gpus(monkeypatch, count=1, seed=seed)
    downloads, totals = Downloads(Device("cuda:0"), 2, np.float64), gpu.xp.empty(2, np.float64)
    skip, before = object(), None
    for step in range(6):
        totals.compute(lambda values, step=step: values.__setitem__(..., [step, 10 * step]))
        values, event = downloads.begin(totals)
        pending = Pending(values, 0, event, skip), Pending(values, 1, event)
        gpu.run_some()
        if before is not None:
            assert [float(each) for each in before] == [step - 1, 10 * (step - 1)]
        before = pending
    assert pending[0].skip is skip and pending[1].skip is None
    assert [float(each) for each in pending] == [5, 50]


def test_a_number_read_without_its_event_would_be_wrong(monkeypatch):
    """The test above can fail."""
    wrong = 0
    for seed in range(30):
        gpu = Gpus(monkeypatch, count=1, seed=seed)
        downloads, totals = Downloads(Device("cuda:0"), 1, np.float64), gpu.xp.empty(1, np.float64)
        totals.compute(lambda values: values.__setitem__(..., 7))
        values, _ = downloads.begin(totals)
        values[...] = 0
        gpu.run_some()
        wrong += float(Pending(values, 0, None)) != 7
    assert wrong
