"""AlexNet as one table (paper §3, figure 2), in the paper's one-network form.

Width 1, 224 pixels, 1000 classes: 60,965,224 parameters and 724.4 million multiply-adds an image.

    conv1  96 of 11×11×3, stride 4      55×55×96    ReLU, LRN, pool 3/2 -> 27×27×96
    conv2  256 of 5×5×48, 2 groups      27×27×256   ReLU, LRN, pool 3/2 -> 13×13×256
    conv3  384 of 3×3×256               13×13×384   ReLU
    conv4  384 of 3×3×192, 2 groups     13×13×384   ReLU
    conv5  256 of 3×3×192, 2 groups     13×13×256   ReLU, pool 3/2      -> 6×6×256
    fc6    9216 -> 4096                             ReLU, dropout 0.5
    fc7    4096 -> 4096                             ReLU, dropout 0.5
    fc8    4096 -> 1000                             softmax (in the loss)

The two groups are the paper's two GPUs: conv2, conv4 and conv5 see the maps of their own GPU only.

The paper's sizes do not add up without help: 224 pixels hold 54¼ steps of 4 for a window of 11.
The 2012 code let the windows run over the right and bottom edge, where it read zeros; 3 of them
make 55 whole steps. For another image size `alexnet` adds as many as make the last step whole.

variant="one-column" is the net of "One weird trick" (Krizhevsky 2014) as torchvision builds it:
other widths, no groups, no LRN, dropout before fc6 and fc7, 61,100,840 parameters. torchvision's
adaptive pooling to 6×6 is the identity at 224 pixels; it is left out here.
"""

from layers import (
    Conv2D,
    Dropout,
    Flatten,
    Layer,
    Linear,
    LocalResponseNorm,
    MaxPool2D,
    ReLU,
)
from tinyconv.initialize import initialize
from tinyconv.recipes import Recipe, get_recipe
from tinyconv.sequential import Sequential

SMALLEST_IMAGE = 64
"""Below this the last pooling layer has no whole window left."""

UNITS = {
    "paper": (96, 256, 384, 384, 256, 4096, 4096),
    "one-column": (64, 192, 384, 256, 256, 4096, 4096),
}
"""By variant: filters of conv1 to conv5, units of fc6 and fc7, at width 1."""


def alexnet(
    num_classes: int = 1000,
    width: float = 1.0,
    image_size: int = 224,
    recipe: str | Recipe = "authors",
    seed: int = 0,
    init: bool = True,
    sixth_conv: bool = False,
    variant: str = "paper",
) -> Sequential:
    """AlexNet with initial weights, on the host in float32; `net.to(device)` moves it.

    width scales the number of filters and of fully connected units; image_size is the side of the
    square input in pixels; recipe: "paper", "authors" or "robust". The result has
    `input_shape` (image_size, image_size, 3) and takes (N, H, W, 3), giving logits (N, classes).
    sixth_conv adds conv6 after pool5 (the paper's CNN*, §6, which names no sizes: here 256 of 3×3).
    init=False skips `initialize`: parameters are 0, learning multipliers 1; enough for counting.
    variant: "paper", or "one-column", where the recipe sets only initial weights and their rates.

    ValueError for fewer than 1 class, a width or image size too small, another recipe or variant.
    Source: paper §3.5; for the differences of the recipes docs/paper.md.
    """
    recipe = get_recipe(recipe)
    if num_classes < 1:
        raise ValueError(f"alexnet: num_classes must be at least 1, not {num_classes}")
    if not 0.01 <= width <= 8:
        raise ValueError(f"alexnet: width must be between 0.01 and 8, not {width}")
    if image_size < SMALLEST_IMAGE:
        raise ValueError(
            f"alexnet: image_size must be at least {SMALLEST_IMAGE} pixels, not {image_size}"
        )
    if variant not in UNITS:
        raise ValueError(f"alexnet: variant must be {' or '.join(UNITS)}, not {variant!r}")

    def wide(units: int) -> int:
        return 2 * max(1, round(units * width / 2))

    one_column = variant == "one-column"
    k1, k2, k3, k4, k5, fc6, fc7 = map(wide, UNITS[variant])
    groups, lrn_groups = (1 if one_column else 2), (2 if recipe.lrn_within_group else 1)

    def lrn(name: str) -> dict[str, Layer]:
        layer = LocalResponseNorm(5, 2.0, recipe.lrn_alpha, 0.75, groups=lrn_groups)
        return {} if one_column else {name: layer}

    def pool() -> Layer:
        return MaxPool2D(kernel_size=3, stride=2)

    def dropout() -> Layer:
        return Dropout(0.5, mode="inverted" if one_column else recipe.dropout_mode)

    padding = (0, -(image_size - 11) % 4)
    if one_column:  # 2 on all sides, without the rows at the end that no window reaches
        padding = (2, max(0, 2 - (image_size - 11) % 4))
    conv1 = Conv2D(3, k1, 11, stride=4, padding=padding)
    first_block: dict[str, Layer] = {"relu1": ReLU(), **lrn("norm1"), "pool1": pool()}
    if recipe.relu_after_pool1 and not one_column:
        first_block["relu1"] = first_block.pop("relu1")
    sixth: dict[str, Layer] = {}
    if sixth_conv:
        sixth = {"conv6": Conv2D(k5, k5, 3, padding=1), "relu_conv6": ReLU()}
    features: dict[str, Layer] = {
        "conv1": conv1,
        **first_block,
        "conv2": Conv2D(k1, k2, 5, padding=2, groups=groups),
        "relu2": ReLU(),
        **lrn("norm2"),
        "pool2": pool(),
        "conv3": Conv2D(k2, k3, 3, padding=1),
        "relu3": ReLU(),
        "conv4": Conv2D(k3, k4, 3, padding=1, groups=groups),
        "relu4": ReLU(),
        "conv5": Conv2D(k4, k5, 3, padding=1, groups=groups),
        "relu5": ReLU(),
        "pool5": pool(),
        **sixth,
        "flatten": Flatten(),
    }
    input_shape = (image_size, image_size, 3)
    (flat,) = Sequential(features).output_shapes(input_shape)[-1]
    classifier: dict[str, Layer] = {
        **({"drop5": dropout()} if one_column else {}),
        "fc6": Linear(flat, fc6),
        "relu6": ReLU(),
        "drop6": dropout(),
        "fc7": Linear(fc6, fc7),
        "relu7": ReLU(),
        **({} if one_column else {"drop7": dropout()}),
        "fc8": Linear(fc7, num_classes),
    }
    net = Sequential({**features, **classifier}, input_shape)
    if init:
        initialize(net, recipe, seed)
        conv1.weight.value *= recipe.conv1_scale
    return net
