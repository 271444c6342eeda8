"""GCN, ZCA and standardisation: fitted in one streaming pass, applied to batches on the device.

Reference: ``global_contrast_normalize`` and ``zca_whitener`` of vuptran/sesemi's utils.py.
"""

import hashlib
import json
import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from pipelines.common.errors import DataError, damage
from pipelines.common.files import remove_leftovers, write_atomically
from pipelines.common.progress import progress_bar
from pipelines.common.reading import open_regular
from pipelines.sampling import evenly_spread
from pipelines.shards import ShardSet

GCN_NORM = 55.0  # L2 norm of a 32×32×3 image after GCN
GCN_VALUES = 32 * 32 * 3
ZCA_REGULARISER = 0.1  # added to the covariance's diagonal
EPSILON = 1e-10
FIT_IMAGES = 1_000_000  # ZCA is fitted on at most so many, evenly spread
FIT_CHUNK_VALUES = 1024 * GCN_VALUES  # taken at a time: 1,024 images of 32×32, fewer of larger ones
GRAM_BLOCK = 384
MAX_FILE_BYTES = 2**30  # of a fit; ZCA of 48×48 pixels has 191 MB
KINDS = ("gcn", "zca", "standardize")


def gcn(images: torch.Tensor) -> torch.Tensor:
    """Global contrast normalisation of each image: subtract its mean, scale it to a fixed L2 norm.

    Args:
        images: (n, H, W, C), uint8 or whole numbers in 0 to 255. (A scale of the input cancels, so it is the
            reference's result for pixels in [0, 1].)

    Returns:
        float32 (n, H·W·C), of ``gcn_norm``; images of one value become zeros.
    """
    flat = images.flatten(1).to(torch.float32, copy=True)
    flat.sub_((flat.sum(dim=1, keepdim=True, dtype=torch.float64) / flat.shape[1]).to(torch.float32))
    norm = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return flat.mul_((gcn_norm(flat.shape[1]) / norm).masked_fill_(norm == 0, 0))  # of one value: its mean is exact


def gcn_norm(values: int) -> float:
    """The L2 norm that GCN gives an image of so many values: 55 at 32×32×3, elsewhere the same root mean square."""
    return GCN_NORM * math.sqrt(values / GCN_VALUES)


def zca_matrix(covariance: torch.Tensor) -> torch.Tensor:
    """U·diag(1/√(S + 1e-10))·Uᵀ of covariance + 0.1·I, float64 (D, D) to float64 (D, D)."""
    size = len(covariance)
    values, vectors = torch.linalg.eigh(
        covariance + ZCA_REGULARISER * torch.eye(size, dtype=covariance.dtype, device=covariance.device))
    return (vectors / torch.sqrt(values + EPSILON)) @ vectors.T


