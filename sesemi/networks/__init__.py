"""The networks by name: a trunk is an nn.Module with ``out_channels``, (n, C, H, W) to (n, out_channels, h, w)."""

import re

from torch import nn

from sesemi.networks.convnet import ConvNet
from sesemi.networks.nin import NetworkInNetwork
from sesemi.networks.wrn import WideResNet

NAMES = "convnet, nin, wrn (wrn-28-2), wrn-DEPTH-WIDTH"


def build_trunk(name: str, channels: int = 3, dropout: float = 0.0) -> nn.Module:
    """The trunk of a network by name, with dropout inside it; raises ValueError for a name that is none."""
    if name == "convnet":
        return ConvNet(channels, dropout)
    if name == "nin":
        return NetworkInNetwork(channels, dropout)
    match = re.fullmatch(r"wrn-(\d{1,4})-(\d{1,3})", "wrn-28-2" if name == "wrn" else name)
    if not match:
        raise ValueError(f"found {name!r}, expected one of: {NAMES}")
    return WideResNet(int(match[1]), int(match[2]), channels, dropout)
