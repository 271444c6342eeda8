"""What a run promises when its process, its disk or its files fail: checkpoints, locks, signals, one line each."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipelines.common.errors import UsageError
from pipelines.common.files import locked
from pipelines.whitening import Preprocess
from sesemi import checkpoint, cli
from sesemi.trainer import Trainer
from tests.sesemi.runs import (
    CPU,
    arguments,
    files,
    interrupt_at,
    train,
)


def test_whitening_of_another_run_is_refused(prepared, tmp_path, command, monkeypatch):
    runs = {"zca": tmp_path / "zca", "gcn": tmp_path / "gcn"}
    for kind, run in runs.items():
        with monkeypatch.context() as patch:
            interrupt_at(patch, 4)
            train(command, prepared, run, preprocess=kind)
    kept = (runs["zca"] / "whitening.npz").read_bytes()
    (runs["zca"] / "whitening.npz").write_bytes((runs["gcn"] / "whitening.npz").read_bytes())
    for argv in (["train", "--resume", "--run", runs["zca"]], ["evaluate", runs["zca"]]):
        status, _, err = command(cli.main, *argv)
        assert status == 1
        assert "whitening.npz: of another run: gcn of (12, 12, 3) found" in err
    Preprocess("gcn", (16, 16, 3)).save(runs["gcn"] / "whitening.npz")
    status, _, err = command(cli.main, "train", "--resume", "--run", runs["gcn"])
    assert status == 1
    assert "whitening.npz: of another run: gcn of (16, 16, 3) found" in err
    (runs["zca"] / "whitening.npz").write_bytes(kept)
    fitted = Preprocess.load(runs["zca"] / "whitening.npz")
    fitted.fitted_on["fingerprints"] = ["of others"]
    fitted.save(runs["zca"] / "whitening.npz")
    status, _, err = command(cli.main, "train", "--resume", "--run", runs["zca"])
    assert status == 1
    assert "whitening.npz: of another run: zca of (12, 12, 3) found, fitted on other images" in err
    (runs["zca"] / "whitening.npz").write_bytes(kept)
    assert command(cli.main, "train", "--resume", "--run", runs["zca"])[0] == 0


def test_a_second_process_on_a_run_is_refused(prepared, tmp_path, command, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        train(command, prepared, run)
    before = {path: path.read_bytes() for path in run.iterdir()}
    program = "from pathlib import Path; import sys; from pipelines.common.files import locked\n" \
              f"with locked(Path({str(run)!r})): print('have it', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          cwd=Path(__file__).parents[2], text=True) as other:
        assert other.stdout.readline() == "have it\n"
        for argv in (["train", "--resume", "--run", run], arguments(prepared, run)):
            status, _, err = command(cli.main, *argv)
            assert status == 2
            assert f"{run}: another process is at work in it" in err
        assert {path: path.read_bytes() for path in run.iterdir()} == before
        other.stdin.close()
    assert command(cli.main, "train", "--resume", "--run", run)[0] == 0  # the lock went with its process


def test_a_lock_is_one_s_own_and_goes(tmp_path):
    for _ in range(2):
        with locked(tmp_path):
            assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path):
        pass
    assert "no locks" in capsys.readouterr().err


def test_where_folders_cannot_be_locked_a_file_is(tmp_path, monkeypatch):
    """NFS locks only what is open for writing."""
    real = fcntl.flock

    def on_nfs(descriptor, operation):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(descriptor, operation)
    monkeypatch.setattr(fcntl, "flock", on_nfs)
    with locked(tmp_path), pytest.raises(UsageError, match="another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(("what", "step"), [("the loss is", 8), ("the weights are", 9)])
def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(prepared, tmp_path, command, monkeypatch, what,
                                                                      step):
    """Nor are weights saved that are not."""
    run = tmp_path / "run"
    real = Trainer.train_step

    def explode(self, batch):
        real(self, batch)
        if self.step == step and what == "the loss is":
            self._sums["class_loss"] += torch.inf
        elif self.step == step:
            self.task.trunk[0][0].weight.data[0] = torch.nan
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", explode)
        status, _, err = train(command, prepared, run, **{"log-every": 4})
    assert status == 1
    assert f"{what} no longer finite at step {step} (learning rate 0." in err
    assert "try a lower --lr" in err
    assert checkpoint.load(run / "checkpoint.pt", CPU)["trainer"]["step"] == 6
    assert command(cli.main, "train", "--resume", "--run", run)[0] == 0


def test_leftovers_of_a_killed_process_go(prepared, tmp_path, command):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".checkpoint.pt.99.partial").write_bytes(b"half")
    assert train(command, prepared, run)[0] == 0
    assert files(run) == {"config.json", "metrics.jsonl", "checkpoint.pt", "checkpoint-000000009.pt", "whitening.npz",
                          "result.json"}


def test_a_second_signal_exits_at_once(prepared, tmp_path, command, monkeypatch):
    """The first finishes its step and saves; while it does, the second ends the process without."""
    real = Trainer.train_step
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)

    def twice(self, batch):
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        real(self, batch)
    monkeypatch.setattr(Trainer, "train_step", twice)
    try:
        status, _, err = train(command, prepared, tmp_path / "run")
    finally:
        signal.signal(signal.SIGINT, previous)
    assert status == 130
    assert "interrupted" in err
    assert "stopped at step" not in err
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt", CPU)["trainer"]["step"] == 3


@pytest.mark.slow
def test_compile_without_a_compiler_is_one_line(prepared, tmp_path):
    """Before anything is written."""
    words = map(str, [*arguments(prepared, tmp_path / "run"), "--compile"])
    done = subprocess.run([sys.executable, "-m", "sesemi", *words], capture_output=True, text=True, check=False,
                          env={**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)})
    assert done.returncode == 2
    expected = r"^error: --compile: torch.compile does not work here \(.*compiler.*\); install .*\n\Z"
    assert re.search(expected, done.stderr, re.M)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
