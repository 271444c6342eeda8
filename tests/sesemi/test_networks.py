"""The networks have the reference's shapes, sizes and initial weights."""

import math

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from pipelines.batch import Examples
from sesemi.networks import build_trunk
from sesemi.networks.layers import count_parameters
from sesemi.task import SesemiTask


def conv_parameters(inputs: int, outputs: int, size: int) -> int:
    """Of a convolution without bias."""
    return inputs * outputs * size * size


def convnet_parameters() -> int:
    """Counted layer by layer, with two batch norm parameters a channel."""
    layers = [(3, 128, 3), (128, 128, 3), (128, 128, 3), (128, 256, 3), (256, 256, 3), (256, 256, 3),
              (256, 512, 3), (512, 256, 1), (256, 128, 1)]
    return sum(conv_parameters(*layer) + 2 * layer[1] for layer in layers)


def nin_parameters() -> int:
    """Counted layer by layer, as for the ConvNet."""
    layers = [(3, 192, 5), (192, 160, 1), (160, 96, 1), (96, 192, 5), (192, 192, 1), (192, 192, 1), (192, 192, 3),
              (192, 192, 1), (192, 192, 1)]
    return sum(conv_parameters(*layer) + 2 * layer[1] for layer in layers)


def wrn_parameters(depth: int, width: int) -> int:
    """Counted block by block."""
    total, inputs = conv_parameters(3, 16, 3) + 2 * 16, 16
    for base in (16, 32, 64):
        out = base * width
        total += conv_parameters(inputs, out, 3) + 2 * out + conv_parameters(out, out, 3)
        total += conv_parameters(inputs, out, 1)  # the skip
        total += ((depth - 4) // 6 - 1) * 2 * (2 * out + conv_parameters(out, out, 3))
        total += 2 * out  # the group's last batch norm
        inputs = out
    return total


@pytest.mark.parametrize(("name", "published", "biases", "counted", "shape"), [
    ("convnet", 3_122_560, 2048, convnet_parameters(), (128, 6, 6)),
    ("nin", 1_005_312, 1600, nin_parameters(), (192, 8, 8)),
    ("wrn", 1_466_320, 0, wrn_parameters(28, 2), (128, 8, 8)),
    ("wrn-10-1", 77_456, 0, wrn_parameters(10, 1), (64, 8, 8)),
    ("wrn-16-4", None, 0, wrn_parameters(16, 4), (256, 8, 8))])
def test_sizes(name, published, biases, counted, shape):
    """The paper's convolutions have biases, of which batch norm leaves nothing; ours have none."""
    trunk = build_trunk(name)
    assert count_parameters(trunk) == counted
    assert published in (None, counted + biases)
    assert biases in (0, sum(layer.out_channels for layer in trunk.modules() if isinstance(layer, nn.Conv2d)))
    assert trunk.out_channels == shape[0]
    assert trunk.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, *shape)


@pytest.mark.parametrize("name", ["", "resnet", "wrn-28", "wrn-27-2", "wrn-4-1", "wrn-28-0", "wrn-x-2", "WRN"])
def test_no_such_network(name):
    with pytest.raises(ValueError, match="expected"):
        build_trunk(name)


def test_initial_weights_and_batch_norm_are_keras_s():
    torch.manual_seed(0)
    task = SesemiTask(build_trunk("convnet"), 10)
    convolutions = [layer for layer in task.modules() if isinstance(layer, nn.Conv2d)]
    for layer in convolutions:
        fan_in = layer.weight[0].numel()
        deviation = math.sqrt(2 / fan_in)
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.05)
        limit = 2 * deviation / 0.87962566103423978
        assert 0.95 * limit < layer.weight.abs().max().item() <= limit * (1 + 1e-6)  # truncated at two
        assert layer.bias is None
    for layer in task.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.momentum, layer.eps) == (0.01, 0.001)
    for head, outputs in ((task.class_head, 10), (task.proxy_head, 6)):
        limit = math.sqrt(6 / (128 + outputs))
        assert head.weight.abs().max().item() <= limit
        assert head.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.1)


def test_batch_statistics_are_per_branch():
    torch.manual_seed(0)
    task = SesemiTask(build_trunk("wrn-10-1"), 4, dropout=0.0)
    labeled, unlabeled = torch.randn(8, 3, 32, 32), 3 + torch.randn(12, 3, 32, 32)
    together, proxy = task.logits(labeled, unlabeled)
    alone, none = task.logits(labeled)
    assert torch.allclose(together, alone, atol=1e-5)  # not changed by the other branch
    assert none is None
    assert proxy.shape == (12, 6)


