"""sesemi train under fire: a short run with a line every step, a checkpoint every two and an evaluation every five."""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from pipelines.common.errors import DataError
from pipelines.shards import ShardSet
from pipelines.whitening import Preprocess
from sesemi import checkpoint
from sesemi.runlog import RunFolder
from tests.conftest import random_images, write_set
from tests.kill.harness import Folder, Outcome, copy_folder
from tests.kill.moments import Event

COUNTS = {"train": 300, "unlabeled": 100, "test": 40}
STEPS = 12
CLOCK = {"seconds", "waited", "since"}  # of a checkpoint's trainer: what depends on the clock
CLOCK_FIELDS = {"images_per_second", "data_wait_fraction"}  # of a line of metrics
EVENTS = "events.out.tfevents."  # TensorBoard's, one file a start, named by the clock


class Train:
    """One scenario, ``train``: nothing there but the shards."""

    kind = "train"
    shares = {"train": 1.0}  # noqa: RUF012 - a constant

    def __init__(self, folder: Path):
        self.work, self._template = folder / "work", folder / "template"
        self._shards, self._run = self.work / "shards", RunFolder(self.work / "run")
        for number, (split, count) in enumerate(COUNTS.items()):
            labels, classes = (None, None) if split == "unlabeled" else (np.arange(count) % 4, tuple("abcd"))
            write_set(self._template / "shards" / "toy" / split, random_images(count, 12, number), labels, classes,
                      split)

    def set_up(self, run: Callable[[Sequence[str]], Outcome]) -> None:
        """Nothing: the shards are written already."""

    def lay(self, scenario: str) -> None:
        """See Subject."""
        shutil.rmtree(self.work, ignore_errors=True)
        copy_folder(self._template, self.work)

    def command(self, scenario: str) -> list[str]:
        """See Subject: the first command again where there is no checkpoint yet, else with ``--resume``."""
        flags = {"network": "wrn-10-1", "dataset": "toy", "labels": 40, "gpu": "none", "steps": STEPS,
                 "batch-unlabeled": 1, "log-every": 1, "checkpoint-every": 2, "eval-every": 5,
                 "keep": 2, "ema": 0.9, "precision": "fp16", "data": self._shards, "run": self._run.path}
        return ["train", *(str(word) for name, value in flags.items() for word in (f"--{name}", value)),
                *["--resume"] * any(self._run.path.glob("checkpoint*.pt"))]

    def finished(self, scenario: str, outcome: Outcome) -> None:
        """See Subject."""
        self._names = self._files()
        self._lines, self._result = self._metrics(), self._run.read(self._run.result)
        self._states = self._checkpoints()

    def before_kill(self) -> None:
        """See Subject."""

    def after_kill(self, scenario: str, events: Sequence[Event]) -> Iterator[str]:
        """(a) What is there is whole: checkpoints, config, result, whitening, complete lines of metrics, shards."""
        run = self._run
        whitenings = [run.whitening, *self._shards.glob("toy/*/*.npz")]
        for path, read in (*((path, checkpoint_state) for path in run.path.glob("checkpoint*.pt")),
                           *((path, run.read) for path in (run.config, run.result)),
                           *((path, Preprocess.load) for path in whitenings),
                           *((path, ShardSet) for path in self._shards.glob("toy/*"))):
            try:
                if path.exists():
                    read(path)
            except DataError as error:
                yield f"(a) {error}"
        if run.metrics.exists():
            for number, line in enumerate(run.metrics.read_text().split("\n")[:-1], start=1):
                try:
                    json.loads(line)["step"]
                except (ValueError, KeyError, TypeError) as error:
                    yield f"(a) {run.metrics.name}, line {number}: {error}"

    def after_rerun(self, scenario: str, outcome: Outcome, killed: Folder) -> Iterator[str]:
        """(b) The next start ends as the run that nobody killed, to the bit; (c) nothing temporary stays."""
        if outcome.status:
            yield f"(b) ends with {outcome.status}: {outcome.text.strip().splitlines()[-1]}"
            return
        lines = self._metrics()
        if lines != self._lines:
            found, expected = ([(line["type"], line["step"]) for line in both] for both in (lines, self._lines))
            yield f"(b) metrics.jsonl: {found} found, {expected} expected" if found != expected else \
                "(b) metrics.jsonl: other numbers than the uninterrupted run's"
        result = self._run.read(self._run.result)
        for name in ("test_error", "test_images", "steps"):
            if result[name] != self._result[name]:
                yield f"(b) result.json: {name} {result[name]}, uninterrupted {self._result[name]}"
        states = self._checkpoints()
        for name, expected in self._states.items():
            if name in states and (path := difference(states[name], expected)):
                yield f"(b) {name}: {path} is not the uninterrupted run's"
        names = self._files()
        if names != self._names:
            differing = ", ".join(sorted({*names} ^ {*self._names}))
            yield f"(c) other files than the uninterrupted run leaves: {differing}"

    def _files(self) -> list[str]:
        """All names, without the processes' numbers that a temporary file's has."""
        return sorted(re.sub(r"\.\d+\.partial", ".PID.partial", name) for name in Folder(self.work).names
                      if EVENTS not in name)

    def _metrics(self) -> list[dict]:
        lines = [json.loads(line) for line in self._run.metrics.read_text().splitlines()]
        return [{name: value for name, value in line.items() if name not in CLOCK_FIELDS} for line in lines]

    def _checkpoints(self) -> dict[str, dict]:
        return {path.name: checkpoint_state(path) for path in self._run.path.glob("checkpoint*.pt")}


def checkpoint_state(path: Path) -> dict:
    """A checkpoint without what depends on the clock."""
    state = checkpoint.load(path, torch.device("cpu"))
    state["trainer"] = {name: value for name, value in state["trainer"].items() if name not in CLOCK}
    return state


def difference(found: object, expected: object, path: str = "") -> str:
    """Where two nested containers of tensors and numbers differ first, to the bit; empty where they do not."""
    if isinstance(expected, torch.Tensor):
        return "" if isinstance(found, torch.Tensor) and torch.equal(found, expected) else path or "it"
    if isinstance(expected, dict):
        if not isinstance(found, dict) or list(found) != list(expected):
            return path or "it"
        pairs = [(name, found[name], expected[name]) for name in expected]
    elif isinstance(expected, (list, tuple)):
        if not isinstance(found, (list, tuple)) or len(found) != len(expected):
            return path or "it"
        pairs = [(number, *both) for number, both in enumerate(zip(found, expected, strict=True))]
    else:
        return "" if found == expected else path or "it"
    return next((where for name, *both in pairs if (where := difference(*both, f"{path}.{name}".strip(".")))), "")
