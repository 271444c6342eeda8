"""What a run promises when its process, its disk or its files fail: checkpoints, locks, signals, one line each."""

import errno
import fcntl
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipelines.common.errors import UsageError
from pipelines.common.files import locked
from sesemi import checkpoint, cli
from sesemi.runlog import MetricsLog, RunFolder
from sesemi.trainer import Trainer
from tests.sesemi.test_experiment import arguments, interrupt_at, metrics

CPU = torch.device("cpu")


def files(run: Path) -> set[str]:
    """Names in a run's folder, without TensorBoard's."""
    return {path.name for path in run.iterdir() if "tfevents" not in path.name}


def train(command, prepared, run, **flags) -> tuple[int, str, str]:
    """A run of 12 steps with a checkpoint every three."""
    return command(cli.main, *arguments(prepared, run, **{"steps": 12, "checkpoint-every": 3, **flags}))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(run / "checkpoint.pt", CPU)["trainer"]["task"]


def assert_same_run(part: Path, whole: Path) -> None:
    assert all(torch.equal(weights(part)[name], value) for name, value in weights(whole).items())
    assert metrics(part) == metrics(whole)
    results = [json.loads((run / "result.json").read_text())["test_error"] for run in (part, whole)]
    assert results[0] == results[1]


@pytest.mark.parametrize(("keep", "names"), [
    (1, set()), (2, {"checkpoint-000000009.pt"}), (3, {"checkpoint-000000006.pt", "checkpoint-000000009.pt"})])
def test_so_many_checkpoints_are_kept(prepared, tmp_path, command, keep, names):
    run = tmp_path / "run"
    assert train(command, prepared, run, keep=keep)[0] == 0
    assert {name for name in files(run) if name.startswith("checkpoint-")} == names
    for name in names:
        assert checkpoint.load(run / name, CPU)["trainer"]["step"] == int(name[11:20])
    assert checkpoint.load(run / "checkpoint.pt", CPU)["trainer"]["step"] == 12


def test_without_links_the_checkpoint_before_is_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *names: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    path = tmp_path / "checkpoint.pt"
    for step in range(3):
        checkpoint.save(path, {"step": step}, keep=3, before=step - 1 if step else None)
    assert [checkpoint.load(one, CPU)["step"] for one in (path, *checkpoint.kept(path))] == [2, 1, 0]
    assert not list(tmp_path.glob(".*"))


