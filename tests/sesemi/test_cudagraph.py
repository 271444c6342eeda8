"""The step can be recorded once and replayed: by a stand-in for the CUDA graph that repeats its ATen calls."""

import copy
import itertools
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipelines.batch import Batch, Examples
from sesemi.cudagraph import WARM_UP, GraphedStep
from sesemi.ema import ema_decay
from sesemi.networks import build_trunk
from sesemi.schedule import learning_rate
from sesemi.task import SesemiTask
from sesemi.trainer import Trainer
from tests.kill.train import difference
from tests.sesemi import test_trainer

STEPS, LOGGED, SAVED = 30, (5, 17), 11
batches = partial(test_trainer.batches, STEPS, side=8)


class Tape(TorchDispatchMode):
    """Keeps every ATen call, with its arguments and what it gave."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        found = function(*arguments, **(options or {}))
        self.calls.append((function, arguments, options or {}, found))
        return found


class Recorded:
    """A ``sesemi.cudagraph.Graph`` on the CPU: like a CUDA graph it repeats the recorded calls, on the same memory.

    So it repeats Python's numbers as they were, and writes to the tensors that were there, whatever their names are
    bound to by now. What a call made anew is written to the recorded tensor, which later calls of the tape read.
    (Unlike a CUDA graph it does the work once while it is recorded, which ``record`` undoes.)
    """

    def __init__(self, changed):
        self._changed = changed  # () → all tensors that the work may change
        self.replays = 0

    def warm_up(self, work):
        work()

    def record(self, work):
        before = [(tensor, tensor.clone()) for tensor in self._changed()]
        random = torch.get_rng_state()
        with Tape() as tape:
            work()
        self._calls = tape.calls
        for tensor, value in before:
            with torch.no_grad():
                tensor.copy_(value)
        torch.set_rng_state(random)

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for function, arguments, options, recorded in self._calls:
            found = function(*arguments, **options)
            returns = function._schema.returns
            if len(returns) == 1:
                recorded, found = [recorded], [found]
            for into, value, kind in zip(recorded or (), found or (), returns, strict=True):
                if kind.alias_info is None:  # not in place, and no view of what lies there
                    for one, new in zip(tree_leaves(into), tree_leaves(value), strict=True):
                        if isinstance(one, torch.Tensor):
                            one.copy_(new)


def build(recorded: bool, kind=Trainer, **options) -> Trainer:
    """A trainer of wrn-10-1 with dropout, in float16 with an average, that takes eager or recorded steps."""
    torch.manual_seed(0)
    trainer = kind(SesemiTask(build_trunk("wrn-10-1"), 2), **{"steps": STEPS, "base_lr": 0.05, "dtype": torch.float16,
                                                              "ema": 0.9, **options})
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=5,
                                          enabled=trainer.scaler.is_enabled())
    if recorded:
        trainer._new_graph = lambda: Recorded(lambda: tensors(trainer))
        trainer._run_step = trainer._new_run_step()
    return trainer


def tensors(trainer: Trainer) -> list[torch.Tensor]:
    """All that a step changes."""
    scaler = [trainer.scaler._scale, trainer.scaler._growth_tracker] if trainer.scaler.is_enabled() else []
    return [*(value for task in trainer.evaluated().values() for value in task.state_dict().values()),
            *(state["momentum_buffer"] for state in trainer.optimizer.state.values()), *trainer._sums.values(), *scaler]


def course(trainer: Trainer) -> tuple[dict, list, list]:
    """30 steps across two lines of the log and a checkpoint: the state at last, the lines, the scale in each step."""
    torch.manual_seed(1)  # dropout
    lines, scales = [], []
    for step in trainer.train(batches()):
        scales.append(trainer.scaler.get_scale())
        if step in LOGGED:
            line = trainer.line()
            lines.append((line.learning_rate, line.class_loss, line.proxy_loss, line.proxy_accuracy))
        if step == SAVED:
            trainer.state_dict()
    state = trainer.state_dict()
    return {name: state[name] for name in ("task", "averaged", "optimizer", "scaler", "sums", "step")}, lines, scales


@pytest.mark.parametrize("options", [{}, {"dtype": torch.float32}, {"dtype": torch.bfloat16, "ema": None}])
def test_recorded_steps_are_eager_steps_to_the_bit(options):
    """The learning rate and the average's decay change in every step; float16 skips some, whose gradients overflow."""
    eager, recorded = build(False, **options), build(True, **options)
    (state, lines, scales), (same, same_lines, same_scales) = course(eager), course(recorded)
    assert recorded._run_step._graph.replays == STEPS - WARM_UP
    assert difference(same, state) == ""
    assert (same_lines, same_scales) == (lines, scales)
    if not options:
        skipped = [step for step, (one, two) in enumerate(itertools.pairwise(scales), start=2) if two < one]
        assert max(skipped) > WARM_UP + 1
        assert any(two > one for one, two in itertools.pairwise(scales))


