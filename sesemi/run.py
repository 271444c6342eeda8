"""A run: what is checkpointed together, and the course of events from the first step to the last evaluation."""

import shlex
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict

import numpy as np
import torch

from pipelines.common.errors import Stopped
from pipelines.common.memory import peak_rss_bytes
from pipelines.common.progress import progress_bar
from pipelines.common.words import duration
from pipelines.evaluation import EvaluationLoader
from pipelines.loader import SemiSupervisedLoader
from pipelines.sampling import class_balanced_subset
from pipelines.shards import ImageSource, Joined, ShardSet, Subset
from pipelines.whitening import Preprocess
from sesemi import checkpoint
from sesemi.config import Config
from sesemi.device import DTYPES, cpu_cores, device_name
from sesemi.evaluation import error_rates
from sesemi.networks import is_own
from sesemi.runlog import MetricsLog, RunFolder, versions
from sesemi.saved import identity
from sesemi.signals import StopRequest
from sesemi.task import SesemiTask
from sesemi.trainer import Trainer

ESTIMATE_STEPS = 20  # of which the second half is timed


def fit(run: "Run", stop: StopRequest) -> None:
    """Train and evaluate a run to its end; raises Stopped, with all saved, where ``stop`` is requested before.

    An evaluation that was stopped is made by the resumed run, before its next step.
    """
    config, steps = run.config, run.trainer.train(run.loader)
    if run.evaluation_due():
        run.evaluate(stop)
    while not stop.requested and (step := next(steps, None)):
        run.bar.update()
        run.estimate()
        if step % config.log_every == 0 or step == config.steps:
            run.log()
        if step == config.steps:
            run.save()  # before the last evaluation, which may be long
        if run.evaluation_due():
            run.evaluate(stop)
        if step % config.checkpoint_every == 0 and step < config.steps:
            run.save()
    run.save()
    if not run.finished():
        raise Stopped(run.where_stopped(), stop.signal)
    run.write_result()


