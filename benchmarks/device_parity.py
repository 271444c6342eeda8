"""The stage ``parity`` of benchmarks.device: is what the device makes right, and the same every time?"""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.device_data import open_set
from benchmarks.device_parts import STREAMS, fixed_batch, new_trainer, open_loader, open_stream
from benchmarks.device_setup import Report, Setup
from benchmarks.measure import synchronize
from pipelines import whitening
from pipelines.batch import NOISE, Batch, Examples
from pipelines.evaluation import EvaluationLoader
from pipelines.loader import SemiSupervisedLoader
from pipelines.shards import ShardSet, Subset
from pipelines.stream import Stream
from pipelines.whitening import Preprocess
from sesemi import checkpoint
from sesemi.config import PRECISIONS
from sesemi.trainer import Trainer

MARGIN = 1e-4  # between a GPU's batches and the CPU's
RESUMED_AT = (0, 5, 31)
EVALUATED = 300  # images
GONE_ON = 10  # steps before and after a checkpoint
LARGEST_DRIFT = 0.05  # of a resumed run's weights, where convolutions add up in another order each time


@dataclass(frozen=True)
class Checked:
    """What the parts of the stage look at.

    Args:
        setup, report: of the stage.
        images: streamed.
        preprocess: fitted on them, by kind.
        count: batches compared.
    """

    setup: Setup
    report: Report
    images: ShardSet
    preprocess: dict[str, Preprocess]
    count: int

    def stream(self, kind: str, name: str, device: torch.device | None = None, noise: float = NOISE) -> Stream:
        """The labeled or the unlabeled stream, by its name, from its beginning."""
        return open_stream(self.images, self.preprocess[kind], name, device or self.setup.device, noise=noise,
                           window_images=256 if self.setup.dry else 4096)

    def batches(self, kind: str, name: str, count: int | None = None, **options) -> list[Examples]:
        """The first batches of such a stream."""
        with closing(self.stream(kind, name, **options)) as stream:
            return [next(stream) for _ in range(count or self.count)]

    def note_equal(self, name: str, equal: list[bool]) -> None:
        """Which of some batches were as expected; all should be."""
        self.report.note(name, f"{sum(equal)} of {len(equal)}", all(equal))


def parity(setup: Setup, report: Report) -> None:
    """Batches against the CPU's; noise and views; two runs, busy queues, resumed runs; training and going on."""
    images = open_set(setup)
    report.note("data", f"{images.path}, {len(images):,} images of {images.image_shape}")
    checked = Checked(setup, report, images, {}, 3 if setup.dry else 40)
    for kind in whitening.KINDS:
        report.attempt(f"fit of {kind}", _fit, checked, kind)
    for kind in checked.preprocess:
        for name in STREAMS:
            report.attempt(f"{kind}, {name}, like the CPU's", _like_the_cpu, checked, kind, name)
    report.attempt("noise", _noise, checked)
    report.attempt("views", _views, checked)
    for title, part in (("two runs", _two_runs), ("busy", _busy), ("resume", _resume)):
        for name in STREAMS:
            report.attempt(f"{name}: {title}", part, checked, name)
    report.attempt("evaluation", _evaluation, checked)
    for precision in PRECISIONS:
        for cuda_graph in (False,) if setup.dry else (False, True):
            report.attempt(f"{precision} training", _training, checked, precision, cuda_graph)
    report.attempt("overflow", _overflow, checked)
    report.attempt("going on", _going_on, checked)


def _fit(checked: Checked, kind: str) -> None:
    start = time.perf_counter()
    checked.preprocess[kind] = whitening.prepare(kind, [checked.images], checked.setup.device, progress=False)
    checked.report.note(f"fit of {kind}, s", round(time.perf_counter() - start, 2))


