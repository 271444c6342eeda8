"""The two commands: train a run from its configuration, and evaluate one from its folder."""

import shlex
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path

import torch

from pipelines import whitening
from pipelines.batch import VIEWS
from pipelines.common.errors import Stopped, UsageError
from pipelines.common.files import created_dirs, locked, remove_leftovers
from pipelines.common.words import counted
from pipelines.shards import ShardSet
from sesemi import checkpoint
from sesemi.config import Config
from sesemi.device import DTYPES, autocast, check_compiler, compiling, device_name
from sesemi.evaluation import error_rates
from sesemi.networks.layers import count_parameters
from sesemi.resolve import check_network, open_sets, resolve
from sesemi.run import Run, dataset_images, evaluation_loader, fit, proxy_sets
from sesemi.runlog import RunFolder
from sesemi.saved import (
    check_sets,
    load_config,
    load_tasks,
    load_trunk,
    load_whitening,
    read_trunk,
    saved_fingerprints,
)
from sesemi.signals import StopRequest
from sesemi.task import SesemiTask, build_task


def train(config: Config, resume: bool = False) -> dict:
    """Train and evaluate one run; returns what result.json holds.

    Args:
        config: with open settings, or those of the run to resume.
        resume: go on from the run's checkpoint.

    Raises:
        UsageError: settings that the data does not allow; a run that exists, without ``resume``; another process that
            is at work on it.
        DataError: damaged or missing data; a loss that is not finite.
        Stopped: SIGINT or SIGTERM arrived; the run can be resumed.
    """
    no_gpu = config.device is None and not torch.cuda.is_available()
    sets = open_sets(config)
    config = resolve(config, **sets)
    if config.compile:
        check_compiler(torch.device(config.device))
    folder = RunFolder(config.run)
    if folder.path.exists() and not folder.path.is_dir():
        raise UsageError(f"--run: {folder.path} is a file, expected a folder; choose another --run")
    torch.manual_seed(config.seed)
    task = build_task(config, len(sets["train"].classes), sets["train"].image_shape[2])
    if config.init is not None and not resume:
        load_trunk(task.trunk, read_trunk(Path(config.init)), config.init)
    with ExitStack() as stack:
        stack.enter_context(created_dirs(folder.path))
        stack.enter_context(locked(folder.path))
        if resume:
            saved = check_sets(folder, sets, "began with; start a new --run", whole=True)
            preprocess = load_whitening(folder, config, saved, sets["train"].image_shape)
        else:
            _refuse_existing(folder)
            fitted_on = [shard_set for name, shard_set in sets.items() if name != "test"]
            preprocess = whitening.prepare(config.preprocess, fitted_on, config.device)
            preprocess.save(folder.whitening)
        remove_leftovers(folder.path)
        run = Run(config, folder, sets, preprocess, task)
        stack.callback(run.close)
        if resume:
            run.resume()
        print(data_line(config, run.labels_by_class(), sets), file=sys.stderr)
        print(started(config, task, run.trainer.step) + " (no GPU found)" * no_gpu, file=sys.stderr)
        run.begin()
        with StopRequest() as stop, compiling(config.network) if config.compile else nullcontext():
            fit(run, stop)
    if stop.requested:
        raise Stopped(f"stopped, but {folder.path} is finished: its result is in {folder.result}", stop.signal)
    return folder.read(folder.result)


def data_line(config: Config, labels_by_class: dict[str, int], sets: dict[str, ShardSet]) -> str:
    """What the run sees, in a line: labeled images by class, images of the proxy branch, and how often each comes."""
    batch, steps = config.batch_unlabeled, config.steps
    by_class = counted(list(labels_by_class), list(labels_by_class.values()))
    parts = [f"data: {config.labels:,} labeled images ({by_class}), each seen "
             f"{_times(steps * VIEWS * batch, config.labels)}"]
    if config.method == "sesemi":
        sources = {" and ".join(source): sum(map(len, source.values())) for source in proxy_sets(sets)}
        parts.append("in the proxy branch " + " + ".join(
            f"{images:,} of {names}, each seen {_times(steps * batch // len(sources), images)}"
            for names, images in sources.items()))
    elif config.method == "asl":
        parts.append(f"in the proxy branch the same, each seen {_times(steps * batch, config.labels)}")
    parts.append(f"{steps:,} steps, {config.steps_per_epoch(dataset_images(sets)):,} an epoch")
    parts.append(f"{len(sets['test']):,} test images" if "test" in sets else "no test set")
    return "; ".join(parts)


def _times(draws: int, images: int) -> str:
    times = draws / images
    number = f"{times:,.0f}" if times >= 10 or times == int(times) else f"{times:.2g}"
    return "once" if times == 1 else f"{number} times"


def started(config: Config, task: SesemiTask, step: int) -> str:
    """What is trained where, in a line."""
    passes = "" if config.method == "supervised" else \
        ", both branches in one pass" if task.fused else ", a pass for each branch"
    begun = f"from step {step:,} of {config.steps:,}" if step else f"{config.steps:,} steps"
    init = f", trunk from {config.init}" if config.init is not None and not step else ""
    return (f"training {config.network} ({count_parameters(task.trunk):,} parameters{init}), {config.method}, "
            f"{config.labels:,} labels{passes}: {begun} on {device_name(torch.device(config.device))}")


def evaluate(run: Path | str, device: str | None = None, network: str | None = None) -> tuple[dict[str, float], int]:
    """The test errors of a run from its checkpoint, and the number of images they are of.

    Args:
        run: the run's folder.
        device: None for the one it was trained on.
        network: see ``saved.load_config``.

    Returns:
        ``test_error`` and, of a run with an average (``--ema``), ``test_error_raw``: that of the raw weights.
    """
    folder = RunFolder(run)
    config = load_config(folder, device, network)
    if "test" not in saved_fingerprints(folder):
        raise UsageError(f"{folder.path}: no test set; {config.dataset} had none when this run was trained: prepare it "
                         f"with one, by --test-fraction for instance, and train again")
    test_set = ShardSet(config.test_path)
    saved = check_sets(folder, {"test": test_set}, "was trained with")
    check_network(config, test_set)
    tasks = load_tasks(folder, config, len(test_set.classes), test_set.image_shape[2])
    preprocess = load_whitening(folder, config, saved, test_set.image_shape)
    context = autocast(torch.device(config.device), DTYPES[config.precision])
    return error_rates(tasks, evaluation_loader(config, preprocess, test_set), context)


def _refuse_existing(folder: RunFolder) -> None:
    if folder.result.exists():
        raise UsageError(f"--run: {folder.path} holds a finished run; choose another --run, which may begin with its "
                         f"trunk by --init {shlex.quote(str(folder.path))}")
    if folder.checkpoint.exists() or checkpoint.kept(folder.checkpoint):
        raise UsageError(f"--run: {folder.path} holds an unfinished run; go on with --resume or choose another --run")
