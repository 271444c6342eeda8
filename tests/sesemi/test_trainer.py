"""The trainer on a list of tensors: what it computes, logs, refuses, and how it goes on."""

import copy
import dataclasses
import itertools
import math
import time

import pytest
import torch
from torch import nn

from pipelines.batch import Batch, Examples
from pipelines.common.errors import DataError
from sesemi.evaluation import averaged_prediction, error_rates
from sesemi.networks import build_trunk
from sesemi.signals import StopRequest
from sesemi.task import SesemiTask
from sesemi.trainer import Trainer, TrainLine


def batches(count: int, size: int = 6, seed: int = 0, side: int = 16) -> list[Batch]:
    """Images whose class is their brightness, and views with arbitrary proxy labels."""
    random = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count):
        labels = torch.arange(size) % 2
        images, views = (torch.randn(size, 3, side, side, generator=random) for _ in range(2))
        out.append(Batch(Examples(images + labels[:, None, None, None], labels),
                         Examples(views, torch.arange(size) % 6)))
    return out


def build(steps=8, **options) -> Trainer:
    torch.manual_seed(0)
    return Trainer(SesemiTask(build_trunk("wrn-10-1"), 2), steps=steps, base_lr=0.05, **options)


def run(trainer: Trainer, data, log_every: int = 100) -> list[TrainLine]:
    """Train to the end; a line every so many steps, and at the end."""
    return [trainer.line() for step in trainer.train(data) if step % log_every == 0 or step == trainer.steps]


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.task.state_dict().items()}


def test_every_parameter_is_trained():
    trainer = build()
    before = weights(trainer)
    assert list(trainer.train(batches(8))) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert trainer.step == 8
    assert trainer.images == 8 * 12
    assert [name for name, value in weights(trainer).items() if torch.equal(value, before[name])] == []


def test_loss_falls():
    lines = run(build(steps=30), itertools.cycle(batches(3)), log_every=10)
    assert lines[-1].class_loss < lines[0].class_loss
    assert lines[-1].proxy_loss < lines[0].proxy_loss


def test_supervised_leaves_the_proxy_head_alone():
    trainer = build()
    before = weights(trainer)
    lines = run(trainer, [batch._replace(unlabeled=None) for batch in batches(8)], log_every=4)
    changed = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("proxy_head") for name in changed)
    assert any(name.startswith("class_head") for name in changed)
    assert lines[-1].proxy_loss is lines[-1].proxy_accuracy is None
    assert trainer.images == 8 * 6


def test_logged_means_are_those_of_the_steps_between():
    """Against one line a step."""
    single, grouped = (run(build(), batches(8), log_every) for log_every in (1, 3))
    assert [line.step for line in grouped] == [3, 6, 8]
    for line, part in zip(grouped, (single[0:3], single[3:6], single[6:8]), strict=True):
        for name in ("class_loss", "proxy_loss", "proxy_accuracy"):
            mean = sum(getattr(one, name) for one in part) / len(part)
            assert getattr(line, name) == pytest.approx(mean, rel=1e-5)
        assert line.learning_rate == part[-1].learning_rate
        assert 0 <= line.data_wait_fraction <= 1
    assert single[4].learning_rate == pytest.approx(0.05 * math.sqrt(0.5))


@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "dtype": torch.float16}])
def test_left_after_a_step_it_goes_on_to_the_bit(options):
    uninterrupted = build(**options)
    whole = run(uninterrupted, batches(8), log_every=3)
    first = build(**options)
    part = [first.line() for step in itertools.islice(first.train(batches(8)), 5) if step % 3 == 0]
    assert first.step == 5
    state = copy.deepcopy(first.state_dict())
    random = torch.get_rng_state()
    second = build(**options)
    second.load_state_dict(state)
    assert second.rate == first.rate  # the last step's, also if no step is left
    torch.set_rng_state(random)
    part += run(second, batches(8)[5:], log_every=3)
    for name, task in second.evaluated().items():
        for tensor, value in task.state_dict().items():
            assert torch.equal(value, uninterrupted.evaluated()[name].state_dict()[tensor]), (name, tensor)

    def numbers(line):
        return {name: value for name, value in dataclasses.asdict(line).items()
                if name not in {"images_per_second", "data_wait_fraction"}}
    assert list(map(numbers, part)) == list(map(numbers, whole))


