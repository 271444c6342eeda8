"""The task: trunk, two heads, both losses and the metrics, in one module whose ``forward`` is compiled and averaged."""

import torch
import torch.nn.functional as F
from torch import nn

from pipelines.batch import VIEWS, Examples
from sesemi.config import Config
from sesemi.networks import build_trunk
from sesemi.networks.layers import can_split, linear, running_statistics_kept, split

PROXY_WEIGHT = 1.0


class SesemiTask(nn.Module):
    """Cross-entropy on the labels plus cross-entropy on the proxy labels (paper, section 3; ``compile_sesemi``).

    The trunk's batch norms see each branch with statistics of its own. The running ones are the labeled branch's: test
    images are upright, as labeled ones are. (In the reference each branch overwrites them with an average of its own,
    in no fixed order; where that was watched, the labeled branch was last most often.)

    Args:
        trunk: (n, C, H, W) to (n, ``out_channels``, h, w); see ``sesemi.networks``.
        num_classes: outputs of the class head.
        dropout: before the class head only.
        fused: run both branches through each convolution at once, in training. The same to rounding, but for dropout
            inside the trunk, which draws other masks. Compiled, the halves of a batch norm are written into one
            tensor; eager they are copied together. Two passes over one, in time: on an H200 compiled 1.10 (convnet),
            eager 0.91 (WRN-28-2 1.07); on two CPU cores eager 0.85 (wrn-10-1) and 0.72 (convnet), compiled 0.68 and
            0.90. It does nothing for trunks with other batch norms than ``sesemi.networks.layers.BatchNorm``.
    """

    def __init__(self, trunk: nn.Module, num_classes: int, dropout: float = 0.2, fused: bool = False):
        super().__init__()
        self.trunk = trunk
        self.dropout = nn.Dropout(dropout)
        self.class_head = linear(trunk.out_channels, num_classes)
        self.proxy_head = linear(trunk.out_channels, VIEWS)
        self.fused = fused and can_split(trunk)

    def forward(self, labeled: Examples, unlabeled: Examples | None = None) -> dict[str, torch.Tensor]:
        """What a training step minimises, ``loss``, and what it logs: float32 scalars by name.

        Args:
            labeled: images (n, C, H, W), class labels (n,).
            unlabeled: views (m, C, H, W), proxy labels (m,); None for supervised training.

        Returns:
            ``loss`` and, detached, ``class_loss``; with an unlabeled branch also ``proxy_loss`` and
            ``proxy_accuracy``. loss = class_loss + PROXY_WEIGHT · proxy_loss.
        """
        class_logits, proxy_logits = self.logits(labeled.images, None if unlabeled is None else unlabeled.images)
        class_loss = F.cross_entropy(class_logits.float(), labeled.labels)
        scalars = {"loss": class_loss, "class_loss": class_loss.detach()}
        if unlabeled is not None:
            proxy_loss = F.cross_entropy(proxy_logits.float(), unlabeled.labels)
            correct = proxy_logits.detach().argmax(dim=1) == unlabeled.labels
            scalars |= {"loss": class_loss + PROXY_WEIGHT * proxy_loss, "proxy_loss": proxy_loss.detach(),
                        "proxy_accuracy": correct.float().mean()}
        return scalars

    def logits(self, labeled: torch.Tensor,
               unlabeled: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Class logits (n, classes) of labeled images and proxy logits (m, 6) of unlabeled views, if any."""
        if unlabeled is None:
            return self.predict(labeled), None
        if self.fused and self.training:
            branches = (len(labeled), len(unlabeled))
            with split(self.trunk, branches):
                features = self.features(torch.cat([labeled, unlabeled]))
            labeled_features, unlabeled_features = features.split(branches)
        else:
            with running_statistics_kept(self.trunk):
                unlabeled_features = self.features(unlabeled)
            labeled_features = self.features(labeled)
        return self.class_head(self.dropout(labeled_features)), self.proxy_head(unlabeled_features)

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Class logits (n, classes)."""
        return self.class_head(self.dropout(self.features(images)))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What the heads see: the trunk's features, pooled, (n, out_channels)."""
        return self.trunk(images).mean(dim=(2, 3))


def build_task(config: Config, num_classes: int, channels: int) -> SesemiTask:
    """The task of a run on its device, channels-last; fused where that is faster: compiled, on a GPU."""
    trunk = build_trunk(config.network, channels, config.trunk_dropout)
    task = SesemiTask(trunk, num_classes, config.dropout, fused=config.compile and config.device != "cpu")
    return task.to(config.device, memory_format=torch.channels_last)