def damaged(content: bytes, how: str) -> bytes:
    """A checkpoint with one wrong bit in its weights, or cut short, or empty."""
    if how == "bit":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            largest = max(archive.infolist(), key=lambda member: member.file_size)
            middle = content.index(archive.read(largest)) + largest.file_size // 2
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:]
    return content[:len(content) * 2 // 3] if how == "cut" else b""


@pytest.mark.parametrize("how", ["bit", "cut", "empty"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_goes_on(prepared, tmp_path, command, monkeypatch, how):
    """A wrong bit in the weights is no error to PyTorch, whose reader does not look at the checksums."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert train(command, prepared, whole, keep=3)[0] == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8)
        assert train(command, prepared, part, keep=3)[0] == 130
    newest = part / "checkpoint.pt"
    newest.write_bytes(damaged(newest.read_bytes(), how))
    status, _, err = command(cli.main, "evaluate", part)
    assert status == 1
    assert f"{newest}: not a readable checkpoint" in err
    status, _, err = command(cli.main, "train", "--resume", "--run", part)
    assert status == 0
    assert f"{newest}: not a readable checkpoint" in err
    assert "going on from checkpoint-000000006.pt" in err
    assert_same_run(part, whole)
    for path in part.glob("checkpoint*.pt"):  # the damaged one has not taken the place of one before
        checkpoint.load(path, CPU)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), MemoryError(), OSError(errno.EIO, "bad sector")])
def test_what_is_not_the_checkpoint_s_fault_loses_none(prepared, tmp_path, command, monkeypatch, error):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8)
        train(command, prepared, run)
    before = {path.name: path.read_bytes() for path in run.glob("checkpoint*")}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: (_ for _ in ()).throw(error))
        with suppress(torch.OutOfMemoryError):
            assert command(cli.main, "train", "--resume", "--run", run)[0] == 1
    assert {path.name: path.read_bytes() for path in run.glob("checkpoint*")} == before


def test_an_earlier_checkpoint_of_another_run_takes_nobody_s_place(prepared, tmp_path, command, monkeypatch):
    for name, flags in (("one", {}), ("other", {"lr": 0.1})):
        with monkeypatch.context() as patch:
            interrupt_at(patch, 8)
            train(command, prepared, tmp_path / name, **flags)
    one, (kept,) = tmp_path / "one", checkpoint.kept(tmp_path / "one" / "checkpoint.pt")
    kept.write_bytes((tmp_path / "other" / kept.name).read_bytes())
    (one / "checkpoint.pt").write_bytes(b"damaged")
    status, _, err = command(cli.main, "train", "--resume", "--run", one)
    assert status == 1
    assert f"{kept}: of another run: lr 0.1 found, 0.05 expected" in err
    assert (one / "checkpoint.pt").read_bytes() == b"damaged"


def test_checkpoints_of_steps_that_were_not_gone_on_from_go(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for step in (14, 20):
        checkpoint.save(path.with_name(f"checkpoint-{step:09d}.pt"), {"step": step})
    checkpoint.save(path, {"step": 18}, keep=3)
    checkpoint.save(path, {"step": 19}, keep=3, before=18)
    assert [one.name for one in checkpoint.kept(path)] == ["checkpoint-000000018.pt", "checkpoint-000000014.pt"]


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
        assert "whitening.npz: of another run: gcn found" in err
    (runs["zca"] / "whitening.npz").write_bytes(kept)
    assert command(cli.main, "train", "--resume", "--run", runs["zca"])[0] == 0


def test_where_every_checkpoint_is_damaged_it_says_so(prepared, tmp_path, command, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8)
        train(command, prepared, run)
    for path in run.glob("checkpoint*.pt"):
        path.write_bytes(b"junk")
    status, _, err = command(cli.main, "train", "--resume", "--run", run)
    assert status == 1
    assert f"{run / 'checkpoint.pt'}: not a readable checkpoint" in err
    status, _, err = train(command, prepared, run)  # nor is it overwritten
    assert status == 2
    assert "holds an unfinished run" in err


@pytest.mark.parametrize(("flags", "difference"), [({"lr": 0.1}, "lr 0.1 found, 0.05 expected"),
                                                   ({"labels": 4}, "labels 4 found, 8 expected")])
def test_a_checkpoint_of_another_run_is_refused_by_its_difference(prepared, tmp_path, command, monkeypatch, flags,
                                                                  difference):
    """One with other settings, which would fit, copied over this run's."""
    for run, others in (("one", {}), ("other", flags)):
        with monkeypatch.context() as patch:
            interrupt_at(patch, 4)
            train(command, prepared, tmp_path / run, **others)
    os.replace(tmp_path / "other" / "checkpoint.pt", tmp_path / "one" / "checkpoint.pt")
    for argv in (["train", "--resume", "--run", tmp_path / "one"], ["evaluate", tmp_path / "one"]):
        status, _, err = command(cli.main, *argv)
        assert status == 1
        assert difference in err
        assert "checkpoint.pt: of another run" in err


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


def limited_child(argv: list, file_bytes: int | None = None, **options) -> subprocess.CompletedProcess:
    """python -m sesemi in a process whose files can grow to so many bytes: what a full disk does to a write."""
    def limit():
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    return subprocess.run([sys.executable, "-m", "sesemi", *map(str, argv)], cwd=Path(__file__).parents[2],
                          capture_output=True, text=True, preexec_fn=limit, **options)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_a_full_disk_leaves_the_checkpoint_before(prepared, tmp_path, command, monkeypatch, share):
    """Wherever in the file the disk is full: PyTorch raises an error of its own over that of the last write."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(command, prepared, whole)[0] == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        train(command, prepared, run)
    before = (run / "checkpoint.pt").read_bytes()
    done = limited_child(["train", "--resume", "--run", run], file_bytes=int(len(before) * share))
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert len(lines) == 1
    assert str(run / "checkpoint.pt") in lines[0]
    assert "Traceback" not in done.stderr
    assert (run / "checkpoint.pt").read_bytes() == before
    assert not [name for name in files(run) if name.endswith(".partial")]
    assert command(cli.main, "train", "--resume", "--run", run)[0] == 0  # with space again
    assert_same_run(run, whole)


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(prepared, tmp_path, command, monkeypatch):
    run = tmp_path / "run"
    real = Trainer.train_step

    def explode(self, batch):
        real(self, batch)
        if self.step == 8:
            self._sums["class_loss"] += torch.inf
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", explode)
        status, _, err = train(command, prepared, run, **{"log-every": 4})
    assert status == 1
    assert "the loss is no longer finite at step 8 (learning rate 0." in err
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


def test_lines_that_will_be_written_again_go(tmp_path):
    """After the checkpoint of step 6, which knows of the evaluation of step 4: a later one was not saved with it."""
    folder = RunFolder(tmp_path)
    lines = [{"type": "train", "step": 4}, {"type": "eval", "step": 4}, {"type": "train", "step": 6},
             {"type": "eval", "step": 6}, {"type": "train", "step": 8}]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"type": "train", "st')
    with open(folder.metrics, "ab") as file:
        file.write(b"\xff\n")  # what a power cut may leave
    MetricsLog(folder, 6, 4).close()
    assert [json.loads(line) for line in folder.metrics.read_text().splitlines()] == lines[:3]


def test_a_checkpoint_of_another_version_is_refused(prepared, tmp_path, command):
    """By both commands, saying what to do; a checkpoint without a version is of the first."""
    run = tmp_path / "run"
    assert train(command, prepared, run)[0] == 0
    state = checkpoint.load(run / "checkpoint.pt", CPU)
    (run / "result.json").unlink()
    for path in run.glob("checkpoint*.pt"):
        torch.save({name: value for name, value in state.items() if name != "version"}, path)
    for words in (("train", "--resume", "--run", run), ("evaluate", run)):
        status, _, err = command(cli.main, *words)
        assert status == 1
        assert re.search(r"error: .*checkpoint\.pt: checkpoint of version 1 found, 4 expected: .*start a new --run$",
                         err.strip().splitlines()[-1])


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "no space")])
def test_what_ends_a_checkpoint_s_writing_is_what_is_raised(tmp_path, monkeypatch, error):
    """Not PyTorch's own error over it; the checkpoint before stays."""
    path, real, writes = tmp_path / "checkpoint.pt", checkpoint._Watched.write, []
    checkpoint.save(path, {"weights": torch.zeros(9999)})
    before = path.read_bytes()

    def write(self, data):
        writes.append(len(data))
        if len(writes) == 4:
            monkeypatch.setattr(self, "_file", type("Full", (), {"write": staticmethod(fail)}))
        return real(self, data)

    def fail(data):
        raise error
    monkeypatch.setattr(checkpoint._Watched, "write", write)
    with pytest.raises(error if isinstance(error, type) else OSError):
        checkpoint.save(path, {"weights": torch.ones(9999)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


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


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.out.tfevents.*"])
def test_a_full_disk_is_named_by_the_file_that_met_it(tmp_path, monkeypatch, name):
    """Metrics and TensorBoard's events, on a disk that takes nothing any more."""
    log = MetricsLog(RunFolder(tmp_path), 0, 0)
    owner = log if name == "metrics.jsonl" else log._events
    path, = tmp_path.glob(name)
    with open("/dev/full", "wb", buffering=0) as full:
        os.dup2(full.fileno(), owner._file.fileno())
    for act in (lambda: log.write("train", {"step": 1, "loss": 2.0}), log.close):
        with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
            act()


def test_without_tensorboard_there_is_metrics_jsonl(prepared, tmp_path, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    status, _, err = command(cli.main, *arguments(prepared, tmp_path / "run"))
    assert status == 0
    assert f"TensorBoard is not installed; {tmp_path / 'run'}/metrics.jsonl has the same numbers" in err
    assert not list((tmp_path / "run").glob("events*"))
    assert len(metrics(tmp_path / "run")) == 4


def test_tensorboard_reads_the_events_of_a_resumed_run(prepared, tmp_path, command, monkeypatch):
    """The numbers of metrics.jsonl, each step once: what the first start wrote after its checkpoint is not shown."""
    class Killed(BaseException):
        pass

    def killed(self, batch):
        raise Killed
    run, real = tmp_path / "run", Trainer.train_step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", lambda self, batch: (killed if self.step == 8 else real)(self, batch))
        with pytest.raises(Killed):
            train(command, prepared, run, **{"log-every": 1, "eval-every": 5})
    assert command(cli.main, "train", "--resume", "--run", run)[0] == 0
    events = EventAccumulator(str(run))
    events.Reload()
    for kind, name in (("train", "class_loss"), ("train", "proxy_loss"), ("eval", "test_error")):
        expected = [(line["step"], line[name]) for line in metrics(run) if line["type"] == kind]
        found = [(event.step, event.value) for event in events.Scalars(f"{kind}/{name}")]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-6)