def test_the_average_against_a_loop():
    """Weights and running statistics; the decay is small at first."""
    trainer = build(ema=0.3)
    expected = {name: value.clone() for name, value in trainer.task.state_dict().items()}
    for step, batch in enumerate(batches(8)):
        trainer.train_step(batch)
        decay = min(0.3, (1 + step) / (10 + step))
        for name, value in trainer.task.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    averaged = trainer.evaluated()["test_error"]
    assert averaged is not trainer.task
    for name, value in averaged.state_dict().items():
        assert torch.allclose(value, expected[name], atol=1e-6), name
        assert not torch.equal(value, trainer.task.state_dict()[name]), name
    assert trainer.evaluated()["test_error_raw"] is trainer.task


def test_the_average_of_a_tensor_with_two_names():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.out_channels = 3
            self.one = self.other = nn.Conv2d(3, 3, 3)

        def forward(self, x):
            return self.other(self.one(x))
    trainer = Trainer(SesemiTask(Twice(), 2), steps=8, base_lr=0.05, ema=0.5)
    before = trainer.task.trunk.one.weight.clone()
    trainer.train_step(batches(1)[0])
    expected = 0.1 * before + 0.9 * trainer.task.trunk.one.weight
    assert torch.allclose(trainer.averaged.task.trunk.other.weight, expected, atol=1e-7)


def test_counts_are_copied_into_the_average():
    """PyTorch's own batch norm counts its batches in an integer."""
    trunk = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3))
    trunk.out_channels = 4
    trainer = Trainer(SesemiTask(trunk, 2), steps=8, base_lr=0.05, ema=0.9)
    run(trainer, batches(8))
    assert trainer.averaged.task.trunk[0].num_batches_tracked == trunk[0].num_batches_tracked == 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_stays_close_to_float32(dtype):
    exact = run(build(), batches(8), log_every=1)
    trainer = build(dtype=dtype)
    assert trainer.scaler.is_enabled() == (dtype == torch.float16)
    mixed = run(trainer, batches(8), log_every=1)
    assert all(value.isfinite().all() for value in trainer.task.state_dict().values())
    assert all(parameter.dtype == torch.float32 for parameter in trainer.task.parameters())
    for one, other in zip(mixed, exact, strict=True):
        assert one.class_loss == pytest.approx(other.class_loss, rel=0.15, abs=0.1)
        assert one.proxy_loss == pytest.approx(other.proxy_loss, rel=0.15, abs=0.1)
    assert any(one.class_loss != other.class_loss for one, other in zip(mixed, exact, strict=True))


def test_float16_scales_gradients_and_skips_an_overflow():
    trainer = build(dtype=torch.float16)
    scale = trainer.scaler.get_scale()
    before = weights(trainer)
    for layer in trainer.task.modules():
        if isinstance(layer, nn.Linear):
            layer.register_full_backward_hook(lambda module, grads, _: tuple(g * float("inf") for g in grads))
    trainer.train_step(batches(1)[0])
    assert trainer.scaler.get_scale() == scale / 2
    after = weights(trainer)
    assert all(torch.equal(after[name], before[name]) for name, _ in trainer.task.named_parameters())


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
        for layer in trainer.task.modules():
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
    for (name, one), other in zip(runs[0].task.named_parameters(), runs[1].task.parameters(), strict=True):
        assert one.isfinite().all(), name
        assert torch.equal(one, other), name
    for parameter, other in zip(runs[0].task.parameters(), runs[1].task.parameters(), strict=True):
        assert torch.equal(runs[0].optimizer.state[parameter]["momentum_buffer"],
                           runs[1].optimizer.state[other]["momentum_buffer"])


