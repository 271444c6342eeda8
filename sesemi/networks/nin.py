"""Network in network with max pooling and batch norm, (32, 32) to (8, 8).

The paper's has 1,005,312 trainable parameters; 1,600 of them are biases, which ours leaves out (see ``layers.conv``).
"""

from torch import nn

from sesemi.networks.layers import ConvNormAct, conv, dropped


class NetworkInNetwork(nn.Sequential):
    """(n, channels, H, W) to (n, 192, H/4, W/4). Reference: networks/nin.py.

    Args:
        channels: of the images.
        dropout: after both pools.
    """

    out_channels = 192

    def __init__(self, channels: int = 3, dropout: float = 0.0):
        def block(inputs: int, outputs: int, size: int = 1) -> ConvNormAct:
            return ConvNormAct(conv(inputs, outputs, size), nn.ReLU(inplace=True))
        super().__init__(
            block(channels, 192, size=5), block(192, 160), block(160, 96), nn.MaxPool2d(2), *dropped(dropout),
            block(96, 192, size=5), block(192, 192), block(192, 192), nn.MaxPool2d(2), *dropped(dropout),
            block(192, 192, size=3), block(192, 192), block(192, 192))
