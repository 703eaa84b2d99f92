"""Less host time for a launch: what Numba asks of a CuPy array is kept as long as the array.

numba-cuda 0.30 has every CuPy array described twice at each launch, by DLPack: for the type of the
argument and for its address. `benchmarks/launch_cost.py` prints what that takes. The arrays of
`Buffers`, the parameters and their gradients are the same objects in every step, so type and words
of an argument are kept here by the array's identity until it is freed. Numba also keeps 128 launch
configurations, of all kernels together; a training step and an evaluation have more.

No array is described by DLPack anymore, so CuPy has no reason to record an event for the stream of
the launch, which would break a capture. During one, a launch on any other stream than CuPy's
current one is an error.

Where numba-cuda is another version without the replaced functions, they stay as they are. Not yet
run on a GPU; the tests make real CuPy arrays over memory of the host, or fake ones.
"""

import functools
import weakref
from typing import Any

CONFIGURATIONS = 4096


class View:
    """A CuPy array as an argument: its type, and the words that a kernel is passed for it."""

    def __init__(self, array: Any, on_free: Any) -> None:
        from layers.device import cuda

        self.alive, self.shape = weakref.ref(array, on_free), array.shape
        flags = array.flags
        layout = "C" if flags.c_contiguous else "F" if flags.f_contiguous else "A"
        number = cuda.typing.typeof.numpy_support.from_dtype(array.dtype)
        self.type = cuda.types.Array(number, array.ndim, layout)
        # meminfo and parent, which a kernel does not use; then as Numba lays out an array.
        sizes = 0, 0, array.size, array.dtype.itemsize, array.data.ptr
        self.words = (*sizes, *array.shape, *array.strides)


class Views:
    """The views of the CuPy arrays that have been arguments, as long as the arrays live."""

    def __init__(self, cupy: Any) -> None:
        self._cuda = cupy.cuda
        self._kept: dict[int, View] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, array: Any) -> View:
        """Made at the first request. RuntimeError if another GPU than the array's is current."""
        view = self._kept.get(id(array))
        if view is None or view.shape != array.shape:
            current = self._cuda.runtime.getDevice()
            if array.device.id != current:
                raise RuntimeError(
                    f"an array on cuda:{array.device.id} cannot be used on cuda:{current}, the "
                    f"current GPU: launch within `with device.current():`, or call device.use()"
                )
            forget = functools.partial(self._forget, id(array))
            view = self._kept[id(array)] = View(array, forget)
        return view

    def _forget(self, key: int, reference: Any) -> None:
        if key in self._kept and self._kept[key].alive is reference:
            del self._kept[key]

    def check_stream(self, stream: Any) -> None:
        """RuntimeError for a launch that a capture would miss."""
        current = self._cuda.get_current_stream()
        if int(getattr(stream, "handle", stream)) != current.ptr and current.is_capturing():
            raise RuntimeError(
                "a launch on another stream than CuPy's current one, which is being captured: take "
                "its configuration from layers.device, grid_for(...) or grid_of(...)"
            )


@functools.cache
def keep_views(cupy: Any) -> Views:
    """From now on Numba takes CuPy's arrays by their views."""
    from layers.device import cuda

    views, array_type = Views(cupy), cupy.ndarray
    kernel, launched = cuda.dispatcher._Kernel, cuda.dispatcher.CUDADispatcher
    prepare = getattr(kernel, "_prepare_args", None)
    configure = getattr(launched.configure, "__wrapped__", None)
    if prepare is None or configure is None:
        return views

    def prepare_args(self: Any, ty: Any, val: Any, stream: Any, retr: Any, words: list) -> None:
        if not words:
            views.check_stream(stream)
        if type(val) is array_type and not self.extensions:
            words.extend(views.of(val).words)
        else:
            prepare(self, ty, val, stream, retr, words)

    cuda.typing.typeof.typeof_impl.register(array_type)(lambda val, context: views.of(val).type)
    kernel._prepare_args = prepare_args
    launched.configure = functools.lru_cache(CONFIGURATIONS)(configure)
    return views
