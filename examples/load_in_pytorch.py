"""An exported net in PyTorch: what `python -m tinyconv export NET alexnet.safetensors` has written.

    python examples/load_in_pytorch.py alexnet.safetensors photo.jpg

Needs PyTorch, safetensors and Pillow, and nothing of tinyconv, so that the file can be copied into
a program of one's own. The modules are numbered as the names in the file: `features.N` before the
maps are flattened, `classifier.N` behind. A file of the one-column net, without `mean_image`, also
fits `torchvision.models.alexnet(num_classes=...)`.
"""

import json
import sys

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn


class Conv(nn.Conv2d):
    """A convolution whose zeros may be more on the right and below than on the left and above."""

    def __init__(self, channels, filters, size, stride, padding, groups):
        super().__init__(channels, filters, size, stride, groups=groups)
        self.sides = (*padding, *padding)

    def forward(self, x):
        return super().forward(nn.functional.pad(x, self.sides))


class LRN(nn.LocalResponseNorm):
    """LRN within groups of maps (recipe `authors`). PyTorch divides alpha by the size."""

    def __init__(self, size, k, alpha, beta, groups):
        super().__init__(size, alpha * size, beta, k)
        self.groups = groups

    def forward(self, x):
        parts = x.unflatten(1, (self.groups, -1))
        return super().forward(parts.flatten(0, 1)).view_as(parts).flatten(1, 2)


class Dropout(nn.Dropout):
    """In the paper's mode, units are multiplied by 1 - p in testing, instead of by 1 / (1 - p)."""

    def __init__(self, p, mode):
        super().__init__(p)
        self.paper = mode == "paper"

    def forward(self, x):
        if not self.paper:
            return super().forward(x)
        return x * (torch.rand_like(x) >= self.p if self.training else 1 - self.p)


MODULES = {
    "Conv2D": Conv,
    "LocalResponseNorm": LRN,
    "MaxPool2D": lambda size, stride, ceil: nn.MaxPool2d(size, stride, ceil_mode=ceil),
    "AvgPool2D": lambda size, stride, ceil: nn.AvgPool2d(size, stride, ceil_mode=ceil),
    "ReLU": nn.ReLU,
    "Tanh": nn.Tanh,
    "Dropout": Dropout,
    "Linear": nn.Linear,
}


class AlexNet(nn.Module):
    """(N, 3, H, W) to logits; layers: the file's table of names, kinds and sizes."""

    def __init__(self, layers):
        super().__init__()
        flatten = [kind for _, kind, _ in layers].index("Flatten")
        parts = layers[:flatten], layers[flatten + 1 :]
        self.features, self.classifier = (
            nn.Sequential(*(MODULES[kind](*sizes) for _, kind, sizes in part)) for part in parts
        )

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def load(path):
    """The net in test mode, the mean image (3, S, S), and the settings in the metadata."""
    with safe_open(path, "pt") as file:
        settings = json.loads(file.metadata()["tinyconv"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    mean = state.pop("mean_image")
    net = AlexNet(settings["layers"])
    net.load_state_dict(state)
    return net.eval(), mean, settings


def preprocess(square, mean, settings):
    """The input (1, 3, crop, crop) of a photo (S, S, 3) uint8, S the side of the mean image."""
    x = torch.from_numpy(square).permute(2, 0, 1) - mean
    crop = settings["image_size"]
    first = (len(square) - crop) // 2
    return (x[None, :, first : first + crop, first : first + crop]) / settings["input_divisor"]


def main(path, photo):
    net, mean, settings = load(path)
    image = Image.open(photo).convert("RGB")
    side, size = min(image.size), mean.shape[-1]
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.resize((size, size), box=(left, top, left + side, top + side))
    with torch.no_grad():
        logits = net(preprocess(np.array(square), mean, settings))
    best = logits.softmax(1)[0].topk(min(5, logits.shape[1]))
    for probability, place in zip(*best, strict=True):
        print(f"{probability:6.1%}  {settings['class_names'][place]}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} FILE.safetensors PHOTO")
    main(*sys.argv[1:])
