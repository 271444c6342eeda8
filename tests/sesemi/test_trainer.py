"""The trainer on a list of tensors: what it computes, logs, refuses, and how it goes on."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from pipelines.batch import Batch, Examples
from pipelines.common.errors import DataError
from sesemi.evaluation import averaged_prediction, error_rate
from sesemi.model import SesemiModel
from sesemi.trainer import Trainer


def batches(count: int, size: int = 6, seed: int = 0) -> list[Batch]:
    """Images whose class is their brightness, and views with arbitrary proxy labels."""
    random = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count):
        labels = torch.arange(size) % 2
        images = torch.randn(size, 3, 16, 16, generator=random) + labels[:, None, None, None]
        out.append(Batch(Examples(images, labels),
                         Examples(torch.randn(size, 3, 16, 16, generator=random), torch.arange(size) % 6)))
    return out


def build(steps=8, **options) -> Trainer:
    torch.manual_seed(0)
    return Trainer(SesemiModel("wrn-10-1", 2), steps=steps, base_lr=0.05, **options)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def test_every_parameter_is_trained():
    trainer = build()
    before = weights(trainer)
    assert trainer.train(batches(8))
    assert trainer.step == 8
    assert trainer.images == 8 * 12
    assert [name for name, value in weights(trainer).items() if torch.equal(value, before[name])] == []


def test_loss_falls():
    lines = []
    trainer = build(steps=30, log_every=10, on_log=lines.append)
    trainer.train(itertools.cycle(batches(3)))
    assert lines[-1].class_loss < lines[0].class_loss
    assert lines[-1].proxy_loss < lines[0].proxy_loss


def test_supervised_leaves_the_proxy_head_alone():
    lines = []
    trainer = build(log_every=4, on_log=lines.append)
    before = weights(trainer)
    trainer.train([batch._replace(unlabeled=None) for batch in batches(8)])
    changed = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("proxy_head") for name in changed)
    assert any(name.startswith("class_head") for name in changed)
    assert lines[-1].proxy_loss is None
    assert trainer.images == 8 * 6


def test_logged_means_are_those_of_the_steps_between():
    """Against one line a step."""
    single, grouped = [], []
    build(log_every=1, on_log=single.append).train(batches(8))
    build(log_every=3, on_log=grouped.append).train(batches(8))
    assert [line.step for line in grouped] == [3, 6, 8]
    for line, part in zip(grouped, (single[0:3], single[3:6], single[6:8]), strict=True):
        for name in ("class_loss", "proxy_loss", "proxy_accuracy"):
            mean = sum(getattr(one, name) for one in part) / len(part)
            assert getattr(line, name) == pytest.approx(mean, rel=1e-5)
        assert line.learning_rate == part[-1].learning_rate
        assert 0 <= line.data_wait_fraction <= 1
    assert single[4].learning_rate == pytest.approx(0.05 * math.sqrt(0.5))


def test_stop_leaves_after_the_step_and_goes_on_to_the_bit():
    whole, part = [], []
    uninterrupted = build(log_every=3, on_log=whole.append)
    assert uninterrupted.train(batches(8))
    first = build(log_every=3, on_log=part.append)
    first.after_step = lambda step: first.stop() if step == 5 else None
    assert not first.train(batches(8))
    assert first.step == 5
    state = first.state_dict()
    random = torch.get_rng_state()
    second = build(log_every=3, on_log=part.append)
    second.load_state_dict(state)
    torch.set_rng_state(random)
    assert second.train(batches(8)[5:])
    for name, value in weights(second).items():
        assert torch.equal(value, weights(uninterrupted)[name]), name

    def numbers(line):
        return {name: value for name, value in dataclasses.asdict(line).items()
                if name not in {"images_per_second", "data_wait_fraction"}}
    assert list(map(numbers, part)) == list(map(numbers, whole))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_stays_close_to_float32(dtype):
    exact, mixed = [], []
    build(log_every=1, on_log=exact.append).train(batches(8))
    trainer = build(log_every=1, on_log=mixed.append, dtype=dtype)
    assert trainer.scaler.is_enabled() == (dtype == torch.float16)
    trainer.train(batches(8))
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    for one, other in zip(mixed, exact, strict=True):
        assert one.class_loss == pytest.approx(other.class_loss, rel=0.15, abs=0.1)
        assert one.proxy_loss == pytest.approx(other.proxy_loss, rel=0.15, abs=0.1)
    assert any(one.class_loss != other.class_loss for one, other in zip(mixed, exact, strict=True))


def test_float16_scales_gradients_and_skips_an_overflow():
    trainer = build(dtype=torch.float16)
    scale = trainer.scaler.get_scale()
    before = weights(trainer)
    for layer in trainer.model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_full_backward_hook(lambda module, grads, _: tuple(g * float("inf") for g in grads))
    trainer.train_step(batches(1)[0])
    assert trainer.scaler.get_scale() == scale / 2
    after = weights(trainer)
    assert all(torch.equal(after[name], before[name]) for name, _ in trainer.model.named_parameters())


@pytest.mark.parametrize("overflows", [{0}, {1}, {0, 1}])
def test_float16_goes_on_after_an_overflow_as_if_it_had_not_been(overflows):
    """Against a run that never saw those batches, whose scale is halved instead. (PyTorch's own momentum
    begins as undefined memory, which an overflow in the first step leaves undefined.)"""
    data = batches(6)
    for number in overflows:
        data[number].labeled.images.mul_(1e30)  # inf in float16, so no gradient is finite
    runs = []
    for drop in (False, True):
        trainer = build(dtype=torch.float16)
        for layer in trainer.model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 0.0  # running statistics do see the overflow
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        trainer.scaler.scale(torch.zeros(1))  # has it make its tensors
        for number, batch in enumerate(data):
            torch.manual_seed(number)  # dropout
            if drop and number in overflows:
                trainer.scaler.update(trainer.scaler.get_scale() / 2)
            else:
                trainer.step = number
                trainer.train_step(batch)
        runs.append(trainer)
    assert runs[0].scaler.get_scale() == runs[1].scaler.get_scale()
    for (name, one), other in zip(runs[0].model.named_parameters(), runs[1].model.parameters(), strict=True):
        assert one.isfinite().all(), name
        assert torch.equal(one, other), name
    for parameter, other in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        assert torch.equal(runs[0].optimizer.state[parameter]["momentum_buffer"],
                           runs[1].optimizer.state[other]["momentum_buffer"])


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_loss_that_is_not_finite_stops_the_run(log_every):
    trainer = build(log_every=log_every)
    bad = batches(8)
    bad[3].labeled.images[0] = float("nan")
    with pytest.raises(DataError, match=r"no longer finite at step (4|8) .*lower --lr"):
        trainer.train(bad)
    with pytest.raises(DataError, match="no longer finite"):
        trainer.state_dict()


def test_averaged_prediction_against_a_loop():
    logits = torch.randn(5 * 8, 3, generator=torch.Generator().manual_seed(0)) * 3
    expected = []
    for image in range(5):
        mean = [0.0] * 3
        for view in range(8):
            row = logits[image * 8 + view].tolist()
            total = sum(map(math.exp, row))
            mean = [m + math.exp(v) / total / 8 for m, v in zip(mean, row, strict=True)]
        expected.append(mean.index(max(mean)))
    assert averaged_prediction(logits, 8).tolist() == expected
    votes = torch.tensor([[9.0, 0.0], [0.0, 1.0], [0.0, 1.0]])  # probabilities are averaged, not votes, nor logits
    assert averaged_prediction(votes, 3).tolist() == [0]


class Evaluation(list):
    """Batches as EvaluationLoader gives them: a view an image here."""

    views = 1


def test_error_rate_counts_every_image_once_and_leaves_the_model_alone():
    trainer = build()
    model = trainer.model
    model.eval()
    images = torch.randn(25, 3, 16, 16)
    with torch.no_grad():
        right = model(images)[0].argmax(dim=1)
    labels = right.clone()
    labels[[3, 11, 24]] = 1 - labels[[3, 11, 24]]
    model.train()
    before = weights(trainer)
    loader = Evaluation([Examples(images[a:a + 10], labels[a:a + 10]) for a in (0, 10, 20)])
    assert error_rate(model, loader, trainer.autocast, progress=False) == (3 / 25, 25)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
