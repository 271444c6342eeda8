"""Runs that are interrupted or killed, at any moment, and resumed: they end as the uninterrupted run."""

import os
import signal
import threading

import pytest
import torch

from pipelines.loader import SemiSupervisedLoader
from pipelines.windows import Windows
from sesemi import checkpoint, cli, experiment
from sesemi.config import Config
from sesemi.run import Run
from sesemi.task import SesemiTask
from tests.kill.train import difference
from tests.sesemi.runs import Killed, arguments, interrupt_at, interrupt_in_pass, metrics


@pytest.mark.parametrize(("number", "status", "more"), [
    (signal.SIGINT, 130, {}), (signal.SIGTERM, 143, {"ema": 0.9, "precision": "fp16", "batch-unlabeled": 1})])
def test_interrupted_at_20_and_resumed_is_the_uninterrupted_run(prepared, tmp_path, command, monkeypatch, number,
                                                                status, more):
    """At a step that is followed by an evaluation, which the resumed run makes."""
    before = signal.getsignal(number)
    flags = {"steps": 40, "log-every": 7, "eval-every": 10, **more}
    assert command(cli.main, *arguments(prepared, tmp_path / "whole", **flags))[0] == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 20, number)
        stopped, _, err = command(cli.main, *arguments(prepared, tmp_path / "part", **flags))
    assert stopped == status
    assert (f"stopped at step 20 of 40, before its evaluation was done; go on with: python -m sesemi train --resume "
            f"--run {tmp_path / 'part'}\n") in err
    assert metrics(tmp_path / "part")[-1]["step"] == 14
    assert not (tmp_path / "part" / "result.json").exists()
    assert signal.getsignal(number) == before
    with monkeypatch.context() as patch:
        taken = interrupt_at(patch, 0)
        assert command(cli.main, "train", "--resume", "--run", tmp_path / "part")[0] == 0
    assert len(taken) == 20
    whole, part = (checkpoint.load(tmp_path / name / "checkpoint.pt", torch.device("cpu"))
                   for name in ("whole", "part"))
    assert part["trainer"]["averaged"].keys() == part["trainer"]["task"].keys() if more else True
    states = ({name: one["trainer"][name] for name in ("task", "averaged", "optimizer", "scaler", "sums")}
              for one in (part, whole))
    assert difference(*states) == ""
    assert part["loader"] == whole["loader"]
    assert metrics(tmp_path / "part") == metrics(tmp_path / "whole")
    assert len(metrics(tmp_path / "part")) == 6 + 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_an_evaluation_between_epochs_and_resumed(prepared, tmp_path, command, monkeypatch, number):
    """In the first of two forward passes of its second evaluation: the other is not made before the process ends."""
    run, flags = tmp_path / "run", {"steps": 12, "eval-every": 4, "log-every": 3, "checkpoint-every": 5}
    with monkeypatch.context() as patch:
        passes = interrupt_in_pass(patch, 3, number)
        stopped, _, err = command(cli.main, *arguments(prepared, run, **flags))
    assert stopped == 128 + number
    assert "stopped at step 8 of 12, before its evaluation was done" in err
    assert passes == [1, 2, 3]
    assert command(cli.main, "train", "--resume", "--run", run)[0] == 0
    assert command(cli.main, *arguments(prepared, tmp_path / "whole", **flags))[0] == 0
    assert metrics(run) == metrics(tmp_path / "whole")
    assert [line["step"] for line in metrics(run) if line["type"] == "eval"] == [4, 8, 12]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_in_the_evaluation_and_resumed(prepared, tmp_path, command, monkeypatch, number, status):
    before = signal.getsignal(number)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_in_pass(patch, 1, number)
        stopped, _, err = command(cli.main, *arguments(prepared, run))
    assert stopped == status
    assert "stopped at step 6 of 6, before its evaluation was done; go on with: " in err
    assert f"python -m sesemi train --resume --run {run}" in err
    assert signal.getsignal(number) == before
    assert not (run / "result.json").exists()
    with monkeypatch.context() as patch:
        taken = interrupt_at(patch, 0)
        assert command(cli.main, "train", "--resume", "--run", run)[0] == 0
    assert taken == []
    assert command(cli.main, *arguments(prepared, tmp_path / "whole"))[0] == 0
    assert metrics(run) == metrics(tmp_path / "whole")


