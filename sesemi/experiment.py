"""A run from its configuration: data, loader, model, trainer, evaluation, files."""

import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from pipelines import whitening
from pipelines.common.errors import DataError, Stopped, UsageError, reason
from pipelines.common.files import created_dirs, locked, remove_leftovers
from pipelines.common.memory import peak_rss_bytes
from pipelines.common.progress import progress_bar
from pipelines.evaluation import EvaluationLoader
from pipelines.loader import SemiSupervisedLoader
from pipelines.sampling import class_balanced_subset
from pipelines.shards import ShardSet, Subset
from pipelines.whitening import Preprocess
from sesemi import checkpoint
from sesemi.config import CHANGEABLE, PRECISIONS, Config, cpu_cores, device_name
from sesemi.evaluation import error_rate
from sesemi.model import SesemiModel
from sesemi.runlog import MetricsLog, RunFolder, versions
from sesemi.trainer import Trainer, TrainLine


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
    sets = {"train": ShardSet(config.train_path), "test": ShardSet(config.test_path)}
    if config.extra is not None:
        sets["extra"] = ShardSet(config.extra_path)
    config = config.resolve(**sets)
    if config.compile:
        check_compiler(torch.device(config.device))
    folder = RunFolder(config.run)
    if folder.path.exists() and not folder.path.is_dir():
        raise UsageError(f"--run: {folder.path} is a file, expected a folder; choose another --run")
    with ExitStack() as stack:
        stack.enter_context(created_dirs(folder.path))
        stack.enter_context(locked(folder.path))
        if resume:
            saved = saved_fingerprints(folder)
            for name, shard_set in sets.items():
                if saved.get(name) != shard_set.fingerprint:
                    raise DataError(f"{shard_set.path}: not the shards that {folder.path} began with; start a new "
                                    f"--run")
            preprocess = load_whitening(folder, config, saved)
        else:
            _refuse_existing(folder)
            fitted_on = [shard_set for name, shard_set in sets.items() if name != "test"]
            preprocess = whitening.prepare(config.preprocess, fitted_on, config.device)
            preprocess.save(folder.whitening)
        remove_leftovers(folder.path)
        return _train(config, folder, preprocess, sets, resume, stack)


