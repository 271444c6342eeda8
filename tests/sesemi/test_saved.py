"""What a run may begin with and is evaluated by: --init and --ema, as users do it."""

import json
import sys
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipelines.common.errors import UsageError
from sesemi import checkpoint, cli
from sesemi.networks import build_trunk
from sesemi.saved import load_trunk, read_trunk
from sesemi.task import SesemiTask
from tests.sesemi.runs import CPU, arguments, interrupt_at, metrics, trained
from tests.sesemi.test_cli import complaint


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


def test_a_run_of_a_gpu_that_is_not_here(prepared, tmp_path, command, monkeypatch):
    run = tmp_path / "run"
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
