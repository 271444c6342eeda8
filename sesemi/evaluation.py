"""The test error: class probabilities averaged over the views of every test image, each exactly once."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from pipelines.common.progress import progress_bar
from sesemi.signals import StopRequest
from sesemi.task import SesemiTask

if TYPE_CHECKING:  # it brings DALI
    from pipelines.evaluation import EvaluationLoader

FORWARD_VALUES = {"cpu": 256 * 3072, "cuda": 1024 * 3072}  # of images in one forward pass, to bound its memory


@torch.no_grad()
def error_rates(tasks: Mapping[str, SesemiTask], loader: "EvaluationLoader", autocast: torch.autocast,
                stop: StopRequest | None = None, progress: bool = True) -> tuple[dict[str, float], int] | None:
    """The fraction of images that each task classifies wrongly, and how many images that is of.

    Reference: ``DenseEvaluator``. All tasks see the same views. They are left in the mode, training or not, they were
    in; their running statistics are used, not changed.

    Args:
        tasks: by name; the result has the same names.
        loader: of the test images.
        autocast: the context to compute in.
        stop: looked at between two forward passes.
        progress: show a bar.

    Returns:
        None where ``stop`` was requested.
    """
    training = {name: task.training for name, task in tasks.items()}
    wrong, images = dict.fromkeys(tasks, 0), 0
    try:
        for task in tasks.values():
            task.eval()
        with progress_bar(len(loader), " batches", "evaluating", leave=False, disable=not progress) as bar:
            for views, labels in loader:
                at_a_time = max(1, FORWARD_VALUES[views.device.type] // views[0].numel())
                for name, task in tasks.items():
                    logits = []
                    for part in views.split(at_a_time):
                        if stop is not None and stop.requested:
                            return None
                        with autocast:
                            logits.append(task.predict(part.clone()))  # a user's network may work in place
                    wrong[name] = wrong[name] + (averaged_prediction(torch.cat(logits), loader.views) != labels).sum()
                images += len(labels)
                bar.update()
    finally:
        for name, task in tasks.items():
            task.train(training[name])
    return {name: int(count) / images for name, count in wrong.items()}, images


def averaged_prediction(logits: torch.Tensor, views: int) -> torch.Tensor:
    """Class (n,) of largest mean probability over each image's views, from logits (n·views, classes)."""
    probabilities = logits.float().softmax(dim=1)
    return probabilities.unflatten(0, (-1, views)).mean(dim=1).argmax(dim=1)
