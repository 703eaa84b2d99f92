"""The paper's two columns: one net on two devices, half of every layer's filters on each (§3.5).

                 column 0                                       column 1
    conv1        48 filters                                     48 filters
    norm1        · · · recipes that normalize across all maps: 2 channels each way · · ·
    conv2        128, sees its own 48 maps                      128, sees its own 48
    conv3        = = = = = = = = both see all 256 maps = = = = = = = =
                 192 filters                                    192 filters
    conv4        192, sees its own                              192, sees its own
    conv5        128, sees its own                              128, sees its own
    fc6          = = = = = = = = both see all 9216 values = = = = = = =
                 2048 units                                     2048 units
    fc7          = = = = = = = = both see all 4096 values = = = = = = =
                 2048 units                                     2048 units
    fc8          = = = = = = = = both see all 4096 values = = = = = = =
                 500 classes                                    500 classes
    softmax      = = = = = = = = column 1's logits to device 0 = = = = =

`Columns` makes this of the one-device net with two groups (`tinyconv/alexnet.py`), and the two are
one function: the same weights in another place, the same dropout masks, outputs and gradients equal
but for the order in which sums are rounded. Dropout comes after the all-gather, on all units in
both columns: an element then has the number that it has on one device, of which its mask is a
function, and both columns compute the same mask instead of sending one.

docs/two_gpus.md follows the data through both columns.
"""

from collections.abc import Iterator
from typing import Any

from layers import Device
from layers.fast.conversions import RoundToBFloat16, ToBFloat16, ToFloat32
from layers.layer import OnDevice
from tinyconv.parallel.collectives import AllGather, Broadcast, Gather
from tinyconv.parallel.convert import copy_weights, stages_of, whole_layer
from tinyconv.parallel.link import Link
from tinyconv.parallel.stage import Both, Stage, stored
from tinyconv.sequential import Sequential, settle_tier
from tinyconv.summary import summary


def two_devices(names: str) -> tuple[Device, Device]:
    """The devices of "cuda:0,cuda:1" or "cpu,cpu"; the first one is current afterwards.

    ValueError if there are not two of one kind, DeviceError if one is not there.
    """
    parts = [name.strip() for name in names.split(",")]
    if len(parts) != 2 or "" in parts or "auto" in parts:
        raise ValueError(
            f"--parallel columns needs two devices, such as cuda:0,cuda:1, not {names!r}"
        )
    first, second = Device(parts[0]).use(), Device(parts[1])
    if first.is_cuda != second.is_cuda:
        raise ValueError(
            f"--parallel columns needs two devices of one kind, such as cuda:0,cuda:1, not {names}"
        )
    return first, second


