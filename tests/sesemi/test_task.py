"""Loss, metrics and optimiser against values written out by hand; both branches in one pass against two."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipelines.batch import Examples
from sesemi.networks import build_trunk
from sesemi.networks.layers import BatchNorm
from sesemi.schedule import build_optimizer, learning_rate
from sesemi.task import SesemiTask, build_task


def cross_entropy_by_hand(logits: list[list[float]], labels: list[int]) -> float:
    """Mean over the rows of −log softmax."""
    rows = [-math.log(math.exp(row[k]) / sum(map(math.exp, row))) for row, k in zip(logits, labels, strict=True)]
    return sum(rows) / len(rows)


class Given(SesemiTask):
    """A task whose logits are what it is given as images."""

    def __init__(self):
        super().__init__(Features(), 3)

    def logits(self, labeled, unlabeled=None):
        return labeled, unlabeled


class Features(nn.Module):
    """A trunk that passes on what it is given: (n, c) as (n, c, 1, 1)."""

    def __init__(self, channels: int = 16):
        super().__init__()
        self.out_channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, None, None]


def test_loss_is_the_sum_of_both_cross_entropies():
    classes, labels = [[0.5, -1.0, 2.0], [0.1, 0.2, 0.3]], [2, 0]
    proxies, proxy_labels = [[1.0, 0.0, 0.0, -2.0, 0.5, 0.1], [0.0, 3.0, 0.0, 0.0, 0.0, 0.0]], [4, 1]
    labeled = Examples(torch.tensor(classes), torch.tensor(labels))
    found = Given()(labeled, Examples(torch.tensor(proxies), torch.tensor(proxy_labels)))
    assert found["class_loss"].item() == pytest.approx(cross_entropy_by_hand(classes, labels), rel=1e-6)
    assert found["proxy_loss"].item() == pytest.approx(cross_entropy_by_hand(proxies, proxy_labels), rel=1e-6)
    assert found["loss"].item() == pytest.approx(found["class_loss"].item() + found["proxy_loss"].item(), rel=1e-6)
    assert found["proxy_accuracy"] == 0.5
    alone = Given()(labeled)
    assert set(alone) == {"loss", "class_loss"}
    assert alone["loss"] == alone["class_loss"] == found["class_loss"]


def test_logged_scalars_are_detached_float32_of_any_precision():
    for dtype in (torch.float64, torch.bfloat16):
        task = SesemiTask(Features(), 4).to(dtype)
        part = Examples(torch.randn(6, 16, dtype=dtype), torch.arange(6) % 4)
        found = task(part, part)
        assert {name: (value.dtype, value.shape) for name, value in found.items()} == dict.fromkeys(
            ("loss", "class_loss", "proxy_loss", "proxy_accuracy"), (torch.float32, ()))
        assert [name for name, value in found.items() if value.requires_grad] == ["loss"]


def test_descending_on_the_loss_learns_both_tasks():
    torch.manual_seed(0)
    features = torch.randn(48, 16)
    task = SesemiTask(Features(), 4, dropout=0.0)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.5)
    losses = []
    for _ in range(200):
        found = task(Examples(features, torch.arange(48) % 4), Examples(features, torch.arange(48) % 6))
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        losses.append(found["loss"].item())
    assert losses[-1] < 0.7 * losses[0]


def test_learning_rate():
    assert learning_rate(0, 1000, 0.05) == 0.05
    assert learning_rate(500, 1000, 0.05) == pytest.approx(0.05 * math.sqrt(0.5))
    assert learning_rate(999, 1000, 0.05) == pytest.approx(0.05 * math.sqrt(0.001))


def test_three_steps_of_sgd_by_hand():
    """PyTorch's Nesterov momentum, with a changing rate, weight decay on the kernel only."""
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.bias.fill_(1.0)
    current = torch.tensor(0.05)
    optimizer = build_optimizer(layer, current)
    value, velocity = [2.0, 1.0], [0.0, 0.0]
    for step in range(3):
        rate = learning_rate(step, 3, 0.05)
        current.fill_(rate)
        optimizer.zero_grad()
        (layer(torch.tensor([[3.0]])) ** 2).sum().backward()
        optimizer.step()
        output = 3 * value[0] + value[1]
        gradients = [2 * output * 3 + 0.001 * value[0], 2 * output]
        for i in range(2):
            velocity[i] = 0.9 * velocity[i] + gradients[i]
            value[i] -= rate * (gradients[i] + 0.9 * velocity[i])
        assert layer.weight.item() == pytest.approx(value[0], rel=1e-5)
        assert layer.bias.item() == pytest.approx(value[1], rel=1e-5)


