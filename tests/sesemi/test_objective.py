"""The loss and the optimiser against values written out by hand."""

import math

import pytest
import torch
from torch import nn

from sesemi.model import SesemiModel
from sesemi.objective import sesemi_loss
from sesemi.schedule import build_optimizer, learning_rate


def cross_entropy_by_hand(logits: list[list[float]], labels: list[int]) -> float:
    """Mean over the rows of −log softmax."""
    rows = [-math.log(math.exp(row[k]) / sum(map(math.exp, row))) for row, k in zip(logits, labels, strict=True)]
    return sum(rows) / len(rows)


def test_loss_is_the_sum_of_both_cross_entropies():
    classes, labels = [[0.5, -1.0, 2.0], [0.1, 0.2, 0.3]], [2, 0]
    proxies, proxy_labels = [[1.0, 0.0, 0.0, -2.0, 0.5, 0.1]], [4]
    total, supervised, proxy = sesemi_loss(torch.tensor(classes), torch.tensor(labels), torch.tensor(proxies),
                                           torch.tensor(proxy_labels))
    assert supervised.item() == pytest.approx(cross_entropy_by_hand(classes, labels), rel=1e-6)
    assert proxy.item() == pytest.approx(cross_entropy_by_hand(proxies, proxy_labels), rel=1e-6)
    assert total.item() == pytest.approx(supervised.item() + proxy.item(), rel=1e-6)
    alone, same, nothing = sesemi_loss(torch.tensor(classes), torch.tensor(labels))
    assert alone == same == supervised
    assert nothing == 0


def test_descending_on_the_loss_learns_both_tasks():
    torch.manual_seed(0)
    features, labels, proxy_labels = torch.randn(48, 16), torch.arange(48) % 4, torch.arange(48) % 6
    heads = nn.ModuleList([nn.Linear(16, 4), nn.Linear(16, 6)])
    optimizer = torch.optim.SGD(heads.parameters(), lr=0.5)
    losses = []
    for _ in range(200):
        total, *_ = sesemi_loss(heads[0](features), labels, heads[1](features), proxy_labels)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
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
    model = SesemiModel("wrn-10-1", 10)
    decayed, free = build_optimizer(model, torch.tensor(0.05)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.001, 0.0)
    kernels = [layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert {id(p) for p in decayed["params"]} == {id(p) for p in kernels}
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))
