"""An exponential moving average of a task's weights and buffers, which often tests better than the weights do."""

import copy
from typing import TypeVar

import torch

from sesemi.task import SesemiTask

T = TypeVar("T")


def ema_decay(step: int, limit: float) -> float:
    """The share of the average that stays in step 0, 1, ...: min(limit, (1 + step) / (10 + step)), so that a young
    average forgets the random weights it began with."""
    return min(limit, (1 + step) / (10 + step))


class AveragedTask:
    """average ← decay · average + (1 − decay) · task, of all weights and buffers, after every step.

    ``update`` may be recorded in a CUDA graph: it works in place, and reads the decay from a tensor that ``set_step``
    fills.

    Args:
        task: on its device.
        limit: decay from the step on in which ``ema_decay`` reaches it.
    """

    def __init__(self, task: SesemiTask, limit: float):
        self.task = copy.deepcopy(task).requires_grad_(False)
        self._limit = limit
        pairs = list(zip(tensors(self.task), tensors(task), strict=True))
        self._averages = [average for average, current in pairs if current.is_floating_point()]
        self._currents = [current for average, current in pairs if current.is_floating_point()]
        self._counts = [pair for pair in pairs if not pair[1].is_floating_point()]  # which some batch norms keep
        self._share = torch.zeros((), device=self._currents[0].device)  # of the current values

    def set_step(self, step: int) -> None:
        """Before a step's ``update``: which step it is, from 0."""
        self._share.fill_(1 - ema_decay(step, self._limit))

    @torch.no_grad()
    def update(self) -> None:
        """After the optimiser's step."""
        differences = torch._foreach_sub(self._currents, self._averages)
        torch._foreach_mul_(differences, self._share)
        torch._foreach_add_(self._averages, differences)
        for average, current in self._counts:
            average.copy_(current)


def by_error(last: T, average: T | None) -> dict[str, T]:
    """What the test errors are called: that of the average, where there is one, is the run's."""
    return {"test_error": last} if average is None else {"test_error": average, "test_error_raw": last}


def tensors(task: SesemiTask) -> list[torch.Tensor]:
    """Its weights and buffers, each once, though it may have several names."""
    return [*(parameter.detach() for parameter in task.parameters()), *task.buffers()]
