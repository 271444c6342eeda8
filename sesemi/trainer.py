"""Training: batch → forward → loss → backward → update. The course of a run around it is ``sesemi/run.py``.

The trainer takes any iterable of ``pipelines.batch.Batch``: the loader in a run, a list of tensors in a test.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from pipelines.batch import Batch
from pipelines.common.errors import DataError, UsageError
from sesemi.cudagraph import CudaGraph, Graph, GraphedStep
from sesemi.device import autocast
from sesemi.ema import AveragedTask, by_error
from sesemi.schedule import build_optimizer, learning_rate
from sesemi.task import SesemiTask


@dataclass(frozen=True)
class TrainLine:
    """What is logged: losses and proxy accuracy are means over the steps since the last line.

    ``data_wait_fraction`` is the share of the time in which the host waited for a batch. The proxy's numbers are
    None where there is no proxy branch.
    """

    step: int
    learning_rate: float
    class_loss: float
    proxy_loss: float | None
    proxy_accuracy: float | None
    images_per_second: float
    data_wait_fraction: float


class Trainer:
    """Owns the task, the optimiser and the clock; knows nothing of files or data sets.

    Args:
        task: on its device; put in training mode.
        steps: length of the run and of the learning-rate schedule.
        base_lr: learning rate of the first step.
        dtype: of the forward pass; float16 scales the gradients.
        ema: decay of an averaged copy of the task, see ``sesemi.ema``; None for none.
        compile: have torch.compile make one graph of the task's ``forward``, at the first step; see ``compile``.
        cuda_graph: on a GPU, replay the step as one CUDA graph; see ``sesemi.cudagraph``.
        settle: for the CUDA graph, waits until no other thread works on the GPU; the loader's ``settle``.
    """

    def __init__(self, task: SesemiTask, *, steps: int, base_lr: float, dtype: torch.dtype = torch.float32,
                 ema: float | None = None, compile: bool = False, cuda_graph: bool = False,
                 settle: Callable[[], object] = lambda: None):
        self.task, self.steps, self.base_lr = task.train(), steps, base_lr
        self.device = next(task.parameters()).device
        self.rate = torch.tensor(base_lr, device=self.device)  # a tensor: a recorded step reads the new value
        self.optimizer = build_optimizer(task, self.rate)
        self.autocast, self._mixed = autocast(self.device, dtype), dtype != torch.float32
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self.averaged = None if ema is None else AveragedTask(task, ema)
        self.step = 0  # steps done
        self.images = 0  # through the network, in all
        self.seconds = 0.0  # training, in all: without evaluation and other pauses
        self.waited = 0.0  # of them, waiting for a batch
        self._buffers = dict(task.named_buffers())
        self._sums: dict[str, torch.Tensor] = {}  # of what the task returns, since the last line
        self._since = (0, 0, 0.0, 0.0)  # step, images, seconds, waited at the last line
        self._forward: Callable[..., dict[str, torch.Tensor]] = task
        if compile:
            self.compile()
        on_gpu = self.device.type == "cuda"
        self._new_graph: Callable[[], Graph] | None = None
        if cuda_graph and on_gpu:
            self._new_graph = partial(CudaGraph, self.device, settle)
        self._run_step = self._new_run_step()
        if on_gpu:
            torch.backends.cudnn.benchmark = True  # shapes stay the same, so it pays to try cuDNN's algorithms once

    def train(self, batches: Iterable[Batch]) -> Iterator[int]:
        """Train to the last step; yields the number of steps done, after each. Time between two does not count."""
        batches = iter(batches)
        while self.step < self.steps:
            start = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - start
            self.train_step(batch)
            self.seconds += time.perf_counter() - start
            yield self.step

    def train_step(self, batch: Batch) -> None:
        """One step of the method on one batch; it does not wait for the device, unless it records the CUDA graph."""
        self.rate.fill_(learning_rate(self.step, self.steps, self.base_lr))
        if self.averaged is not None:
            self.averaged.set_step(self.step)
        self._run_step(batch)
        self.step += 1
        self.images += len(batch.labeled.images) + (0 if batch.unlabeled is None else len(batch.unlabeled.images))

    def _update(self, batch: Batch) -> None:
        """Forward, loss, backward, update. All that changes is a tensor and stays where it is, for the CUDA graph."""
        with self.autocast:
            scalars = self._forward(*batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(scalars.pop("loss")).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averaged is not None:
            self.averaged.update()
        for name, value in scalars.items():
            if name not in self._sums:  # in the first step, which is never a recorded one
                self._sums[name] = torch.zeros_like(value)
        torch._foreach_add_([self._sums[name] for name in scalars], list(scalars.values()))

    def compile(self) -> None:
        """Have the forward pass compiled at the next step, into one graph. Evaluation, of other shapes, stays eager."""
        self._forward = torch.compile(self.task, dynamic=False, fullgraph=True)

    def _new_run_step(self) -> Callable[[Batch], None]:
        return self._update if self._new_graph is None else GraphedStep(self._update, self._new_graph())

    def line(self) -> TrainLine:
        """The means since the last line, and where training is. Waits for the device.

        Raises DataError where the losses are no longer finite, UsageError for a network that would be averaged, or
        recorded, wrongly.
        """
        self._check_buffers()
        start = time.perf_counter()
        sums = self._finite_sums()  # waits for the device, so the clock covers the work it was given
        self.seconds += time.perf_counter() - start
        now = (self.step, self.images, self.seconds, self.waited)
        steps, images, seconds, waited = (b - a for a, b in zip(self._since, now, strict=True))
        self._since = now
        for total in self._sums.values():
            total.zero_()
        means = dict.fromkeys(("proxy_loss", "proxy_accuracy")) | {name: sums[name] / steps for name in sums}
        return TrainLine(step=self.step, learning_rate=self._last_rate, images_per_second=images / seconds,
                         data_wait_fraction=waited / seconds, **means)

    def evaluated(self) -> dict[str, SesemiTask]:
        """The tasks to evaluate, by what their test error is called: the average first, where there is one."""
        return by_error(self.task, None if self.averaged is None else self.averaged.task)

    def state_dict(self) -> dict:
        """Task, its average, optimiser, gradient scaler, counters: what ``load_state_dict`` needs to go on to the bit.

        Raises DataError where losses or weights are no longer finite, so that no checkpoint of such a task is kept.
        """
        self._check_buffers()
        self._finite_sums()
        weights = [weight.detach().float() for weight in self.task.parameters() if weight.numel()]
        largest = torch._foreach_norm(weights, float("inf"))
        if not torch.stack(largest).isfinite().all():
            raise self._not_finite("the weights are")
        return {"step": self.step, "images": self.images, "seconds": self.seconds, "waited": self.waited,
                "sums": self._sums, "since": list(self._since), "task": self.task.state_dict(),
                "averaged": None if self.averaged is None else self.averaged.task.state_dict(),
                "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Go on where ``state_dict`` was taken."""
        self.task.load_state_dict(state["task"])
        if self.averaged is not None:
            self.averaged.task.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.images = state["step"], state["images"]
        self.seconds, self.waited = state["seconds"], state["waited"]
        self.rate.fill_(self._last_rate)
        self._sums = {name: total.clone() for name, total in state["sums"].items()}
        self._since = tuple(state["since"])
        self._run_step = self._new_run_step()  # what was recorded knows the tensors of before

    @property
    def _last_rate(self) -> float:
        return learning_rate(max(0, self.step - 1), self.steps, self.base_lr)

    def _finite_sums(self) -> dict[str, float]:
        names = list(self._sums)
        values = torch.stack([self._sums[name] for name in names]).tolist() if names else []
        if not all(map(math.isfinite, values)):
            raise self._not_finite("the loss is")
        return dict(zip(names, values, strict=True))

    def _not_finite(self, what: str) -> DataError:
        precision = ", or --precision fp32" if self._mixed else ""
        return DataError(f"{what} no longer finite at step {self.step} (learning rate {self._last_rate:.3g}); try a "
                         f"lower --lr{precision}; earlier checkpoints are untouched")

    def _check_buffers(self) -> None:
        """Refuse a network that makes new buffers instead of changing its own, where they are followed."""
        if self.averaged is None and self._new_graph is None:
            return
        now = dict(self.task.named_buffers())
        for name, buffer in self._buffers.items():
            if now.get(name) is not buffer:
                raise UsageError(f"--network: {name.removeprefix('trunk.')} became another tensor while training; have "
                                 f"the network change it in place (copy_, lerp_), or leave out --ema and the CUDA "
                                 f"graph (--no-cuda-graph), which follow the tensor that was there")
