"""What is random, per image and step: shift, flip, noise, and the six views, as DALI fragments.

Order as in the reference: shift, flip, noise, then the views, which therefore share one shift and one noise
draw. Images are H×W×C throughout, so that a batch is channels-last for the network without a copy. All but the
shift have a PyTorch twin for the CPU backend, where DALI draws noise some eight times slower, makes the views
image by image, and looks through all arguments of a batch for each image it may mirror; the GPU runs DALI's.
"""

import torch
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode

MAX_SHIFT = 2  # pixels on each axis
NOISE = 0.15  # standard deviation, in whitened units
VIEWS = 6  # rotations counter-clockwise by 0, 90, 180, 270 degrees (labels 0 to 3), left-right (4), up-down (5)


def fill_border(padded: torch.Tensor, by: int = MAX_SHIFT) -> None:
    """Fill a border of ``by`` pixels around (n, H+2·by, W+2·by, C) from inside, mirrored with the edge pixel.

    NumPy calls it ``symmetric``, SciPy ``reflect``. In place: on a CPU a second tensor costs more than the arithmetic.
    """
    for axis in (1, 2):
        size = padded.shape[axis]
        for i in range(by):
            padded.select(axis, by - 1 - i).copy_(padded.select(axis, by + i))
            padded.select(axis, size - by + i).copy_(padded.select(axis, size - by - 1 - i))


def shift(images: DataNode, offsets: DataNode | tuple[int, int], size: tuple[int, int],
          name: str = "shift") -> DataNode:
    """DALI: cut ``size`` out of padded images at integer offsets (y, x), which are in the padding's range."""
    return fn.slice(images, start=offsets, shape=size, axes=(0, 1), name=name)


def add_noise(images: DataNode, deviation: float, seed: int, name: str = "noise") -> DataNode:
    """DALI: add Gaussian noise, drawn anew for every value of every image."""
    return images + fn.random.normal(images, stddev=deviation, seed=seed, name=name)


def mirror(images: DataNode, which: DataNode | int = 1, name: str | None = None) -> DataNode:
    """DALI: flip left to right, all images or those where ``which`` is 1.

    (``fn.flip`` would launch one kernel an image on the GPU; this is one a batch.)
    """
    return fn.crop_mirror_normalize(images, mirror=which, dtype=types.FLOAT, output_layout="HWC", name=name)


def six_views(images: DataNode) -> DataNode:
    """DALI: the six proxy views of each square image, stacked to (6, H, W, C)."""
    def transposed(x: DataNode) -> DataNode:
        return fn.transpose(x, perm=[1, 0, 2], transpose_layout=False)
    left_right = mirror(images)
    rotated90 = transposed(left_right)
    rotated270 = mirror(transposed(images))
    up_down = transposed(rotated270)
    rotated180 = mirror(up_down)
    return fn.stack(images, rotated90, rotated180, rotated270, left_right, up_down, name="six_views")


def flip_torch(images: torch.Tensor, mirror: torch.Tensor) -> None:
    """The PyTorch twin of ``mirror``: in place, those of (n, H, W, C) where ``mirror`` (n,) is not 0."""
    chosen = mirror.nonzero()[:, 0]
    images.index_copy_(0, chosen, images.index_select(0, chosen).flip(2))


def add_noise_torch(images: torch.Tensor, deviation: float, generator: torch.Generator,
                    out: torch.Tensor | None = None) -> torch.Tensor:
    """The PyTorch twin of ``add_noise``: one batched draw, into a new tensor or into ``out``."""
    out = torch.empty_like(images) if out is None else out
    return out.normal_(0.0, deviation, generator=generator).add_(images)


def six_views_torch(images: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """The PyTorch twin of ``six_views``: (n, S, S, C) to (n, 6, S, S, C), a new tensor or ``out``."""
    out = images.new_empty((len(images), VIEWS, *images.shape[1:])) if out is None else out
    for quarter in range(4):
        out[:, quarter] = torch.rot90(images, quarter, (1, 2))
    out[:, 4] = images.flip(2)
    out[:, 5] = images.flip(1)
    return out


def augment_torch(images: torch.Tensor, out: torch.Tensor, mirror: torch.Tensor | None, deviation: float,
                  generator: torch.Generator) -> None:
    """All that follows the shift, by the PyTorch twins.

    Args:
        images: (n, H, W, C); overwritten.
        out: what is wanted, (n, H, W, C), or (n, 6, H, W, C) for the six views.
        mirror: which images to flip (n,), or None.
        deviation: of the noise; 0 for none.
        generator: of the noise.
    """
    views = out.ndim > images.ndim
    if mirror is not None:
        flip_torch(images, mirror)
    if deviation:
        images = add_noise_torch(images, deviation, generator, None if views else out)
    if views:
        six_views_torch(images, out)
    elif images is not out:
        out.copy_(images)
