"""The training step of a GPU: nothing waits for the host, and the launches are recorded once.

    labels, keys of the dropout masks       written to the device at every step
    net.forward  -> loss.compute            recorded: `layers/fast/graph.py`
    net.backward <- loss.backward
    loss.pending                            copied to the host, and read there one step later
    optimizer.step                          leaves the weights if the device has found NaN

The same launches with the same arguments give the same bits, whether Python makes them one by one
or a recording does. The first step of a batch shape is made plainly: it compiles the kernels and
makes the buffers. At the second the step is recorded, and from then on replayed. docs/graph.md says
what has to be in device memory for that, and why.

One graph is tried first, products and all, and then one that is cut at products. If CuPy or the
driver refuses both, one line on standard error says so, and steps are made plainly. On a GPU the
recorded way has not been run yet.
"""

import sys
from typing import Any

from layers import Dropout, Linear, LocallyConnected2D
from layers.fast.cublas import cublas_of
from layers.fast.graph import Recording
from tinyconv.train import SingleStep


class GraphStep(SingleStep):
    """`SingleStep` for a GPU and kernels "fast"; loss and hits are `Pending` numbers.

    graph: record the step and replay it; else launch each kernel by itself. one_graph: try to
    capture products as well. Attributes: `replayed`, whether the last step was a replay; `pieces`,
    how many calls the last recording is replayed by.

    After a replay the loss is that of its batch; the layers' `y` may be of another. Weights may be
    changed in place at any time; call `forget()` after any other change of the net that
    `forward_backward` cannot notice. Once a loss was not finite, no update follows: training ends.
    """

    def __init__(
        self, net: Any, optimizer: Any, graph: bool = True, one_graph: bool = True
    ) -> None:
        super().__init__(net, optimizer)
        self.graph = graph
        self.one_graph = one_graph and cublas_of(net.device) is not None
        self.replayed, self.pieces = False, 0
        self._recorded: dict[tuple[int, ...], _Recorded] = {}
        self._classes: dict[tuple[int, ...], int] = {}  # by shape of a batch seen: its logits'

    def forward_backward(self, x: Any, labels: Any, step: int) -> tuple[Any, Any, int]:
        """As `SingleStep.forward_backward`."""
        self.net.set_step(step)
        recorded, recordable = None, self._may_record()
        if recordable:
            x = self.net.check_input(x)
            recorded = self._recording_for(x, labels)
            self.net.set_step(step)  # recording, whether it succeeded or not, has changed it
        self.replayed = recorded is not None
        if recorded is None:
            logits = self.net.forward(x, train=True)
            self.loss.load_labels(labels, logits.shape)
            self._pass(logits)
            if recordable:
                self._classes[x.shape] = logits.shape[-1]
        else:
            recorded.replay(x, labels)
            self.net.set_step(step + 1)
        return *self.loss.pending(), len(labels)

    def forget(self) -> None:
        """Drop what was recorded; the next step of each batch shape is a plain one."""
        self._recorded.clear()
        self._classes.clear()

    def _pass(self, logits: Any) -> None:
        self.loss.compute(logits)
        self.net.backward(self.loss.backward())

    def _may_record(self) -> bool:
        # Products of the book do not go through `graph.products`, where a recording is cut.
        products = Linear, LocallyConnected2D
        return self.graph and not any(isinstance(step, products) for step in self.net.steps)

    def _recording_for(self, x: Any, labels: Any) -> "_Recorded | None":
        """What to replay for this batch, recorded now if need be; None: make a plain step."""
        if any(recorded.is_stale() for recorded in self._recorded.values()):
            self.forget()
        if x.shape not in self._classes:
            return None
        recorded = self._recorded.get(x.shape)
        if recorded is not None and recorded.takes(x):
            return recorded
        self.loss.load_labels(labels, (len(x), self._classes[x.shape]))
        # Another array than last time: from now on x is copied to a place of its own.
        copies = recorded is not None
        recorded = self._record(x, copies)
        if recorded is not None:
            self._recorded[x.shape] = recorded
            self.pieces = len(recorded.recording.pieces)
        return recorded

    def _record(self, x: Any, copies: bool) -> "_Recorded | None":
        """One graph, else one cut at products, else None and a line that says why."""
        while self.graph:
            try:
                return _Recorded(self, x, copies)
            except Exception as error:  # whatever CuPy, Numba or the driver makes of it
                reason = str(error).partition("\n")[0]
                if self.one_graph:
                    self.one_graph, said = False, "the CUDA graph is cut at products"
                else:
                    self.graph, said = False, "no CUDA graph, each kernel is launched by itself"
                print(f"{said}: {reason}", file=sys.stderr)
        return None


class _Recorded:
    """The recorded step of one batch shape, with the arrays whose addresses it knows."""

    def __init__(self, step: GraphStep, x: Any, copies: bool) -> None:
        net, self.loss = step.net, step.loss
        self.copies = copies
        self.x = net.device.empty(x.shape, x.dtype) if copies else x
        self.dropouts = [layer for layer in net if isinstance(layer, Dropout)]
        for dropout in self.dropouts:
            dropout.write_key()

        def work() -> None:
            step._pass(net.forward(self.x, train=True))

        self.recording = Recording(net.device, work, step.one_graph)
        loss = self.loss
        names = ("y", "probabilities", "losses", "hits", "dlogits")
        self.results = {name: vars(loss)[name] for name in names if name in vars(loss)}
        parts = (*net.steps, *net.layers, loss)
        # Holding the buffers keeps their memory from being reused. If a layer has allocated a
        # larger one since, it and the recording no longer use the same array.
        self.buffers = [(part, part.buffer, dict(part.buffer._flat)) for part in parts]
        self.net, self.steps = net, net.steps
        self.input_gradient = net.layers[0].input_gradient

    def is_stale(self) -> bool:
        """Whether the net has changed in a way that makes the recording another net's."""
        if self.net.steps is not self.steps:
            return True
        if self.net.layers[0].input_gradient != self.input_gradient:
            return True
        return any(
            part.buffer is not buffer
            or any(buffer._flat[name] is not array for name, array in arrays.items())
            for part, buffer, arrays in self.buffers
        )

    def takes(self, x: Any) -> bool:
        """Whether x can be used: it is where the recording reads, or is copied there."""
        return self.copies or _address(x) == _address(self.x)

    def replay(self, x: Any, labels: Any) -> None:
        """Run the step with this batch."""
        loss = self.loss
        loss.load_labels(labels, self.results["y"].shape)
        for dropout in self.dropouts:
            dropout.write_key()
        if self.copies:
            self.x[...] = x
        self.recording.replay()
        vars(loss).update(self.results)


def _address(array: Any) -> int:
    """Where the first element of `array` is in the device's memory."""
    of_gpu = getattr(array, "__cuda_array_interface__", None)
    return int((of_gpu or array.__array_interface__)["data"][0])