def test_no_state_has_weights_that_are_not_finite():
    """The losses of a step are those of the weights before it."""
    trainer = build()
    trainer.train_step(batches(1)[0])
    trainer.state_dict()
    with torch.no_grad():
        trainer.task.trunk[0][0].weight[0] = torch.nan
    with pytest.raises(DataError, match=r"the weights are no longer finite at step 1 .*try a lower --lr; earlier"):
        trainer.state_dict()


def test_waiting_for_a_batch_counts_as_such():
    def slow():
        for batch in batches(8):
            time.sleep(0.05)
            yield batch
    trainer = build()
    line, = run(trainer, slow())
    assert 0.4 <= trainer.waited <= trainer.seconds
    assert line.data_wait_fraction == trainer.waited / trainer.seconds


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_loss_that_is_not_finite_stops_the_run(log_every):
    trainer = build()
    bad = batches(8)
    bad[3].labeled.images[0] = float("nan")
    with pytest.raises(DataError, match=r"no longer finite at step (4|8) .*lower --lr"):
        run(trainer, bad, log_every)
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


def test_error_rates_count_every_image_once_and_leave_the_tasks_alone():
    trainer = build(ema=0.9)
    task = trainer.task
    task.eval()
    images = torch.randn(25, 3, 16, 16)
    with torch.no_grad():
        right = task.predict(images).argmax(dim=1)
    labels = right.clone()
    labels[[3, 11, 24]] = 1 - labels[[3, 11, 24]]
    task.train()
    frozen = task.trunk[0][1].eval()
    task.train = lambda mode=True: (nn.Module.train(task, mode), frozen.eval())[0]  # how networks freeze parts
    before = weights(trainer)
    with torch.no_grad():
        trainer.averaged.task.class_head.bias[0] = 1e6  # it says 0 for everything
    loader = Evaluation([Examples(images[a:a + 10], labels[a:a + 10]) for a in (0, 10, 20)])
    errors, count = error_rates(trainer.evaluated(), loader, trainer.autocast, progress=False)
    assert errors == {"test_error_raw": 3 / 25, "test_error": pytest.approx(labels.float().mean().item())}
    assert count == 25
    assert [module for module in task.modules() if not module.training] == [frozen]
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())


def test_a_network_that_works_in_place_on_its_images():
    """The second task that is evaluated sees what the first saw."""
    class InPlace(nn.Conv2d):
        out_channels = 4

        def forward(self, x):
            return super().forward(x.sub_(0.5).mul_(5).relu_())
    torch.manual_seed(0)
    trainer = Trainer(SesemiTask(InPlace(3, 4, 3), 2), steps=8, base_lr=0.05)
    images = torch.randn(40, 3, 16, 16)
    loader = Evaluation([Examples(images, trainer.task.eval().predict(images.clone()).argmax(dim=1))])
    errors, _ = error_rates({"one": trainer.task, "other": trainer.task}, loader, trainer.autocast, progress=False)
    assert errors == {"one": 0, "other": 0}


def test_a_network_that_comes_in_evaluation_mode_is_trained_in_training_mode():
    task = SesemiTask(build_trunk("wrn-10-1").eval(), 2)
    assert Trainer(task, steps=8, base_lr=0.05).task is task
    assert all(module.training for module in task.modules())


def test_an_evaluation_stops_between_two_forward_passes(monkeypatch):
    """The first of them: of a batch of 20 images, 8 at a time."""
    monkeypatch.setattr("sesemi.evaluation.FORWARD_VALUES", {"cpu": 8 * 3 * 16 * 16})
    trainer, stop = build(), StopRequest()
    sizes, real = [], trainer.task.predict

    def predict(images):
        sizes.append(len(images))
        stop.signal = 2
        return real(images)
    monkeypatch.setattr(trainer.task, "predict", predict)
    loader = Evaluation([Examples(torch.randn(20, 3, 16, 16), torch.zeros(20, dtype=torch.long))])
    assert error_rates(trainer.evaluated(), loader, trainer.autocast, stop, progress=False) is None
    assert sizes == [8]
    assert trainer.task.training
