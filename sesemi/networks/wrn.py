"""Wide residual networks WRN-depth-width with max pooling between the groups: (32, 32) to (8, 8)."""

import torch
from torch import nn

from sesemi.networks.layers import BatchNorm, ConvNormAct, conv, dropped


class WideResNet(nn.Sequential):
    """(n, channels, H, W) to (n, 64·width, H/4, W/4). Reference: networks/wrn.py.

    Args:
        depth, width: as in WRN-depth-width; a depth of 10, 16, 22, 28, ...
        channels: of the images.
        dropout: between the two convolutions of a residual block.
    """

    def __init__(self, depth: int = 28, width: int = 2, channels: int = 3, dropout: float = 0.0):
        self.out_channels = 64 * width
        layers: list[nn.Module] = [ConvNormAct(conv(channels, 16, 3), nn.ReLU(inplace=True))]
        inputs = 16
        for group, base in enumerate((16, 32, 64)):
            outputs = base * width
            layers.append(Expand(inputs, outputs))
            if group:
                layers.append(nn.MaxPool2d(2))
            layers += [Residual(outputs, dropout) for _ in range((depth - 4) // 6 - 1)]
            layers += [BatchNorm(outputs), nn.ReLU(inplace=True)]
            inputs = outputs
        super().__init__(*layers)


class Expand(nn.Module):
    """conv, BN, ReLU, conv, plus a 1×1 convolution of the input; all at stride 1."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.main = nn.Sequential(*ConvNormAct(conv(inputs, outputs, 3), nn.ReLU(inplace=True)),
                                  conv(outputs, outputs, 3))
        self.skip = conv(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.main(x) + self.skip(x)


class Residual(nn.Module):
    """BN, ReLU, conv, BN, ReLU, conv, plus the input."""

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.main = nn.Sequential(
            BatchNorm(channels), nn.ReLU(inplace=True), conv(channels, channels, 3), *dropped(dropout),
            BatchNorm(channels), nn.ReLU(inplace=True), conv(channels, channels, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.main(x)
