"""Metrics, as lines of JSON and for TensorBoard: across a resumption, on a full disk, without TensorBoard."""

import json
import os
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sesemi import cli
from sesemi.runlog import MetricsLog, RunFolder
from sesemi.trainer import Trainer
from tests.sesemi.runs import Killed, arguments, metrics, train


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


def test_lines_say_the_epoch(prepared, tmp_path, command):
    """Of 60 images, two a step."""
    assert command(cli.main, *arguments(prepared, tmp_path / "run"))[0] == 0
    found = [(line["step"], line["epoch"]) for line in metrics(tmp_path / "run") if line["type"] == "train"]
    assert found == [(2, 2 / 30), (4, 4 / 30), (6, 6 / 30)]


@pytest.mark.parametrize("killed_at", [4, 8])
def test_tensorboard_reads_the_events_of_a_resumed_run(prepared, tmp_path, command, monkeypatch, killed_at):
    """The numbers of metrics.jsonl, each step once: what the first start wrote after its checkpoint is not shown.
    Also where it wrote none yet, and the run is started again."""
    def killed(self, batch):
        raise Killed
    run, real = tmp_path / "run", Trainer.train_step
    flags = {"log-every": 1, "eval-every": 5, "checkpoint-every": 6}
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step",
                      lambda self, batch: (killed if self.step == killed_at else real)(self, batch))
        with pytest.raises(Killed):
            train(command, prepared, run, **flags)
    assert (train(command, prepared, run, **flags) if killed_at == 4 else
            command(cli.main, "train", "--resume", "--run", run))[0] == 0
    events = EventAccumulator(str(run))
    events.Reload()
    for kind, name in (("train", "class_loss"), ("train", "proxy_loss"), ("eval", "test_error")):
        expected = [(line["step"], line[name]) for line in metrics(run) if line["type"] == kind]
        found = [(event.step, event.value) for event in events.Scalars(f"{kind}/{name}")]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-6)
