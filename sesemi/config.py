"""The settings of a run: one frozen dataclass, and how the data and the machine make it final."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from pipelines.batch import NOISE
from pipelines.common.errors import DataError, UsageError
from pipelines.sampling import MAX_SHIFT, class_balanced_subset
from pipelines.shards import ShardSet
from pipelines.shards.manifest import MANIFEST
from sesemi.model import SesemiModel
from sesemi.networks import build_trunk
from sesemi.presets import preset_for

METHODS = ("sesemi", "asl", "supervised")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PREPROCESS = ("zca", "gcn", "standardize")
CHANGEABLE = {"run", "cuda_graph", "log_every", "checkpoint_every", "keep"}  # when a run is resumed; which GPU, too
ZCA_PIXELS = 48  # the covariance of 48×48 RGB takes 0.4 GB, that of 96×96 takes 6


@dataclass(frozen=True)
class Config:
    """Every setting of a run. None means: decided by ``resolve`` from the data and the machine.

    Args:
        dataset: name of the prepared set under ``data``.
        labels: labeled training images in all; None for all there are.
        extra: further unlabeled images, which take half of each step's: a prepared set by its path or its name under
            ``data``, or a number N for the set ``tinyimages-N``.
        dropout, trunk_dropout: before the class head, and inside the trunk.
        steps: length of the run and of the learning-rate schedule; None for ``epochs`` · ``steps_per_epoch``.
        batch_unlabeled: unlabeled images B a step; 6B views of them and 6B labeled images.
        device: ``cpu`` or ``cuda:N``.
        cuda_graph: on a GPU, replay the training step as one CUDA graph.
        compile: have torch.compile fuse the network's operations in training.
        keep: checkpoints to keep: the newest, and those before it in case it gets damaged.
        eval_every: steps between evaluations; 0 for at the end only.
        eval_images: test images evaluated, a fixed class-balanced sample; None for all.
        run: the run's folder.
    """

    dataset: str
    network: str = "convnet"
    method: str = "sesemi"
    labels: int | None = None
    extra: str | None = None
    preprocess: str | None = None
    flips: bool | None = None
    dropout: float | None = None
    trunk_dropout: float | None = None
    noise: float = NOISE
    epochs: int | None = None
    steps: int | None = None
    batch_unlabeled: int = 16
    lr: float = 0.05
    precision: str | None = None
    seed: int = 0
    device: str | None = None
    cuda_graph: bool = True
    compile: bool = False
    data: str = "shards"
    run: str | None = None
    log_every: int = 50
    checkpoint_every: int = 1000
    keep: int = 2
    eval_every: int | None = None
    eval_images: int | None = None

    def __post_init__(self):
        for name, value, expected in (("method", self.method, METHODS),
                                      ("preprocess", self.preprocess, (*PREPROCESS, None)),
                                      ("precision", self.precision, (*PRECISIONS, None))):
            if value not in expected:
                raise UsageError(f"--{name}: found {value!r}, expected one of {', '.join(filter(None, expected))}")
        for name in ("labels", "epochs", "steps", "batch_unlabeled", "log_every", "checkpoint_every", "keep",
                     "eval_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')}: found {value}, expected at least 1")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed: found {self.seed}, expected 0 to 2^63 − 1")
        if not 0 < self.lr < float("inf"):
            raise UsageError(f"--lr: found {self.lr}, expected a positive number")
        for name in ("dropout", "trunk_dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UsageError(f"--{name.replace('_', '-')}: found {value}, expected a rate from 0 to below 1")
        if self.extra is not None and self.method == "asl":
            raise UsageError("--extra: found with --method asl, whose proxy branch sees the labeled images only")
        if self.extra is not None and self.batch_unlabeled % 2:
            raise UsageError(f"--batch-unlabeled: found {self.batch_unlabeled}, expected an even number, of which "
                             f"--extra takes half")
        try:
            with torch.device("meta"):  # checks the name without making the weights
                build_trunk(self.network)
        except ValueError as error:
            raise UsageError(f"--network: {error}") from None

    @property
    def train_path(self) -> Path:
        """The training images' shard set."""
        return Path(self.data) / self.dataset / "train"

    @property
    def test_path(self) -> Path:
        """The test images' shard set."""
        return Path(self.data) / self.dataset / "test"

    @property
    def extra_path(self) -> Path | None:
        """The extra images' shard set; None without. Raises DataError where there is none of that name."""
        if self.extra is None:
            return None
        name = f"tinyimages-{self.extra}" if self.extra.isdecimal() or self.extra == "all" else self.extra
        for path in (Path(self.data) / name / "train", Path(self.data) / name, Path(name) / "train", Path(name)):
            if (path / MANIFEST).exists():
                return path
        raise DataError(f"--extra {self.extra}: no shard set {Path(self.data) / name / 'train'} here ({MANIFEST} not "
                        f"found); python -m tools.prepare makes one")

    def steps_per_epoch(self, train_images: int) -> int:
        """Steps that the proxy branch takes to see its images once: of ASL, the labeled ones, else all of the dataset.

        With extra images the dataset's own are half of each step's.
        """
        images = self.labels if self.method == "asl" and self.labels else train_images
        return images // (self.batch_unlabeled // (1 if self.extra is None else 2))

    def resolve(self, train: ShardSet, test: ShardSet, extra: ShardSet | None = None) -> "Config":
        """This configuration with nothing left open; raises UsageError where the data does not allow it."""
        height, width, channels = train.image_shape
        if train.classes is None:
            raise UsageError(f"--dataset {self.dataset}: {train.path} has no labels; prepare it from train/<class>/")
        if (test.classes, test.image_shape) != (train.classes, train.image_shape):
            raise UsageError(f"--dataset {self.dataset}: {test.path} has other classes or another image size than "
                             f"{train.path}; prepare both together")
        if height != width or height < 2 * MAX_SHIFT:
            raise UsageError(f"--dataset {self.dataset}: images of {height}×{width}, square ones of at least "
                             f"{2 * MAX_SHIFT} pixels expected")
        try:
            with torch.device("meta"):
                SesemiModel(self.network, 2, channels=channels).eval()(torch.empty(1, channels, height, width))
        except RuntimeError:
            raise UsageError(f"--network {self.network}: images of {_size(train)} are too small for it") from None
        if extra is not None and extra.image_shape != train.image_shape:
            raise UsageError(f"--extra {self.extra}: images of {_size(extra)} found, {_size(train)} expected as in "
                             f"{train.path}")
        preprocess = self.preprocess or preset_for(train.manifest.dataset).preprocess
        if preprocess is None:
            preprocess = "zca" if height <= ZCA_PIXELS else "gcn"
        if preprocess == "zca" and height > ZCA_PIXELS:
            raise UsageError(f"--preprocess: found zca for images of {_size(train)}, expected at most {ZCA_PIXELS}×"
                             f"{ZCA_PIXELS}, since its matrices take gigabytes; gcn and standardize do not")
        device = self.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
        labels = self.labels or len(train)
        _check_count("--labels", labels, train)
        if self.eval_images is not None:
            _check_count("--eval-images", self.eval_images, test)
        config = replace(self, labels=labels)
        steps_per_epoch = config.steps_per_epoch(len(train))
        if not steps_per_epoch:
            raise UsageError(f"--batch-unlabeled: found {self.batch_unlabeled}, more than there are images for the "
                             f"proxy branch ({labels if self.method == 'asl' else len(train)})")
        preset = preset_for(train.manifest.dataset)
        dropout, trunk_dropout = preset.dropout(self.network, self.method)
        epochs = self.epochs or preset.epochs_of(self.method)
        evaluate = 0 if self.method == "asl" else steps_per_epoch
        extra_name = "" if self.extra is None else f"-extra-{Path(self.extra).name}"
        return replace(
            config, device=device, epochs=epochs, steps=self.steps or epochs * steps_per_epoch, preprocess=preprocess,
            flips=preset.flips if self.flips is None else self.flips,
            dropout=dropout if self.dropout is None else self.dropout,
            trunk_dropout=trunk_dropout if self.trunk_dropout is None else self.trunk_dropout,
            precision=self.precision or default_precision(torch.device(device)),
            cuda_graph=self.cuda_graph and device != "cpu",
            eval_every=evaluate if self.eval_every is None else self.eval_every,
            run=self.run or f"runs/{self.dataset}-{self.network}-{labels}-{self.method}{extra_name}-seed{self.seed}")

    def as_dict(self) -> dict:
        """The fields, for JSON."""
        return asdict(self)


