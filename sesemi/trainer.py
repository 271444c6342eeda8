"""Training: batch → forward → loss → backward → update, and what happens every so many steps.

The trainer takes any iterable of ``pipelines.batch.Batch``: the loader in a run, a list of tensors in a test.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from pipelines.batch import Batch
from pipelines.common.errors import DataError
from sesemi.cudagraph import GraphedStep
from sesemi.model import SesemiModel
from sesemi.objective import sesemi_loss
from sesemi.schedule import build_optimizer, learning_rate


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
    """Owns the model, the optimiser and the clock; knows nothing of files or data sets.

    Args:
        model: on its device, in training mode.
        steps: length of the run and of the learning-rate schedule.
        base_lr: learning rate of the first step.
        dtype: of the forward pass; float16 scales the gradients.
        cuda_graph: on a GPU, replay the step as one CUDA graph; see ``sesemi.cudagraph``.
        settle: for the CUDA graph, waits until no other thread works on the GPU; the loader's ``settle``.
        log_every: steps between calls of ``on_log``.
        on_log: called with a TrainLine.
        after_step: called with the number of steps done, after each; the place for evaluation and checkpoints.
    """

    def __init__(self, model: SesemiModel, *, steps: int, base_lr: float, dtype: torch.dtype = torch.float32,
                 cuda_graph: bool = False, settle: Callable[[], object] = lambda: None, log_every: int = 50,
                 on_log: Callable[[TrainLine], object] = lambda line: None,
                 after_step: Callable[[int], object] = lambda step: None):
        self.model, self.steps, self.base_lr = model, steps, base_lr
        self.device = next(model.parameters()).device
        self.rate = torch.tensor(base_lr, device=self.device)  # a tensor: a recorded step reads the new value
        self.optimizer = build_optimizer(model, self.rate)
        self.autocast = torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self.step = 0
        self.images = 0  # through the network, in all
        self.seconds = 0.0  # training, in all: without evaluation and other pauses
        self.waited = 0.0  # of them, waiting for a batch
        self.on_log, self.after_step = on_log, after_step
        self._log_every = log_every
        self._sums = torch.zeros(3, device=self.device)  # class loss, proxy loss, proxy accuracy since the last line
        self._since = (0, 0, 0.0, 0.0)  # step, images, seconds, waited at the last line
        self._stop = False
        self._graphed, self._settle = cuda_graph and self.device.type == "cuda", settle
        self._run_step = self._new_run_step()
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # shapes stay the same, so it pays to try cuDNN's algorithms once

    def train(self, batches: Iterable[Batch]) -> bool:
        """Train to the last step, or until ``stop``; returns whether the last step was reached."""
        batches = iter(batches)
        while self.step < self.steps and not self._stop:
            start = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - start
            self.train_step(batch)
            self.step += 1
            self.seconds += time.perf_counter() - start
            if self.step % self._log_every == 0 or self.step == self.steps:
                self._log()
            self.after_step(self.step)
        return self.step == self.steps

    def train_step(self, batch: Batch) -> None:
        """One step of the method on one batch; it does not wait for the device, unless it records the CUDA graph."""
        self.rate.fill_(learning_rate(self.step, self.steps, self.base_lr))
        self._run_step(batch)
        self.images += len(batch.labeled.images) + (0 if batch.unlabeled is None else len(batch.unlabeled.images))
        self._has_proxy = batch.unlabeled is not None

    def _update(self, batch: Batch) -> None:
        """Forward, loss, backward, update. All that changes is a tensor and stays where it is, for the CUDA graph."""
        labeled, unlabeled = batch
        with self.autocast:
            class_logits, proxy_logits = self.model(labeled.images, unlabeled and unlabeled.images)
        loss, class_loss, proxy_loss = sesemi_loss(class_logits, labeled.labels,
                                                   proxy_logits, unlabeled and unlabeled.labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

        correct = torch.zeros_like(class_loss)
        if unlabeled is not None:
            correct = (proxy_logits.detach().argmax(dim=1) == unlabeled.labels).float().mean()
        self._sums += torch.stack([class_loss.detach(), proxy_loss.detach(), correct])

    def _new_run_step(self) -> Callable[[Batch], None]:
        return GraphedStep(self._update, self.device, self._settle) if self._graphed else self._update

    def stop(self) -> None:
        """Leave ``train`` after the step under way. May be called from a signal handler."""
        self._stop = True

    def state_dict(self) -> dict:
        """Model, optimiser, gradient scaler, counters: what ``load_state_dict`` needs to go on to the bit.

        Raises DataError where the losses are no longer finite, so that no checkpoint of such a model is kept.
        """
        self._check_finite(self._sums.tolist())
        return {"step": self.step, "images": self.images, "seconds": self.seconds, "waited": self.waited,
                "sums": self._sums, "since": list(self._since), "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Go on where ``state_dict`` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.images = state["step"], state["images"]
        self.seconds, self.waited = state["seconds"], state["waited"]
        self.rate.fill_(self._last_rate)
        self._sums.copy_(state["sums"])
        self._since = tuple(state["since"])
        self._run_step = self._new_run_step()  # what was recorded knows the optimiser's tensors of before

    def _log(self) -> None:
        start = time.perf_counter()
        sums = self._sums.tolist()  # waits for the device, so the clock below covers the work it was given
        self.seconds += time.perf_counter() - start
        self._check_finite(sums)
        now = (self.step, self.images, self.seconds, self.waited)
        steps, images, seconds, waited = (b - a for a, b in zip(self._since, now, strict=True))
        class_loss, proxy_loss, accuracy = (value / steps for value in sums)
        self._since = now
        self._sums.zero_()
        self.on_log(TrainLine(self.step, self._last_rate, class_loss,
                               proxy_loss if self._has_proxy else None, accuracy if self._has_proxy else None,
                               images / seconds, waited / seconds))

    @property
    def _last_rate(self) -> float:
        return learning_rate(max(0, self.step - 1), self.steps, self.base_lr)

    def _check_finite(self, sums: list[float]) -> None:
        if not all(map(math.isfinite, sums)):
            raise DataError(f"the loss is no longer finite at step {self.step} (learning rate {self._last_rate:.3g}); "
                            f"try a lower --lr, or --precision fp32; the last checkpoint is untouched")
