"""From the files of each data set to a trained and evaluated network, each network there is."""

import json
import subprocess
import sys

import pytest
import torch

from sesemi import checkpoint, cli, experiment
from tests.conftest import LAYOUTS
from tests.sesemi.runs import arguments
from tools import prepare, verify


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """CIFAR-10, CIFAR-100 and SVHN, prepared from their real file formats."""
    if not LAYOUTS.exists():
        pytest.skip(f"needs the layouts of real data sets: {LAYOUTS} is absent")
    folder = tmp_path_factory.mktemp("data")
    subprocess.run([sys.executable, LAYOUTS, folder, "python", "cifar100", "svhn"], check=True)
    for name, source in (("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python"), ("svhn", "svhn")):
        assert prepare.main([name, "--source", str(folder / source), "--out", str(folder / "shards" / name)]) == 0
        assert verify.main([str(folder / "shards" / name)]) == 0
    return folder / "shards"


@pytest.mark.parametrize("network", ["convnet", "nin", "wrn-10-1"])
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "svhn"])
def test_ten_steps_of_each_network(shards, tmp_path, command, monkeypatch, dataset, network):
    models = []
    real = experiment.build_task

    def build(*arguments):
        model = real(*arguments)
        models.append({name: value.clone() for name, value in model.named_parameters()})
        return model
    monkeypatch.setattr(experiment, "build_task", build)
    run = tmp_path / "run"
    status, _, err = command(cli.main, *arguments(shards, run, dataset=dataset, network=network, labels=1000,
                                                    steps=10, **{"eval-images": 100, "log-every": 5}))
    assert status == 0, err
    trained = checkpoint.load(run / "checkpoint.pt", torch.device("cpu"))["trainer"]["task"]
    assert [name for name, value in models[0].items() if torch.equal(value, trained[name])] == []
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(line["class_loss"] > 0 and line["proxy_loss"] > 0 for line in lines if line["type"] == "train")
    assert [line["step"] for line in lines if line["type"] == "train"] == [5, 10]
    error = json.loads((run / "result.json").read_text())["test_error"]
    assert command(cli.main, "evaluate", run)[1] == f"test error {error:.4f} on 100 images\n"
