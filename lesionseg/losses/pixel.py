"""Losses of single pixels: means over all pixels, the same per image and per batch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lesionseg.losses.base import Loss


def build_bce(pooled: bool, pos_weight: float = 1.0) -> Loss:
    """Binary cross-entropy, the mean over pixels.

    pooled: makes no difference to a mean over pixels.
    pos_weight: what a pixel of lesion weighs, against 1 for a pixel of skin.
    """

    def bce(logits: Tensor, target: Tensor) -> Tensor:
        logits = logits.float()
        # Filled in place on the device: a tensor made of a number would be copied there.
        weight = logits.new_full((1,), pos_weight)
        return F.binary_cross_entropy_with_logits(logits, target.float(), pos_weight=weight)

    return bce


def build_focal(pooled: bool, gamma: float, alpha: float) -> Loss:
    """Focal loss, the mean over pixels; Lin et al., arXiv:1708.02002, eq. 5.

    A soft target is the mean of the two losses that it stands between.

    pooled: makes no difference to a mean over pixels.
    gamma: how much less a pixel counts that is nearly right; 0 would be cross-entropy.
    alpha: the weight of lesion; skin has 1 - ``alpha``.
    """

    def focal(logits: Tensor, target: Tensor) -> Tensor:
        logits, target = logits.float(), target.float()
        lesion, skin = F.logsigmoid(logits), F.logsigmoid(-logits)
        # (1 - p) ** gamma as exp(gamma log(1 - p)): for gamma < 1 the gradient of the power
        # itself is infinite where p rounds to 1, and NaN times the zero gradient of p. The focal
        # losses of torchvision and of segmentation_models_pytorch take the power.
        of_lesion = -alpha * (gamma * skin).exp() * lesion
        of_skin = -(1 - alpha) * (gamma * lesion).exp() * skin
        return (target * of_lesion + (1 - target) * of_skin).mean()

    return focal