def _train(config: Config, folder: RunFolder, preprocess: Preprocess, sets: dict[str, ShardSet], resume: bool,
           stack: ExitStack) -> dict:
    device = torch.device(config.device)
    torch.manual_seed(config.seed)
    train_set, classes = sets["train"], len(sets["train"].classes)
    labeled = Subset(train_set, class_balanced_subset(train_set.labels, config.labels, classes))
    loader = SemiSupervisedLoader(
        labeled, proxy_images(config.method, labeled, train_set, sets.get("extra")), preprocess,
        batch_unlabeled=config.batch_unlabeled, flip=config.flips, seed=config.seed, device=device,
        noise=config.noise, threads=cpu_cores())
    stack.callback(loader.close)
    model = build_model(config, classes, train_set.image_shape[2])
    if config.compile:
        model.compile_trunk()
    trainer = Trainer(model, steps=config.steps, base_lr=config.lr, dtype=PRECISIONS[config.precision],
                      cuda_graph=config.cuda_graph, settle=loader.settle, log_every=config.log_every)
    evaluation = evaluation_loader(config, preprocess, sets["test"])
    latest = {"step": 0}
    fingerprints = {name: one.fingerprint for name, one in sets.items()}
    saved_at = None  # the step of the newest checkpoint
    if resume:
        state, where = checkpoint.load_newest(folder.checkpoint, device)
        with checkpoint.fits(where):
            checkpoint.check_same_run(where, state["run"], identity(config, fingerprints))
            trainer.load_state_dict(state["trainer"])
            loader.load_state_dict(state["loader"])
            checkpoint.restore_random_state(state["random"], device)
            latest = state["evaluation"]
        saved_at = trainer.step if where == folder.checkpoint else None
    folder.write(folder.config, {  # not before the checkpoint was found to fit
        **config.as_dict(), "data_fingerprints": fingerprints,
        "versions": versions(), "device_name": device_name(device)})
    log = MetricsLog(folder, trainer.step, latest["step"])
    stack.callback(log.close)
    bar = stack.enter_context(progress_bar(config.steps, " steps", "training", initial=trainer.step))
    steps_per_epoch = config.steps_per_epoch(len(train_set))

    def evaluate() -> None:
        error, images = error_rate(model, evaluation, trainer.autocast)
        latest.update(step=trainer.step, test_error=error, test_images=images)
        log.write("eval", dict(latest))

    def save() -> None:
        nonlocal saved_at
        checkpoint.save(folder.checkpoint, {
            "trainer": trainer.state_dict(), "loader": loader.state_dict(), "random": checkpoint.random_state(device),
            "evaluation": latest, "run": identity(config, fingerprints)},
            config.keep, None if saved_at == trainer.step else saved_at)
        saved_at = trainer.step

    def on_log(line: TrainLine) -> None:
        log.write("train", {**asdict(line), "epoch": line.step / steps_per_epoch})
        bar.set_postfix_str(f"loss {line.class_loss + (line.proxy_loss or 0):.3f}, "
                            f"{line.images_per_second:,.0f} images/s", refresh=False)

    def after_step(step: int) -> None:
        bar.update()
        if config.eval_every and step % config.eval_every == 0 and step < config.steps:
            evaluate()
        if step % config.checkpoint_every == 0:
            save()

    trainer.on_log, trainer.after_step = on_log, after_step
    received: list[int] = []
    go_on = f"go on with: python -m sesemi train --resume --run {folder.path}"

    def stop(number: int) -> None:
        received.append(number)
        trainer.stop()

    def leave(number: int) -> None:
        raise Stopped(f"stopped in the evaluation, after all {config.steps} steps; {go_on}", number)
    with on_first_signal(stop):
        trainer.train(loader)
        if received or latest["step"] < config.steps:
            save()  # also before an evaluation, which may be long
    if received:
        raise Stopped(f"stopped at step {trainer.step} of {config.steps}; {go_on}", received[0])
    if latest["step"] < config.steps:
        with on_first_signal(leave):
            evaluate()
    with on_first_signal(received.append):  # a moment, and all is there
        save()
        result = _write_result(folder, config, trainer, latest, device)
    if received:
        raise Stopped(f"stopped, but {folder.path} is finished: its result is in {folder.result}", received[0])
    return result


def _write_result(folder: RunFolder, config: Config, trainer: Trainer, latest: dict, device: torch.device) -> dict:
    result = {
        "test_error": latest["test_error"], "test_images": latest["test_images"], "labels": config.labels,
        "network": config.network, "dataset": config.dataset, "method": config.method, "steps": trainer.step,
        "seconds": trainer.seconds, "images_per_second": trainer.images / trainer.seconds,
        "data_wait_fraction": trainer.waited / trainer.seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "device": device_name(device)}
    folder.write(folder.result, result)
    return result


def identity(config: Config, fingerprints: dict[str, str]) -> dict:
    """What a checkpoint holds for: the settings that a resumed run may not change, and the data."""
    fixed = {name: value for name, value in config.as_dict().items() if name not in {*CHANGEABLE, "device", "data"}}
    return fixed | {f"images of {name}": fingerprint for name, fingerprint in fingerprints.items()}


def proxy_images(method: str, labeled: Subset, train_set: ShardSet,
                 extra: ShardSet | None) -> list[ShardSet | Subset]:
    """The sets that the proxy branch sees, each an equal part of a step: none where the method has no such branch."""
    match method:
        case "sesemi":
            return [train_set] if extra is None else [train_set, extra]
        case "asl":
            return [labeled]
    return []


