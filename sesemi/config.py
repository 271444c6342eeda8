"""The settings of a run, one frozen dataclass: fields and their ranges, without PyTorch. See ``sesemi.resolve``."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.batch import NOISE
from pipelines.common.errors import UsageError
from sesemi.networks import check_name, is_own

METHODS = ("sesemi", "asl", "supervised")
PRECISIONS = ("fp32", "bf16", "fp16")
PREPROCESS = ("zca", "gcn", "standardize")
OPTIONAL = {"extra", "init", "ema", "eval_images"}  # which may be None when all is resolved
CHANGEABLE = {"run", "cuda_graph", "log_every", "checkpoint_every", "keep"}  # when a run is resumed; which GPU, too


@dataclass(frozen=True)
class Config:
    """Every setting of a run. None means: decided by ``sesemi.resolve`` from the data and the machine.

    Args:
        dataset: name of the prepared set under ``data``.
        network: see ``sesemi.networks``.
        init: what the trunk begins with: another run's folder, or a .safetensors file; None for random weights.
        labels: labeled training images in all, as even over the classes as they allow; None for all there are.
        extra: unlabeled images of another dataset, which take half of each step's: a prepared set by its path or its
            name under ``data``, or a number N for the set ``tinyimages-N``; of a dataset ``train`` and ``unlabeled``.
        dropout, trunk_dropout: before the class head, and inside the trunk.
        steps: length of the run and of the learning-rate schedule; None for ``epochs`` · ``steps_per_epoch``.
        batch_unlabeled: unlabeled images B a step; 6B views of them and 6B labeled images.
        device: ``cpu`` or ``cuda:N``.
        ema: decay of the averaged copy of weights and buffers, see ``sesemi.ema``; None for none.
        cuda_graph: on a GPU, replay the training step as one CUDA graph.
        compile: have torch.compile fuse the network's operations in training.
        keep: checkpoints to keep: the newest, and those before it in case it gets damaged.
        eval_every: steps between evaluations; 0 for at the end only.
        eval_images: test images evaluated, a fixed sample, as even over the classes as they allow; None for all.
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
    init: str | None = None
    lr: float = 0.05
    ema: float | None = None
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
        if self.device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise UsageError(f"device: found {self.device!r}, expected cpu or cuda:N")
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
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"--ema: found {self.ema}, expected a decay between 0 and 1, such as 0.999")
        try:
            check_name(self.network)
        except ValueError as error:
            raise UsageError(f"--network: {error}") from None
        if self.trunk_dropout and is_own(self.network):
            raise UsageError(f"--trunk-dropout: found with --network {self.network}, a network of your own, which "
                             f"decides that itself")

    @property
    def train_path(self) -> Path:
        """The training images' shard set."""
        return Path(self.data) / self.dataset / "train"

    @property
    def test_path(self) -> Path:
        """The test images' shard set."""
        return Path(self.data) / self.dataset / "test"

    @property
    def unlabeled_path(self) -> Path:
        """The shard set of further images of the dataset, which have no labels; there may be none."""
        return Path(self.data) / self.dataset / "unlabeled"

    def steps_per_epoch(self, images: int) -> int:
        """Steps that the proxy branch takes to see its images once: of ASL, the labeled ones, else all ``images`` of
        the dataset, labeled or not (paper, section 3). At least one.

        With extra images the dataset's own are half of each step's.
        """
        images = self.labels if self.method == "asl" and self.labels else images
        return max(1, images // (self.batch_unlabeled // (1 if self.extra is None else 2)))

    def as_dict(self) -> dict:
        """The fields, for JSON."""
        return asdict(self)
