"""Training of the two-column net: the optimizer of both devices, and photos for both.

Loop and step are those of one device. Two things differ, and are here: SGD has a flat buffer on
each device, and crops are cut on both devices, from the same draws. Checkpoints hold the one-device
net's arrays: a run of either form can be resumed by the other.
"""

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np

from layers import Device
from layers.layer import Buffers
from tinyconv.data.augment import Augment
from tinyconv.parallel.columns import Columns
from tinyconv.parallel.link import Link
from tinyconv.parallel.split import SplitArray, SplitParameter
from tinyconv.parallel.stage import COLUMNS, Both
from tinyconv.sgd import SGD


class ColumnSGD:
    """`SGD` for a two-column net: one for each column, on its device, with its own flat buffer.

    Arguments, `lr` and methods as `SGD`; parameters: `Columns.parameters()`. Nothing crosses: each
    device has the gradients of its own filters.
    """

    def __init__(
        self,
        parameters: Sequence[Any],
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
    ) -> None:
        self.parameters: list[SplitParameter] = list(parameters)
        if not self.parameters:
            raise ValueError("ColumnSGD: no parameters to train")
        self._devices = [part.device for part in self.parameters[0].parts]
        self._columns = []
        for c in COLUMNS:
            with self._devices[c].current():
                parts = [parameter.parts[c] for parameter in self.parameters]
                self._columns.append(SGD(parts, lr, momentum, weight_decay))
        self._link = Link(*self._devices)
        with self._devices[1].current():
            self._skip = self._devices[1].zeros((1,), np.int32)

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self._columns[0].lr

    @lr.setter
    def lr(self, lr: float) -> None:
        for column in self._columns:
            column.lr = lr

    def freeze(self, parameters: Sequence[SplitParameter]) -> None:
        """Leave these parameters as they are from now on."""
        for c in COLUMNS:
            with self._devices[c].current():
                self._columns[c].freeze([parameter.parts[c] for parameter in parameters])

    def velocity(self, parameter: SplitParameter) -> SplitArray:
        """The velocities of `parameter`, in its shape."""
        return SplitArray(
            [(self._devices[c], self._columns[c].velocity(parameter.parts[c])) for c in COLUMNS]
        )

    def step(self, loss: Any = 0.0) -> None:
        """As `SGD.step`; a flag of the first device is copied to the second."""
        losses = [loss, loss]
        if getattr(loss, "skip", None) is not None:
            self._link.send(loss.skip, self._skip)
            self._link.take()
            losses[1] = copy(loss)
            losses[1].skip = self._skip
        for c in COLUMNS:
            with self._devices[c].current():
                self._columns[c].step(losses[c])


class ColumnAugment(Augment):
    """An `Augment` that makes each batch on the devices of both columns.

    augment: the one to be as; net: where its batches go. The methods return `Both`. The draws are
    a function of seed, epoch and photo, so both devices cut the same crops; what crosses is the
    photos as bytes, a quarter of what the crops in float32 would be (and a little margin).
    """

    def __init__(self, augment: Augment, net: Columns) -> None:
        self._devices = net.devices
        self._second: Augment | None = None
        settings = (augment.mean, augment.crop, augment.divisor, augment.seed, augment.colour)
        if self._devices[0] != self._devices[1]:
            self._second = Augment(*settings)
            self._link = Link(*self._devices)
        super().__init__(*settings)
        self.colour_on = augment.colour_on

    def to(self, device: Device | str, dtype: Any, reader: Any = None) -> "ColumnAugment":
        """Make batches in `dtype` on the net's devices, whichever is named. Returns itself."""
        super().to(self._devices[0], dtype)
        if self._second is not None:
            with self._devices[1].current():
                self._second.to(self._devices[1], dtype)
                self._copies = Buffers(self._devices[1], np.dtype(np.uint8))
        return self

    def _cut(
        self, images: Any, top: Any, left: Any, flip: Any, shift: Any = None, views: int = 1
    ) -> Any:
        if self._second is None:
            x = super()._cut(images, top, left, flip, shift, views)
            return Both((x, x))
        sent = images  # of the host: each device copies them itself
        if not isinstance(images, np.ndarray):
            images = self.device.xp.ascontiguousarray(images)
            with self._devices[1].current():
                sent = self._copies("images", images.shape)
            self._link.send(images, sent)
        first = super()._cut(images, top, left, flip, shift, views)
        if sent is not images:
            self._link.take()
        with self._devices[1].current():
            second = self._second._cut(sent, top, left, flip, shift, views)
        return Both((first, second))
