"""The model: one trunk, global average pooling, and two linear heads, for classes and for the six proxy labels."""

from collections.abc import Callable

import torch
from torch import nn

from pipelines.batch import VIEWS
from sesemi.networks import build_trunk
from sesemi.networks.layers import linear, running_statistics_kept


class SesemiModel(nn.Module):
    """Reference: ``compile_sesemi``.

    Args:
        network: name of the trunk, see sesemi.networks.
        num_classes: outputs of the class head.
        dropout: before the class head only.
        trunk_dropout: inside the trunk.
        channels: of the images.
    """

    def __init__(self, network: str, num_classes: int, dropout: float = 0.2, trunk_dropout: float = 0.0,
                 channels: int = 3):
        super().__init__()
        self.trunk = build_trunk(network, channels, trunk_dropout)
        self.dropout = nn.Dropout(dropout)
        self.class_head = linear(self.trunk.out_channels, num_classes)
        self.proxy_head = linear(self.trunk.out_channels, VIEWS)
        self._compiled_trunk: Callable[[torch.Tensor], torch.Tensor] | None = None

    def compile_trunk(self) -> None:
        """Compile the trunk with torch.compile at the first training step, into one graph for each branch.

        Evaluation, whose batches have other shapes, stays eager.
        """
        def trunk(images: torch.Tensor) -> torch.Tensor:  # Dynamo does not compile the forward of nn.Sequential itself
            return self.trunk(images)
        self._compiled_trunk = torch.compile(trunk, dynamic=False, fullgraph=True)

    def forward(self, labeled: torch.Tensor,
                unlabeled: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Class logits (n, classes) of labeled images and proxy logits (m, 6) of unlabeled views, if any.

        The trunk runs on each branch by itself, so batch statistics are per branch. The running ones are the labeled
        branch's alone: test images are upright, as labeled ones are. (In the reference each branch overwrites them with
        an average of its own, in no fixed order; where that was watched, the labeled branch was last most often.)
        """
        proxy_logits = None
        if unlabeled is not None:
            with running_statistics_kept(self.trunk):
                proxy_logits = self.proxy_head(self._features(unlabeled))
        return self.class_head(self.dropout(self._features(labeled))), proxy_logits

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        trunk = self._compiled_trunk if self.training and self._compiled_trunk else self.trunk
        return trunk(images).mean(dim=(2, 3))
