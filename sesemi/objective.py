"""What is minimised: cross-entropy on the labels plus cross-entropy on the proxy labels (paper, section 3)."""

import torch
import torch.nn.functional as F

PROXY_WEIGHT = 1.0


def sesemi_loss(class_logits: torch.Tensor, labels: torch.Tensor, proxy_logits: torch.Tensor | None = None,
                proxy_labels: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss of a step and its two parts, float32 scalars.

    Args:
        class_logits: (n, classes), of the labeled branch; ``labels`` (n,).
        proxy_logits: (m, 6), of the unlabeled branch; ``proxy_labels`` (m,). None for supervised training, whose
            proxy part is zero.

    Returns:
        total, supervised and proxy loss; total = supervised + PROXY_WEIGHT · proxy.
    """
    supervised = F.cross_entropy(class_logits.float(), labels)
    if proxy_logits is None:
        return supervised, supervised, torch.zeros_like(supervised)
    proxy = F.cross_entropy(proxy_logits.float(), proxy_labels)
    return supervised + PROXY_WEIGHT * proxy, supervised, proxy