@pytest.mark.parametrize("name", ["convnet", "nin", "wrn-16-1"])
def test_running_statistics_are_the_labeled_branch_s_alone(name):
    """Against a task that never saw the other branch; of the first layer by hand, from Keras's momentum."""
    labeled, unlabeled = torch.randn(8, 3, 16, 16), 3 + 2 * torch.randn(12, 3, 16, 16)
    buffers = []
    for others in (unlabeled, None):
        torch.manual_seed(0)
        task = SesemiTask(build_trunk(name), 4)
        for _ in range(3):
            task.logits(labeled, others)
        buffers.append(dict(task.named_buffers()))
    assert buffers[0].keys() == buffers[1].keys()
    assert all(torch.equal(value, buffers[1][buffer]) for buffer, value in buffers[0].items())
    values = task.trunk[0][0](labeled)
    kept = 0.99**3
    assert torch.allclose(buffers[0]["trunk.0.1.running_mean"], (1 - kept) * values.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(buffers[0]["trunk.0.1.running_var"], kept + (1 - kept) * values.var((0, 2, 3)), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["convnet", "wrn-10-1"])
def test_a_compiled_task_trains_and_is_evaluated_as_it_is(name, fused):
    """From one graph, loss and both branches included: in pieces it would be no faster."""
    torch.manual_seed(1)
    labeled = Examples(torch.randn(6, 3, 16, 16), torch.arange(6) % 4)
    unlabeled = Examples(torch.randn(12, 3, 16, 16), torch.arange(12) % 6)
    states, outputs = [], []
    for compiled in (False, True):
        torch.manual_seed(0)
        task = SesemiTask(build_trunk(name), 4, dropout=0.0, fused=fused)
        forward = task
        if compiled:
            torch._dynamo.reset()
            counters.clear()
            forward = torch.compile(task, dynamic=False, fullgraph=True)
        for _ in range(2):
            task.zero_grad()
            found = forward(labeled, unlabeled)
            found["loss"].backward()
        task.eval()
        outputs.append([*found.values(), task.predict(labeled.images), *(p.grad for p in task.parameters())])
        states.append(task.state_dict())
    assert counters["stats"]["unique_graphs"] == 1
    assert states[0].keys() == states[1].keys()
    for one, other in (*zip(*outputs, strict=True), *zip(*(state.values() for state in states), strict=True)):
        assert (one - other).norm() <= 1e-4 * other.norm()


def test_dropout_is_before_the_class_head_only():
    torch.manual_seed(0)
    task = SesemiTask(build_trunk("wrn-10-1"), 4, dropout=0.5)
    images = torch.randn(4, 3, 32, 32)
    one, other = task.logits(images, images), task.logits(images, images)
    assert not torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


@pytest.mark.parametrize(("name", "places"), [
    ("convnet", ["after MaxPool2d"] * 2), ("nin", ["after MaxPool2d"] * 2), ("wrn-10-1", []),
    ("wrn-16-1", ["after Conv2d"] * 3)])
def test_dropout_in_the_trunk_is_where_the_reference_has_it(name, places):
    def layers(module) -> list[nn.Module]:
        children = list(module.children())
        return [leaf for child in children for leaf in layers(child)] if children else [module]
    assert not any(isinstance(layer, nn.Dropout) for layer in layers(build_trunk(name)))
    found = layers(build_trunk(name, dropout=0.3))
    after = [f"after {type(found[i - 1]).__name__}" for i, layer in enumerate(found) if isinstance(layer, nn.Dropout)]
    assert after == places
    assert {layer.p for layer in found if isinstance(layer, nn.Dropout)} <= {0.3}
    assert count_parameters(build_trunk(name, dropout=0.3)) == count_parameters(build_trunk(name))


@pytest.mark.parametrize("name", ["convnet", "nin", "wrn-10-1"])
@pytest.mark.parametrize("size", [48, 64, 96])
def test_other_image_sizes(name, size):
    task = SesemiTask(build_trunk(name), 4).eval()
    classes, proxy = task.logits(torch.zeros(1, 3, size, size), torch.zeros(2, 3, size, size))
    assert classes.shape == (1, 4)
    assert proxy.shape == (2, 6)
