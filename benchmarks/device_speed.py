"""The stages of benchmarks.device that time: the loader alone, the training step in its variants, and compiled."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.device_data import open_set
from benchmarks.device_parts import CLASSES, fixed_batch, new_trainer, open_loader, open_stream
from benchmarks.device_setup import Report, Setup, pace
from benchmarks.measure import alternate, synchronize
from benchmarks.step import ONE_CONVOLUTION
from pipelines import whitening
from pipelines.batch import Batch
from pipelines.common.errors import UsageError
from sesemi.device import check_compiler
from sesemi.networks import build_trunk
from sesemi.task import SesemiTask

SIZES = (16, 64, 256)  # unlabeled images a step
ALONE = (("labeled stream alone", "labeled", {}), ("without flips", "labeled", {"flip": False}),
         ("without noise", "labeled", {"noise": 0.0}), ("8 steps a superbatch", "labeled", {"steps_per_superbatch": 8}),
         ("unlabeled stream alone", "unlabeled", {}), ("unlabeled without noise", "unlabeled", {"noise": 0.0}))
STEPS, DRY_STEPS, WARM = 60, 2, 10


def loader(setup: Setup, report: Report) -> None:
    """The loader alone, by batch size; each stream alone, and what is left out of it."""
    for size in (2,) if setup.dry else SIZES:
        report.attempt(f"loader of {size}", _whole, setup, report, size)
    for name, stream, options in ALONE:
        report.attempt(name, _alone, setup, report, name, stream, options)


def _whole(setup: Setup, report: Report, size: int) -> None:
    with closing(open_loader(setup, size)) as ours:
        speed = _steps_per_second(setup, ours, ours.steps_per_superbatch)
    report.note(f"loader alone, {6 * size} + {6 * size} images: steps/s, images/s",
                [round(speed, 1), round(12 * size * speed)])


def _alone(setup: Setup, report: Report, name: str, stream: str, options: dict) -> None:
    images = open_set(setup)
    with closing(open_stream(images, whitening.prepare("gcn", [images]), stream, setup.device, **options)) as one:
        steps = one.options.steps_per_superbatch
        speed = _steps_per_second(setup, one, steps)
    report.note(f"{name}: steps/s, ms a superbatch of {steps} steps", [round(speed, 1), round(1e3 * steps / speed, 2)])


def _steps_per_second(setup: Setup, source: Iterator, unit: int) -> float:
    seconds = 0.1 if setup.dry else 2.0
    return alternate({"ours": partial(next, source)}, setup.device, seconds, 1, unit, source.settle)["ours"]


def variants(setup: Setup, report: Report) -> None:
    """The training step: eager or one CUDA graph, on a fixed batch or fed; beside the loop that a user would write."""
    for network in setup.networks or (("wrn-10-1",) if setup.dry else ("convnet", "wrn-28-2")):
        for name, cuda_graph in (("eager", False), ("CUDA graph", True)):
            report.attempt(f"{network} {name}", _fixed, setup, report, network, name, cuda_graph)
            report.attempt(f"{network} {name}, fed", _fed, setup, report, network, name, cuda_graph)
        for name, tf32 in (("no TF32", False), ("PyTorch's defaults (TF32 convolutions)", True)):
            report.attempt(f"{network} plain", _plain, setup, report, network, name, tf32)


def _fixed(setup: Setup, report: Report, network: str, name: str, cuda_graph: bool) -> None:
    trainer = new_trainer(setup, network, cuda_graph=cuda_graph)
    _timed(setup, report, f"{network}, {name}", partial(trainer.train_step, fixed_batch(setup)))


def _fed(setup: Setup, report: Report, network: str, name: str, cuda_graph: bool) -> None:
    with closing(open_loader(setup)) as source:
        trainer = new_trainer(setup, network, cuda_graph=cuda_graph, settle=source.settle)
        _timed(setup, report, f"{network}, {name}, fed", lambda: trainer.train_step(next(source)))


def _plain(setup: Setup, report: Report, network: str, name: str, tf32: bool) -> None:
    """Float32, contiguous, no autocast, PyTorch's own SGD, cuDNN's first choice."""
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = False, tf32
    try:
        task = SesemiTask(build_trunk(network), CLASSES).to(setup.device)
        _timed(setup, report, f"{network}, plain float32 loop, {name}", _plain_step(task, fixed_batch(setup)))
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = before


def _plain_step(task: SesemiTask, batch: Batch) -> Callable[[], None]:
    optimizer = torch.optim.SGD(task.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-3)
    images, views = (part.images.contiguous(memory_format=torch.contiguous_format) for part in batch)

    def step() -> None:
        class_logits, proxy_logits = task.logits(images, views)
        loss = F.cross_entropy(class_logits, batch.labeled.labels) + \
            F.cross_entropy(proxy_logits, batch.unlabeled.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return step


def compiled(setup: Setup, report: Report) -> None:
    """The compiled step, eager and as a CUDA graph, in one pass and in two; and how long that takes to begin."""
    try:
        check_compiler(setup.device)
    except UsageError as error:
        report.note("no compiler", str(error))
        return
    for network in setup.networks or ((ONE_CONVOLUTION,) if setup.dry else ("convnet",)):
        for name, cuda_graph, fused in (("compiled", False, True), ("compiled, CUDA graph", True, True),
                                        ("compiled, CUDA graph, a pass for each branch", True, False)):
            report.attempt(f"{network} {name}", _compiled, setup, report, f"{network}, {name}", network, cuda_graph,
                           fused)


def _compiled(setup: Setup, report: Report, name: str, network: str, cuda_graph: bool, fused: bool) -> None:
    torch.compiler.reset()  # it compiles one function so many times only
    trainer, batch = new_trainer(setup, network, cuda_graph=cuda_graph, fused=fused), fixed_batch(setup)
    trainer.compile()
    start = time.perf_counter()
    trainer.train_step(batch)
    synchronize(setup.device)
    report.note(f"{name}: s of the first step", round(time.perf_counter() - start, 1))
    _timed(setup, report, name, partial(trainer.train_step, batch))


def _timed(setup: Setup, report: Report, name: str, step: Callable[[], object]) -> None:
    steps, warm = (DRY_STEPS, 1) if setup.dry else (STEPS, WARM)
    found = pace(step, setup.device, steps, warm)
    report.note(f"{name}: ms a step on the host, in all", [round(one, 3) for one in found])
