"""As much of CuPy as copies to and from a GPU need, without a GPU and without its haste.

Whatever is queued on a stream of a GPU happens at some time later. Here it happens when the test
says so: `Gpu.run_some` takes queued work from one stream or another by a seeded draw, as far as
events allow. A copy that was not ordered by an event so comes too early or too late in some draw.
"""

from collections import deque
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np

from layers import Device


class Gpu:
    """The streams, and the order in which their work is done. `xp` stands for CuPy."""

    def __init__(self, seed=0):
        self.random = np.random.default_rng(seed)
        self.streams = []
        self.pinned_bytes = 0
        self.default = Stream(self)
        cuda = SimpleNamespace(
            Device=lambda index: nullcontext(),
            Stream=lambda non_blocking: Stream(self),
            Event=lambda disable_timing: Event(self),
            get_current_stream=lambda: self.default,
            alloc_pinned_memory=self._pinned,
        )
        self.xp = SimpleNamespace(cuda=cuda, empty=lambda *a: Array(np.zeros(*a), self))

    def _pinned(self, count):
        self.pinned_bytes += count
        return bytearray(count + 500)  # CuPy rounds up

    def step(self):
        """Do the next work of a stream that need not wait; False if all are idle."""
        ready = [stream for stream in self.streams if stream.ready()]
        if not ready:
            assert not any(stream.queue for stream in self.streams), "streams wait for each other"
            return False
        ready[self.random.integers(len(ready))].queue.popleft()[1]()
        return True

    def run_some(self):
        """Do a random amount of the queued work."""
        for _ in range(self.random.integers(8)):
            self.step()

    def device(self):
        """A `Device` whose GPU this is."""
        device = Device("cpu")
        device.name, device.is_cuda, device.xp = "cuda:0", True, self.xp
        return device


class Stream:
    def __init__(self, gpu):
        self.queue, self.gpu = deque(), gpu
        gpu.streams.append(self)

    def do(self, work, may=lambda: True):
        self.queue.append((may, work))

    def ready(self):
        return bool(self.queue) and self.queue[0][0]()

    def wait_event(self, event):
        awaited = event.recorded  # later records do not count
        self.do(lambda: None, may=lambda: event.done >= awaited)

    def synchronize(self):
        while self.queue:
            self.gpu.step()


class Event:
    def __init__(self, gpu):
        self.recorded = self.done = 0
        self.gpu = gpu

    def record(self, stream=None):
        stream = stream or self.gpu.default
        self.recorded += 1
        number = self.recorded
        stream.do(lambda: setattr(self, "done", number))

    def synchronize(self):
        awaited = self.recorded
        while self.done < awaited:
            self.gpu.step()


class Array:
    """An array on the GPU: nothing of it can be read but by work on a stream."""

    def __init__(self, values, gpu):
        self.values, self.gpu = values, gpu

    def __getitem__(self, part):
        return Array(self.values[part], self.gpu)

    def set(self, source, stream):
        assert source.shape == self.values.shape and source.dtype == self.values.dtype
        # Half and half: whoever reads in between sees it.
        half = len(source) // 2
        for part in (slice(half), slice(half, None)):
            stream.do(lambda part=part: self.values.__setitem__(part, source[part]))

    def get(self, *, out, blocking):
        assert not blocking and out.shape == self.values.shape
        self.gpu.default.do(lambda: out.__setitem__(..., self.values))

    def compute(self, function):
        """Queue function(values) on the stream that computes."""
        self.gpu.default.do(lambda: function(self.values))
