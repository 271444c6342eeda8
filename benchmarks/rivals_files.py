"""Loaders that stream from files of their own, as their documentation has them: one function of a ``Task`` each.

Each writes its files into the task's folder first, from the same images, and imports its package only then; a package
that is missing is an ImportError.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.rivals import Augment, Task, augment_batch, gcn, six_views
from pipelines.batch import Batch

SHARD_IMAGES = 10_000


def webdataset(task: Task) -> Iterator[Batch]:
    """The ``webdataset`` package: tars of raw pixels, a shuffle buffer, per-sample tensor operations."""
    _only_gcn(task)
    import webdataset as wds
    paths = _write_tars(task)

    def endless(views: bool) -> Iterator:
        augment = Augment(task, views)

        def example(sample: dict):
            pixels = np.frombuffer(sample["bin"], np.uint8).reshape(task.images.shape[1:])
            image = augment(gcn(torch.from_numpy(pixels.transpose(2, 0, 1).copy())))
            return (image,) if views else (image, int(sample["cls"]))
        batch = task.batch_unlabeled if views else task.batch_labeled
        data = wds.WebDataset([str(path) for path in paths], shardshuffle=len(paths), empty_check=False)
        data = data.shuffle(5000).map(example).batched(batch, partial=False).repeat()
        loader = wds.WebLoader(data, batch_size=None, num_workers=min(task.workers, len(paths)))
        return ((batch[0] if views else batch) for batch in loader)
    return task.paired(endless(False), endless(True))


def dali_webdataset(task: Task) -> Iterator[Batch]:
    """DALI's own ``readers.webdataset`` over the same tars, everything else DALI operators too, sample by sample; the
    views, and on a CPU noise, which its DALI operators are slow at, by batched PyTorch.
    """
    from nvidia.dali import Pipeline, fn, types
    _only_gcn(task)
    paths = [str(path) for path in _write_tars(task)]
    size = task.images.shape[1]
    gpu = task.device.type == "cuda"

    def bordered(images, axis: int):
        """Mirrored by two pixels on either side, by slices: DALI has no symmetric border."""
        part = [fn.slice(images, start, 2, axes=[axis]) for start in (0, size - 2)]
        before, after = (fn.flip(one, horizontal=int(axis == 1), vertical=int(axis == 0)) for one in part)
        return fn.cat(before, images, after, axis=axis)

    def pipeline(views: bool) -> Pipeline:
        batch = task.batch_unlabeled if views else task.batch_labeled
        pipe = Pipeline(batch_size=batch, num_threads=max(1, task.workers), seed=views + 1,
                        device_id=task.device.index if gpu else None)
        with pipe:
            pixels, label = fn.readers.webdataset(paths=paths, ext=["bin", "cls"], random_shuffle=True,
                                                  initial_fill=5000, name="reader")
            images = fn.reinterpret(pixels, shape=[size, size, 3], layout="HWC")
            images = images.gpu() if gpu else images
            images = fn.normalize(images, axes=[0, 1, 2], scale=55.0 / 3072 ** 0.5, epsilon=1e-12, dtype=types.FLOAT)
            images = bordered(bordered(images, 0), 1)
            mirror = fn.random.coin_flip() if task.flip and not views else 0
            x, y = (fn.random.uniform(values=[0, 0.25, 0.5, 0.75, 1.0]) for _ in range(2))
            images = fn.crop_mirror_normalize(images, crop=(size, size), crop_pos_x=x, crop_pos_y=y, mirror=mirror,
                                              rounding="round", dtype=types.FLOAT, output_layout="HWC")
            if gpu and task.noise:
                images = images + fn.random.normal(images, stddev=task.noise)
            # Class numbers are text of one to four digits, padded to four with zeros.
            pipe.set_outputs(images, label)
        pipe.build()
        return pipe

    def outputs(views: bool) -> Iterator:
        pipe = pipeline(views)
        while True:
            stream = torch.cuda.current_stream(task.device) if gpu else None
            images, digits = (torch.from_dlpack(output.as_tensor()) for output in pipe.run(stream))
            yield images if gpu else images.add_(torch.randn(images.shape), alpha=task.noise), digits

    def labeled() -> Iterator:
        for images, digits in outputs(False):
            labels = ((digits.long() - 48) * torch.tensor([1000, 100, 10, 1], device=digits.device)).sum(1)
            yield images.permute(0, 3, 1, 2), labels

    def unlabeled() -> Iterator:
        for images, _ in outputs(True):
            yield six_views(images)
    return task.paired(labeled(), unlabeled())


def _only_gcn(task: Task) -> None:
    if task.normalized is not None:
        raise ImportError("it streams pixels, which are whitened beforehand for the rivals in RAM only")


def _write_tars(task: Task) -> list[Path]:
    import webdataset as wds
    folder = task.folder / "tars"
    if not folder.exists():
        folder.mkdir(parents=True)
        with wds.ShardWriter(str(folder / "%06d.tar"), maxcount=SHARD_IMAGES, verbose=0) as writer:
            for number, (image, label) in enumerate(zip(task.images, task.labels, strict=True)):
                writer.write({"__key__": f"{number:08d}", "bin": image.tobytes(), "cls": f"{label:04d}".encode()})
    return sorted(folder.glob("*.tar"))


def streaming(task: Task) -> Iterator[Batch]:
    """MosaicML ``streaming``: MDS shards of raw pixels, its shuffle, per-sample tensor operations."""
    _only_gcn(task)
    from streaming import MDSWriter, StreamingDataset
    shape = ",".join(map(str, task.images.shape[1:]))

    class Dataset(StreamingDataset):
        def __init__(self, folder: Path, views: bool, batch: int):
            super().__init__(local=str(folder), shuffle=True, batch_size=batch)
            self.augment, self.views = Augment(task, views), views

        def __getitem__(self, index: int):
            sample = super().__getitem__(index)
            image = self.augment(gcn(torch.from_numpy(sample["image"].transpose(2, 0, 1).copy())))
            return image if self.views else (image, int(sample["label"]))

    def endless(views: bool) -> Iterator:
        folder = task.folder / f"mds-{int(views)}"  # two datasets at a time may not share one
        if not folder.exists():
            with MDSWriter(out=str(folder), columns={"image": f"ndarray:uint8:{shape}", "label": "int"}) as writer:
                for image, label in zip(task.images, task.labels, strict=True):
                    writer.write({"image": image, "label": int(label)})
        batch = task.batch_unlabeled if views else task.batch_labeled
        loader = DataLoader(Dataset(folder, views, batch), batch, num_workers=task.workers, drop_last=True,
                            persistent_workers=task.workers > 0)
        while True:
            yield from loader
    return task.paired(endless(False), endless(True))


def ffcv(task: Task) -> Iterator[Batch]:
    """FFCV: a beton of raw pixels, its random order and threads; GCN, shift, flip, noise and views batched PyTorch."""
    _only_gcn(task)
    from ffcv.fields import IntField, NDArrayField
    from ffcv.fields.decoders import IntDecoder, NDArrayDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor
    from ffcv.writer import DatasetWriter
    path = task.folder / "set.beton"
    if not path.exists():
        task.folder.mkdir(parents=True, exist_ok=True)
        DatasetWriter(str(path), {"image": NDArrayField(np.dtype("uint8"), task.images.shape[1:]),
                                  "label": IntField()}, num_workers=1).from_indexed_dataset(_Pairs(task))

    def endless(views: bool) -> Iterator:
        batch = task.batch_unlabeled if views else task.batch_labeled
        loader = Loader(str(path), batch_size=batch, num_workers=max(1, task.workers), order=OrderOption.RANDOM,
                        drop_last=True, pipelines={"image": [NDArrayDecoder(), ToTensor()],
                                                   "label": [IntDecoder(), ToTensor()]})
        for pixels, label in itertools.chain.from_iterable(iter(lambda: loader, None)):
            images = augment_batch(pixels.to(task.device), task.flip and not views, task.noise)
            yield six_views(images) if views else (images.permute(0, 3, 1, 2), label.to(task.device)[:, 0].long())
    return task.paired(endless(False), endless(True))


class _Pairs:
    """Images and labels one by one."""

    def __init__(self, task: Task):
        self.images, self.labels = task.images, task.labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])
