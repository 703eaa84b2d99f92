"""Three ways to train AlexNet, as one table: the paper's, its authors', and a robust one.

* `paper`: the text of Krizhevsky, Sutskever, Hinton (NIPS 2012), to the letter.
* `authors`: the 2012 code (released by the Computer History Museum in 2025), where it differs.
* `robust`: He initialization (but small weights in conv1, so that its filters show what they have
  learned) and small inputs; trains at once at any size, width and data set.

Every choice in which the three differ is a field of `Recipe`; nothing else in the project asks
which recipe is in use. docs/paper.md discusses each.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

HE = 0.0
"""In the table of standard deviations: √(2 / fan-in) instead of a constant (He et al. 2015)."""


@dataclass(frozen=True)
class Recipe:
    """What a recipe fixes. Layer names are those of `tinyconv.alexnet`."""

    name: str
    summary: str
    default_std: float
    """Standard deviation of initial weights, or HE."""
    std: Mapping[str, float] = field(default_factory=dict)
    """Layers whose initial weights have another one."""
    conv1_scale: float = 1.0
    """`tinyconv.alexnet` multiplies the initial weights of conv1 by this."""
    ones: tuple[str, ...] = ()
    """Layers whose biases start at 1; the others start at 0."""
    bias_lr_multiplier: float = 1.0
    bias_decay_multiplier: float = 1.0
    weight_decay: float = 5e-4
    undecayed: tuple[str, ...] = ()
    """Layers whose weights do not decay."""
    lrn_alpha: float = 1e-4
    lrn_within_group: bool = False
    """Normalize the maps of each of the paper's GPUs (groups) by themselves."""
    relu_after_pool1: bool = False
    """Order of the first block: conv, LRN, pool, ReLU instead of conv, ReLU, LRN, pool."""
    dropout_mode: str = "paper"
    input_divisor: float = 1.0
    """The centred image, 0..255 less the mean, is divided by this."""
    colour: str = "none"
    """Scale of the random shift of an image's colour: "none", "eigenvalue" or "deviation" of the
    colours of the training set (`tinyconv.data.augment.colour_axes`)."""
    bare_last_stage: bool = False
    """After the last drop of the learning rate train without colour noise, conv1 as it is."""

    def weight_std(self, layer: str, fan_in: int) -> float:
        """Standard deviation of initial weights of `layer`, whose outputs sum fan_in products."""
        std = self.std.get(layer, self.default_std)
        return math.sqrt(2 / fan_in) if std == HE else std

    def bias(self, layer: str) -> float:
        """Initial value of the biases of `layer`."""
        return 1.0 if layer in self.ones else 0.0


_ONES = ("conv2", "conv4", "conv5", "fc6", "fc7")

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="paper",
            summary="the text of the paper, to the letter",
            default_std=0.01,
            ones=_ONES,
            colour="eigenvalue",
        ),
        Recipe(
            name="authors",
            summary="what the 2012 code did where the text is silent or different",
            default_std=0.01,
            std={"conv3": 0.03, "conv4": 0.03, "conv5": 0.03},
            ones=_ONES,
            bias_lr_multiplier=2.0,
            bias_decay_multiplier=0.0,
            lrn_alpha=1e-4 / 5,
            lrn_within_group=True,
            relu_after_pool1=True,
            input_divisor=1.1,
            colour="deviation",
            bare_last_stage=True,
        ),
        Recipe(
            name="robust",
            summary="He initialization (conv1 smaller), zero biases, small inputs",
            default_std=HE,
            # 0.019 instead of HE's 0.074: weight decay hardly removes what conv1 starts with, and
            # small weights disappear behind what it learns. Still smaller ones delay learning
            # (benchmarks/results/2026-11-30-host-step.md).
            conv1_scale=0.25,
            bias_lr_multiplier=2.0,
            bias_decay_multiplier=0.0,
            # Makes up for the small weights: inputs are of about size 2. Compared with unit size,
            # conv1's gradient is doubled, and a step changes its output four times as much.
            input_divisor=32.0,
        ),
    )
}
"""The three recipes by name."""

CIFAR10 = Recipe(
    name="cifar10",
    summary="the 2012 authors' nets for CIFAR-10, of 13 and 11 % error",
    default_std=0.01,
    std={"conv1": 0.0001, "local3": 0.04, "local4": 0.04},
    bias_lr_multiplier=2.0,
    bias_decay_multiplier=0.0,
    weight_decay=0.004,
    undecayed=("conv1", "conv2", "conv3"),
    lrn_alpha=0.001 / 5,
)
"""That of `cifar10_net` (run/models.py); its first learning rate is 0.001."""


def get_recipe(recipe: "str | Recipe") -> Recipe:
    """The recipe of that name; a Recipe is returned as it is. ValueError lists the names."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise ValueError(f"recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[recipe]
