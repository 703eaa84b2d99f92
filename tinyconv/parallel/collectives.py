"""Stages that copy from one column's device to the other's (paper §3.5).

Each column holds half of the channels of every layer. A layer that needs all of them has one of
these before it. Below c is a column and o the other one; [a, b] concatenates along the channels, in
the order of the one-device net, column 0's channels first:

    AllGather         y_c = [x_0, x_1], the same on both
                      dL/dx_c = dL/dy_c, channels of c  +  dL/dy_o, channels of c  (reduce-scatter)
    AllGather(reach)  only the `reach` channels of o nearest to the border are copied
    BorderNorm        LRN whose windows reach over the border: such an all-gather, the
                      normalization, and then each column keeps its own channels
    Gather            y = [x_0, x_1] on the first device, where the loss is
                      dL/dx_c = dL/dy, channels of c
    Broadcast         y_0 = y_1 = x, the photos for both
                      dL/dx = dL/dy_0 + dL/dy_1

The backward passes follow one rule: a copied value has an effect in two places, so its gradients
from both are added. Each sum has two terms in a fixed order: the same bits every time. In bf16 the
copies are bfloat16, and such a sum is made in float32 and rounded once.

Shapes: `Both` of (N, ..., C_0) and (N, ..., C_1). Every copy is a `send` and a `take` (`link.py`):
the host queues both directions, then the column's own half is moved, and only then the devices
wait. On two GPUs the copies run in both directions at once while the own halves are moved.
"""

import math
from typing import Any

from layers import LocalResponseNorm
from layers.fast.precision import round_into
from tinyconv.parallel.stage import COLUMNS, Both, Pair, Stage, stored


class AllGather(Stage):
    """Each column gets the other's channels beside its own; reach: only so many at the border."""

    def __init__(self, reach: int | None = None) -> None:
        super().__init__()
        if reach is not None and reach < 1:
            raise ValueError(f"AllGather: reach must be at least 1, not {reach}")
        self.reach = reach
        self.widths = (0, 0)

    def output_shape(self, input_shape: Any) -> Any:
        """Both shapes, with the channels that arrive."""
        widths = self._widths(input_shape)
        sent = self._sent(widths)
        return tuple((*input_shape[c][:-1], widths[c] + sent[1 - c]) for c in COLUMNS)

    def crossing(self, input_shape: Any) -> tuple[int, int]:
        """Places times the channels that are sent."""
        places = math.prod(input_shape[0][:-1])
        first, second = self._sent(self._widths(input_shape))
        return places * first, places * second

    def forward(self, x: Any, train: bool = True) -> Any:
        """x Both (N, ..., C_c) -> y Both (N, ..., C_c and what arrives)."""
        x = self.check_both(x, "x")
        self.widths = self._widths([x[0].shape, x[1].shape])
        shapes = self.output_shape([x[0].shape, x[1].shape])
        came, y = {}, []
        for c in COLUMNS:
            part = x[c]
            if self.reach is not None:
                part = self.packed(c, "border", part[..., self._border(c)])
            came[1 - c] = self.send(c, part, "came")
        for c in COLUMNS:
            with self.devices[c].current():
                y.append(self.buffers[c]("y", shapes[c]))
                y[c][..., self.own(c)] = x[c]
        self.take(0, 1)
        for c in COLUMNS:
            with self.devices[c].current():
                y[c][..., self._others(c)] = came[c]
        self.y = Both(y)
        return self.y

    def backward(self, dy: Any) -> Any:
        """dy Both, of y's shapes -> dx Both, of x's."""
        dy = self.check_same(dy)
        came, dx = {}, []
        for c in COLUMNS:
            part = self.packed(c, "part", dy[c][..., self._others(c)])
            came[1 - c] = self.send(c, part, "dcame")
        for c in COLUMNS:
            dx.append(self.packed(c, "dx", dy[c][..., self.own(c)]))
        self.take(0, 1)
        for c in COLUMNS:
            self.add(c, dx[c][..., self._border(c)], came[c])
        return Both(dx)

    def own(self, column: int) -> slice:
        """Of y: the channels that the column had before."""
        start = 0 if column == 0 else self._sent(self.widths)[0]
        return slice(start, start + self.widths[column])

    # Column 0's channels end where those of column 1 begin: what column 0 receives is placed after
    # its own channels, what column 1 receives before them.

    def _others(self, column: int) -> slice:
        """Of y: the channels that came from the other column."""
        return slice(self.widths[0], None) if column == 0 else slice(0, self._sent(self.widths)[0])

    def _border(self, column: int) -> slice:
        """Of x: the channels that go to the other column."""
        width, sent = self.widths[column], self._sent(self.widths)[column]
        return slice(width - sent, width) if column == 0 else slice(0, sent)

    def _sent(self, widths: tuple[int, int]) -> tuple[int, int]:
        """Channels that leave column 0 and column 1."""
        first, second = widths
        if self.reach is None:
            return first, second
        return min(self.reach, first), min(self.reach, second)

    @staticmethod
    def _widths(shapes: Any) -> tuple[int, int]:
        return shapes[0][-1], shapes[1][-1]


