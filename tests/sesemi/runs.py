"""Short runs by the command line, how they are interrupted, and what two of them must share."""

import json
import os
import signal
from pathlib import Path

import torch

from pipelines.loader import SemiSupervisedLoader
from sesemi import checkpoint, cli
from sesemi.task import SesemiTask

CPU = torch.device("cpu")


class Killed(BaseException):
    """In the place of a signal that nobody can catch."""


def arguments(prepared, run, **flags) -> list[str]:
    """Flags of a short run; a flag set to None is left out."""
    flags = {"network": "wrn-10-1", "dataset": "toy", "labels": 8, "gpu": "none", "steps": 6, "batch-unlabeled": 2,
             "log-every": 2, "data": prepared, "run": run, **flags}
    return ["train", *(str(word) for name, value in flags.items() if value is not None
                       for word in (f"--{name}", value))]


def metrics(run) -> list[dict]:
    """The lines of metrics.jsonl, without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in {"images_per_second", "data_wait_fraction"}} for line in lines]


def interrupt_at(monkeypatch, step: int, number=signal.SIGINT) -> list[int]:
    """Have this process receive a signal while it waits for its batch of that step; returns a list of steps taken."""
    taken = []
    real = SemiSupervisedLoader.__next__

    def next_batch(self):
        taken.append(len(taken) + 1)
        if len(taken) == step:
            os.kill(os.getpid(), number)
        return real(self)
    monkeypatch.setattr(SemiSupervisedLoader, "__next__", next_batch)
    return taken


def interrupt_in_pass(monkeypatch, forward: int, number=signal.SIGINT) -> list[int]:
    """As ``interrupt_at``, in a forward pass of an evaluation, counted from 1; there are two in each."""
    taken, real = [], SesemiTask.predict

    def predict(self, images):
        taken.append(len(taken) + 1)
        if len(taken) == forward:
            os.kill(os.getpid(), number)
        return real(self, images)
    monkeypatch.setattr("sesemi.evaluation.FORWARD_VALUES", {"cpu": 20 * 4 * 12 * 12 * 3})  # half of all views
    monkeypatch.setattr(SesemiTask, "predict", predict)
    return taken


def files(run: Path) -> set[str]:
    """Names in a run's folder, without TensorBoard's."""
    return {path.name for path in run.iterdir() if "tfevents" not in path.name}


def train(command, prepared, run, **flags) -> tuple[int, str, str]:
    """A run of 12 steps with a checkpoint every three."""
    return command(cli.main, *arguments(prepared, run, **{"steps": 12, "checkpoint-every": 3, **flags}))


def trained(run: Path) -> dict:
    """What a run's newest checkpoint has of its trainer."""
    return checkpoint.load(run / "checkpoint.pt", CPU)["trainer"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return trained(run)["task"]


def assert_same_run(part: Path, whole: Path) -> None:
    assert all(torch.equal(weights(part)[name], value) for name, value in weights(whole).items())
    assert metrics(part) == metrics(whole)
    results = [json.loads((run / "result.json").read_text())["test_error"] for run in (part, whole)]
    assert results[0] == results[1]