def _size(shard_set: ShardSet) -> str:
    height, width, channels = shard_set.image_shape
    return f"{height}×{width}×{channels}"


def _check_count(flag: str, count: int, shard_set: ShardSet) -> None:
    try:
        class_balanced_subset(shard_set.labels, count, len(shard_set.classes))
    except ValueError as error:
        raise UsageError(f"{flag}: {error}; data: {shard_set.path}") from None


def parse_device(gpu: str | None) -> str | None:
    """``--gpu``'s value as a device: None (left out) stays open, ``none`` is the CPU, a number that GPU.

    Raises:
        UsageError: not a number, or no such GPU on this machine.
    """
    if gpu is None:
        return None
    if gpu.lower() in {"none", "cpu"}:
        return "cpu"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not gpu.isdecimal() or int(gpu) >= count:
        there = f"0 to {count - 1}" if count > 1 else "0" if count else "no GPU here"
        raise UsageError(f"--gpu: found {gpu!r}, expected a GPU's number ({there}), or none for the CPU")
    return f"cuda:{int(gpu)}"


def default_precision(device: torch.device) -> str:
    """bfloat16 where the GPU has it, else float16 with gradient scaling; float32 on a CPU."""
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def device_name(device: torch.device) -> str:
    """For people and result files: the GPU's product name, or the number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {cpu_cores()} cores"


def cpu_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))