def fitted_shapes(kind: str, image_shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """What is fitted for a kind of preprocessing, by name, and its shape; KeyError for no such kind."""
    size, channels = math.prod(image_shape), image_shape[2]
    return {"gcn": {}, "zca": {"mean": (size,), "matrix": (size, size)},
            "standardize": {"mean": (channels,), "deviation": (channels,)}}[kind]


class Preprocess:
    """What is the same for every pass over an image: uint8 pixels to normalised float32 pixels.

    Args:
        kind: ``gcn``; ``zca`` (GCN first); or ``standardize``: each channel to mean 0 and deviation 1 over the set.
        image_shape: (H, W, C).
        fitted: what was fitted, float32: for ``zca`` ``mean`` (D,) and ``matrix`` (D, D), with D = H·W·C flattened in
            that order; for ``standardize`` ``mean`` (C,) and ``deviation`` (C,), in pixel values; nothing for ``gcn``.
        fitted_on: what it was fitted on, for the file.
    """

    def __init__(self, kind: str, image_shape: tuple[int, int, int], fitted: dict[str, torch.Tensor] | None = None,
                 fitted_on: dict | None = None):
        self.kind, self.image_shape = kind, tuple(image_shape)
        self.fitted, self.fitted_on = fitted or {}, fitted_on or {}
        found = {name: tuple(tensor.shape) for name, tensor in self.fitted.items()}
        if kind not in KINDS or found != fitted_shapes(kind, self.image_shape):
            raise ValueError(f"preprocess {kind!r} with {found}, expected one of {KINDS} with what it needs")

    def to(self, device: torch.device | str) -> "Preprocess":
        """The same preprocessing with its tensors on ``device``."""
        return Preprocess(self.kind, self.image_shape, {name: t.to(device) for name, t in self.fitted.items()},
                          self.fitted_on)

    @property
    def mixes(self) -> bool:
        """Whether pixels are mixed: then it is applied once a window; else, on a CPU, by the augmentation."""
        return self.kind == "zca"

    def settings(self) -> np.ndarray:
        """What ``pipelines.kernel`` normalises an image by, unless it ``mixes``: float32 (1 + 2C)."""
        channels = self.image_shape[2]
        norm = gcn_norm(math.prod(self.image_shape)) if self.kind == "gcn" else 0
        center, scale = np.zeros(channels), np.ones(channels)
        if self.kind == "standardize":
            center, scale = self.fitted["mean"].numpy(), (1 / self.fitted["deviation"]).numpy()
        return np.concatenate([[norm], center, scale]).astype(np.float32)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (n, H, W, C) to float32 (n, H, W, C), on the device of both."""
        if self.kind == "standardize":
            return (images - self.fitted["mean"]) * (1 / self.fitted["deviation"])
        flat = gcn(images)
        if self.kind == "zca":
            flat = flat.sub_(self.fitted["mean"]) @ self.fitted["matrix"]
        return flat.view(images.shape)

    def save(self, path: Path) -> None:
        """Write everything to one .npz, atomically."""
        arrays = {"kind": np.array(self.kind), "image_shape": np.array(self.image_shape),
                  "fitted_on": np.array(json.dumps(self.fitted_on))}
        arrays |= {name: tensor.cpu().numpy() for name, tensor in self.fitted.items()}
        write_atomically(path, lambda file: np.savez(file, **arrays))

    @classmethod
    def load(cls, path: Path) -> "Preprocess":
        """Read what ``save`` wrote; raises DataError for anything else."""
        with damage(f"{path}: not a whitening file",
                    missing=f"{path}: missing; it holds the whitening this run was trained with",
                    passes=(PermissionError,)):
            with open_regular(path, MAX_FILE_BYTES) as stream, zipfile.ZipFile(stream) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise ValueError("compressed, which takes any amount of memory")
            with np.load(path, allow_pickle=False) as file:
                height, width, channels = (int(n) for n in file["image_shape"])
                kind, shape = str(file["kind"]), (height, width, channels)
                fitted = {name: torch.from_numpy(file[name]) for name in fitted_shapes(kind, shape)}
                for name, tensor in fitted.items():
                    if tensor.dtype != torch.float32:
                        raise ValueError(f"{name} of {tensor.dtype}")
                return cls(kind, shape, fitted, dict(json.loads(str(file["fitted_on"]))))


def prepare(kind: str, sets: Sequence[ShardSet], device: torch.device | str = "cpu",
            progress: bool = True) -> Preprocess:
    """The preprocessing for training on ``sets``: nothing to fit for GCN; else from the cache or fitted now.

    A fit is kept beside the first set's shards, where that is writable, under a name that belongs to the pixels
    it was fitted on: a set that was prepared anew is fitted anew.
    """
    shape = sets[0].image_shape
    if kind == "gcn":
        return Preprocess(kind, shape)
    fitted_on = {"sets": [str(s.path) for s in sets], "fingerprints": [s.fingerprint for s in sets],
                 "images": [len(s) for s in sets], "at_most": FIT_IMAGES}
    key = hashlib.sha256("".join([*fitted_on["fingerprints"], str(FIT_IMAGES)]).encode()).hexdigest()[:12]
    cache = sets[0].path / f"{kind}-{key}.npz"
    with suppress(OSError):  # read-only, perhaps
        remove_leftovers(cache.parent, cache.name)
    if cache.exists():
        try:
            loaded = Preprocess.load(cache)
        except DataError as error:
            raise DataError(f"{error}; delete it to have it fitted again") from None
        if loaded.fitted_on.get("fingerprints") != fitted_on["fingerprints"] or loaded.image_shape != shape:
            raise DataError(f"{cache}: fitted on other data than {sets[0].path}; delete it to have it fitted again")
        return loaded
    fit = fit_zca if kind == "zca" else fit_standardize
    fitted = Preprocess(kind, shape, fit(sets, device, progress), fitted_on)
    with suppress(OSError):  # shards on a read-only disk: the run keeps its own copy
        fitted.save(cache)
    return fitted


def fit_zca(sets: Sequence[ShardSet], device: torch.device | str = "cpu",
            progress: bool = False) -> dict[str, torch.Tensor]:
    """Fit ZCA on all images of ``sets`` (at most a million, evenly spread) in one pass, in float64.

    Memory is that of a chunk and a few D×D matrices, however many images.

    Returns:
        ``mean`` (D,) and whitening ``matrix`` (D, D), float32, on the CPU.
    """
    size = math.prod(sets[0].image_shape)
    total = torch.zeros(size, dtype=torch.float64, device=device)
    moment = torch.zeros(size, size, dtype=torch.float64, device=device)
    count = 0
    for chunk in _fit_chunks(sets, "fitting ZCA", progress):
        flat = gcn(torch.from_numpy(chunk).to(device)).to(torch.float64)
        total += flat.sum(dim=0)
        for first in range(0, size, GRAM_BLOCK):  # the upper triangle in blocks: little more than half the work
            rows = slice(first, first + GRAM_BLOCK)
            moment[rows, first:].addmm_(flat[:, rows].T, flat[:, first:])
        count += len(flat)
    mean = total / count
    moment = moment.triu_().add_(moment.triu(1).T)
    covariance = moment.sub_(torch.outer(mean, mean), alpha=count).div_(max(1, count - 1))
    return {"mean": mean.to("cpu", torch.float32), "matrix": zca_matrix(covariance).to("cpu", torch.float32)}


def fit_standardize(sets: Sequence[ShardSet], device: torch.device | str = "cpu",
                    progress: bool = False) -> dict[str, torch.Tensor]:
    """Each channel's ``mean`` and ``deviation`` (C,) over all pixels of ``sets``, in pixel values; one pass.

    On at most a million images, evenly spread. A channel of one value has deviation 1.
    """
    channels = sets[0].image_shape[2]
    sums = torch.zeros(2, channels, dtype=torch.float64, device=device)
    count = 0
    for chunk in _fit_chunks(sets, "fitting channels", progress):
        pixels = torch.from_numpy(chunk).to(device).reshape(-1, channels).to(torch.float64)
        sums += torch.stack([pixels.sum(dim=0), pixels.square().sum(dim=0)])
        count += len(pixels)
    mean = sums[0] / count
    deviation = (sums[1] / count - mean.square()).clamp(min=0).sqrt()
    deviation = torch.where(deviation < EPSILON, torch.ones_like(deviation), deviation)
    return {"mean": mean.to("cpu", torch.float32), "deviation": deviation.to("cpu", torch.float32)}


def _fit_chunks(sets: Sequence[ShardSet], description: str, progress: bool) -> Iterator[np.ndarray]:
    """The images to fit on, uint8 (n, H, W, C): at most FIT_IMAGES, spread evenly over all sets taken end to end."""
    size = sum(map(len, sets))
    images = min(FIT_IMAGES, size)
    step = max(1, FIT_CHUNK_VALUES // math.prod(sets[0].image_shape))
    with progress_bar(images, " images", description, disable=not progress) as bar:
        for first in range(0, images, step):
            indices = evenly_spread(first, min(first + step, images), size, images)
            start = 0
            for shard_set in sets:
                inside = indices[(indices >= start) & (indices < start + len(shard_set))] - start
                if len(inside):
                    yield shard_set.read(inside)
                    bar.update(len(inside))
                start += len(shard_set)
