"""What a training batch is, and which options fix a stream's batches. Needs no DALI, and no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

VIEWS = 6  # rotations counter-clockwise by 0, 90, 180, 270 degrees (labels 0 to 3), left-right (4), up-down (5)
NOISE = 0.15  # standard deviation of the Gaussian noise, in whitened units


class Examples(NamedTuple):
    """Images and what they are: float32 (n, C, H, W), channels-last in memory; int64 (n,)."""

    images: torch.Tensor
    labels: torch.Tensor


class Batch(NamedTuple):
    """One training step: 6B labeled images, and B unlabeled ones in six views each with their proxy labels.

    ``unlabeled`` is None where the method has no proxy branch.
    """

    labeled: Examples
    unlabeled: Examples | None


@dataclass(frozen=True)
class StreamOptions:
    """Options that, with data and seed, determine a stream's batches. Resuming requires equal options.

    Options that are None depend on the device.

    Args:
        batch: images a step.
        views: six proxy views of every image, instead of the image and its label.
        flip: flip left to right with probability one half.
        noise: standard deviation of the Gaussian noise; 0 for none.
        steps_per_superbatch: steps made in one DALI run; None for as many as suit the device.
        block_images: consecutive images that stay together in the shuffle; None for 8, or fewer where a window would
            have fewer than 512 blocks: small against runs of equal content in the source, and many enough to mix.
        window_images: of the shuffle buffer, two of which are in memory; None for what suits the device.
    """

    batch: int
    views: bool
    flip: bool
    noise: float = NOISE
    steps_per_superbatch: int | None = None
    block_images: int | None = None
    window_images: int | None = None
