"""As much of CuPy as copies to, from and between GPUs use, without a GPU and without its haste.

Whatever is queued on a stream happens at some time later. Here it happens when the test says so:
`Gpus.run_some` takes queued work from one stream or another by a seeded draw, as far as events
allow, and every piece of work in two halves. A copy that no event has put in its place so comes too
early or too late in some draw. Every array is on one GPU, and work that touches it from another
one, or while another one is current, is an error.
"""

from collections import deque
from types import SimpleNamespace

import numpy as np

import layers.device


class CUDARuntimeError(RuntimeError):
    def __init__(self, status):
        super().__init__(f"error {status}")
        self.status = status


class Gpus:
    """Several GPUs, their streams, and the order in which their work is done. `xp` is CuPy's part.

    peers: can they read each other's memory? `calls` lists what was copied in which way;
    `pinned_bytes` counts what was asked of the host's memory.
    """

    def __init__(self, monkeypatch, count=2, peers=True, seed=0):
        self.random = np.random.default_rng(seed)
        self.count, self.peers, self.now, self.calls = count, peers, 0, []
        self.streams, self.arrays, self.enabled, self.pinned_bytes = [], {}, set(), 0
        self.default = [Stream(self, gpu) for gpu in range(count)]
        cuda = SimpleNamespace(
            Device=lambda index: Current(self, index),
            Stream=lambda non_blocking: Stream(self, self.now),
            Event=lambda disable_timing: Event(self),
            get_current_stream=lambda: self.default[self.now],
            alloc_pinned_memory=self._pinned,
            runtime=SimpleNamespace(
                deviceCanAccessPeer=lambda gpu, peer: int(self.peers and gpu != peer),
                deviceEnablePeerAccess=self._enable,
                memcpyPeerAsync=self._copy_to_peer,
                CUDARuntimeError=CUDARuntimeError,
            ),
        )
        self.xp = SimpleNamespace(
            __name__="cupy", cuda=cuda, ndarray=Array, empty=self._empty,
            ascontiguousarray=lambda array: array.contiguous(),
        )  # fmt: skip
        monkeypatch.setattr(layers.device, "SIMULATED", False)
        monkeypatch.setattr(layers.device, "_open_gpu", self._open)

    def _open(self, index):
        if index >= self.count:
            raise layers.device.DeviceError(f"cuda:{index}: this machine has {self.count} GPU(s)")
        return self.xp

    def _pinned(self, size):
        self.pinned_bytes += size
        return bytearray(size + 500)  # CuPy rounds up

    def _enable(self, peer):
        assert self.peers and peer != self.now
        if (self.now, peer) in self.enabled:
            raise CUDARuntimeError(704)
        self.enabled.add((self.now, peer))

    def _empty(self, shape, dtype):
        # Not a number: what is read before it is written shows.
        poison = np.nan if np.dtype(dtype).kind == "f" else 77
        return Array(np.full(shape, poison, dtype), self, self.now)

    def array(self, values, gpu):
        """An array on a GPU that holds `values` at once."""
        return Array(np.array(values), self, gpu)

    def _copy_to_peer(self, to, to_gpu, source, source_gpu, size, stream):
        to, source = self.arrays[to], self.arrays[source]
        assert (to.gpu, source.gpu) == (to_gpu, source_gpu) and size == source.nbytes == to.nbytes
        assert (to_gpu, source_gpu) in self.enabled
        (stream,) = (each for each in self.streams if each.ptr == stream)
        assert stream.gpu == self.now
        self.calls.append("peer")
        stream.assign(to.values, source.values)

    def step(self):
        """Do the next work of a stream that need not wait; False if all are idle."""
        ready = [stream for stream in self.streams if stream.ready()]
        if not ready:
            assert not any(stream.queue for stream in self.streams), "streams wait for each other"
            return False
        # Some streams are slow: their work is overtaken by a lot of the others'.
        speeds = np.array([stream.speed for stream in ready])
        ready[self.random.choice(len(ready), p=speeds / speeds.sum())].queue.popleft()[1]()
        return True

    def run_some(self):
        """Do a random amount of the queued work."""
        for _ in range(self.random.integers(12)):
            self.step()

    def run_all(self):
        """Do all of it."""
        while self.step():
            pass


