"""What the stages of benchmarks.device take: streams, a loader, a trainer, a batch."""

from collections.abc import Callable

import torch

from benchmarks.device_data import open_set
from benchmarks.device_setup import Setup
from benchmarks.step import build_trainer
from pipelines import whitening
from pipelines.batch import VIEWS, Batch, Examples, StreamOptions
from pipelines.loader import SemiSupervisedLoader
from pipelines.sampling import LABELED, UNLABELED
from pipelines.shards import ShardSet
from pipelines.stream import Stream
from pipelines.whitening import Preprocess
from sesemi.device import default_precision
from sesemi.trainer import Trainer

STREAMS = {"labeled": LABELED, "unlabeled": UNLABELED}
BATCH_UNLABELED, DRY_BATCH_UNLABELED = 16, 2
CLASSES = 10


def batch_unlabeled(setup: Setup) -> int:
    """Unlabeled images a step."""
    return DRY_BATCH_UNLABELED if setup.dry else BATCH_UNLABELED


def open_stream(images: ShardSet, preprocess: Preprocess, name: str, device: torch.device, **options) -> Stream:
    """One of the two streams of a usual step by itself; ``options`` are those of StreamOptions that shall differ."""
    labeled = name == "labeled"
    usual = {"batch": BATCH_UNLABELED * (VIEWS if labeled else 1), "views": not labeled, "flip": labeled}
    return Stream([images], preprocess, StreamOptions(**{**usual, **options}), seed=3, stream_id=STREAMS[name],
                  device=device)


def open_loader(setup: Setup, size: int | None = None) -> SemiSupervisedLoader:
    """The loader of a usual run, or of another number of unlabeled images a step."""
    images = open_set(setup)
    return SemiSupervisedLoader(images, [images], whitening.prepare("gcn", [images]),
                                batch_unlabeled=size or batch_unlabeled(setup), device=setup.device)


def new_trainer(setup: Setup, network: str, *, precision: str | None = None, cuda_graph: bool = False,
                settle: Callable[[], object] = lambda: None, base_lr: float = 0.01, fused: bool = False,
                ema: float | None = None) -> Trainer:
    """The product's trainer, at the precision that suits the device or another; the same weights every time."""
    torch.manual_seed(0)
    return build_trainer(network, CLASSES, precision or default_precision(setup.device), setup.device, cuda_graph,
                         settle, base_lr, fused, ema)


def fixed_batch(setup: Setup, size: int = 32) -> Batch:
    """Random images with labels that can be learned: the class is the brightness."""
    count = VIEWS * batch_unlabeled(setup)
    labels = torch.arange(count, device=setup.device) % CLASSES
    proxy_labels = torch.arange(count, device=setup.device) % VIEWS
    images, views = (torch.randn(count, size, size, 3, device=setup.device).permute(0, 3, 1, 2) for _ in range(2))
    return Batch(Examples(images + labels[:, None, None, None] / 5, labels), Examples(views, proxy_labels))