def test_weight_decay_is_on_kernels_alone():
    task = SesemiTask(build_trunk("wrn-10-1"), 10)
    decayed, free = build_optimizer(task, torch.tensor(0.05)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.001, 0.0)
    kernels = [layer.weight for layer in task.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert {id(p) for p in decayed["params"]} == {id(p) for p in kernels}
    assert len(decayed["params"]) + len(free["params"]) == len(list(task.parameters()))


def two_steps(task: SesemiTask, batches: list[tuple[Examples, Examples]]) -> tuple[list, list, list]:
    """Losses, gradients and buffers after each of two steps of plain SGD."""
    losses, gradients = [], []
    for labeled, unlabeled in batches:
        class_logits, proxy_logits = task.logits(labeled.images, unlabeled.images)
        both = [nn.functional.cross_entropy(class_logits, labeled.labels),
                nn.functional.cross_entropy(proxy_logits, unlabeled.labels)]
        task.zero_grad()
        sum(both).backward()
        losses.append(torch.stack(both).detach())
        gradients.append([parameter.grad.clone() for parameter in task.parameters()])
        with torch.no_grad():
            for parameter in task.parameters():
                parameter -= 0.05 * parameter.grad
    return losses, gradients, [value.clone() for value in task.buffers()]


@pytest.mark.parametrize("name", ["convnet", "nin", "wrn-16-1"])
@pytest.mark.parametrize(("labeled", "unlabeled"), [(6, 6), (4, 12)])
def test_one_pass_is_two(name, labeled, unlabeled):
    """From the same weights and batches, in float64: losses, gradients, running statistics, of a step and the next."""
    random = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(2):
        images, views = (torch.randn(count, 3, 16, 16, generator=random, dtype=torch.float64)
                         for count in (labeled, unlabeled))
        batches.append((Examples(images, torch.arange(labeled) % 4), Examples(3 + 2 * views,
                                                                              torch.arange(unlabeled) % 6)))
    found = []
    for fused in (True, False):
        torch.manual_seed(0)
        task = SesemiTask(build_trunk(name), 4, dropout=0.0, fused=fused).double()
        assert task.fused == fused
        found.append(two_steps(task, batches))
    for one, two in zip(*found, strict=True):
        for a, b in zip(one, two, strict=True):
            for x, y in zip(*((a, b) if isinstance(a, list) else ([a], [b])), strict=True):
                assert (x - y).abs().max() < 1e-10 * (1 + y.abs().max())


def test_one_pass_is_left_as_it_was_and_only_for_training():
    task = SesemiTask(build_trunk("wrn-10-1"), 4, fused=True)
    part = Examples(torch.randn(4, 3, 16, 16), torch.zeros(4, dtype=torch.long))
    task(part, part)
    layers = [layer for layer in task.modules() if isinstance(layer, BatchNorm)]
    assert {layer.parts for layer in layers} == {None}
    task.eval()
    both = task.logits(part.images, part.images)[0]
    assert torch.equal(both, task.predict(part.images))


def test_one_pass_splits_images_and_nothing_else():
    """Not what a trunk has folded into the first dimension by then. A frozen batch norm is not split."""
    class Folded(nn.Sequential):
        def forward(self, x):
            return super().forward(x.unflatten(2, (2, -1)).transpose(1, 2).flatten(0, 1))
    trunk = Folded(BatchNorm(3))
    trunk.out_channels = 3
    images = torch.randn(4, 3, 16, 16)
    with pytest.raises(ValueError, match="a batch norm of 16 found, 8 images expected"):
        SesemiTask(trunk, 2, fused=True).logits(images, images)
    task = SesemiTask(build_trunk("wrn-10-1"), 2, dropout=0.0, fused=True)
    for layer in task.modules():
        if isinstance(layer, BatchNorm):
            layer.eval()
    before = [value.clone() for value in task.buffers()]
    found = task.logits(images, images + 3)
    assert all(torch.equal(one, other) for one, other in zip(task.buffers(), before, strict=True))
    for logits, expected in zip(found, (task.predict(images), task.proxy_head(task.features(images + 3))), strict=True):
        assert torch.allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize(("compile", "device", "fused"), [
    (True, "meta", True), (False, "meta", False), (True, "cpu", False)])
def test_one_pass_where_it_is_faster(compile, device, fused):
    """Compiled, on another device than the CPU."""
    config = SimpleNamespace(network="wrn-10-1", trunk_dropout=0.0, dropout=0.2, compile=compile, device=device)
    assert build_task(config, 10, 3).fused == fused


@pytest.mark.parametrize(("norm", "splits"), [(BatchNorm, True), (nn.BatchNorm2d, False), (nn.Identity, False)])
def test_only_our_batch_norm_is_split(norm, splits):
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3), *([norm(8)] if norm is not nn.Identity else []))
    trunk.out_channels = 8
    assert SesemiTask(trunk, 4, fused=True).fused == splits
    mixed = nn.Sequential(BatchNorm(3), nn.BatchNorm2d(3))
    mixed.out_channels = 3
    assert not SesemiTask(mixed, 4, fused=True).fused


def test_another_s_batch_norm_keeps_the_labeled_branch_s_statistics():
    """PyTorch's own: in the pass of the unlabeled branch neither its statistics nor its count of batches change."""
    labeled, unlabeled = torch.randn(8, 3, 9, 9), 3 + 2 * torch.randn(8, 3, 9, 9)
    trunk = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3))
    trunk.out_channels = 8
    task = SesemiTask(trunk, 4)
    task.logits(labeled, unlabeled)
    assert torch.allclose(trunk[0].running_mean, 0.1 * labeled.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(trunk[0].running_var, 0.9 + 0.1 * labeled.var((0, 2, 3)), atol=1e-5)
    assert trunk[0].num_batches_tracked == 1
    assert trunk[0].track_running_stats
