"""A training step recorded once and replayed: CUDA graphs, with products in between.

A launch from Python costs tens of microseconds of the host's time, many times what a small kernel
takes. A CUDA graph is a list of launches that the driver keeps and starts with one call. It is
made by *capture*: between begin and end the stream takes launches down instead of making them,
with the kernel, its grid, and its arguments as they are, numbers by value, arrays by address. So

* every array has to be where it was: all buffers are made before, and none may grow after;
* what changes from step to step has to be read from memory, not passed as a number: learning
  rate, the key of the dropout masks, the labels;
* nothing in between may wait for the GPU or look at a result.

CuPy captures kernels and refuses to capture cuBLAS (CuPy 14). So a recording is cut at each
matrix product: a graph, a product, a graph, and so on; a layer announces its products by calling
`products` below. AlexNet's three fully connected layers make six cuts, hence seven graphs.

In the simulator there is no driver; a recording is then the list of launches itself (kernel,
grid, block, arguments by reference), and to replay it is to make them again. That shows, without a
GPU, whether a replay does what the step does. On a GPU none of this has been run yet.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from layers.device import Device
from layers.fast.gemm import multiply
from layers.simulator import recorded_launches

_this_thread = threading.local()


class Recording:
    """What `work` would do on `device`, ready to be done again and again.

    The work is not done while it is recorded. `replay()` queues all of it; `pieces` are the
    functions it calls, in order. Whatever the work raises ends the recording and is raised again.
    """

    def __init__(self, device: Device, work: Callable[[], Any]) -> None:
        if not device.is_cuda:
            raise ValueError(f"Recording: {device.name} launches no kernels to record")
        self.device = device
        self.pieces: list[Callable[[], Any]] = []
        self._stream: Any = None
        self._begin, self._end = (
            (self._begin_list, self._end_list)
            if device.is_simulated
            else (self._begin_capture, self._end_capture)
        )
        _this_thread.recording = self
        try:
            self._begin()
            try:
                work()
            except BaseException:
                self._give_up()
                raise
            self._end()
        finally:
            _this_thread.recording = None

    def replay(self) -> None:
        """Queue all that was recorded, on the current stream."""
        for piece in self.pieces:
            piece()

    def cut(self, call: Callable[[], Any]) -> None:
        """End the graph here; `call` is made at each replay, and then the next graph goes on."""
        self._end()
        self.pieces.append(call)
        self._begin()

    def _begin_capture(self) -> None:
        # A stream of its own, which neither waits for CUDA's default stream nor makes it wait: a
        # capture may depend on no other stream. It is made current, so that launches go there.
        cuda = self.device.xp.cuda
        self._home = cuda.get_current_stream()
        self._stream = self._stream or cuda.Stream(non_blocking=True)
        self._stream.begin_capture()
        self._stream.use()

    def _end_capture(self) -> None:
        self._home.use()
        self.pieces.append(self._stream.end_capture().launch)

    def _begin_list(self) -> None:
        self._launches = recorded_launches(self.pieces)
        self._launches.__enter__()

    def _end_list(self) -> None:
        self._launches.__exit__(None, None, None)

    def _give_up(self) -> None:
        """Take the stream out of capture; what went wrong is already on its way to the caller."""
        with suppress(Exception):  # a capture that has failed says so once more at its end
            self._end()


def products(device: Device, *triples: tuple[Any, Any, Any], precision: str = "fp32") -> None:
    """out = a · b for each (a, b, out), as `multiply` does; recorded if a recording is on."""
    call = partial(multiply, device, *triples, precision=precision)
    recording = getattr(_this_thread, "recording", None)
    if recording is None:
        call()
    else:
        recording.cut(call)
