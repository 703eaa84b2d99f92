"""Training that begins with a trained net: weights taken over, layers frozen, rates of their own.

`take` copies every layer whose shapes fit; the others, usually the classifier of other classes,
keep the weights that were drawn. A frozen layer's learning rate is 0, and the backward pass ends
at the first layer that learns: what is before it costs a forward pass only.
"""

import argparse
from collections.abc import Iterable, Mapping

import numpy as np

from layers import Device, Layer
from tinyconv.recipes import RECIPES
from tinyconv.run.checkpoint import load_model
from tinyconv.sequential import Sequential

NEAR = 4.0
"""Photos that are scaled by more would need another learning rate for conv1, by its square."""


def take(net: Sequential, source: Sequential) -> tuple[list[str], list[str]]:
    """Copy the parameters of each layer of `source` into the layer of that name, if they fit.

    Returns the names of the layers that were taken, and of those that were left as they are.
    ValueError if no layer fits.
    """
    there = {layer.name: layer for layer in source if layer.parameters()}
    taken, left = [], []
    for layer in learning(net):
        ours = layer.parameters()
        others = there[layer.name].parameters() if layer.name in there else []
        if [p.value.shape for p in ours] != [p.value.shape for p in others]:
            left.append(layer.name)
            continue
        for parameter, other in zip(ours, others, strict=True):
            values = Device.to_host(other.value)
            parameter.value[...] = parameter.device.array(values, parameter.value.dtype)
        taken.append(layer.name)
    if not taken:
        raise ValueError("no layer has the same name and shapes: width and image size must agree")
    return taken, left


def freeze(net: Sequential, names: Iterable[str]) -> None:
    """Exclude these layers from training; call it before `SGD(net.parameters())`.

    ValueError for a name that isn't a layer with weights, or if none is left that learns.
    """
    set_rates(net, dict.fromkeys(names, 0.0))
    for layer in learning(net):
        if any(parameter.lr_multiplier for parameter in layer.parameters()):
            layer.input_gradient = False
            return
    raise ValueError("freeze: no layer is left that learns")


def set_rates(net: Sequential, rates: Mapping[str, float]) -> None:
    """Multiply the learning rates of these layers; call it before `SGD(net.parameters())`.

    ValueError for a name that isn't a layer with weights, or a rate below 0.
    """
    known = {layer.name: layer for layer in learning(net)}
    for name, rate in rates.items():
        if name not in known:
            raise ValueError(f"no layer {name!r} with weights; there are {', '.join(known)}")
        if not 0 <= rate < float("inf"):
            raise ValueError(f"the learning rate of {name} is multiplied by {rate}: use 0 or more")
        for parameter in known[name].parameters():
            parameter.lr_multiplier *= rate


def learning(net: Sequential) -> list[Layer]:
    """The layers with parameters."""
    return [layer for layer in net if layer.parameters()]


def rates_of(text: str) -> dict[str, float]:
    """{"fc8": 10.0} from "fc8=10"; several are separated by commas. ValueError for other text."""
    try:
        pairs = [each.split("=") for each in text.split(",")]
        return {name.strip(): float(rate) for name, rate in pairs}
    except ValueError:
        raise ValueError(
            f"--lr-multiplier must be such as fc8=10,conv1=0.1, not {text!r}"
        ) from None


def begin_from(net: Sequential, options: argparse.Namespace) -> None:
    """What --init-from, --freeze and --lr-multiplier ask for; prints which layers were taken.

    Where the photos of the two nets have divisors of their own, conv1's weights are multiplied by
    their ratio, up to NEAR: the same function. A resumed run takes no weights: its checkpoint has
    them. ValueError if a net does not fit.
    """
    if options.init_from and not options.resume:
        model = load_model(options.init_from)
        ours = RECIPES[options.recipe].input_divisor
        divisor = model.settings.get("input_divisor", ours)
        if not 1 / NEAR <= ours / divisor <= NEAR:
            raise ValueError(
                f"--init-from {options.init_from}: its photos are divided by {divisor:g}, those of "
                f"--recipe {options.recipe} by {ours:g}; take the recipe that it was trained with"
            )
        if ours != divisor:
            first = learning(model.net)[0]
            first.parameters()[0].value *= np.float32(ours / divisor)
            scale = f"by {divisor:.3g}, here by {ours:.3g}"
            print(f"note: photos were divided {scale}: {first.name}'s weights are scaled")
        try:
            taken, left = take(net, model.net)
        except ValueError as error:
            raise ValueError(f"--init-from {options.init_from}: {error}") from None
        drawn = f"; drawn anew: {', '.join(left)}" if left else ""
        print(f"weights of {options.init_from}: {', '.join(taken)}{drawn}")
    if options.lr_multiplier:
        set_rates(net, rates_of(options.lr_multiplier))
    if options.freeze:
        freeze(net, [name.strip() for name in options.freeze.split(",")])
