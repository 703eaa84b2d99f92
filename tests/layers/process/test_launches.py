"""Launches of CuPy's arrays: what Numba is told of them, once, and on which stream they may be."""

import gc
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from layers.process.launches import Views

ROOT = Path(__file__).resolve().parents[3]


class Array:
    """What is asked of a CuPy array."""

    def __init__(self, values, gpu=0):
        self.values, self.device = values, SimpleNamespace(id=gpu)
        self.shape, self.strides, self.size = values.shape, values.strides, values.size
        self.ndim, self.dtype, self.flags = values.ndim, values.dtype, values.flags
        self.data = SimpleNamespace(ptr=values.ctypes.data)


class Gpu:
    """CuPy: the current GPU and stream."""

    def __init__(self):
        self.now, self.capturing = 0, False
        stream = SimpleNamespace(ptr=7, is_capturing=lambda: self.capturing)
        runtime = SimpleNamespace(getDevice=lambda: self.now)
        self.cuda = SimpleNamespace(runtime=runtime, get_current_stream=lambda: stream)


WORDS = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize(
    ("values", "layout"),
    [(WORDS, "C"), (WORDS.T, "F"), (WORDS[:, ::2], "A"), (np.ones((), np.uint16), "C")],
)
def test_the_words_are_those_of_numbas_own_layout(values, layout):
    view = Views(Gpu()).of(Array(values))
    assert (view.type.layout, view.type.ndim) == (layout, values.ndim)
    assert str(view.type.dtype) == str(values.dtype) and view.type.mutable
    sizes = (0, 0, values.size, values.itemsize, values.ctypes.data)
    assert view.words == (*sizes, *values.shape, *values.strides)


def test_a_view_is_made_once_and_goes_with_its_array():
    views = Views(Gpu())
    first, second = Array(WORDS), Array(WORDS[1:])
    kept = views.of(first)
    assert views.of(first) is kept and views.of(second) is not kept and len(views) == 2
    del first
    gc.collect()
    assert len(views) == 1
    # Memory is reused at once: a new array may have the identity of the old one.
    for side in range(1, 200):
        assert views.of(Array(np.zeros(side, np.float32))).words[2] == side
    gc.collect()
    assert len(views) == 1


def test_an_array_that_was_reshaped_in_place_is_described_again():
    views, array = Views(Gpu()), Array(WORDS)
    assert views.of(array).words[5:7] == (3, 4)
    array.shape, array.strides = (4, 3), (12, 4)
    assert views.of(array).words[5:7] == (4, 3) and len(views) == 1
    del array
    gc.collect()
    assert len(views) == 0


def test_an_array_of_another_gpu_is_an_error_that_names_both():
    gpu = Gpu()
    views, array = Views(gpu), Array(WORDS, gpu=1)
    with pytest.raises(RuntimeError, match="an array on cuda:1 cannot be used on cuda:0, the curr"):
        views.of(array)
    gpu.now = 1
    assert views.of(array).words[2] == 12


def test_a_launch_that_a_capture_would_miss_is_an_error():
    gpu = Gpu()
    views = Views(gpu)
    views.check_stream(0)  # the default stream, which is ordered with CuPy's
    gpu.capturing = True
    views.check_stream(SimpleNamespace(handle=7))
    for stream in (0, SimpleNamespace(handle=8)):
        with pytest.raises(RuntimeError, match="another stream than CuPy's current one"):
            views.check_stream(stream)


INSTALLED = """
import sys, types
import numpy as np
from test_launches import Array, Gpu, WORDS
from layers.device import cuda
from layers.process import launches
from numba.cuda import dispatcher
from numba.cuda.args import In
from numba.cuda.typing.typeof import typeof
cupy = Gpu()
cupy.ndarray = Array
views = launches.keep_views(cupy)
assert launches.keep_views(cupy) is views

@cuda.jit
def kernel(x, y, n):
    pass

array = Array(WORDS)
for value in (array, np.float32(2), 3):
    print(typeof(value))

class Kernel:
    extensions = []
    _prepare_args = dispatcher._Kernel._prepare_args

words = []
for ty, value in ((typeof(array), array), (typeof(3), 3), (typeof(np.float32(2)), np.float32(2))):
    Kernel()._prepare_args(ty, value, 7, [], words)
assert tuple(words[:-2]) == views.of(array).words
print(words[-2].value, words[-1].value, len(views))
cupy.capturing = True
try:
    Kernel()._prepare_args(typeof(array), array, 9, [], [])
except RuntimeError as error:
    print(str(error)[:33])
configurations = [dispatcher.CUDADispatcher.configure(kernel, i + 1, 32) for i in range(300)]
again = [dispatcher.CUDADispatcher.configure(kernel, i + 1, 32) for i in range(300)]
print(all(a is b for a, b in zip(configurations, again)))
"""


def test_numba_takes_arrays_by_their_views_and_keeps_all_configurations():
    """In a process without the simulator, whose Numba is replaced; nothing is launched."""
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", INSTALLED], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        *("array(float32, 2d, C)", "float32", "int64", "3 2.0 1"),
        *("a launch on another stream than C", "True"),
    ]
