"""Every stage of benchmarks.device, dry: none dies of a change in the loader or the trainer."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks import device, device_env, device_profile, device_speed
from benchmarks.device_setup import Report
from pipelines.common.errors import UsageError
from pipelines.whitening import Preprocess
from sesemi import cli
from tests.conftest import random_images, write_set

STREAMS, KINDS = ("labeled", "unlabeled"), ("gcn", "zca", "standardize")
STEP = "ms a step on the host, in all"
COMPILED = [f"one-convolution, {name}: {value}" for name in ("compiled", "compiled, CUDA graph",
                                                                      "compiled, CUDA graph, a pass for each branch")
            for value in ("s of the first step", STEP)]
RIGHT = [  # what can be right or wrong
    "DALI draws noise",
    *(f"{kind}, {name}: largest difference to the CPU's batch, largest value" for kind in KINDS for name in STREAMS),
    "noise: mean, deviation, kurtosis, largest correlation of two images",
    "six views of one image, largest difference",
    *(f"{name}: equal batches in two runs" for name in STREAMS),
    *(f"{name}: equal batches beside a busy queue" for name in STREAMS),
    *(f"{name}: equal batches after going on from step {step}" for name in STREAMS for step in (0, 5, 31)),
    "evaluation: same views twice, largest difference to the CPU's",
    *(f"{precision}: class loss at first, at last" for precision in ("fp32", "bf16", "fp16")),
    "fp16 whose first steps overflow: weights and momentum stay finite",
    "after a checkpoint, 10 steps: largest relative difference of weights (0 if convolutions are deterministic)"]
LINES = {
    "env": ["versions", "CPU", "copy on the device, TB/s read + written", "matrix product 256, bfloat16, TFLOP/s",
            "matrix product 256, float32, TFLOP/s", "TF32 in matrix products, in convolutions",
            "a small operation, µs on the host, in all", RIGHT[0]],
    "parity": ["data", *(f"fit of {kind}, s" for kind in KINDS), *RIGHT[1:]],
    "loader": ["loader alone, 12 + 12 images: steps/s, images/s",
               *(f"{name}: steps/s, ms a superbatch of {steps} steps" for name, steps in (
                   ("labeled stream alone", 32), ("without flips", 32), ("without noise", 32),
                   ("8 steps a superbatch", 8),
                   ("unlabeled stream alone", 32), ("unlabeled without noise", 32)))],
    "profile": [f"wrn-10-1: {name}" for name in (
        "waits and allocations of the host a step", "host, ms a batch: median, largest",
        "host, ms a step: median, largest", "operations a step")],
    "variants": [f"wrn-10-1, {name}: {STEP}" for name in (
        "eager", "eager, fed", "CUDA graph", "CUDA graph, fed", "plain float32 loop, no TF32",
        "plain float32 loop, PyTorch's defaults (TF32 convolutions)")],
    "compiled": COMPILED,
    "random": ["random pixels"]}


@pytest.fixture
def measured(tmp_path, command, monkeypatch):
    """Run the command in a folder of its own; returns (exit status, stdout, stderr, results)."""
    for name in ("GPU", "OUT", "DATA", "NETWORK", "NETWORKS"):
        monkeypatch.delenv(name, raising=False)

    def call(*words):
        found = command(device.main, *words, "--gpu", "none", "--out", tmp_path / "out", "--data", tmp_path / "data")
        path = tmp_path / "out" / "results.jsonl"
        return *found, [strict(line) for line in path.read_text().splitlines()] if path.exists() else []
    return call


def strict(line: str) -> dict:
    """JSON without Python's NaN and Infinity."""
    return json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def names(results: list[dict], stage: str) -> list[str]:
    return [line["name"] for line in results if line["stage"] == stage]


def test_every_stage(measured):
    status, out, err, results = measured(*(stage for stage in device.STAGES if stage != "whiten"))
    assert "Traceback" not in err
    assert status == 0
    assert all(set(line) - {"ok"} == {"stage", "name", "value"} for line in results)
    for stage, expected in LINES.items():
        found = names(results, stage)
        assert found == expected or (stage, found) == ("compiled", ["no compiler"])
    assert [line["name"] for line in results if "ok" in line] == RIGHT
    assert all(line["ok"] for line in results if "ok" in line)
    assert out.count("==== results") == 1
    table = out.partition("==== results")[2]
    assert all(f"{line['stage']:8} " in table and f"{line['name']}: " in table for line in results)


def test_without_a_stage_it_is_the_usual_ones(measured, monkeypatch):
    done = []
    monkeypatch.setattr(device, "run_stage", lambda stage, *_: done.append(stage))
    assert measured()[0] == 0
    assert done == ["env", "parity", "loader", "profile", "variants"]


def test_the_environment_says_what_no_flag_says(tmp_path, command, monkeypatch):
    """And one stage alone prints no table."""
    for name, value in (("GPU", "none"), ("OUT", tmp_path / "out"), ("DATA", tmp_path / "data"),
                        ("NETWORK", "nin"), ("NETWORKS", "wrn-10-1 wrn-16-1")):
        monkeypatch.setenv(name, str(value))
    setups = []
    monkeypatch.setattr(device, "run_stage", lambda stage, setup, report: (setups.append(setup), report.note("x", 1)))
    status, out, _ = command(device.main, "variants")
    assert status == 0
    assert "==== results" not in out
    assert (setups[0].device.type, setups[0].data) == ("cpu", tmp_path / "data")
    assert (setups[0].network, setups[0].networks) == ("nin", ("wrn-10-1", "wrn-16-1"))
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 1
    assert command(device.main, "table")[1].count("==== results") == 1
    command(device.main, "variants", "--network", "convnet")
    assert (setups[1].network, setups[1].networks) == ("convnet", ("convnet",))


