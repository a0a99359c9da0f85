"""Overlap losses from soft counts of correct and wrong pixels, per image or over the batch.

Counts use min(p, t) where the papers use p t. For binary targets both are equal; for soft targets
only the minimum has its optimum at p = t (Wang et al., arXiv:2302.05666).

Libraries do not fulfil the contract of LOSSES: smp pools over the batch and has no gradient for
empty masks, its Matthews loss is almost constant for them, and its Lovasz hinge demands larger
logits for soft targets than for hard ones; MONAI's Tversky uses the product.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]

#: True positives added to every image: gives empty masks a gradient and makes 0/0 equal to 1. For
#: Dice it corresponds to adding 1 to numerator and denominator.
SMOOTH = 0.5

#: Lower bound of Tversky losses, whose root has an infinite gradient at 0.
TINY = 1e-6


def soft_counts(logits: Tensor, target: Tensor, pooled: bool) -> tuple[Tensor, ...]:
    """Return the soft counts tp, fp, fn and tn of [N, 1, H, W], each [N], or [1] if pooled."""
    p, t = _flatten(logits.float().sigmoid(), pooled), _flatten(target.float(), pooled)
    # No differences of sums: in a large batch rounding could make them negative.
    pixels = (torch.minimum(p, t), F.relu(p - t), F.relu(t - p), 1 - torch.maximum(p, t))
    return tuple(values.sum(1) for values in pixels)


def blend(weight: float, first: Loss, second: Loss) -> Loss:
    """Return the loss ``weight`` x ``first`` + (1 - ``weight``) x ``second``."""
    return lambda logits, target: (
        weight * first(logits, target) + (1 - weight) * second(logits, target)
    )


def build_tversky(pooled: bool, alpha: float, beta: float) -> Loss:
    """Build 1 - tp / (tp + ``alpha`` fp + ``beta`` fn); Salehi et al., arXiv:1706.05721."""
    return lambda logits, target: _tversky(soft_counts(logits, target, pooled), alpha, beta).mean()


def build_dice(pooled: bool) -> Loss:
    """Build the soft Dice loss; Milletari et al., arXiv:1606.04797, without squared sums."""
    return build_tversky(pooled, 0.5, 0.5)


def build_focal_tversky(pooled: bool, alpha: float, beta: float, gamma: float) -> Loss:
    """Build Tversky loss ** (1 / ``gamma``); Abraham and Khan, arXiv:1810.07842.

    The root is applied per image (or to the batch) before averaging. Values of gamma above 1
    emphasise nearly correct masks. Unlike here, the paper's alpha weights false negatives.
    """

    def focal_tversky(logits: Tensor, target: Tensor) -> Tensor:
        loss = _tversky(soft_counts(logits, target, pooled), alpha, beta)
        return loss.clamp_min(TINY).pow(1 / gamma).mean()

    return focal_tversky


def build_mcc(pooled: bool) -> Loss:
    """Build 1 - Matthews correlation coefficient, 0 .. 2; arXiv:2010.13454.

    Abhishek and Hamarneh. SMOOTH is added to true positives and true negatives: for an empty mask
    the coefficient is 1 without predicted pixels and decreases with each predicted one.
    """

    def mcc(logits: Tensor, target: Tensor) -> Tensor:
        tp, fp, fn, tn = soft_counts(logits, target, pooled)
        tp, tn = tp + SMOOTH, tn + SMOOTH
        # Two roots: in a large batch the product of all four sums exceeds float32.
        scale = ((tp + fp) * (tp + fn)).sqrt() * ((tn + fp) * (tn + fn)).sqrt()
        return (1 - (tp * tn - fp * fn) / scale).mean()

    return mcc


def build_lovasz(pooled: bool) -> Loss:
    """Lovasz hinge; Berman et al., arXiv:1705.08790, algorithm 1.

    A convex, unbounded loss of the logits, 0 if all have the right sign and are at least 1 in size.
    The hinge of a soft target t is t max(0, 1 - x) + (1 - t) max(0, 1 + x). For an empty mask only
    the worst pixel counts, because it decides whether Jaccard is 0 or 1. O(n log n) in the pixels.
    """

    def lovasz(logits: Tensor, target: Tensor) -> Tensor:
        x, t = _flatten(logits.float(), pooled), _flatten(target.float(), pooled)
        errors = t * F.relu(1 - x) + (1 - t) * F.relu(1 + x)
        return (errors * _lovasz_weights(errors, t)).sum(1).mean()

    return lovasz


def _flatten(images: Tensor, pooled: bool) -> Tensor:
    return images.reshape(1, -1) if pooled else images.flatten(1)


def _tversky(counts: tuple[Tensor, ...], alpha: float, beta: float) -> Tensor:
    # Not as 1 - ratio, which loses precision for nearly correct masks.
    tp, fp, fn, _ = counts
    wrong = alpha * fp + beta * fn
    return wrong / (tp + wrong + SMOOTH)


@torch.no_grad()
def _lovasz_weights(errors: Tensor, target: Tensor) -> Tensor:
    """Return the increase of the Jaccard loss by each pixel, in order of decreasing error."""
    order = errors.argsort(dim=1, descending=True)
    t = target.gather(1, order)
    total, wrong_lesion = t.sum(1, keepdim=True), t.cumsum(1)
    intersection = (total - wrong_lesion).clamp_min(0)
    union = total + (1 - t).cumsum(1)
    # The paper's difference of consecutive Jaccard losses as one fraction: with a million pixels
    # the difference is lost in rounding. The union before the first pixel is 0 for an empty mask;
    # the first step is 1 / union.
    before = (union - (1 - t)).clamp_min(TINY)
    steps = (t * union + intersection * (1 - t)) / (union * before)
    steps[:, 0] = 1 / union[:, 0]
    return steps.gather(1, order.argsort(dim=1))