def _like_the_cpu(checked: Checked, kind: str, name: str) -> None:
    ours, expected = (checked.batches(kind, name, device=device, noise=0.0)
                      for device in (checked.setup.device, torch.device("cpu")))
    pairs = list(zip(ours, expected, strict=True))
    worst = _largest((one.images.cpu() - other.images).abs().max().item() for one, other in pairs)
    largest = _largest(batch.images.abs().max().item() for batch in expected)
    labels = all(torch.equal(one.labels.cpu(), other.labels) for one, other in pairs)
    layout = all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in ours)
    checked.report.note(f"{kind}, {name}: largest difference to the CPU's batch, largest value",
                        [worst, round(largest, 2)], worst < MARGIN and labels and layout)


def _noise(checked: Checked) -> None:
    plain, noisy = (checked.batches("gcn", "labeled", noise=noise) for noise in (0.0, NOISE))
    noise = torch.cat([one.images - other.images for one, other in zip(noisy, plain, strict=True)]).flatten(1)
    some = noise[::max(1, len(noise) // 400)]
    correlation = (torch.corrcoef(some) - torch.eye(len(some), device=some.device)).abs().max().item()
    mean, deviation, values = noise.mean().item(), noise.std().item(), noise.numel()
    kurtosis = ((noise / deviation) ** 4).mean().item()
    right = (abs(mean) < 5 * NOISE / values**0.5 and correlation < 6.5 / noise.shape[1]**0.5
             and abs(deviation - NOISE) < 5 * NOISE / (2 * values)**0.5 + 1e-4)
    checked.report.note("noise: mean, deviation, kurtosis, largest correlation of two images",
                        [f"{mean:.2e}", round(deviation, 5), round(kurtosis, 3), round(correlation, 3)], right)


def _views(checked: Checked) -> None:
    """All six views of a noisy image, turned back, are one image: they share its noise."""
    images = checked.batches("gcn", "unlabeled", 2)[1].images.unflatten(0, (-1, 6))
    back = [torch.rot90(images[:, view], -view, (2, 3)) for view in range(4)]
    back += [images[:, 4].flip(3), images[:, 5].flip(2)]
    worst = _largest((view - images[:, 0]).abs().max().item() for view in back)
    checked.report.note("six views of one image, largest difference", worst, worst == 0)


def _two_runs(checked: Checked, name: str) -> None:
    first, second = (checked.batches("zca", name) for _ in range(2))
    checked.note_equal(f"{name}: equal batches in two runs", _equal(first, [batch.images for batch in second]))


def _busy(checked: Checked, name: str) -> None:
    """The same batches while the device has other work: where a wait for DALI is missing, some would differ."""
    device, count = checked.setup.device, 3 * checked.count
    quiet = checked.batches("gcn", name, count)
    size = 64 if checked.setup.dry else 6144
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16)

    def beside(work: Callable[[], object]) -> list[torch.Tensor]:
        """Copies of the batches, queued behind the work."""
        copies = []
        with closing(checked.stream("gcn", name)) as stream:
            for _ in range(count):
                work()
                copies.append(next(stream).images.clone())
            synchronize(device)
        return copies
    checked.note_equal(f"{name}: equal batches beside a busy queue",
                       _equal(quiet, beside(lambda: (matrix @ matrix, matrix @ matrix))))
    if not checked.setup.dry:
        with torch.cuda.stream(torch.cuda.Stream(device)):
            copies = beside(lambda: None)
        checked.note_equal(f"{name}: equal batches, read on a stream of the reader's own", _equal(quiet, copies))


def _resume(checked: Checked, name: str) -> None:
    for done in RESUMED_AT:
        with closing(checked.stream("zca", name)) as one, closing(checked.stream("zca", name)) as other:
            for _ in range(done):
                next(one)
            other.load_state_dict(one.state_dict())
            equal = [torch.equal(next(one).images, next(other).images) for _ in range(checked.count)]
        checked.note_equal(f"{name}: equal batches after going on from step {done}", equal)


def _evaluation(checked: Checked) -> None:
    few = Subset(checked.images, np.arange(EVALUATED))
    device = checked.setup.device
    ours, again, expected = (
        [views for views, _ in EvaluationLoader(few, checked.preprocess["zca"], flip=True, device=on)]
        for on in (device, device, torch.device("cpu")))
    same = all(torch.equal(one, other) for one, other in zip(ours, again, strict=True))
    without_noise = [torch.cat(views).unflatten(0, (-1, 8))[:, [0, 1, 4, 5]].cpu() for views in (ours, expected)]
    worst = (without_noise[0] - without_noise[1]).abs().max().item()
    checked.report.note("evaluation: same views twice, largest difference to the CPU's", [same, worst],
                        same and worst < MARGIN)


def _training(checked: Checked, precision: str, cuda_graph: bool) -> None:
    setup = checked.setup
    trainer, batch = new_trainer(setup, _network(setup), precision=precision, cuda_graph=cuda_graph), fixed_batch(setup)
    losses = list(_class_losses(trainer, batch, 5 if setup.dry else 60))
    name = f"{precision}, CUDA graph" if cuda_graph else precision
    checked.report.note(f"{name}: class loss at first, at last", [round(losses[0], 3), round(losses[-1], 3)],
                        _finite(trainer.task.state_dict()) and losses[-1] < losses[0])


def _overflow(checked: Checked) -> None:
    """The first steps' gradients are too large for float16, which the trainer's scaler then skips."""
    setup = checked.setup
    trainer, batch = new_trainer(setup, _network(setup), precision="fp16"), fixed_batch(setup)
    trainer.scaler = torch.amp.GradScaler(setup.device.type, init_scale=2.0**40)
    for _ in range(4 if setup.dry else 45):
        trainer.train_step(batch)
    momentum = {number: state["momentum_buffer"] for number, state in enumerate(trainer.optimizer.state.values())}
    sound = [_finite(trainer.task.state_dict()), _finite(momentum)]
    checked.report.note("fp16 whose first steps overflow: weights and momentum stay finite", sound, all(sound))


def _going_on(checked: Checked) -> None:
    """A run that is saved, read again and gone on with, beside the one that was not stopped."""
    device = checked.setup.device

    def begin() -> tuple[Trainer, SemiSupervisedLoader]:
        return new_trainer(checked.setup, "wrn-10-1", base_lr=0.05, ema=0.99), open_loader(checked.setup)

    def train(trainer: Trainer, loader: SemiSupervisedLoader) -> None:
        for _ in range(GONE_ON):
            trainer.train_step(next(loader))
    trainer, loader = begin()
    other, other_loader = begin()
    with closing(loader), closing(other_loader), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        train(trainer, loader)
        checkpoint.save(path, {"trainer": trainer.state_dict(), "loader": loader.state_dict(),
                               "random": checkpoint.random_state(device)})
        train(trainer, loader)
        state = checkpoint.load(path, device)
        other.load_state_dict(state["trainer"])
        other_loader.load_state_dict(state["loader"])
        checkpoint.restore_random_state(state["random"], device)
        train(other, other_loader)
    states = ([value for task in one.evaluated().values() for value in task.state_dict().values()]
              for one in (trainer, other))
    pairs = zip(*states, strict=True)
    worst = _largest(((one - two).abs().max() / one.abs().max().clamp(min=1e-6)).item() for one, two in pairs)
    checked.report.note(f"after a checkpoint, {GONE_ON} steps: largest relative difference of weights (0 if "
                        f"convolutions are deterministic)", worst, worst < LARGEST_DRIFT)


def _largest(values: Iterable[float]) -> float:
    """NaN where one is: Python's ``max`` passes over it."""
    return float(np.max(list(values)))


def _equal(batches: list[Examples], images: list[torch.Tensor]) -> list[bool]:
    return [torch.equal(batch.images, same) for batch, same in zip(batches, images, strict=True)]


def _network(setup: Setup) -> str:
    return "wrn-10-1" if setup.dry else "convnet"


def _finite(tensors: dict) -> bool:
    return all(value.isfinite().all().item() for value in tensors.values())


def _class_losses(trainer: Trainer, batch: Batch, steps: int) -> Iterator[float]:
    """The class loss of each of so many steps."""
    before = 0.0
    for _ in range(steps):
        trainer.train_step(batch)
        total = trainer.state_dict()["sums"]["class_loss"].item()
        yield total - before
        before = total