def test_a_part_that_raises_is_wrong_and_the_next_goes_on(measured, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such kernel")
    with monkeypatch.context() as patch:
        patch.setattr(device_env, "pace", fail)
        status, out, err, results = measured("env")
    assert status == 1
    assert "RuntimeError: no such kernel" in err
    assert "WRONG launches: RuntimeError: no such kernel" in out
    assert names(results, "env")[-2:] == ["launches", "DALI draws noise"]
    assert measured("random")[0] == 0  # what was wrong in another call is not this one's


def test_a_result_that_is_no_number_is_kept_and_wrong(tmp_path):
    report = Report(tmp_path, "parity")
    report.note("differences", [float("nan"), float("inf"), 1.5], ok=False)
    assert strict((tmp_path / "results.jsonl").read_text())["value"] == ["nan", "inf", 1.5]
    assert report.wrong == 1


def test_compiled_says_where_there_is_no_compiler(measured, monkeypatch):
    def refuse(_):
        raise UsageError("no compiler here")
    monkeypatch.setattr(device_speed, "check_compiler", refuse)
    status, _, _, results = measured("compiled")
    assert status == 0
    assert [line["value"] for line in results] == ["no compiler here"]


def test_env_and_random_need_no_dali(tmp_path):
    code = ("import sys; sys.modules['nvidia.dali'] = None; from benchmarks.device import main; "
            f"sys.exit(main(['env', 'random', '--gpu', 'none', '--out', '{tmp_path}', '--data', '{tmp_path}']))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "DALI: not installed" in done.stdout
    assert (tmp_path / "random32" / "test" / "manifest.json").exists()


def test_whiten_fits_on_all_sets_of_a_run(prepared, tmp_path, measured, command):
    """To the bit what the run began with; refused where images are others."""
    run, extra = tmp_path / "run", prepared / "more" / "train"
    write_set(extra, random_images(50, 12, 3))
    flags = {"network": "wrn-10-1", "dataset": "toy", "extra": "more", "labels": 8, "gpu": "none", "steps": 1,
             "batch-unlabeled": 2, "data": prepared, "run": run}
    assert command(cli.main, "train", *(word for name, value in flags.items() for word in (f"--{name}", value)))[0] == 0
    expected = Preprocess.load(run / "whitening.npz")
    (run / "whitening.npz").unlink()
    for cached in prepared.glob("*/*/zca-*.npz"):
        cached.unlink()
    status, _, _, results = measured("whiten", run)
    assert (status, names(results, "whiten")) == (0, ["whitening fitted anew for"])
    found = Preprocess.load(run / "whitening.npz")
    assert found.fitted_on == expected.fitted_on
    assert len(found.fitted_on["fingerprints"]) == 2
    assert all(torch.equal(found.fitted[name], tensor) for name, tensor in expected.fitted.items())
    for file in sorted(extra.iterdir(), reverse=True):
        file.unlink()
    extra.rmdir()
    write_set(extra, random_images(50, 12, 4))
    status, out, _, _ = measured("whiten", run)
    assert status == 1
    assert f"WRONG whiten: DataError: {extra}: not the shards that {run} began with" in out


@pytest.mark.parametrize(("words", "expected"), [
    (["enf"], "no stage 'enf', expected some of env parity "), (["whiten"], "whiten: no folder"),
    (["env", "--network", "wrn-9"], "--network: found 'wrn-9'")])
def test_wrong_use(measured, words, expected):
    status, _, err, _ = measured(*words)
    assert status == 2
    assert err.startswith(f"error: {expected}")


def test_what_a_trace_of_a_gpu_says(tmp_path):
    """Two streams' kernels in µs: together 0 to 30 and 80 to 90."""
    spans = ((0, 20, 7), (10, 20, 9), (80, 10, 7))
    kernels = [{"name": "k", "cat": "kernel", "ts": ts, "dur": dur, "args": {"stream": on}} for ts, dur, on in spans]
    device_profile._gpu(Report(tmp_path, "profile"), "net", 1, kernels)
    values = [strict(line)["value"] for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert values == [3.0, [0.09, 0.04, 0.444], [1.0, 0.05, 1.0, 0.05], {"7": 0.03, "9": 0.02}]


def test_union():
    random = np.random.default_rng(0)
    starts, lengths = random.integers(0, 500, 60), random.integers(1, 12, 60)
    line = np.zeros(600, bool)
    for start, length in zip(starts, lengths, strict=True):
        line[start:start + length] = True
    covered, gaps = device_profile.union(list(zip(starts, starts + lengths, strict=True)))
    inside = np.flatnonzero(line)
    assert covered == line.sum()
    assert sum(gaps) == inside[-1] + 1 - inside[0] - covered
    assert len(gaps) == (np.diff(inside) > 1).sum()
