"""Losses of overlap: from soft counts of right and wrong pixels, per image or over the batch.

The counts are min(p, t) and so on, where the papers write p x t. For masks of 0 and 1 that is the
same; for soft targets only the minimum is best at p = t: Wang et al., arXiv:2302.05666.

They are written here since the kept libraries break the contract of LOSSES:
segmentation_models_pytorch pools over the batch and gives an empty mask no gradient at all;
MONAI's Tversky takes the product; the Matthews loss of the former is all but flat for an empty
mask, and its Lovasz hinge asks an unsure target for a surer logit than a sure one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lesionseg.losses.base import Loss

#: Half a pixel of true positives that every image is given: an empty mask then has a gradient,
#: and 0/0 is 1. For Dice it is 1 on both sides of the ratio of the doubled overlap.
SMOOTH = 0.5

#: Tversky losses below this are as good as none: the slope of their root would be infinite at 0.
TINY = 1e-6


class Counts(NamedTuple):
    """Soft counts of pixels, each [N], or [1] if pooled."""

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor


def count(logits: Tensor, target: Tensor, pooled: bool) -> Counts:
    """The soft counts of logits against targets, both [N, 1, H, W]."""
    p, t = _rows(logits.float().sigmoid(), pooled), _rows(target.float(), pooled)
    # No count is a difference of sums: in a large batch its rounding could fall below 0.
    return Counts(
        tp=torch.minimum(p, t).sum(1),
        fp=F.relu(p - t).sum(1),
        fn=F.relu(t - p).sum(1),
        tn=(1 - torch.maximum(p, t)).sum(1),
    )


def build_tversky(pooled: bool, alpha: float, beta: float) -> Loss:
    """1 - tp / (tp + ``alpha`` fp + ``beta`` fn); Salehi et al., arXiv:1706.05721.

    alpha: the weight of false positives.
    beta: the weight of false negatives.
    """
    return lambda logits, target: _tversky(count(logits, target, pooled), alpha, beta).mean()


def build_dice(pooled: bool) -> Loss:
    """Soft Dice loss; Milletari et al., arXiv:1606.04797 (with sums that are not squared)."""
    return build_tversky(pooled, 0.5, 0.5)


def build_jaccard(pooled: bool) -> Loss:
    """Soft Jaccard loss, 1 - tp / (tp + fp + fn)."""
    return build_tversky(pooled, 1.0, 1.0)


def build_focal_tversky(pooled: bool, alpha: float, beta: float, gamma: float) -> Loss:
    """Tversky loss ** (1 / ``gamma``); Abraham and Khan, arXiv:1810.07842.

    The exponent is 1 / gamma as in the paper, not gamma: above 1 a mask that is nearly right
    still counts. The root is taken of each image (or of the batch), then the mean.

    alpha, beta: as in :func:`build_tversky`; the paper has them the other way round.
    """

    def focal_tversky(logits: Tensor, target: Tensor) -> Tensor:
        loss = _tversky(count(logits, target, pooled), alpha, beta)
        return loss.clamp_min(TINY).pow(1 / gamma).mean()

    return focal_tversky


def build_mcc(pooled: bool) -> Loss:
    """1 - Matthews correlation coefficient, 0 .. 2; Abhishek and Hamarneh, arXiv:2010.13454.

    True positives and true negatives are given SMOOTH each: for an empty mask the coefficient is
    then 1 if nothing is predicted and falls with every pixel that is.
    """

    def mcc(logits: Tensor, target: Tensor) -> Tensor:
        tp, fp, fn, tn = count(logits, target, pooled)
        tp, tn = tp + SMOOTH, tn + SMOOTH
        # Two roots: the product of all four sums leaves the range of float32 in a large batch.
        scale = ((tp + fp) * (tp + fn)).sqrt() * ((tn + fp) * (tn + fn)).sqrt()
        return (1 - (tp * tn - fp * fn) / scale).mean()

    return mcc


def build_lovasz(pooled: bool) -> Loss:
    """Lovasz hinge; Berman et al., arXiv:1705.08790, algorithm 1.

    A convex loss of the logits themselves, 0 where all are right by 1 or more, without bound
    where they are wrong. A soft target t has the mean of its two hinges,
    t max(0, 1 - x) + (1 - t) max(0, 1 + x). In an empty mask only the worst pixel counts: it
    alone decides whether Jaccard is 0 or 1. Sorting makes it O(n log n) in the pixels.
    """

    def lovasz(logits: Tensor, target: Tensor) -> Tensor:
        x, t = _rows(logits.float(), pooled), _rows(target.float(), pooled)
        errors = t * F.relu(1 - x) + (1 - t) * F.relu(1 + x)
        return (errors * _lovasz_weights(errors, t)).sum(1).mean()

    return lovasz


def _rows(images: Tensor, pooled: bool) -> Tensor:
    return images.reshape(1, -1) if pooled else images.flatten(1)


def _tversky(counts: Counts, alpha: float, beta: float) -> Tensor:
    # Not as 1 - ratio, which rounds away what is left of the loss where a mask is nearly right.
    wrong = alpha * counts.fp + beta * counts.fn
    return wrong / (counts.tp + wrong + SMOOTH)


@torch.no_grad()
def _lovasz_weights(errors: Tensor, target: Tensor) -> Tensor:
    """What each pixel adds to the Jaccard loss when pixels go wrong from the worst error on."""
    order = errors.argsort(dim=1, descending=True)
    t = target.gather(1, order)
    total, wrong_lesion = t.sum(1, keepdim=True), t.cumsum(1)
    intersection = (total - wrong_lesion).clamp_min(0)
    union = total + (1 - t).cumsum(1)
    # The paper's difference of neighbouring Jaccard losses, brought to one fraction: with a
    # million pixels the difference itself is all rounding. At least 1 in every union but that
    # before the first pixel, which an empty mask has at 0; there the step is 1 / union.
    before = (union - (1 - t)).clamp_min(TINY)
    steps = (t * union + intersection * (1 - t)) / (union * before)
    steps[:, 0] = 1 / union[:, 0]
    return steps.gather(1, order.argsort(dim=1))