def test_killed_in_the_evaluation_at_the_end_no_step_is_lost(prepared, tmp_path, command, monkeypatch):
    """Though no checkpoint was due: there is one before that evaluation."""
    def predict(self, images):
        raise Killed
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(SesemiTask, "predict", predict)
        with pytest.raises(Killed):
            command(cli.main, *arguments(prepared, run))
    with monkeypatch.context() as patch:
        taken = interrupt_at(patch, 0)
        assert command(cli.main, "train", "--resume", "--run", run)[0] == 0
    assert taken == []


def test_a_signal_beside_the_last_checkpoint_is_not_lost(prepared, tmp_path, command, monkeypatch):
    run, real = tmp_path / "run", Run.write_result
    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_result", lambda run: (os.kill(os.getpid(), signal.SIGTERM), real(run))[1])
        status, _, err = command(cli.main, *arguments(prepared, run))
    assert status == 143
    assert err.endswith(f"stopped, but {run} is finished: its result is in {run / 'result.json'}\n")
    assert (run / "result.json").exists()


def test_a_signal_in_the_last_step_is_not_lost(prepared, tmp_path, command, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
        status, _, err = command(cli.main, *arguments(prepared, tmp_path / "run"))
    assert status == 130
    assert "stopped at step 6 of 6, before its evaluation was done; go on with: " in err
    assert command(cli.main, "train", "--resume", "--run", tmp_path / "run")[0] == 0


def test_killed_after_a_checkpoint_and_resumed(prepared, tmp_path, command, monkeypatch):
    """Lines written after the checkpoint are written once, not twice; the streams start at the window they need."""
    flags = {"steps": 20, "log-every": 3, "checkpoint-every": 8, "eval-every": 4}
    assert command(cli.main, *arguments(prepared, tmp_path / "whole", **flags))[0] == 0

    real = SemiSupervisedLoader.__next__
    steps = []

    def dies_at_14(self):
        steps.append(1)
        if len(steps) == 14:
            raise Killed
        return real(self)
    with monkeypatch.context() as patch:
        patch.setattr(SemiSupervisedLoader, "__next__", dies_at_14)
        with pytest.raises(Killed):
            command(cli.main, *arguments(prepared, tmp_path / "part", **flags))
    assert command(cli.main, "train", "--resume", "--run", tmp_path / "part")[0] == 0
    assert metrics(tmp_path / "part") == metrics(tmp_path / "whole")


def test_resumed_run_loads_no_window_it_does_not_need(prepared, tmp_path, command, monkeypatch):
    """60 images in windows of 16: two images a step, so that step 20 is in the third of four windows."""
    monkeypatch.setattr("pipelines.stream.SUPERBATCH_STEPS", 16)
    monkeypatch.setattr("pipelines.stream.default_window_images", lambda shape, device: 16)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 20)
        command(cli.main, *arguments(prepared, tmp_path / "run", steps=26))
    loaded, real = [], Windows._load

    def load(self, number):
        loaded.append((self._order, number))
        return real(self, number)
    monkeypatch.setattr(Windows, "_load", load)
    assert command(cli.main, "train", "--resume", "--run", tmp_path / "run")[0] == 0
    unlabeled = [number for order, number in loaded if order.num_images == 60]
    assert unlabeled[0] == 2
    assert not {0, 1} & set(unlabeled)


def test_in_a_thread_signals_are_left_alone(prepared, tmp_path):
    failures = []

    def work():
        try:
            experiment.train(Config("toy", "wrn-10-1", labels=8, steps=1, batch_unlabeled=2, data=str(prepared),
                                    run=str(tmp_path / "run"), device="cpu"))
        except BaseException as error:
            failures.append(error)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []
