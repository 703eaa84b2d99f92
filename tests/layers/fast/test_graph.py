"""Recordings: cut at products, replayed in order; CuPy's calls checked with a stand-in."""

from types import SimpleNamespace

import numpy as np
import pytest

from layers import Device
from layers.device import SIMULATED, cuda, grid_for
from layers.fast import graph
from layers.fast.graph import Recording, products

pytestmark = pytest.mark.skipif(not SIMULATED, reason="there is a GPU: tests/tinyconv/test_step.py")


@cuda.jit
def add_kernel(x, amount):
    i = cuda.grid(1)
    if i < x.size:
        x[i] += amount[0]


# --- in the simulator


def test_nothing_is_done_while_recording_and_all_of_it_at_each_replay(cuda_device):
    x, amount = np.zeros(3), np.array([2.0])
    a, out = np.eye(2), np.zeros((2, 2))

    def work():
        add_kernel[grid_for(3)](x, amount)
        products(cuda_device, (a, a, out), (out, a, a))
        add_kernel[grid_for(3)](x, amount)

    recording = Recording(cuda_device, work)
    assert not x.any() and not out.any()
    assert len(recording.pieces) == 3
    recording.replay()
    np.testing.assert_array_equal(x, [4, 4, 4])
    np.testing.assert_array_equal(out, np.eye(2))
    amount[0], a[0, 1] = 0.5, 3  # what lies in memory may change
    recording.replay()
    np.testing.assert_array_equal(x, [5, 5, 5])
    np.testing.assert_array_equal(out, [[1, 6], [0, 1]])


def test_afterwards_launches_and_products_are_made_at_once_again(cuda_device):
    x, out = np.zeros(3), np.zeros((2, 2))
    Recording(cuda_device, lambda: add_kernel[grid_for(3)](x, np.ones(1)))
    add_kernel[grid_for(3)](x, np.ones(1))
    products(cuda_device, (np.eye(2), np.eye(2), out))
    assert x.tolist() == [1, 1, 1] and out.trace() == 2


def test_an_error_in_the_work_ends_the_recording(cuda_device):
    x = np.zeros(3)

    def work():
        add_kernel[grid_for(3)](x, np.ones(1))
        raise ZeroDivisionError("in the work")

    with pytest.raises(ZeroDivisionError, match="in the work"):
        Recording(cuda_device, work)
    assert not x.any()
    add_kernel[grid_for(3)](x, np.ones(1))
    assert x.tolist() == [1, 1, 1]


def test_the_host_has_nothing_to_record():
    with pytest.raises(ValueError, match="cpu launches no kernels"):
        Recording(Device("cpu"), lambda: None)


# --- CuPy's part, with a stand-in that notes what is asked of it


class FakeCupy:
    """Streams and graphs that only note what happens; products are NumPy's."""

    def __init__(self, refuse=None):
        self.said = []
        self.refuse = refuse
        self.home = self.Stream(name="home")
        self.current = self.home
        self.cuda = SimpleNamespace(Stream=self.Stream, get_current_stream=lambda: self.current)

    def Stream(self, non_blocking=False, name=None):
        cupy = self

        class Stream:
            def use(self):
                cupy.current = self

            def begin_capture(self):
                cupy.note("begin", self)

            def end_capture(self):
                cupy.note("end", self)
                return SimpleNamespace(launch=lambda: cupy.note("launch", cupy.current))

        stream = Stream()
        stream.name = name or ("non-blocking" if non_blocking else "blocking")
        return stream

    def note(self, what, stream):
        self.said.append(f"{what} on {stream.name}")
        if self.refuse == what:
            raise RuntimeError(f"no {what} here")


def fake_gpu(**settings):
    return SimpleNamespace(is_cuda=True, is_simulated=False, xp=FakeCupy(**settings), name="fake")


def test_a_capture_is_cut_at_a_product_and_replayed_in_order(library):
    gpu, out = fake_gpu(), np.zeros((2, 2))
    said = gpu.xp.said

    def work():
        said.append(f"launch 1 on {gpu.xp.current.name}")
        products(gpu, (np.eye(2), np.eye(2), out))
        said.append(f"launch 2 on {gpu.xp.current.name}")

    recording = Recording(gpu, work)
    assert said == [
        *("begin on non-blocking", "launch 1 on non-blocking", "end on non-blocking"),
        *("begin on non-blocking", "launch 2 on non-blocking", "end on non-blocking"),
    ]
    assert gpu.xp.current is gpu.xp.home
    said.clear()
    recording.replay()
    assert said == ["launch on home", "product on home", "launch on home"]
    assert out.trace() == 2


@pytest.fixture(params=[False, True], ids=["CuPy's products", "a library"])
def library(request, monkeypatch):
    """Whether `cublas.py` has one; either way a product is NumPy's, and noted."""

    def multiply(gpu, *triples, precision):
        gpu.xp.said.append(f"product on {gpu.xp.current.name}")
        for a, b, out in triples:
            np.matmul(a, b, out=out)

    monkeypatch.setattr(graph, "multiply", multiply)
    monkeypatch.setattr(graph, "cublas_of", lambda device: request.param or None)
    return request.param


def test_one_graph_holds_the_products_where_a_library_can_be_captured(library):
    gpu, out = fake_gpu(), np.zeros((2, 2))
    said = gpu.xp.said

    def work():
        products(gpu, (np.eye(2), np.eye(2), out))
        said.append(f"launch on {gpu.xp.current.name}")

    recording = Recording(gpu, work, one_graph=True)
    captured = ["begin", "product", "launch", "end"]
    cut = ["begin", "end", "begin", "launch", "end"]
    assert [line.split()[0] for line in said] == (captured if library else cut)
    assert all(line.endswith("on non-blocking") for line in said)
    said.clear()
    recording.replay()
    assert len(said) == len(recording.pieces) == (1 if library else 3)
    products(gpu, (np.eye(2), np.eye(2), out))  # afterwards at once again
    assert said[-1] == "product on home"


@pytest.mark.parametrize("refuse", ["begin", "end"])
def test_what_the_driver_refuses_is_raised_and_the_stream_given_back(refuse):
    gpu = fake_gpu(refuse=refuse)
    with pytest.raises(RuntimeError, match=f"no {refuse} here"):
        Recording(gpu, lambda: None)
    assert gpu.xp.current is gpu.xp.home
    assert graph._this_thread.recording is None


def test_what_fails_within_a_capture_is_what_is_reported():
    gpu = fake_gpu(refuse="end")

    def work():
        raise NotImplementedError("cuBLAS is not captured")

    with pytest.raises(NotImplementedError, match="cuBLAS is not captured"):
        Recording(gpu, work)
    assert gpu.xp.said == ["begin on non-blocking", "end on non-blocking"]
    assert gpu.xp.current is gpu.xp.home
