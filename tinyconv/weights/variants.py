"""Nets whose trained weights are about, and how they differ from the paper's.

`one_column` is AlexNet of "One weird trick" (Krizhevsky 2014) as torchvision builds it: 64, 192,
384, 256, 256 filters without groups, no LRN, two pixels of zeros around the photo, dropout before
fc6 and fc7 in the inverted form. torchvision's adaptive pooling to 6×6 is the identity at 224
pixels; for other sizes fc6 here has as many inputs as the maps give.

`caffe_net` is Caffe's bvlc_alexnet: crops of 227 pixels, LRN with k = 1 over all maps, dropout in
the inverted form; else the paper's net.
"""

from layers import Conv2D, Dropout, Flatten, Layer, Linear, LocalResponseNorm, MaxPool2D, ReLU
from tinyconv.alexnet import SMALLEST_IMAGE, alexnet
from tinyconv.initialize import initialize
from tinyconv.sequential import Sequential

IMAGENET_MEAN = 0.485, 0.456, 0.406
IMAGENET_STD = 0.229, 0.224, 0.225
"""Of red, green and blue on the scale 0 to 1: what torchvision's weights expect."""

UNITS = 64, 192, 384, 256, 256, 4096, 4096
"""Filters and units of torchvision's net, from conv1 to fc7."""


def one_column(
    num_classes: int = 1000,
    width: float = 1.0,
    image_size: int = 224,
    seed: int = 0,
    init: bool = True,
    units: tuple[int, ...] = UNITS,
) -> Sequential:
    """The one-column net, (N, image_size, image_size, 3) to logits (N, num_classes).

    units: filters of conv1 to conv5, units of fc6 and fc7; width scales them. init=False leaves
    the weights zero. ValueError below 64 pixels.
    Source: torchvision's `alexnet`; its weights are read by `python -m tinyconv import`.
    """
    if image_size < SMALLEST_IMAGE:
        raise ValueError(f"one_column: image_size must be at least {SMALLEST_IMAGE} pixels")

    k1, k2, k3, k4, k5, u6, u7 = (max(1, round(each * width)) for each in units)

    # torchvision pads both sides by 2; rows that no window reaches are left out here.
    after = 2 - (image_size + 4 - 11) % 4
    features: dict[str, Layer] = {
        "conv1": Conv2D(3, k1, 11, stride=4, padding=(2, max(0, after))),
        "relu1": ReLU(),
        "pool1": MaxPool2D(3, 2),
        "conv2": Conv2D(k1, k2, 5, padding=2),
        "relu2": ReLU(),
        "pool2": MaxPool2D(3, 2),
        "conv3": Conv2D(k2, k3, 3, padding=1),
        "relu3": ReLU(),
        "conv4": Conv2D(k3, k4, 3, padding=1),
        "relu4": ReLU(),
        "conv5": Conv2D(k4, k5, 3, padding=1),
        "relu5": ReLU(),
        "pool5": MaxPool2D(3, 2),
        "flatten": Flatten(),
    }
    shape = image_size, image_size, 3
    (flat,) = Sequential(features).output_shapes(shape)[-1]
    net = Sequential(
        {
            **features,
            "drop5": Dropout(0.5, mode="inverted"),
            "fc6": Linear(flat, u6),
            "relu6": ReLU(),
            "drop6": Dropout(0.5, mode="inverted"),
            "fc7": Linear(u6, u7),
            "relu7": ReLU(),
            "fc8": Linear(u7, num_classes),
        },
        shape,
    )
    return initialize(net, "robust", seed) if init else net


def caffe_net(num_classes: int = 1000, width: float = 1.0, image_size: int = 227) -> Sequential:
    """Caffe's bvlc_alexnet, its weights zero: (N, 227, 227, 3) to logits (N, num_classes)."""
    net = alexnet(num_classes, width, image_size, "paper", init=False)
    for layer in net:
        if isinstance(layer, LocalResponseNorm):
            layer.k, layer.alpha = 1.0, 1e-4 / layer.size
        if isinstance(layer, Dropout):
            layer.mode = "inverted"
    return net
