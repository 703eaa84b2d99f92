"""The numbers a net starts from: normal weights, constant biases (paper §5).

Weights are drawn from N(0, std²), biases start at 0 or 1, as the recipe's table says. Each layer
draws from a stream of its own (its place in the net), so the first weights of a net do not depend
on its device, on its dtype, or on how many weights come before.
"""

from layers import Conv2D, Linear, LocallyConnected2D, Parameter
from tinyconv.data.random_arrays import normal
from tinyconv.recipes import Recipe, get_recipe
from tinyconv.sequential import Sequential


def initialize(net: Sequential, recipe: str | Recipe = "robust", seed: int = 0) -> Sequential:
    """Draw all weights, set all biases and learning multipliers, and seed the dropout masks.

    net: on any device, in any dtype. Layers that the recipe does not name get its default.
    Returns the net. ValueError for an unknown recipe or a seed outside 0 .. 2⁶⁴ − 1.
    """
    recipe = get_recipe(recipe)
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed {seed}: must be from 0 to 2**64 - 1")
    for stream, layer in enumerate(net.layers):
        if isinstance(layer, Conv2D | Linear | LocallyConnected2D):
            weight = layer.weight.value
            std = recipe.weight_std(layer.name, weight.size // layer.bias.value.size)
            _assign(layer.weight, normal(weight.shape, std, seed, stream))
            layer.weight.decay_multiplier = 0.0 if layer.name in recipe.undecayed else 1.0
            layer.bias.value[...] = recipe.bias(layer.name)
            layer.bias.lr_multiplier = recipe.bias_lr_multiplier
            layer.bias.decay_multiplier = recipe.bias_decay_multiplier
    net.set_seed(seed)
    net.set_step(0)
    return net


def _assign(parameter: Parameter, values) -> None:
    parameter.value[...] = parameter.device.array(values, parameter.value.dtype)
