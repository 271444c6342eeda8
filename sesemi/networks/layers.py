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

    It does not count its batches, which nobody reads. ``running_statistics_kept`` stops its running statistics.
    """

    def __init__(self, channels: int):
        super().__init__(channels, eps=0.001, momentum=0.01)
        self.num_batches_tracked = None
        self.keeps_statistics = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and self.keeps_statistics:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return super().forward(x)


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """While inside, ``module`` still normalises by the batch's statistics in training, but its running ones stay."""
    layers = [layer for layer in module.modules() if isinstance(layer, BatchNorm)]
    for layer in layers:
        layer.keeps_statistics = True
    try:
        yield
    finally:
        for layer in layers:
            layer.keeps_statistics = False


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
