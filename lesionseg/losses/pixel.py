"""Pixel losses: means over all pixels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lesionseg.losses.overlap import Loss


def build_bce(pooled: bool, pos_weight: float = 1.0) -> Loss:
    """Build binary cross-entropy; lesion pixels have the weight ``pos_weight``, background 1."""

    def bce(logits: Tensor, target: Tensor) -> Tensor:
        logits = logits.float()
        # Created on the device: a tensor of a Python number would be copied to it.
        weight = logits.new_full((1,), pos_weight)
        return F.binary_cross_entropy_with_logits(logits, target.float(), pos_weight=weight)

    return bce


def build_focal(pooled: bool, gamma: float, alpha: float) -> Loss:
    """Build the focal loss, averaged over pixels; Lin et al., arXiv:1708.02002, eq. 5.

    The loss of a soft target is interpolated linearly between those of 0 and 1. Lesion has the
    weight ``alpha``, background 1 - ``alpha``; ``gamma`` = 0 is cross-entropy.
    """

    def focal(logits: Tensor, target: Tensor) -> Tensor:
        logits, target = logits.float(), target.float()
        log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
        # (1 - p) ** gamma as exp(gamma log(1 - p)): for gamma < 1 the power has an infinite
        # gradient where p rounds to 1, which gives NaN (in torchvision's and smp's focal losses).
        lesion_loss = -alpha * (gamma * log_not_p).exp() * log_p
        background_loss = -(1 - alpha) * (gamma * log_p).exp() * log_not_p
        return (target * lesion_loss + (1 - target) * background_loss).mean()

    return focal
