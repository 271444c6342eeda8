"""The check of the benchmark lets the right batches through, ours and the rivals', and no wrong one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import rivals
from benchmarks.check import check, gcn
from benchmarks.loader import ours
from benchmarks.rivals import Task
from pipelines.batch import Batch
from tests.conftest import random_images, write_set

IMAGES, SIZE = 100, 12


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    images, labels = random_images(IMAGES, SIZE), np.arange(IMAGES) % 4
    folder = tmp_path_factory.mktemp("task")
    write_set(folder / "shards", images, labels, tuple("abcd"))
    return Task(images, labels, None, batch_unlabeled=8, noise=0.15, flip=True, device=torch.device("cpu"), workers=0,
                folder=folder / "files", shards=folder / "shards")


def passes(task: Task, loader, change=lambda batch: batch) -> None:
    torch.manual_seed(0)  # which rivals draw from

    def build(noise: float):
        return (change(batch) for batch in loader(replace(task, noise=noise)))
    check(build, task.images, task.labels, gcn(task.images), flip=True)


@pytest.mark.parametrize("loader", [ours, rivals.dataloader, rivals.dataloader_pil, rivals.dataloader_batched,
                                    rivals.in_ram])
def test_right_batches_pass(task, loader):
    passes(task, loader)


def test_whitened_ones_too(task):
    normalized = gcn(task.images).astype(np.float32)
    passes(replace(task, normalized=normalized), rivals.in_ram)
    passes(replace(task, normalized=normalized), rivals.dataloader)


def changed(batch: Batch, **fields) -> Batch:
    """A batch with other labeled or unlabeled images or labels."""
    labeled = batch.labeled._replace(**{k[8:]: v for k, v in fields.items() if k.startswith("labeled_")})
    unlabeled = batch.unlabeled._replace(**{k[10:]: v for k, v in fields.items() if k.startswith("unlabeled_")})
    return Batch(labeled, unlabeled)


@pytest.mark.parametrize(("change", "message"), [
    (lambda b: changed(b, labeled_labels=b.labeled.labels.roll(1)), "labels of other images"),
    (lambda b: changed(b, labeled_images=b.labeled.images * 1.01), "no shift of any image"),
    (lambda b: changed(b, labeled_images=b.labeled.images.roll(1, 2)), "no shift of any image|labels of other images"),
    (lambda b: changed(b, unlabeled_labels=b.unlabeled.labels.flip(0)), "proxy labels"),
    (lambda b: changed(b, unlabeled_images=b.unlabeled.images.flip(3)), "flipped before its views|is not that of the"),
    (lambda b: changed(b, unlabeled_images=b.unlabeled.images.roll(1, 0)), "is not that of the same|flipped before"),
    (lambda b: changed(b, labeled_images=b.labeled.images + 0.05 * torch.randn_like(b.labeled.images)),
     "no shift of any|deviation")])
def test_wrong_batches_do_not(task, change, message):
    with pytest.raises(AssertionError, match=message):
        passes(task, ours, change)


def test_noise_that_all_images_share_is_noticed(task):
    shared = torch.randn(1, 3, SIZE, SIZE) * 0.15

    def one_noise(task):
        return (changed(batch, labeled_images=batch.labeled.images + shared * (task.noise > 0))
                for batch in ours(replace(task, noise=0.0)))
    with pytest.raises(AssertionError, match=r"not fresh|deviation"):
        passes(task, one_noise)


def test_shifts_and_an_order_that_are_missing_are_noticed(task):
    def never_shifted(task):
        plain = torch.from_numpy(gcn(task.images).astype(np.float32)).permute(0, 3, 1, 2)
        for batch in ours(replace(task, noise=0.0)):
            index = torch.arange(len(batch.labeled.images))
            images = torch.where(index[:, None, None, None] % 2 == 0, plain[index], plain[index].flip(3))
            noise = task.noise * torch.randn_like(images)
            views = batch.unlabeled.images + task.noise * batch.unlabeled.images.new_zeros(())
            yield changed(batch, labeled_images=images + noise, labeled_labels=torch.from_numpy(task.labels)[index],
                          unlabeled_images=views)
    with pytest.raises(AssertionError, match=r"different shifts|deviation"):
        passes(task, never_shifted)


def test_flips_that_are_missing_are_noticed(task):
    with pytest.raises(AssertionError, match="are flipped"):
        passes(replace(task, flip=False), ours)
