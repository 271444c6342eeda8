"""Global contrast normalisation and ZCA: fitted in one streaming pass, applied to batches on the device.

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

from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.progress import progress_bar
from pipelines.sampling import evenly_spread
from pipelines.shards import ShardSet

GCN_NORM = 55.0  # L2 norm of a 32×32×3 image after GCN
GCN_VALUES = 32 * 32 * 3
ZCA_REGULARISER = 0.1  # added to the covariance's diagonal
EPSILON = 1e-10
FIT_IMAGES = 1_000_000  # ZCA is fitted on at most so many, evenly spread
FIT_CHUNK = 1024
KINDS = ("gcn", "zca")


def gcn(images: torch.Tensor) -> torch.Tensor:
    """Global contrast normalisation of each image: subtract its mean, scale it to a fixed L2 norm.

    Args:
        images: (n, H, W, C), uint8 or pixel values in 0 to 255.

    Returns:
        float32 (n, H·W·C). The norm is 55 at 32×32×3 and elsewhere the same root mean square (55/√3072);
        images of one colour become zeros. The scale of the input cancels, so it is the reference's result for
        pixels in [0, 1].
    """
    flat = images.reshape(len(images), -1).to(torch.float32)
    flat = flat - flat.mean(dim=1, keepdim=True)
    norm = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    norm = torch.where(norm < 255 * EPSILON, torch.ones_like(norm), norm)
    return flat * (GCN_NORM * math.sqrt(flat.shape[1] / GCN_VALUES) / norm)


def zca_matrix(covariance: torch.Tensor) -> torch.Tensor:
    """U·diag(1/√(S + 1e-10))·Uᵀ of covariance + 0.1·I, float64 (D, D) to float64 (D, D)."""
    size = len(covariance)
    values, vectors = torch.linalg.eigh(
        covariance + ZCA_REGULARISER * torch.eye(size, dtype=covariance.dtype, device=covariance.device))
    return (vectors / torch.sqrt(values + EPSILON)) @ vectors.T


class Preprocess:
    """What is the same for every pass over an image: uint8 pixels to normalised float32 pixels.

    Args:
        kind: ``gcn``, or ``zca`` (GCN first).
        image_shape: (H, W, C).
        mean, matrix: float32 (D,) and (D, D) for ``zca``, with D = H·W·C flattened in that order.
        fitted_on: what the matrix was fitted on, for the file.
    """

    def __init__(self, kind: str, image_shape: tuple[int, int, int], mean: torch.Tensor | None = None,
                 matrix: torch.Tensor | None = None, fitted_on: dict | None = None):
        if kind not in KINDS or (kind == "zca") != (matrix is not None):
            raise ValueError(f"preprocess {kind!r}, expected one of {KINDS}, and a matrix for zca alone")
        self.kind, self.image_shape, self.fitted_on = kind, tuple(image_shape), fitted_on or {}
        self._mean, self._matrix = mean, matrix

    def to(self, device: torch.device | str) -> "Preprocess":
        """The same preprocessing with its matrix on ``device``."""
        if self._matrix is None:
            return self
        return Preprocess(self.kind, self.image_shape, self._mean.to(device), self._matrix.to(device), self.fitted_on)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (n, H, W, C) to float32 (n, H, W, C), on the device of both."""
        flat = gcn(images)
        if self._matrix is not None:
            flat = (flat - self._mean) @ self._matrix
        return flat.reshape(images.shape)

    def save(self, path: Path) -> None:
        """Write everything to one .npz, atomically."""
        arrays = {"kind": np.array(self.kind), "image_shape": np.array(self.image_shape),
                  "fitted_on": np.array(json.dumps(self.fitted_on))}
        if self._matrix is not None:
            arrays |= {"mean": self._mean.cpu().numpy(), "matrix": self._matrix.cpu().numpy()}
        write_atomically(path, lambda file: np.savez(file, **arrays))

    @classmethod
    def load(cls, path: Path) -> "Preprocess":
        """Read what ``save`` wrote; raises DataError for anything else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                shape = tuple(int(n) for n in file["image_shape"])
                tensors = {}
                if "matrix" in file:
                    size = math.prod(shape)
                    tensors = {"mean": torch.from_numpy(file["mean"].reshape(size)),
                               "matrix": torch.from_numpy(file["matrix"].reshape(size, size))}
                return cls(str(file["kind"]), shape, **tensors, fitted_on=json.loads(str(file["fitted_on"])))
        except FileNotFoundError:
            raise DataError(f"{path}: missing; it holds the whitening this run was trained with") from None
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: not a whitening file ({error}); delete it to have it fitted again") from None


def prepare(kind: str, sets: Sequence[ShardSet], device: torch.device | str = "cpu",
            progress: bool = True) -> Preprocess:
    """The preprocessing for training on ``sets``: nothing to fit for GCN; ZCA from the cache or fitted now.

    A fit is kept beside the first set's shards, where that is writable, under a name that belongs to the pixels
    it was fitted on: a set that was prepared anew is fitted anew.
    """
    shape = sets[0].image_shape
    if kind != "zca":
        return Preprocess(kind, shape)
    fitted_on = {"sets": [str(s.path) for s in sets], "fingerprints": [s.fingerprint for s in sets],
                 "images": [len(s) for s in sets], "at_most": FIT_IMAGES}
    key = hashlib.sha256("".join([*fitted_on["fingerprints"], str(FIT_IMAGES)]).encode()).hexdigest()[:12]
    cache = sets[0].path / f"zca-{key}.npz"
    if cache.exists():
        loaded = Preprocess.load(cache)
        if loaded.fitted_on.get("fingerprints") != fitted_on["fingerprints"] or loaded.image_shape != shape:
            raise DataError(f"{cache}: fitted on other data than {sets[0].path}; delete it to have it fitted again")
        return loaded
    mean, matrix = fit_zca(sets, device, progress)
    fitted = Preprocess("zca", shape, mean, matrix, fitted_on)
    with suppress(OSError):  # shards on a read-only disk: the run keeps its own copy
        fitted.save(cache)
    return fitted


def fit_zca(sets: Sequence[ShardSet], device: torch.device | str = "cpu",
            progress: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit ZCA on all images of ``sets`` (at most a million, evenly spread) in one pass, in float64.

    Memory is that of a chunk and three D×D matrices, however many images.

    Returns:
        mean (D,) and whitening matrix (D, D), float32, on the CPU.
    """
    size = math.prod(sets[0].image_shape)
    total = torch.zeros(size, dtype=torch.float64, device=device)
    moment = torch.zeros(size, size, dtype=torch.float64, device=device)
    count = 0
    images = min(FIT_IMAGES, sum(map(len, sets)))
    with progress_bar(images, " images", "fitting ZCA", disable=not progress) as bar:
        for chunk in _fit_chunks(sets, images):
            flat = gcn(torch.from_numpy(chunk).to(device)).to(torch.float64)
            total += flat.sum(dim=0)
            moment.addmm_(flat.T, flat)
            count += len(flat)
            bar.update(len(flat))
    mean = total / count
    covariance = moment.sub_(torch.outer(mean, mean), alpha=count).div_(max(1, count - 1))
    return mean.to("cpu", torch.float32), zca_matrix(covariance).to("cpu", torch.float32)


def _fit_chunks(sets: Sequence[ShardSet], images: int) -> Iterator[np.ndarray]:
    """The images to fit on, uint8 (n, H, W, C), spread evenly over all sets taken end to end."""
    size = sum(map(len, sets))
    for first in range(0, images, FIT_CHUNK):
        indices = evenly_spread(first, min(first + FIT_CHUNK, images), size, images)
        start = 0
        for shard_set in sets:
            inside = indices[(indices >= start) & (indices < start + len(shard_set))] - start
            if len(inside):
                yield shard_set.read(inside)
            start += len(shard_set)
