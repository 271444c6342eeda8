"""Networks of one's own, by --network module:function: how they train, whose code runs, and what is refused."""

import json
import re
import sys

import pytest

from sesemi import cli
from sesemi.runlog import RunFolder
from sesemi.saved import load_config, load_tasks
from tests.kill.train import difference
from tests.sesemi.runs import arguments, interrupt_at, trained
from tests.sesemi.test_cli import complaint

OWN = '''
import functools

import torch
from torch import nn

def plain(channels):
    """Layers that are not sesemi's."""
    print("IMPORTED")
    net = nn.Sequential(nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    net.out_channels = 8
    return net

def ours(channels):
    from sesemi.networks import build_trunk
    return build_trunk("wrn-10-1", channels)

def nameless(channels):
    return nn.Conv2d(channels, 8, 3).requires_grad_(False) if channels == 0 else nn.Identity()

def flat(channels):
    net = nn.Flatten()
    net.out_channels = 8
    return net

def deep(channels):
    net = nn.Sequential(*(nn.MaxPool2d(2) for _ in range(9)))
    net.out_channels = channels
    return net

def failing(channels):
    raise KeyError("weights")

class Picky(nn.Module):
    out_channels = 8

    def forward(self, x):
        assert x.shape[-1] == 224, "224 pixels"

def picky(channels):
    return Picky()

class Stuck(nn.Conv2d):
    def __deepcopy__(self, memo):
        raise TypeError("cannot be copied")

def stuck(channels):
    return Stuck(channels, 8, 3)

def lazy(channels):
    net = nn.Sequential(nn.Conv3d(channels, 8, 3))
    net.out_channels = 8
    return net

class Waits(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * (2 if x.sum().item() > 0 else 1)

def waits(channels):
    return Waits(channels, 8, 3)

class Aux(nn.Conv2d):
    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)

def aux(channels):
    return Aux(channels, 8, 3)

class Double(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).double()

def double(channels):
    return Double(channels, 8, 3)

def quits(channels):
    raise SystemExit("bye")

def closure(channels):
    net = nn.Sequential(nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8))
    net.forward = lambda x: net[1](net[0](x))
    net.out_channels = 8
    return net

class Rebinds(nn.Conv2d):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean()
        return super().forward(x) - self.mean

def rebinds(channels):
    return Rebinds(channels, 8, 3)

@functools.cache
def cached(channels):
    return plain(channels)

class Remembers(nn.Conv2d):
    def get_extra_state(self):
        return {"what": "ever"}

    def set_extra_state(self, state):
        pass

def remembers(channels):
    return Remembers(channels, 8, 3)
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module ``mynets`` in the current directory."""
    (tmp_path / "mynets.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("def plain(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    sys.modules.pop("mynets", None)


@pytest.mark.parametrize(("function", "passes", "parameters"), [
    ("plain", ", a pass for each branch", 3 * 8 * 9 + 8 + 16), ("ours", ", a pass for each branch", 77_456)])
def test_a_network_of_one_s_own(prepared, own, command, function, passes, parameters):
    status, _, err = command(cli.main, *arguments(prepared, own / "run", network=f"mynets:{function}"))
    assert status == 0, err
    assert f"training mynets:{function} ({parameters:,} parameters), sesemi, 8 labels{passes}" in err
    result = json.loads((own / "run" / "result.json").read_text())
    assert result["network"] == f"mynets:{function}"
    found = command(cli.main, "evaluate", own / "run", "--network", f"mynets:{function}")[1]
    assert f"test error {result['test_error']:.4f} on 20 images" in found


def test_a_run_s_folder_never_runs_code(prepared, own, command, monkeypatch):
    run = own / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        status, _, err = command(cli.main, *arguments(prepared, run, network="mynets:plain"))
    assert status == 130
    assert re.search(r"go on with: python -m sesemi train --resume --run \S+ --network mynets:plain$", err.strip())
    sys.modules.pop("mynets")
    for argv in (["evaluate", run], ["train", "--resume", "--run", run], ["evaluate", run, "--network", "mynets:ours"]):
        line = complaint(command, *argv, status=2)
        assert "--network mynets:plain" in line
        assert "mynets" not in sys.modules
    status, out, _ = command(cli.main, "train", "--resume", "--run", run, "--network", "mynets:plain")
    assert status == 0
    assert "IMPORTED" in out
    sys.modules.pop("mynets")
    status, out, _ = command(cli.main, "train", "--resume", "--run", run)  # finished: nothing needs to be imported
    assert status == 0
    assert "is finished" in out
    assert "mynets" not in sys.modules


@pytest.mark.slow
def test_a_network_that_cannot_be_compiled_is_one_line(prepared, own, command):
    status, _, err = command(cli.main, *arguments(prepared, own / "run", network="mynets:waits"), "--compile")
    assert status == 2
    assert re.search(r"^error: --compile: torch.compile cannot make one graph of mynets:waits \(.*\); leave it out$",
                     err.strip().splitlines()[-1])


@pytest.mark.parametrize(("name", "words"), [
    ("nothere:plain", "the module nothere cannot be imported (ModuleNotFoundError: No module named 'nothere'"),
    ("broken:plain", "the module broken cannot be imported (SyntaxError: "),
    ("mynets:nothere", "no function nothere found in "), ("mynets:nn", "no function nn found in "),
    ("mynets:picky", "images of 12×12×3 do not go through it (AssertionError: 224 pixels; in "),
    ("mynets:stuck", "do not go through it (TypeError: cannot be copied"),
    ("mynets:lazy", "do not go through it (RuntimeError: "),
    ("mynets:nameless", "gave a Identity, expected an nn.Module with out_channels"),
    ("mynets:flat", "(2, 432) for 2 images found in training, expected features of (2, 8, h, w)"),
    ("mynets:aux", "tuple for 2 images found in training, expected features of (2, 8, h, w)"),
    ("mynets:double", "features of torch.float64 found, torch.float32 expected"),
    ("mynets:quits", "quits(3) failed (SystemExit: bye; in "),
    ("mynets:deep", "images of 12×12×3 do not go through it"),
    ("mynets:failing", "failed (KeyError: 'weights'; in "), ("my nets:x", "expected one of"),
    ("mynets:", "expected one of")])
def test_a_network_that_is_none(prepared, own, command, name, words):
    line = complaint(command, *arguments(prepared, own / "run", network=name), status=2)
    assert "--network" in line
    assert words in line
    assert not (own / "run").exists()


def test_networks_that_no_average_can_follow(prepared, own, command):
    """They are refused with --ema, not averaged wrongly; without it they train."""
    for name, words in (("closure", "its copy, which --ema averages in, computes with weights of the original"),
                        ("rebinds", "--network: mean became another tensor while training")):
        flags = {"network": f"mynets:{name}"}
        status, _, err = command(cli.main, *arguments(prepared, own / f"{name}-averaged", ema=0.9, **flags))
        assert status == 2
        assert words in err.strip().splitlines()[-1]
        assert command(cli.main, *arguments(prepared, own / name, **flags))[0] == 0


def test_a_function_that_returns_one_module_twice(prepared, own, command):
    """The average and the last weights are still two."""
    run = own / "run"
    assert command(cli.main, *arguments(prepared, run, network="mynets:cached", ema=0.9))[0] == 0
    config = load_config(RunFolder(run), network="mynets:cached")
    tasks = load_tasks(RunFolder(run), config, 2, 3)
    for name, part in (("test_error", "averaged"), ("test_error_raw", "task")):
        assert difference(tasks[name].state_dict(), trained(run)[part]) == ""
    assert difference(trained(run)["averaged"], trained(run)["task"]) != ""


def test_a_network_with_a_state_that_is_no_tensor(prepared, own, command):
    flags = {"network": "mynets:remembers"}
    assert command(cli.main, *arguments(prepared, own / "one", **flags))[0] == 0
    assert "_extra_state" in str(trained(own / "one")["task"].keys())
    assert command(cli.main, *arguments(prepared, own / "other", init=own / "one", **flags))[0] == 0


def test_a_network_that_was_edited_is_refused_by_its_difference(prepared, own, command):
    run = own / "run"
    assert command(cli.main, *arguments(prepared, run, network="mynets:plain"))[0] == 0
    (own / "mynets.py").write_text(OWN.replace("def plain(", "def former(") + "\nplain = ours\n")
    sys.modules.pop("mynets")
    line = complaint(command, "evaluate", run, "--network", "mynets:plain", status=1)
    assert "checkpoint.pt: does not fit this run" in line
    assert 'Missing key(s) in state_dict: "trunk.' in line


def test_own_networks_decide_their_dropout(prepared, own, command):
    flags = {"network": "mynets:plain", "trunk-dropout": 0.2}
    assert "--trunk-dropout" in complaint(command, *arguments(prepared, own / "run", **flags), status=2)
