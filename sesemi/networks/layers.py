"""Layers as Keras defines them, which the reference's results rest on."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

KERAS_TRUNCATION = 0.87962566103423978  # standard deviation of a unit normal cut at two


def conv(inputs: int, outputs: int, size: int, padding: int | None = None) -> nn.Conv2d:
    """A stride-1 convolution, size-keeping unless ``padding`` is given, initialised as Keras's ``he_normal``.

    Keras: a normal truncated at two standard deviations, whose deviation after truncation is √(2/fan_in). It has no
    bias: a batch norm behind it takes that out again, and its gradient alone cost a ConvNet's step on an H200 a fifth
    of its time.
    """
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2 if padding is None else padding, bias=False)
    deviation = math.sqrt(2 / (inputs * size * size)) / KERAS_TRUNCATION
    nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    return layer


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation with Keras's momentum 0.99 (PyTorch counts it as 0.01) and epsilon 0.001.

    It does not count its batches, which nobody reads. In training, inside ``split``, it normalises each branch's
    part of the batch by that part's statistics; the running ones are the first part's alone. ValueError for a trunk
    that has put something else than images along the first dimension by then.
    """

    def __init__(self, channels: int):
        super().__init__(channels, eps=0.001, momentum=0.01)
        self.num_batches_tracked = None
        self.parts: tuple[int, int] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.parts is None or not self.training:
            return super().forward(x)
        if len(x) != sum(self.parts):
            raise ValueError(f"a batch norm of {len(x)} found, {sum(self.parts)} images expected")
        first, second = x.split(self.parts)
        others = F.batch_norm(second, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return torch.cat([super().forward(first), others])


@contextmanager
def split(trunk: nn.Module, parts: tuple[int, int]) -> Iterator[None]:
    """While inside, a batch is two branches': so many images are the first one's, and so many the other's."""
    with attribute_set([layer for layer in trunk.modules() if isinstance(layer, BatchNorm)], "parts", parts):
        yield


def can_split(trunk: nn.Module) -> bool:
    """Whether ``split`` reaches all that a trunk normalises by the batch: it has no batch norm but ours."""
    layers = batch_norms(trunk)
    return bool(layers) and all(isinstance(layer, BatchNorm) for layer in layers)


@contextmanager
def running_statistics_kept(trunk: nn.Module) -> Iterator[None]:
    """While inside, any batch norm still normalises by the batch in training, but its running statistics stay."""
    with attribute_set(batch_norms(trunk), "track_running_stats", False):
        yield


def batch_norms(trunk: nn.Module) -> list[nn.Module]:
    """PyTorch's batch norms, and what is derived from them: ours, and timm's."""
    return [layer for layer in trunk.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def attribute_set(layers: list[nn.Module], name: str, value: object) -> Iterator[None]:
    """While inside, an attribute of all these layers has this value."""
    before = [getattr(layer, name) for layer in layers]
    for layer in layers:
        setattr(layer, name, value)
    try:
        yield
    finally:
        for layer, former in zip(layers, before, strict=True):
            setattr(layer, name, former)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear head with Glorot-uniform weights and zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def dropped(rate: float) -> list[nn.Module]:
    """A dropout layer to put among others; none at rate zero."""
    return [nn.Dropout(rate)] if rate else []


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm, activation: the reference's building block."""

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module):
        super().__init__(convolution, BatchNorm(convolution.out_channels), activation)


def count_parameters(module: torch.nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
