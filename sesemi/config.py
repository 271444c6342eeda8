"""The settings of a run: one frozen dataclass, what a kind of data implies, and how both become final."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from pipelines.augment import NOISE
from pipelines.errors import UsageError
from pipelines.sampling import class_balanced_subset
from pipelines.shards import ShardSet
from sesemi.networks import build_trunk

METHODS = ("sesemi", "supervised")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PREPROCESS = ("zca", "gcn")
ZCA_PIXELS = 48  # the covariance of 48×48 RGB takes 0.4 GB, that of 96×96 takes 6


@dataclass(frozen=True)
class Preset:
    """What a kind of data implies unless a flag says otherwise. ``preprocess`` None: ZCA up to 48×48, else GCN."""

    epochs: int
    flips: bool = True
    preprocess: str | None = None


PRESETS = {  # by the manifest's ``dataset``
    "cifar10": Preset(epochs=50, preprocess="zca"),
    "digits": Preset(epochs=10, flips=False, preprocess="gcn"),  # a mirrored 2 is no 2
    "folder": Preset(epochs=50),
}


@dataclass(frozen=True)
class Config:
    """Every setting of a run. None means: decided by ``resolve`` from the data and the machine.

    Args:
        dataset: name of the prepared set under ``data``.
        labels: labeled training images in all; None for all there are.
        steps: length of the run and of the learning-rate schedule; None for ``epochs`` · (unlabeled // B).
        batch_unlabeled: unlabeled images B a step; 6B views of them and 6B labeled images.
        device: ``cpu`` or ``cuda:N``.
        eval_every: steps between evaluations; 0 for at the end only.
        eval_images: test images evaluated, a fixed class-balanced sample; None for all.
        run: the run's folder.
    """

    dataset: str
    network: str = "convnet"
    method: str = "sesemi"
    labels: int | None = None
    preprocess: str | None = None
    flips: bool | None = None
    dropout: float = 0.2
    noise: float = NOISE
    epochs: int | None = None
    steps: int | None = None
    batch_unlabeled: int = 16
    lr: float = 0.05
    precision: str | None = None
    seed: int = 0
    device: str | None = None
    data: str = "shards"
    run: str | None = None
    log_every: int = 50
    checkpoint_every: int = 1000
    eval_every: int | None = None
    eval_images: int | None = None

    def __post_init__(self):
        for name, value, expected in (("method", self.method, METHODS),
                                      ("preprocess", self.preprocess, (*PREPROCESS, None)),
                                      ("precision", self.precision, (*PRECISIONS, None))):
            if value not in expected:
                raise UsageError(f"--{name}: found {value!r}, expected one of {', '.join(filter(None, expected))}")
        for name in ("labels", "epochs", "steps", "batch_unlabeled", "log_every", "checkpoint_every", "eval_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')}: found {value}, expected at least 1")
        if not 0 < self.lr < float("inf"):
            raise UsageError(f"--lr: found {self.lr}, expected a positive number")
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
    def images_per_step(self) -> int:
        """Images through the network in a step."""
        return self.batch_unlabeled * 6 * (2 if self.method == "sesemi" else 1)

    def resolve(self, train: ShardSet, test: ShardSet) -> "Config":
        """This configuration with nothing left open; raises UsageError where the data does not allow it."""
        height, width, _ = train.image_shape
        if train.classes is None:
            raise UsageError(f"--dataset {self.dataset}: {train.path} has no labels; prepare it from train/<class>/")
        if (test.classes, test.image_shape) != (train.classes, train.image_shape):
            raise UsageError(f"--dataset {self.dataset}: {test.path} has other classes or another image size than "
                             f"{train.path}; prepare both together")
        if height != width:
            raise UsageError(f"--dataset {self.dataset}: images of {height}×{width}, square ones expected")
        preset = PRESETS.get(train.manifest.dataset, PRESETS["folder"])
        device = self.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
        labels = self.labels or len(train)
        _check_count("--labels", labels, train)
        if self.eval_images is not None:
            _check_count("--eval-images", self.eval_images, test)
        steps_per_epoch = len(train) // self.batch_unlabeled
        if not steps_per_epoch:
            raise UsageError(f"--batch-unlabeled: found {self.batch_unlabeled}, expected at most the {len(train)} "
                             f"images of {train.path}")
        epochs = self.epochs or preset.epochs
        return replace(
            self, device=device, labels=labels, epochs=epochs, steps=self.steps or epochs * steps_per_epoch,
            preprocess=self.preprocess or preset.preprocess or ("zca" if height <= ZCA_PIXELS else "gcn"),
            flips=preset.flips if self.flips is None else self.flips,
            precision=self.precision or default_precision(torch.device(device)),
            eval_every=steps_per_epoch if self.eval_every is None else self.eval_every,
            run=self.run or f"runs/{self.dataset}-{self.network}-{labels}-{self.method}-seed{self.seed}")

    def as_dict(self) -> dict:
        """The fields, for JSON."""
        return asdict(self)


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
