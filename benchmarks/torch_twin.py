"""The PyTorch twin of one of our nets: same weights, same function, PyTorch's own modules.

Used by the tests as an independent oracle and by the benchmarks as the yardstick. PyTorch keeps
channels first; everything is transposed on the way in and out.
"""

import numpy as np
import torch
from torch import nn

from layers import (
    AvgPool2D,
    Conv2D,
    Dropout,
    Flatten,
    Linear,
    LocallyConnected2D,
    LocalResponseNorm,
    MaxPool2D,
    ReLU,
    Tanh,
)
from tinyconv.data.random_arrays import words


def channels_first(array: np.ndarray) -> torch.Tensor:
    """A host array (N, ..., C) as a tensor (N, C, ...)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)))


def channels_last(tensor: torch.Tensor) -> np.ndarray:
    """A tensor (N, C, ...) as a host array (N, ..., C)."""
    return np.ascontiguousarray(np.moveaxis(tensor.detach().numpy(), 1, -1))


class ChannelsLastFlatten(nn.Module):
    """Flattens (N, C, H, W) in our order, so that fully connected weights need no shuffling."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1) if x.ndim == 4 else x


class OurDropout(nn.Module):
    """Dropout with our layer's next mask and our layer's mode, for comparing bit by bit."""

    def __init__(self, layer: Dropout) -> None:
        super().__init__()
        self.layer, self.step = layer, layer.step

    def forward(self, x):
        p, paper = self.layer.p, self.layer.mode == "paper"
        if not self.training:
            return x * (1 - p) if paper else x
        # Our elements are numbered with channels last.
        elements = np.arange(x.numel()).reshape(x.shape[0], *x.shape[2:], *x.shape[1:2])
        elements = np.moveaxis(elements, -1, 1)
        kept = words(self.layer.seed, self.layer.stream, self.step, elements) >= int(p * 2**32)
        self.step += 1
        return x * torch.from_numpy(kept).to(x) / (1 if paper else 1 - p)


class LocalByUnfold(nn.Module):
    """A locally connected layer: PyTorch has none, but has its windows, by `unfold`."""

    def __init__(self, layer: LocallyConnected2D) -> None:
        super().__init__()
        self.stride, self.padding = layer.stride, layer.padding
        # As `channels_first` gives them: (P, C, Q, K, R, S).
        self.weight = nn.Parameter(channels_first(layer.weight.value))
        self.bias = nn.Parameter(torch.from_numpy(layer.bias.value.copy()))

    def forward(self, x):
        rows, channels, columns, filters, size, _ = self.weight.shape
        u = nn.functional.unfold(x, size, padding=self.padding, stride=self.stride)
        u = u.unflatten(2, (rows, columns)).unflatten(1, (channels, size, size))
        return torch.einsum("ncrspq,pcqkrs->nkpq", u, self.weight) + self.bias.permute(2, 0, 1)


def _pads_apart(layer) -> bool:
    """Whether the padding is a module of its own: PyTorch's Conv2d pads all sides alike."""
    return isinstance(layer, Conv2D) and layer.before != layer.after


def modules_of(layer, our_masks: bool) -> list[nn.Module]:
    """PyTorch's modules for one layer, with weights of their own. ValueError if it has none."""
    if isinstance(layer, Conv2D):
        pads, apart = (layer.before, layer.after), _pads_apart(layer)
        conv = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            0 if apart else layer.before,
            groups=layer.groups,
        )
        return [nn.ZeroPad2d((*pads, *pads)), conv] if apart else [conv]
    if isinstance(layer, Linear):
        return [nn.Linear(layer.in_features, layer.out_features)]
    if isinstance(layer, LocalResponseNorm):
        if layer.groups != 1:
            raise ValueError("PyTorch's LRN knows no groups")
        # PyTorch divides alpha by the size of the window.
        return [nn.LocalResponseNorm(layer.size, layer.alpha * layer.size, layer.beta, layer.k)]
    if isinstance(layer, MaxPool2D):
        return [nn.MaxPool2d(layer.kernel_size, layer.stride, ceil_mode=layer.ceil)]
    if isinstance(layer, AvgPool2D):
        return [nn.AvgPool2d(layer.kernel_size, layer.stride, ceil_mode=layer.ceil)]
    if isinstance(layer, LocallyConnected2D):
        return [LocalByUnfold(layer)]
    if isinstance(layer, Dropout):
        return [OurDropout(layer) if our_masks else nn.Dropout(layer.p)]
    return [{ReLU: nn.ReLU, Tanh: nn.Tanh, Flatten: ChannelsLastFlatten}[type(layer)]()]


def twin(net, our_masks: bool = True) -> nn.Sequential:
    """net (a Sequential, on the host) as an nn.Sequential with copies of its weights."""
    dtype = {"float32": torch.float32, "float64": torch.float64}[str(net.dtype)]
    modules = []
    for layer in net:
        modules += modules_of(layer, our_masks)
        if layer.parameters():
            # (K, R, S, C) and (out, in): for two axes moving the last to place 1 changes nothing.
            with torch.no_grad():
                modules[-1].to(dtype)
                modules[-1].weight.copy_(channels_first(layer.weight.value))
                modules[-1].bias.copy_(torch.from_numpy(layer.bias.value.copy()))
    return nn.Sequential(*modules)


def by_step(net, module: nn.Sequential) -> dict[str, nn.Sequential]:
    """The modules of `twin(net)`, cut where the steps of `net.steps` are cut, by their names."""
    parts, start = {}, 0
    for step in net.steps:
        layers = getattr(step, "layers", [step])
        count = sum(1 + _pads_apart(layer) for layer in layers)
        parts[step.name] = module[start : start + count]
        start += count
    return parts


def learned(module: nn.Module) -> list[nn.Module]:
    """The modules with weights, in order: the twins of our layers with parameters."""
    return [m for m in module if isinstance(m, nn.Conv2d | nn.Linear | LocalByUnfold)]