class BorderNorm(Stage):
    """Local response normalization across the channels of both columns (paper §3.3).

    A window of `size` channels at the border reaches size // 2 channels into the other column;
    only these are copied. Their own outputs are incomplete here (windows are cut off) and dropped,
    with no gradient. size, k, alpha, beta: as `LocalResponseNorm`.
    """

    def __init__(self, size: int, k: float, alpha: float, beta: float) -> None:
        self.norms = Pair(*(LocalResponseNorm(size, k, alpha, beta) for _ in COLUMNS))
        self.all_gather = AllGather(reach=size // 2) if size > 1 else None
        super().__init__()

    def parts(self) -> list[Stage]:
        """The all-gather, if there is one, and the normalization."""
        return [self.norms] if self.all_gather is None else [self.all_gather, self.norms]

    def to(
        self, device: Any, dtype: Any = None, precision: str = "fp32", kernels: str = "fast"
    ) -> Any:
        """Move to two devices. Returns itself."""
        super().to(device, dtype, precision, kernels)
        for part in self.parts():
            part.name = self.name
            part.to(device, dtype, precision, kernels)
        return self

    def connect(self, links: Any) -> None:
        """Copy over these links from now on."""
        super().connect(links)
        for part in self.parts():
            part.connect(links)

    def crossing(self, input_shape: Any) -> tuple[int, int]:
        """Places times the channels at the border."""
        return (0, 0) if self.all_gather is None else self.all_gather.crossing(input_shape)

    def forward(self, x: Any, train: bool = True) -> Any:
        """x Both -> y Both, of the same shapes."""
        if self.all_gather is None:
            self.y = self.norms.forward(x, train)
            return self.y
        extended = stored(self, self.norms.forward(self.all_gather.forward(x, train), train))
        self.y = Both(
            self.packed(c, "y", extended[c][..., self.all_gather.own(c)]) for c in COLUMNS
        )
        return self.y

    def backward(self, dy: Any) -> Any:
        """dy Both -> dx Both, of the same shapes."""
        dy = self.check_same(dy)
        if self.all_gather is None:
            return self.norms.backward(dy)
        extended = []
        for c in COLUMNS:
            with self.devices[c].current():
                extended.append(self.buffers[c]("extended", self.norms.columns[c].y.shape))
                extended[c][...] = 0
                extended[c][..., self.all_gather.own(c)] = dy[c]
        return self.all_gather.backward(stored(self, self.norms.backward(Both(extended))))


class Gather(Stage):
    """All channels on the first device: the logits, for the loss."""

    def output_shape(self, input_shape: Any) -> Any:
        """One shape, with the channels of both."""
        first, second = input_shape
        return (*first[:-1], first[-1] + second[-1])

    def crossing(self, input_shape: Any) -> tuple[int, int]:
        """All of column 1's; as much comes back."""
        return 0, math.prod(input_shape[1])

    def forward(self, x: Any, train: bool = True) -> Any:
        """x Both (N, ..., C_c) -> y (N, ..., C_0 + C_1) on the first device."""
        x = self.check_both(x, "x")
        self.middle = middle = x[0].shape[-1]
        came = self.send(1, x[1], "came")
        with self.devices[0].current():
            self.y = y = self.buffers[0]("y", self.output_shape([x[0].shape, x[1].shape]))
            y[..., :middle] = x[0]
        self.take(1)
        with self.devices[0].current():
            y[..., middle:] = came
        return y

    def backward(self, dy: Any) -> Any:
        """dy (N, ..., C_0 + C_1) on the first device -> dx Both."""
        with self.devices[0].current():
            dy = self.check_gradient(dy)
        came = self.send(0, self.packed(0, "part", dy[..., self.middle :]), "dx")
        own = self.packed(0, "dx_own", dy[..., : self.middle])
        self.take(0)
        return Both((own, came))


class Broadcast(Stage):
    """The photos, on the first device, for both columns."""

    def crossing(self, input_shape: Any) -> tuple[int, int]:
        """All of it, if the second column is on another device."""
        return math.prod(input_shape), 0

    def forward(self, x: Any, train: bool = True) -> Any:
        """x (N, ...) on the first device -> Both; Both stays, but in bf16 it is rounded."""
        if isinstance(x, Both):
            return Both(map(self._rounded, COLUMNS, x)) if self.precision == "bf16" else x
        x = self.check_array(x, "x")
        if self.devices[0] == self.devices[1]:
            return Both((x, x))
        came = self.send(0, x, "came")
        self.take(0)
        return Both((x, came))

    def backward(self, dy: Any) -> Any:
        """dy Both -> dx on the first device; None stays None."""
        if dy is None:
            return None
        came = self.send(1, dy[1], "dcame")
        dx = self.packed(0, "dx", dy[0])
        self.take(1)
        self.add(0, dx, came)
        return dx

    def _rounded(self, column: int, x: Any) -> Any:
        if x.dtype != self.dtype:
            return x
        with self.devices[column].current():
            copy = self.buffers[column]("x", x.shape)
            round_into(self.devices[column], self.precision, x, copy)
        return copy
