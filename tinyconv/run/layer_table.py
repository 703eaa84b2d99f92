"""A net as a table of layers that JSON can hold, and the net of such a table.

With it a weights file says how its net is built, also one that isn't `alexnet(...)`: a net of
one's own, or one that was imported (`tinyconv/weights/`). A table holds no code.

    [["conv1", "Conv2D", [3, 64, 11, 4, [2, 1], 1]], ["relu1", "ReLU", []], ...]
"""

from typing import Any

import layers
from layers import (
    AvgPool2D,
    Conv2D,
    Dropout,
    Flatten,
    Layer,
    Linear,
    LocallyConnected2D,
    LocalResponseNorm,
    MaxPool2D,
    ReLU,
    Tanh,
)
from tinyconv.sequential import Sequential

ARGUMENTS: dict[type[Layer], Any] = {
    Conv2D: lambda x: [
        *(x.in_channels, x.out_channels, x.kernel_size, x.stride),
        *([x.before, x.after], x.groups),
    ],
    LocallyConnected2D: lambda x: [
        *(list(x.input_shape), x.weight.value.shape[2], x.weight.value.shape[3]),
        *(x.stride, x.padding),
    ],
    MaxPool2D: lambda x: [x.kernel_size, x.stride, x.ceil],
    AvgPool2D: lambda x: [x.kernel_size, x.stride, x.ceil],
    LocalResponseNorm: lambda x: [x.size, x.k, x.alpha, x.beta, x.groups],
    Linear: lambda x: [x.in_features, x.out_features],
    Dropout: lambda x: [x.p, x.mode],
    ReLU: lambda x: [],
    Tanh: lambda x: [],
    Flatten: lambda x: [],
}
"""By kind of layer: what its constructor takes, of a layer."""


def layer_table(net: Sequential) -> list[list[Any]]:
    """One row for each layer: name, kind, arguments. ValueError for a kind without a row here."""
    rows = []
    for layer in net:
        if type(layer) not in ARGUMENTS:
            raise ValueError(
                f"{layer.name}: a {type(layer).__name__} cannot be saved; these can: "
                + ", ".join(kind.__name__ for kind in ARGUMENTS)
            )
        rows.append([layer.name, type(layer).__name__, ARGUMENTS[type(layer)](layer)])
    return rows


def net_of_table(table: list[list[Any]], input_shape: Any) -> Sequential:
    """The net of a table, its weights zero. ValueError for a table that is none of a net."""
    known = {kind.__name__ for kind in ARGUMENTS}
    named: dict[str, Layer] = {}
    try:
        for name, kind, arguments in table:
            if kind not in known:
                raise ValueError(f"layer {name!r} is a {kind!r}, not one of {', '.join(known)}")
            named[str(name)] = getattr(layers, kind)(*arguments)
        return Sequential(named, tuple(int(side) for side in input_shape))
    except TypeError as error:
        raise ValueError(f"its table of layers is damaged ({error})") from None