def test_a_recording_goes_on_from_a_checkpoint():
    """Read into a trainer that has recorded steps of its own, whose tensors are not the checkpoint's."""
    whole, other = build(True), build(True)
    for _ in itertools.islice(whole.train(batches()), 10):
        pass
    state = copy.deepcopy(whole.state_dict())
    for _ in itertools.islice(other.train(batches(seed=1)), 8):
        pass
    other.load_state_dict(state)
    random = torch.get_rng_state()
    for trainer in (whole, other):
        torch.set_rng_state(random)
        for batch in batches()[10:20]:
            trainer.train_step(batch)
    assert difference(other.task.state_dict(), whole.task.state_dict()) == ""
    assert difference(other.averaged.task.state_dict(), whole.averaged.task.state_dict()) == ""


class RateByValue(Trainer):
    """Hands the optimiser a Python number, which a recording keeps."""

    def train_step(self, batch):
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.base_lr)
        super().train_step(batch)


class ReboundSums(Trainer):
    """Begins new sums after a line, which a recording does not add to."""

    def line(self):
        found = super().line()
        self._sums = {name: torch.zeros_like(total) for name, total in self._sums.items()}
        return found


class DecayByValue(Trainer):
    """Averages by a Python number."""

    def _update(self, batch):
        self.averaged._share = 1 - ema_decay(self.step, 0.9)
        super()._update(batch)

    def train_step(self, batch):
        self.averaged.set_step = lambda step: None
        super().train_step(batch)


@pytest.mark.parametrize("wrong", [RateByValue, ReboundSums, DecayByValue])
def test_the_stand_in_notices_what_a_cuda_graph_would_get_wrong(wrong):
    """Each of them takes the right steps as long as they are eager."""
    right, eager, recorded = (course(build(graphed, kind, dtype=torch.float32))[:2]
                              for graphed, kind in ((False, Trainer), (False, wrong), (True, wrong)))
    keep = ("task", "averaged", "sums")
    assert difference(*({name: one[0][name] for name in keep} for one in (eager, right))) == ""
    assert difference(*({name: one[0][name] for name in keep} for one in (recorded, right))) != ""


def test_batches_of_another_shape_and_new_memory():
    """What is recorded reads the batch it is called with, whose memory may go; another shape takes an eager step."""
    seen = torch.zeros(20)
    number = torch.zeros(1, dtype=torch.long)

    def step(batch: Batch) -> None:
        seen.index_copy_(0, number, batch.labeled.images.sum()[None])
        number.add_(1)
    graph = Recorded(lambda: [seen, number])
    run = GraphedStep(step, graph)
    sizes = [4] * 8 + [3, 4, 3]
    given = [torch.full((size,), 1.0 + index) for index, size in enumerate(sizes)]
    for images in given:
        run(Batch(Examples(images, torch.zeros(len(images))), None))
    assert seen[:len(sizes)].tolist() == [size * (1.0 + index) for index, size in enumerate(sizes)]
    assert graph.replays == 6
    assert all((images == 1.0 + index).all() for index, images in enumerate(given))  # the caller's stay as they were
