"""Loaders that a user would otherwise pick, each delivering our batch from data in RAM: ``rivals_files`` has the rest.

A rival is a function of a ``Task`` that returns an endless iterator of ``Batch``. Each is written as its users write
it, at its best setting that we found; ``check`` holds all of them to the same output.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pipelines.batch import Batch, Examples

WORKERS = (0, 1, 2, 4, 8, 12, 16)  # tried for the DataLoader, up to the number of cores


@dataclass(frozen=True)
class Task:
    """What is to be delivered.

    Args:
        images, labels: the set, uint8 (n, S, S, 3) and (n,); labeled and unlabeled images are both all of it.
        normalized: (n, S, S, 3) float32 where the preprocessing was done beforehand (ZCA), None for GCN on the way.
        batch_unlabeled: B unlabeled images in six views, and 6B labeled ones.
        noise: standard deviation.
        flip: mirror labeled images with probability one half.
        device: where batches arrive.
        workers: processes, where a rival has them.
        folder: for a rival's files.
        shards: our shard set of the same images.
    """

    images: np.ndarray
    labels: np.ndarray
    normalized: np.ndarray | None
    batch_unlabeled: int
    noise: float
    flip: bool
    device: torch.device
    workers: int
    folder: Path
    shards: Path

    @property
    def batch_labeled(self) -> int:
        """Labeled images a step."""
        return 6 * self.batch_unlabeled

    def paired(self, labeled: Iterator, unlabeled: Iterator) -> Iterator[Batch]:
        """Batches on the device from labeled (images, labels) and unlabeled views (B, 6, C, S, S)."""
        proxy_labels = torch.arange(6, device=self.device).repeat(self.batch_unlabeled)
        for (images, labels), views in zip(labeled, unlabeled, strict=False):
            yield Batch(Examples(images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)),
                        Examples(views.flatten(0, 1).to(self.device, non_blocking=True), proxy_labels))


def gcn(image: torch.Tensor) -> torch.Tensor:
    """One image, any layout, normalised as ``pipelines.whitening.gcn`` does."""
    image = image.float()
    image = image - image.mean()
    return image * ((55.0 * (image.numel() / 3072) ** 0.5) / image.norm().clamp(min=1e-8))


def symmetric(size: int) -> torch.Tensor:
    """Rows of an image mirrored by two pixels on either side."""
    return torch.tensor([1, 0, *range(size), size - 1, size - 2])


class Augment:
    """One image (C, S, S) as a labeled or an unlabeled example: shift, flip, noise, views, sample by sample."""

    def __init__(self, task: Task, views: bool):
        self.rows = symmetric(task.images.shape[1])
        self.size, self.noise, self.flip, self.views = task.images.shape[1], task.noise, task.flip, views

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        y, x = torch.randint(0, 5, (2,)).tolist()
        image = image[:, self.rows[y:y + self.size]][:, :, self.rows[x:x + self.size]]
        if not self.views and self.flip and torch.rand(()) < 0.5:
            image = image.flip(2)
        image = image + self.noise * torch.randn_like(image)
        if not self.views:
            return image
        return torch.stack([*(torch.rot90(image, i, (1, 2)) for i in range(4)), image.flip(2), image.flip(1)])


class TensorDataset(Dataset):
    """uint8 images in RAM (or floats, normalised beforehand), augmented by tensor operations on each."""

    def __init__(self, task: Task, views: bool):
        source = task.images if task.normalized is None else task.normalized
        self.images = torch.from_numpy(np.ascontiguousarray(source.transpose(0, 3, 1, 2)))
        self.labels = torch.from_numpy(task.labels.astype(np.int64))
        self.augment, self.views = Augment(task, views), views

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        image = self.images[index]
        image = self.augment(gcn(image) if image.dtype == torch.uint8 else image)
        return image if self.views else (image, self.labels[index])


class PilDataset(Dataset):
    """As torchvision's CIFAR10 and semi-supervised repositories have it: a PIL image, then a list of transforms."""

    def __init__(self, task: Task, views: bool):
        self.images, self.labels, self.views = task.images, task.labels, views
        self.transforms = [np.asarray, lambda pixels: torch.from_numpy(pixels.transpose(2, 0, 1) / np.float32(255)),
                           gcn, Augment(task, views)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        image = Image.fromarray(self.images[index])
        for transform in self.transforms:
            image = transform(image)
        return image if self.views else (image, int(self.labels[index]))


def _loaders(task: Task, dataset: Callable[[Task, bool], Dataset], **options) -> Iterator[Batch]:
    def endless(views: bool) -> Iterator:
        loader = DataLoader(dataset(task, views), task.batch_unlabeled if views else task.batch_labeled, shuffle=True,
                            drop_last=True, num_workers=task.workers, persistent_workers=task.workers > 0,
                            pin_memory=task.device.type == "cuda", **options)
        while True:
            yield from loader
    return task.paired(endless(False), endless(True))


def dataloader(task: Task) -> Iterator[Batch]:
    """PyTorch's DataLoader over uint8 images in RAM, per-sample tensor operations."""
    return _loaders(task, TensorDataset)


def dataloader_pil(task: Task) -> Iterator[Batch]:
    """PyTorch's DataLoader over PIL images and a list of transforms."""
    return _loaders(task, PilDataset)


class BatchDataset(TensorDataset):
    """Whole batches: asked for a list of indices, it augments them together."""

    def __init__(self, task: Task, views: bool):
        super().__init__(task, views)
        self.images = self.images.permute(0, 2, 3, 1).contiguous()
        self.noise, self.flip = task.noise, task.flip and not views

    def __getitems__(self, indices: list[int]):
        images = augment_batch(self.images[indices], self.flip, self.noise)
        return six_views(images) if self.views else (images.permute(0, 3, 1, 2), self.labels[indices])


def dataloader_batched(task: Task) -> Iterator[Batch]:
    """PyTorch's DataLoader fetching whole batches of uint8 images in RAM, augmented by batched tensor operations."""
    return _loaders(task, BatchDataset, collate_fn=lambda batch: batch)


def reference(task: Task) -> Iterator[Batch]:
    """The reference's generator: keras-preprocessing's ImageDataGenerator image by image over a normalised set in RAM,
    noise by NumPy, views by ``np.rot90`` and flips, and then one batch stacked.
    """
    from keras_preprocessing.image import ImageDataGenerator
    data = _normalized(task)
    size, shifts = data.shape[1], [-2, -1, 0, 1, 2]

    def noisy(image: np.ndarray) -> np.ndarray:
        return image + task.noise * np.random.standard_normal(image.shape)  # noqa: NPY002 - as the reference has it

    def images(flip: bool) -> Iterator:
        generator = ImageDataGenerator(width_shift_range=shifts, height_shift_range=shifts, horizontal_flip=flip,
                                       preprocessing_function=noisy, fill_mode="reflect")
        return generator.flow(data, task.labels, shuffle=True, batch_size=1, seed=None)

    def labeled() -> Iterator:
        source = images(task.flip)
        while True:
            batch, labels = zip(*itertools.islice(source, task.batch_labeled), strict=True)
            yield (torch.from_numpy(np.vstack(batch)).permute(0, 3, 1, 2),
                   torch.from_numpy(np.concatenate(labels).astype(np.int64)))

    def unlabeled() -> Iterator:
        source = images(False)
        while True:
            views = np.empty((task.batch_unlabeled, 6, size, size, 3), np.float32)
            for number, (image, _) in enumerate(itertools.islice(source, task.batch_unlabeled)):
                for view in range(6):
                    views[number, view] = np.rot90(image[0], view) if view < 4 else \
                        np.flip(image[0], 1 if view == 4 else 0)
            yield torch.from_numpy(views).permute(0, 1, 4, 2, 3)
    return task.paired(labeled(), unlabeled())


def in_ram(task: Task) -> Iterator[Batch]:
    """The upper rival: everything normalised and mirror-padded on the device once, then batched PyTorch, no DALI."""
    data = torch.from_numpy(np.pad(_normalized(task), ((0, 0), (2, 2), (2, 2), (0, 0)), "symmetric")).to(task.device)
    labels = torch.from_numpy(task.labels.astype(np.int64)).to(task.device)

    def shuffled(batch: int) -> Iterator[torch.Tensor]:
        while True:
            yield from torch.randperm(len(data), device=task.device)[:len(data) // batch * batch].view(-1, batch)

    def labeled() -> Iterator:
        for index in shuffled(task.batch_labeled):
            yield shift_and_noise(data, index, task.flip, task.noise).permute(0, 3, 1, 2), labels[index]

    def unlabeled() -> Iterator:
        for index in shuffled(task.batch_unlabeled):
            yield six_views(shift_and_noise(data, index, False, task.noise))
    return task.paired(labeled(), unlabeled())


def shift_and_noise(padded: torch.Tensor, index: torch.Tensor, flip: bool, noise: float) -> torch.Tensor:
    """Images (n, S, S, C) out of mirror-padded ones (N, S+4, S+4, C), each at a shift and noise of its own.

    One gather of rows: a row of S pixels that begins at any pixel is a row of an overlapping view of the data.
    """
    size, channels = padded.shape[1] - 4, padded.shape[3]
    starts = padded.numel() // channels - size + 1  # pixels at which a row of S may begin
    rows = padded.reshape(-1).as_strided((starts, size * channels), (channels, 1))
    y, x = torch.randint(0, 5, (2, len(index), 1), device=padded.device)
    first = (index[:, None] * (size + 4) + y + torch.arange(size, device=padded.device)) * (size + 4) + x
    images = rows.index_select(0, first.view(-1)).view(len(index), size, size, channels)
    if flip:
        chosen = (torch.rand(len(index), device=padded.device) < 0.5).nonzero()[:, 0]
        images[chosen] = images[chosen].flip(2)
    return images.add_(torch.randn(images.shape, device=padded.device), alpha=noise)


def augment_batch(images: torch.Tensor, flip: bool, noise: float) -> torch.Tensor:
    """Images (n, S, S, C), uint8 or normalised beforehand, to augmented ones, float32 (n, S, S, C)."""
    if images.dtype == torch.uint8:
        flat = images.flatten(1).float()
        flat -= flat.mean(1, keepdim=True)
        flat *= 55.0 * (flat.shape[1] / 3072) ** 0.5 / flat.norm(dim=1, keepdim=True).clamp(min=1e-8)
        images = flat.view(images.shape)
    rows = symmetric(images.shape[1]).to(images.device)
    return shift_and_noise(images[:, rows][:, :, rows], torch.arange(len(images), device=images.device), flip, noise)


def six_views(images: torch.Tensor) -> torch.Tensor:
    """(n, S, S, C) to (n, 6, C, S, S)."""
    return torch.stack([*(torch.rot90(images, i, (1, 2)) for i in range(4)), images.flip(2), images.flip(1)],
                       1).permute(0, 1, 4, 2, 3)


def _normalized(task: Task) -> np.ndarray:
    if task.normalized is not None:
        return task.normalized
    return np.concatenate([torch.stack([gcn(image) for image in torch.from_numpy(part)]).numpy()
                           for part in np.array_split(task.images, max(1, len(task.images) // 5000))])