class Run:
    """The parts of a run, and its files.

    Args:
        config: nothing open.
        folder: exists, and is this process's.
        sets: by name, as ``resolve.open_sets`` gives them.
        preprocess: fitted on them.
        task: new, on its device.
    """

    def __init__(self, config: Config, folder: RunFolder, sets: dict[str, ShardSet], preprocess: Preprocess,
                 task: SesemiTask):
        self.config, self.folder = config, folder
        self.device = torch.device(config.device)
        train_set = sets["train"]
        self.labeled = Subset(train_set, class_balanced_subset(train_set.labels, config.labels, len(train_set.classes)))
        self.loader = SemiSupervisedLoader(
            self.labeled, proxy_images(config.method, self.labeled, sets), preprocess,
            batch_unlabeled=config.batch_unlabeled, flip=config.flips, seed=config.seed, device=self.device,
            noise=config.noise, threads=cpu_cores())
        self.trainer = Trainer(task, steps=config.steps, base_lr=config.lr, dtype=DTYPES[config.precision],
                               ema=config.ema, compile=config.compile, cuda_graph=config.cuda_graph,
                               settle=self.loader.settle)
        self.evaluation = evaluation_loader(config, preprocess, sets["test"]) if "test" in sets else None
        self._fingerprints = {name: one.fingerprint for name, one in sets.items()}
        self._steps_per_epoch = config.steps_per_epoch(dataset_images(sets))
        self._evaluated: dict = {"step": 0, "test_error": None, "test_images": None}  # the newest evaluation
        self._saved_at: int | None = None  # the step of the newest checkpoint
        self._open = ExitStack()
        self._open.callback(self.loader.close)

    def resume(self) -> None:
        """Go on from the newest checkpoint; DataError where it is of another run."""
        state, where = checkpoint.load_newest(self.folder.checkpoint, self.device)
        with checkpoint.fits(where):
            checkpoint.check_same_run(where, state["run"], identity(self.config, self._fingerprints))
            self.trainer.load_state_dict(state["trainer"])
            self.loader.load_state_dict(state["loader"])
            checkpoint.restore_random_state(state["random"], self.device)
            self._evaluated = state["evaluation"]
        self._saved_at = self.trainer.step if where == self.folder.checkpoint else None

    def begin(self) -> None:
        """Write config.json, and open the metrics and a bar; not before a checkpoint was found to fit."""
        self.folder.write(self.folder.config, {
            **self.config.as_dict(), "labels_by_class": self.labels_by_class(),
            "data_fingerprints": self._fingerprints, "versions": versions(), "device_name": device_name(self.device)})
        self._log = MetricsLog(self.folder, self.trainer.step, self._evaluated["step"])
        self._open.callback(self._log.close)
        self.bar = self._open.enter_context(progress_bar(self.config.steps, " steps", "training",
                                                         initial=self.trainer.step))
        self._began, self._marked = self.trainer.step, 0.0

    def labels_by_class(self) -> dict[str, int]:
        """How many labeled images each class gives."""
        counts = np.bincount(self.labeled.labels, minlength=len(self.labeled.classes))
        return dict(zip(self.labeled.classes, counts.tolist(), strict=True))

    def estimate(self) -> None:
        """After ``ESTIMATE_STEPS`` steps of this start, a line of how long the others will take."""
        done, left = self.trainer.step - self._began, self.config.steps - self.trainer.step
        if done not in (ESTIMATE_STEPS // 2, ESTIMATE_STEPS) or not left:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # the host is ahead; twice in a run it waits
        now = time.perf_counter()
        if done == ESTIMATE_STEPS:
            seconds = (now - self._marked) / (ESTIMATE_STEPS - ESTIMATE_STEPS // 2) * left
            without = "" if self.evaluation is None else ", evaluations not counted"
            self.bar.write(f"about {duration(seconds)} for the other {left:,} steps{without}", file=sys.stderr)
        self._marked = now

    def close(self) -> None:
        """End the loader's threads; close the files."""
        self._open.close()

    def log(self) -> None:
        """A ``train`` line, on the bar, too."""
        line = self.trainer.line()
        self._log.write("train", {**asdict(line), "epoch": line.step / self._steps_per_epoch})
        self.bar.set_postfix_str(f"loss {line.class_loss + (line.proxy_loss or 0):.3f}, "
                                 f"{line.images_per_second:,.0f} images/s", refresh=False)

    def evaluation_due(self) -> bool:
        """Whether this step is one to evaluate after, and was not."""
        step, every = self.trainer.step, self.config.eval_every
        wanted = step == self.config.steps or bool(every and step % every == 0)
        return self.evaluation is not None and wanted and self._evaluated["step"] < step

    def evaluate(self, stop: StopRequest) -> None:
        """An ``eval`` line; nothing where ``stop`` is requested meanwhile."""
        found = error_rates(self.trainer.evaluated(), self.evaluation, self.trainer.autocast, stop)
        if found is not None:
            errors, images = found
            self._evaluated = {"step": self.trainer.step, **errors, "test_images": images}
            self._log.write("eval", self._evaluated)

    def save(self) -> None:
        """A checkpoint."""
        checkpoint.save(self.folder.checkpoint, {
            "trainer": self.trainer.state_dict(), "loader": self.loader.state_dict(),
            "random": checkpoint.random_state(self.device), "evaluation": self._evaluated,
            "run": identity(self.config, self._fingerprints)},
            self.config.keep, None if self._saved_at == self.trainer.step else self._saved_at)
        self._saved_at = self.trainer.step

    def finished(self) -> bool:
        """Whether all steps are done, and the last evaluation."""
        return self.trainer.step == self.config.steps and not self.evaluation_due()

    def where_stopped(self) -> str:
        """Where the run stopped, and how to go on."""
        words = ["python", "-m", "sesemi", "train", "--resume", "--run", str(self.folder.path)]
        if is_own(self.config.network):
            words += ["--network", self.config.network]
        evaluation = ", before its evaluation was done" if self.evaluation_due() else ""
        return (f"stopped at step {self.trainer.step} of {self.config.steps}{evaluation}; go on with: "
                f"{shlex.join(words)}")

    def write_result(self) -> None:
        """result.json."""
        config, trainer = self.config, self.trainer
        errors = {name: value for name, value in self._evaluated.items() if name != "step"}
        self.folder.write(self.folder.result, {
            **errors, "labels": config.labels, "network": config.network, "dataset": config.dataset,
            "method": config.method, "steps": trainer.step, "seconds": trainer.seconds,
            "images_per_second": trainer.images / trainer.seconds,
            "data_wait_fraction": trainer.waited / trainer.seconds, "peak_rss_bytes": peak_rss_bytes(),
            "device": device_name(self.device)})


def dataset_images(sets: dict[str, ShardSet]) -> int:
    """Training images of a dataset, labeled or not."""
    return sum(map(len, proxy_sets(sets)[0].values()))


def proxy_sets(sets: dict[str, ShardSet]) -> list[dict[str, ShardSet]]:
    """The sets by name of each source of the proxy branch: the dataset's own, and extra ones, if any."""
    sources = [{name: sets[name] for name in names if name in sets}
               for names in (("train", "unlabeled"), ("extra", "extra_unlabeled"))]
    return [source for source in sources if source]


def proxy_images(method: str, labeled: Subset, sets: dict[str, ShardSet]) -> list[ImageSource]:
    """What the proxy branch sees, each source an equal part of a step: none where the method has no such branch.

    The dataset's own images, labeled or not, are one source, in which each comes once an epoch (paper, section 3), and
    so are the extra ones.
    """
    match method:
        case "sesemi":
            sources = [list(source.values()) for source in proxy_sets(sets)]
            return [source[0] if len(source) == 1 else Joined(source) for source in sources]
        case "asl":
            return [labeled]
    return []


def evaluation_loader(config: Config, preprocess: Preprocess, test_set: ShardSet) -> EvaluationLoader:
    """The test images of a run, in the same views every time."""
    indices = class_balanced_subset(test_set.labels, config.eval_images or len(test_set), len(test_set.classes))
    return EvaluationLoader(Subset(test_set, indices), preprocess, flip=config.flips, seed=config.seed,
                            device=config.device, noise=config.noise, threads=cpu_cores())
