"""From the one-device net to two columns and back: which layers, and which weights.

A layer's halves are its first and its last filters, in that order, so weights move without being
mixed (`split.py`). An all-gather is put before each layer that needs all channels.
"""

from typing import Any

from layers import (
    Conv2D,
    Device,
    Dropout,
    Flatten,
    Layer,
    Linear,
    LocalResponseNorm,
    MaxPool2D,
    ReLU,
    Tanh,
)
from tinyconv.parallel.collectives import AllGather, BorderNorm, Gather
from tinyconv.parallel.stage import COLUMNS, Pair, Stage
from tinyconv.sequential import Sequential


def copy_weights(source: Sequential, target: Sequential) -> None:
    """Copy every parameter of `source` to `target`, which has the same ones in either form.

    The multipliers of rate and decay are copied too. ValueError for other names or shapes.
    """
    have = {parameter.name: parameter for parameter in source.parameters()}
    for place in target.parameters():
        value = have.pop(place.name, None)
        if value is None or tuple(value.value.shape) != tuple(place.value.shape):
            found = "none" if value is None else f"one of {tuple(value.value.shape)}"
            raise ValueError(f"{place.name}: needs {tuple(place.value.shape)}, there is {found}")
        place.value[...] = place.device.array(Device.to_host(value.value), place.value.dtype)
        for part in getattr(place, "parts", [place]):
            part.lr_multiplier = value.lr_multiplier
            part.decay_multiplier = value.decay_multiplier
    if have:
        raise ValueError(f"{next(iter(have))}: the net that it is copied to has no such parameter")


def stages_of(grouped: Sequential) -> dict[str, Layer]:
    """The stages by name: a pair for each layer, and an all-gather where it needs all channels."""
    stages: dict[str, Layer] = {}
    whole = True  # do both columns hold all channels at this place?
    for place, layer in enumerate(grouped.layers):
        if _sees_all(layer) and not whole:
            reader = next((x for x in grouped.layers[place:] if x.parameters()), layer)
            stages[f"all_gather_{reader.name}"] = AllGather()
            whole = True
        if getattr(layer, "groups", 1) == 2 and whole:
            raise ValueError(f"{layer.name}: two groups, and both columns hold all its channels")
        stages[layer.name] = stage = _pair(layer, whole)
        stage.place, stage.groups = place, getattr(layer, "groups", 1)
        if isinstance(layer, Conv2D | Linear):
            whole = False
    if whole:
        raise ValueError("columns: the net has no layer with filters to split")
    stages["gather"] = Gather()
    return stages


def _sees_all(layer: Layer) -> bool:
    """Does an output of the layer, or its number, depend on the channels of both columns?"""
    if isinstance(layer, Conv2D):
        return layer.groups == 1
    return isinstance(layer, Linear | Flatten | Dropout)


def _pair(layer: Layer, whole: bool) -> Stage:
    """The layer for both columns, without weights. ValueError if it cannot be split."""
    if isinstance(layer, LocalResponseNorm):
        if layer.groups > 2:
            raise ValueError(f"{layer.name}: {layer.groups} groups do not fit two columns")
        window = layer.size, layer.k, layer.alpha, layer.beta
        if layer.groups == 1 and not whole:
            return BorderNorm(*window)
        return Pair(*(LocalResponseNorm(*window) for _ in COLUMNS))
    if isinstance(layer, Conv2D):
        padding = (layer.before, layer.after)
        geometry = layer.kernel_size, layer.stride, padding
        channels = layer.in_channels // layer.groups
        return Pair(*(Conv2D(channels, k, *geometry) for k in _halves(layer, layer.out_channels)))
    if isinstance(layer, Linear):
        return Pair(*(Linear(layer.in_features, k) for k in _halves(layer, layer.out_features)))
    return Pair(_copy(layer), _copy(layer))


def _halves(layer: Layer, count: int) -> tuple[int, int]:
    """Filters of column 0 and column 1: halves, or the first has one more."""
    groups = getattr(layer, "groups", 1)
    if count < 2 or groups > 2:
        raise ValueError(
            f"{layer.name}: {count} outputs in {groups} group(s) cannot be split into columns"
        )
    return count - count // 2, count // 2


def _copy(layer: Layer) -> Layer:
    """A layer without weights, once more, with the same masks to come."""
    if isinstance(layer, MaxPool2D):
        return MaxPool2D(layer.kernel_size, layer.stride)
    if isinstance(layer, Dropout):
        dropout = Dropout(layer.p, layer.mode)
        dropout.set_seed(layer.seed, layer.stream)
        dropout.set_step(layer.step)
        return dropout
    if isinstance(layer, ReLU | Tanh | Flatten):
        return type(layer)()
    raise ValueError(f"{layer.name}: there is no two-column form of {type(layer).__name__}")


def whole_layer(stage: Stage) -> Layer:
    """The one-device layer that a stage replaces, without weights."""
    if isinstance(stage, BorderNorm):
        norm: Any = stage.norms.columns[0]
        return LocalResponseNorm(norm.size, norm.k, norm.alpha, norm.beta)
    assert isinstance(stage, Pair)
    first: Any
    second: Any
    first, second = stage.columns
    if isinstance(first, LocalResponseNorm):
        return LocalResponseNorm(first.size, first.k, first.alpha, first.beta, stage.groups)
    if isinstance(first, Conv2D):
        return Conv2D(
            first.in_channels * stage.groups, first.out_channels + second.out_channels,
            first.kernel_size, first.stride, (first.before, first.after), stage.groups,
        )  # fmt: skip
    if isinstance(first, Linear):
        return Linear(first.in_features, first.out_features + second.out_features)
    return _copy(first)