class Current:
    """CuPy's Device: a GPU is current within it, or from `use` on."""

    def __init__(self, gpus, index):
        self.gpus, self.index = gpus, index

    def __enter__(self):
        self.before, self.gpus.now = self.gpus.now, self.index

    def __exit__(self, *_):
        self.gpus.now = self.before

    def use(self):
        self.gpus.now = self.index


class Stream:
    def __init__(self, gpus, gpu):
        self.queue, self.gpus, self.gpu, self.ptr = deque(), gpus, gpu, 1000 + len(gpus.streams)
        gpus.streams.append(self)
        self.speed = 10.0 ** -gpus.random.integers(4)

    def do(self, work, may=lambda: True):
        self.queue.append((may, work))

    def assign(self, to, source, add=False):
        """Queue to[...] = source, or to += source, half and half."""
        assert to.shape == source.shape and to.dtype == source.dtype
        for start in (0, 1):

            def work(start=start):
                # Two interleaved halves: whoever reads in between sees it.
                half = (slice(start, None, 2),)
                to[half] = to[half] + source[half] if add else source[half]

            self.do(work)

    def ready(self):
        return bool(self.queue) and self.queue[0][0]()

    def wait_event(self, event):
        awaited = event.recorded  # later records do not count
        self.do(lambda: None, may=lambda: event.done >= awaited)

    def synchronize(self):
        while self.queue:
            self.gpus.step()


class Event:
    def __init__(self, gpus):
        self.recorded = self.done = 0
        self.gpus, self.gpu = gpus, gpus.now

    def record(self, stream=None):
        stream = stream or self.gpus.default[self.gpu]
        assert stream.gpu == self.gpu, "an event can be recorded on its own GPU only"
        self.recorded += 1
        number = self.recorded
        stream.do(lambda: setattr(self, "done", number))

    def synchronize(self):
        awaited = self.recorded
        while self.done < awaited:
            self.gpus.step()


class Array:
    """An array on a GPU: nothing of it can be read but by work on a stream."""

    def __init__(self, values, gpus, gpu):
        self.values, self.gpus, self.gpu = values, gpus, gpu
        self.shape, self.dtype, self.ndim = values.shape, values.dtype, values.ndim
        self.size, self.nbytes = values.size, values.nbytes
        self.flags = SimpleNamespace(c_contiguous=values.flags.c_contiguous)
        self.data = SimpleNamespace(ptr=id(self))
        gpus.arrays[id(self)] = self

    def __len__(self):
        return len(self.values)

    def __getitem__(self, part):
        return Array(self.values[part], self.gpus, self.gpu)

    def __setitem__(self, part, source):
        source = source.values if isinstance(source, Array) else np.array(source, self.dtype)
        if source is not self.values[part]:
            self._queue(self.values[part], np.broadcast_to(source, self.values[part].shape))

    def __iadd__(self, other):
        self._queue(self.values, other.values, add=True)
        assert other.gpu == self.gpu
        return self

    def reshape(self, *shape):
        return Array(self.values.reshape(*shape), self.gpus, self.gpu)

    def contiguous(self):
        copy = self.gpus._empty(self.shape, self.dtype)
        copy[...] = self
        return copy

    def _queue(self, to, source, add=False):
        assert self.gpus.now == self.gpu, f"GPU {self.gpus.now} is current, not {self.gpu}"
        self.gpus.default[self.gpu].assign(to, source, add)

    def compute(self, function):
        """Queue function(values) on the stream that computes."""
        self.gpus.default[self.gpu].do(lambda: function(self.values))

    def get(self, stream=None, *, out, blocking):
        stream = stream or self.gpus.default[self.gpu]
        assert not blocking and stream.gpu == self.gpu == self.gpus.now
        self.gpus.calls.append("to host")
        stream.assign(out, self.values)

    def set(self, source, stream):
        assert stream.gpu == self.gpu == self.gpus.now and source.flags.c_contiguous
        self.gpus.calls.append("from host")
        stream.assign(self.values, source)