def evaluate(run: Path | str, device: str | None = None) -> tuple[float, int]:
    """The test error of a run from its checkpoint, and the number of images it is of.

    Args:
        run: the run's folder.
        device: None for the one it was trained on.
    """
    folder = RunFolder(run)
    config = load_config(folder, device)
    test_set = ShardSet(config.test_path)
    saved = saved_fingerprints(folder)
    if test_set.fingerprint != saved.get("test"):
        raise DataError(f"{config.test_path}: not the shards that {folder.path} was trained with")
    model = build_model(config, len(test_set.classes), test_set.image_shape[2])
    state = checkpoint.load(folder.checkpoint, torch.device(config.device))
    with checkpoint.fits(folder.checkpoint):
        checkpoint.check_same_run(folder.checkpoint, state["run"], identity(config, saved))
        model.load_state_dict(state["trainer"]["model"])
    dtype = PRECISIONS[config.precision]
    autocast = torch.autocast(torch.device(config.device).type, dtype, enabled=dtype != torch.float32)
    preprocess = load_whitening(folder, config, saved)
    return error_rate(model, evaluation_loader(config, preprocess, test_set), autocast)


def load_config(folder: RunFolder, device: str | None = None) -> Config:
    """The configuration a run was started with, on its device or another."""
    saved = folder.read(folder.config)
    try:
        config = Config(**{name: saved[name] for name in Config.__dataclass_fields__ if name in saved})
    except TypeError as error:
        raise DataError(f"{folder.config}: not the configuration of a run ({error})") from None
    device = device or config.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--gpu: {folder.path} was trained on {device}, no GPU here; evaluate takes --gpu none")
    return Config(**{**config.as_dict(), "device": device, "run": str(folder.path)})


def saved_fingerprints(folder: RunFolder) -> dict[str, str]:
    """The fingerprints of the sets that a run was started with, by name, from its config.json."""
    saved = folder.read(folder.config).get("data_fingerprints")
    if not isinstance(saved, dict):
        raise DataError(f"{folder.config}: not the configuration of a run (no data_fingerprints)")
    return saved


def load_whitening(folder: RunFolder, config: Config, fingerprints: dict[str, str]) -> Preprocess:
    """What a run normalises its images by; DataError where its file is another's."""
    preprocess = Preprocess.load(folder.whitening)
    expected = [fingerprint for name, fingerprint in fingerprints.items() if name != "test"]
    found = preprocess.fitted_on.get("fingerprints", expected)  # nothing is fitted for GCN
    if preprocess.kind != config.preprocess or found != expected:
        raise DataError(f"{folder.whitening}: of another run: {preprocess.kind} found, fitted on other images or not "
                        f"{config.preprocess}")
    return preprocess


def build_model(config: Config, num_classes: int, channels: int) -> SesemiModel:
    """The model of a run on its device, channels-last."""
    model = SesemiModel(config.network, num_classes, config.dropout, config.trunk_dropout, channels)
    return model.to(config.device, memory_format=torch.channels_last)


def check_compiler(device: torch.device) -> None:
    """Try torch.compile on one operation; UsageError where it lacks a compiler, for which its own message is a page."""
    try:
        torch.compile(lambda x: x + 1, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # of any kind: missing compilers, headers, GPUs that are too old
        raise UsageError(f"--compile: torch.compile does not work here ({reason(error)}); install a C++ compiler and "
                         f"Python's headers (Debian: build-essential, python3-dev), or leave it out") from None


def evaluation_loader(config: Config, preprocess: Preprocess, test_set: ShardSet) -> EvaluationLoader:
    """The test images of a run, in the same views every time."""
    indices = class_balanced_subset(test_set.labels, config.eval_images or len(test_set), len(test_set.classes))
    return EvaluationLoader(Subset(test_set, indices), preprocess, flip=config.flips, seed=config.seed,
                            device=config.device, noise=config.noise, threads=cpu_cores())


@contextmanager
def on_first_signal(act: Callable[[int], object]):
    """While inside, the first SIGINT or SIGTERM has ``act`` called with its number; a second acts as usual.

    On another thread than the main one, which alone gets signals, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def handle(number: int, frame: object) -> None:
        restore()
        act(number)
    try:
        for number in usual:
            signal.signal(number, handle)
        yield
    finally:
        restore()


def _refuse_existing(folder: RunFolder) -> None:
    if folder.result.exists():
        raise UsageError(f"--run: {folder.path} holds a finished run; choose another --run")
    if folder.checkpoint.exists() or checkpoint.kept(folder.checkpoint):
        raise UsageError(f"--run: {folder.path} holds an unfinished run; go on with --resume or choose another --run")
