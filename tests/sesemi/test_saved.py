"""What a run may begin with, and whose code it may run: --init, --ema and --network module:function, as users do it."""

import json
import re
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipelines.common.errors import UsageError
from sesemi import checkpoint, cli
from sesemi.networks import build_trunk
from sesemi.runlog import RunFolder
from sesemi.saved import load_config, load_tasks, load_trunk, read_trunk
from sesemi.task import SesemiTask
from tests.kill.train import difference
from tests.sesemi.runs import arguments, interrupt_at, metrics
from tests.sesemi.test_cli import complaint

CPU = torch.device("cpu")
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


def trained(path: Path) -> dict:
    """What a run's newest checkpoint has of its trainer."""
    return checkpoint.load(path / "checkpoint.pt", CPU)["trainer"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module ``mynets`` in the current directory."""
    (tmp_path / "mynets.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("def plain(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    sys.modules.pop("mynets", None)


def test_a_run_begins_with_another_s_trunk(prepared, tmp_path, command, monkeypatch):
    """After a step of a learning rate near zero it still has it; heads are its own. Also after a resumption."""
    assert command(cli.main, *arguments(prepared, tmp_path / "one"))[0] == 0
    flags = {"init": tmp_path / "one", "lr": 1e-30, "seed": 5, "preprocess": "gcn"}
    status, _, err = command(cli.main, *arguments(prepared, tmp_path / "two", **flags))
    assert status == 0
    assert f"trunk from {tmp_path / 'one'}" in err
    one, two = trained(tmp_path / "one")["task"], trained(tmp_path / "two")["task"]
    weights = [name for name, _ in build_trunk("wrn-10-1").named_parameters()]
    assert all(torch.equal(two[f"trunk.{name}"], one[f"trunk.{name}"]) for name in weights)
    assert not torch.equal(two["class_head.weight"], one["class_head.weight"])
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert command(cli.main, *arguments(prepared, tmp_path / "part", **flags))[0] == 130
    (tmp_path / "one").rename(tmp_path / "elsewhere")  # not needed any more
    assert command(cli.main, "train", "--resume", "--run", tmp_path / "part")[0] == 0
    assert metrics(tmp_path / "part") == metrics(tmp_path / "two")


def test_the_average_is_what_another_run_begins_with_and_what_is_evaluated(prepared, tmp_path, command):
    one = tmp_path / "one"
    assert command(cli.main, *arguments(prepared, one, **{"ema": 0.5, "eval-every": 3, "lr": 0.5}))[0] == 0
    state = trained(one)
    trunk = build_trunk("wrn-10-1")
    load_trunk(trunk, read_trunk(one), "one")
    assert torch.equal(trunk[0][0].weight, state["averaged"]["trunk.0.0.weight"])
    assert not torch.equal(state["averaged"]["trunk.0.0.weight"], state["task"]["trunk.0.0.weight"])
    result = json.loads((one / "result.json").read_text())
    lines = [line for line in metrics(one) if line["type"] == "eval"]
    assert [set(line) for line in lines] == [{"type", "step", "test_error", "test_error_raw", "test_images"}] * 2
    assert (result["test_error"], result["test_error_raw"]) == (lines[-1]["test_error"], lines[-1]["test_error_raw"])
    _, out, _ = command(cli.main, "evaluate", one)
    assert out == (f"test error {result['test_error']:.4f} on 20 images; {result['test_error_raw']:.4f} by the weights "
                   f"of the last step, which are not averaged\n")


def test_a_trunk_from_safetensors(prepared, tmp_path, command):
    """Of a whole task, or of a trunk alone; in another precision, too."""
    trunk = build_trunk("wrn-10-1")
    save_file(trunk.state_dict(), tmp_path / "trunk.safetensors")
    save_file({**{f"trunk.{name}": value.half() for name, value in trunk.state_dict().items()},
               "class_head.weight": torch.zeros(7, 64), "proxy_head.bias": torch.zeros(6)},
              tmp_path / "all.safetensors")
    for name in ("trunk", "all"):
        other = build_trunk("wrn-10-1")
        load_trunk(other, read_trunk(tmp_path / f"{name}.safetensors"), name)
        for one, two in zip(other.state_dict().values(), trunk.state_dict().values(), strict=True):
            assert one.dtype == torch.float32
            assert torch.allclose(one, two, atol=0 if name == "trunk" else 1e-3)
    run = tmp_path / "run"
    assert command(cli.main, *arguments(prepared, run, init=tmp_path / "trunk.safetensors"))[0] == 0
    assert json.loads((run / "config.json").read_text())["init"] == str(tmp_path / "trunk.safetensors")


def test_differences_are_listed():
    tensors = build_trunk("wrn-10-1").state_dict()
    tensors["0.0.weight"] = torch.zeros(16, 4, 3, 3)
    del tensors["0.1.bias"]
    tensors |= {f"fc.{number}": torch.zeros(1) for number in range(10)}
    with pytest.raises(UsageError) as error:
        load_trunk(build_trunk("wrn-10-1"), tensors, "x.safetensors")
    assert str(error.value) == (
        "--init: x.safetensors does not fit the network: missing: 0.1.bias; unexpected: fc.0, fc.1, fc.2, fc.3, fc.4, "
        "fc.5, fc.6, fc.7, and 2 more; of other shapes: 0.0.weight (16, 4, 3, 3) found, (16, 3, 3, 3) expected")


@pytest.mark.parametrize(("value", "found"), [
    (torch.zeros(16, 3, 3, 3, dtype=torch.int8), "integers"),
    (torch.zeros(16, 3, 3, 3, dtype=torch.complex64), "complex numbers"),
    (torch.full((16, 3, 3, 3), torch.nan), "NaN or infinity"),
    (torch.full((16, 3, 3, 3), torch.nan).to(torch.float8_e4m3fn), "NaN or infinity"),
    (torch.full((16, 3, 3, 3), 1e40, dtype=torch.float64), "NaN or infinity")])
def test_numbers_that_are_no_weights_are_refused(value, found):
    tensors = build_trunk("wrn-10-1").state_dict() | {"0.0.weight": value}
    with pytest.raises(UsageError, match=f"of other numbers: 0.0.weight {found} found, floating point expected$"):
        load_trunk(build_trunk("wrn-10-1"), tensors, "x")


def test_a_trunk_with_a_trunk_in_it():
    """By its own names, or by a whole task's."""
    inner = nn.Sequential(OrderedDict(trunk=nn.Conv2d(3, 4, 3)))
    for prefix in ("", "trunk."):
        other = nn.Sequential(OrderedDict(trunk=nn.Conv2d(3, 4, 3)))
        load_trunk(other, {f"{prefix}{name}": value for name, value in inner.state_dict().items()}, "x")
        assert torch.equal(other.trunk.weight, inner.trunk.weight)


def test_what_cannot_be_begun_with(prepared, tmp_path, command):
    run = tmp_path / "run"
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 99)
    (tmp_path / "empty").mkdir()
    assert command(cli.main, *arguments(prepared, tmp_path / "one"))[0] == 0
    for init, status, words in (("junk.safetensors", 1, "not a readable .safetensors"),
                                ("empty", 1, "no checkpoint here"), ("nothing", 1, "expected the folder of a run"),
                                ("nothing.safetensors", 1, "nothing.safetensors")):
        assert words in complaint(command, *arguments(prepared, run, init=tmp_path / init), status=status)
    state = checkpoint.load(tmp_path / "one" / "checkpoint.pt", CPU)
    (tmp_path / "odd").mkdir()
    for task in ({"trunk.0.0.weight": 3}, {1: torch.zeros(3)}):
        state["trainer"]["task"] = task
        checkpoint.save(tmp_path / "odd" / "checkpoint.pt", state)
        line = complaint(command, *arguments(prepared, run, init=tmp_path / "odd"), status=1)
        assert f"--init: {tmp_path / 'odd'} holds no weights by name" in line
    line = complaint(command, *arguments(prepared, run, init=tmp_path / "one", network="wrn-10-2"), status=2)
    assert "does not fit the network: of other shapes: " in line
    assert not run.exists()


