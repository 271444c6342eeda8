"""The 13-layer max-pooling ConvNet of the paper, (32, 32) to (6, 6).

The paper's has 3,122,560 trainable parameters; 2,048 of them are biases, which ours leaves out (see ``layers.conv``).
"""

from torch import nn

from sesemi.networks.layers import ConvNormAct, conv, dropped

SLOPE = 0.1


class ConvNet(nn.Sequential):
    """(n, channels, H, W) to (n, 128, H/4 − 2, W/4 − 2). Reference: networks/convnet.py.

    Args:
        channels: of the images.
        dropout: after both pools.
    """

    out_channels = 128

    def __init__(self, channels: int = 3, dropout: float = 0.0):
        def block(inputs: int, outputs: int, size: int = 3, padding: int | None = None) -> ConvNormAct:
            return ConvNormAct(conv(inputs, outputs, size, padding=padding),
                               nn.LeakyReLU(SLOPE, inplace=True))
        super().__init__(
            block(channels, 128), block(128, 128), block(128, 128), nn.MaxPool2d(2), *dropped(dropout),
            block(128, 256), block(256, 256), block(256, 256), nn.MaxPool2d(2), *dropped(dropout),
            block(256, 512, padding=0), block(512, 256, size=1), block(256, 128, size=1))