class Columns(Sequential):
    """The two-column form of a one-device net, with its weights.

    grouped: a net such as `alexnet(...)`, on any device; it is left as it is. devices: "cpu,cpu",
    "cuda:0,cuda:1", or two devices; both may be the same. Its `layers` are stages (`stage.py`),
    those with parameters under the names of the one-device net; `parameters()` are joined ones
    (`split.py`), so that files of weights fit both forms.

    Takes x on the first device, or one array for each column (`Both`), and returns logits on the
    first. Other programs that walk a `Sequential` work; the optimizer is `ColumnSGD`. ValueError
    for a net that cannot be cut into halves. Source: paper §3.5, figure 2.
    """

    def __init__(self, grouped: Sequential, devices: Any = "cpu,cpu") -> None:
        self.broadcast = Broadcast()
        self.broadcast.name = "broadcast"
        super().__init__(stages_of(grouped))
        self.input_shape = grouped.input_shape
        self.to(devices, grouped.dtype, grouped.precision, grouped.kernels)
        copy_weights(grouped, self)

    @property
    def device(self) -> Device:
        """Where the photos come in and the logits come out."""
        return self.broadcast.devices[0]

    @property
    def devices(self) -> tuple[Device, Device]:
        """Those of column 0 and column 1."""
        return self.broadcast.devices

    def stages(self) -> list[Stage]:
        """The layers; the sharing of the photos, which is before them, not included."""
        return [layer for layer in self.layers if isinstance(layer, Stage)]

    def to(
        self,
        device: Any,
        dtype: Any = None,
        precision: str | None = None,
        kernels: str | None = None,
    ) -> "Columns":
        """Move column 0 to the first of two devices and column 1 to the second. Returns the net.

        device: "cuda:0,cuda:1", two devices or names, or one for both columns. precision, kernels:
        as `Sequential.to`.
        """
        if isinstance(device, str) and "," in device:
            devices = two_devices(device)
        elif isinstance(device, str | Device):
            devices = (Device(device), Device(device))
        else:
            first, second = device
            second = Device(second)
            devices = (Device(first), second)
        self.kernels, self.precision = settle_tier(
            self.kernels if kernels is None else kernels,
            self.precision if precision is None else precision,
            *(devices[0], self.dtype if dtype is None else dtype),
        )
        links = (Link(devices[0], devices[1]), Link(devices[1], devices[0]))
        for stage in [self.broadcast, *self.stages()]:
            stage.to(devices, dtype, self.precision, self.kernels)
            stage.connect(links)
        if self.precision == "bf16":  # conversions at both ends
            here = self.device, self.dtype
            self.ends: tuple[Any, Any] = ToBFloat16(*here), ToFloat32(*here)
            if not self.device.is_cuda:
                self.ends = (
                    RoundToBFloat16(*here, first=self.broadcast),
                    RoundToBFloat16(*here, last=self.layers[-1]),
                )
        return self

    def _planned(self, kernels: str, precision: str, device: Device, dtype: Any) -> list[Any]:
        return list(self.layers)  # each plans its own steps

    def outputs(self, x: Any, train: bool = True) -> Iterator[tuple[str, Any]]:
        """Forward, stage by stage: (name, output) of each."""
        if not isinstance(x, Both):
            x = OnDevice.check_array(self.broadcast, x, "x")
            if self.precision == "bf16":
                x = self.ends[0].forward(x)
        x = self.broadcast.forward(x, train)
        for stage in self.stages():
            x = stored(self.broadcast, stage.forward(x, train))
            yield stage.name, x
        if self.precision == "bf16":
            yield "to float32", self.ends[1].forward(x)

    def forward(self, x: Any, train: bool = True) -> Any:
        """x (N, H, W, C) on the first device, or Both -> logits (N, classes) on the first."""
        return list(self.outputs(x, train))[-1][1]

    def backward(self, dy: Any) -> Any:
        """dL/d logits on the first device -> dL/dx there, or None; fills all gradients."""
        if self.precision == "bf16":
            dy = self.ends[1].backward(dy)
        for stage in reversed(self.stages()):
            dy = stored(self.broadcast, stage.backward(dy))
        dx = stored(self.broadcast, self.broadcast.backward(dy))
        return self.ends[0].backward(dx) if self.precision == "bf16" else dx

    def set_seed(self, seed: int) -> None:
        """As the one-device net: a layer's place there chooses its random numbers."""
        for stage in self.stages():
            stage.set_seed(seed, stage.place)

    def output_shapes(self, input_shape: Any) -> list[Any]:
        """Both shapes of each stage's output for one image (H, W, C), without N."""
        return super().output_shapes((input_shape, input_shape))

    def crossings(self) -> list[tuple[str, int, int]]:
        """(name, numbers from column 0, from column 1) that cross for one image in `forward`.

        For every stage at which some do; `backward` sends as many the other way. The photos come
        first, under the name "broadcast"; they have no way back.
        """
        if self.input_shape is None:
            raise ValueError("this net has no input_shape; give it to Sequential")
        found = [("broadcast", *self.broadcast.crossing(self.input_shape))]
        shape: Any = (self.input_shape, self.input_shape)
        for stage in self.stages():
            found.append((stage.name, *stage.crossing(shape)))
            shape = stage.output_shape(shape)
        return [each for each in found if each[1] or each[2]]

    def to_grouped(self) -> Sequential:
        """The one-device net with the same weights, on the host."""
        net = self._grouped().to("cpu", self.dtype)
        copy_weights(self, net)
        return net

    def _grouped(self) -> Sequential:
        layers = [stage for stage in self.stages() if not isinstance(stage, AllGather | Gather)]
        return Sequential({each.name: whole_layer(each) for each in layers}, self.input_shape)

    def table(self, computed: bool = False) -> str:
        """The table of the one-device net: the two forms are one network."""
        return summary(self._grouped(), computed=False)