def test_without_safetensors_it_says_what_to_install(prepared, tmp_path, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    line = complaint(command, *arguments(prepared, tmp_path / "run", init="x.safetensors"), status=2)
    assert "pip install safetensors" in line


def test_a_finished_run_that_is_asked_for_more_names_init(prepared, tmp_path, command):
    run = tmp_path / "run"
    assert command(cli.main, *arguments(prepared, run))[0] == 0
    assert f"--init {run}" in complaint(command, "train", "--resume", "--run", run, "--steps", 9, status=2)
    assert f"--init {run}" in complaint(command, *arguments(prepared, run), status=2)
    assert "is finished" in command(cli.main, "train", "--resume", "--run", run, "--steps", 6)[1]


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


def test_a_run_of_a_gpu_that_is_not_here(prepared, own, command, monkeypatch):
    run = own / "run"
    assert command(cli.main, *arguments(prepared, run))[0] == 0
    content = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**content, "device": "cuda:1"}))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    line = complaint(command, "evaluate", run, status=2)
    assert f"--gpu: {run} was trained on cuda:1, which is not here; to evaluate it, --gpu none takes the CPU" in line


def test_a_run_is_evaluated_in_its_precision(prepared, tmp_path, command, monkeypatch):
    assert command(cli.main, *arguments(prepared, tmp_path / "run", precision="bf16"))[0] == 0
    real, seen = SesemiTask.predict, []
    monkeypatch.setattr(SesemiTask, "predict", lambda task, images: seen.append(real(task, images)) or seen[-1])
    assert command(cli.main, "evaluate", tmp_path / "run")[0] == 0
    assert {logits.dtype for logits in seen} == {torch.bfloat16}


def test_own_networks_decide_their_dropout(prepared, own, command):
    flags = {"network": "mynets:plain", "trunk-dropout": 0.2}
    assert "--trunk-dropout" in complaint(command, *arguments(prepared, own / "run", **flags), status=2)
