"""The test error: class probabilities averaged over the views of every test image, each exactly once."""

from typing import TYPE_CHECKING

import torch

from pipelines.common.progress import progress_bar
from sesemi.model import SesemiModel

if TYPE_CHECKING:  # it brings DALI
    from pipelines.evaluation import EvaluationLoader

FORWARD_VALUES = {"cpu": 256 * 3072, "cuda": 1024 * 3072}  # of images in one forward pass, to bound its memory


@torch.no_grad()
def error_rate(model: SesemiModel, loader: "EvaluationLoader", autocast: torch.autocast,
               progress: bool = True) -> tuple[float, int]:
    """The fraction of images classified wrongly, and how many images that is of (reference: ``DenseEvaluator``).

    The model is left in the mode it was in; its running statistics are used, not changed.
    """
    training = model.training
    model.eval()
    wrong, images = None, 0
    with progress_bar(len(loader), " batches", "evaluating", leave=False, disable=not progress) as bar:
        for views, labels in loader:
            at_a_time = max(1, FORWARD_VALUES[views.device.type] // views[0].numel())
            with autocast:
                logits = torch.cat([model(part)[0] for part in views.split(at_a_time)])
            predicted = averaged_prediction(logits, loader.views)
            mistakes = (predicted != labels).sum()
            wrong = mistakes if wrong is None else wrong + mistakes
            images += len(labels)
            bar.update()
    model.train(training)
    return wrong.item() / images, images


def averaged_prediction(logits: torch.Tensor, views: int) -> torch.Tensor:
    """Class (n,) of largest mean probability over each image's views, from logits (n·views, classes)."""
    probabilities = logits.float().softmax(dim=1)
    return probabilities.unflatten(0, (-1, views)).mean(dim=1).argmax(dim=1)
