"""The DALI graphs as built for a GPU: every operator is where it should be and exists there. Needs no GPU."""

import nvidia.dali.backend
import pytest

from pipelines.batch import StreamOptions
from pipelines.graphs import evaluation_graph, shift_graph, training_graph


def operators(pipeline) -> list[tuple[str, str, list[str], list[str]]]:
    """(name, DALI operator, devices of inputs, devices of outputs) in graph order, without building."""
    pipeline._build_graph()
    found = []
    for op in pipeline._ops:
        spec, kind = op.spec, getattr(op._op, "schema_name", type(op._op).__name__)
        found.append((op.name, kind, [spec.InputDevice(i) for i in range(spec.NumInput())],
                      [spec.OutputDevice(i) for i in range(spec.NumOutput())]))
    return found


def source(info):
    """Of a graph that is not run."""


def graph(which: str, device_id: int | None):
    if which == "evaluation":
        return evaluation_graph(source, source, size=(32, 32), flip=True, noise=0.15, device_id=device_id,
                                in_graph=True, seed=1)
    options = StreamOptions(16, views=which == "unlabeled", flip=which == "labeled", steps_per_run=4)
    statistics = () if which == "whitened" else (source, source)
    return training_graph(source, source, statistics, options=options, device_id=device_id, seed=1)


@pytest.mark.parametrize("which", ["labeled", "unlabeled", "whitened", "evaluation"])
def test_every_gpu_operator_is_registered_and_none_falls_back(which):
    registered = set(nvidia.dali.backend.RegisteredGPUOps())
    pipeline = graph(which, device_id=0)
    ops = operators(pipeline)
    for name, kind, inputs, outputs in ops:
        if kind == "ExternalSource":  # the upload; and the evaluation's offsets, which DALI wants on the CPU
            assert inputs == []
            continue
        assert outputs == ["gpu"], f"{name} ({kind}) runs on the CPU, after the upload"
        assert kind in registered, f"{name}: DALI has no GPU operator {kind}"
        assert inputs[0] == "gpu"
        if "Arithmetic" in kind:
            assert set(inputs) == {"gpu"}, f"{name} wants something that is on the CPU"
    assert ops[0][1] == "ExternalSource"
    assert ops[0][3] == ["gpu"]
    assert [node.device for node in pipeline._graph_outputs] == ["gpu"] * len(pipeline._graph_outputs)


@pytest.mark.parametrize(("which", "names"), [
    ("labeled", {"flip", "noise"}), ("unlabeled", {"noise", "six_views"}),
    ("evaluation", {"plain", "jittered", "noise_0", "noise_1", "noise_2", "noise_3"})])
def test_the_random_stages_are_on_the_gpu_by_name(which, names):
    found = {name: outputs for name, _, _, outputs in operators(graph(which, device_id=0))}
    assert names <= set(found)
    assert all(found[name] == ["gpu"] for name in names)


def test_no_operator_launches_a_kernel_an_image():
    assert "Flip" not in {kind for _, kind, _, _ in operators(graph("unlabeled", device_id=0))}


@pytest.mark.parametrize("which", ["labeled", "unlabeled", "whitened", "evaluation"])
def test_the_cpu_graph_is_the_same_but_for_placement(which):
    on_gpu, on_cpu = operators(graph(which, 0)), operators(graph(which, None))
    assert [(name, kind) for name, kind, _, _ in on_gpu] == [(name, kind) for name, kind, _, _ in on_cpu]
    assert {device for _, _, inputs, outputs in on_cpu for device in inputs + outputs} == {"cpu"}


def test_a_gpu_s_samples_are_steps():
    """One of them an image would cost the host more than the training step, and DALI's transposition fails on a GPU."""
    for which in ("labeled", "unlabeled", "whitened"):
        assert graph(which, device_id=0).max_batch_size == 4
    options = StreamOptions(16, views=True, flip=False, steps_per_run=65)
    with pytest.raises(ValueError, match="65 steps a run, expected at most 64"):
        training_graph(source, source, (), options=options, device_id=0, seed=1)


@pytest.mark.parametrize("as_bytes", [False, True])
def test_on_the_cpu_all_but_the_shift_is_left_to_its_twins(as_bytes):
    options = StreamOptions(16, views=True, flip=False, steps_per_run=4)
    pipeline = shift_graph(source, source, as_bytes=as_bytes, size=(32, 32), options=options, seed=1)
    kinds = [kind for _, kind, _, _ in operators(pipeline)]
    assert set(kinds) == {"ExternalSource", "Slice"}
    assert kinds.count("Slice") == 1
