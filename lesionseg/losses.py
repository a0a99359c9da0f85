"""LOSSES: from logits and a mask to one number, lower for a better mask.

Every row builds a callable of logits [N, 1, H, W], of any float dtype, and targets
[N, 1, H, W] in [0, 1]; it gives a finite scalar in float32, for an empty mask too.
Overlap losses are means over images, not pooled over the batch: a small lesion weighs as much
as a large one, as in the metric that is searched for.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from lesionseg.space import Float, Option, Pick, build

Loss = Callable[[Tensor, Tensor], Tensor]

#: Added to both sides of the overlap ratio: an empty mask then has a gradient, and 0/0 is 1.
SMOOTH = 1.0


def build_bce() -> Loss:
    """Binary cross-entropy, the mean over pixels."""
    return lambda logits, target: F.binary_cross_entropy_with_logits(logits.float(), target.float())


def build_dice() -> Loss:
    """Soft Dice loss, the mean over images; Milletari et al., arXiv:1606.04797 (unsquared sums)."""
    return lambda logits, target: _soft_dice_loss(logits.float(), target.float())


def build_focal(gamma: float, alpha: float) -> Loss:
    """Focal loss, mean over pixels; ``alpha`` weighs the lesion. Lin et al., arXiv:1708.02002."""

    def focal(logits: Tensor, target: Tensor) -> Tensor:
        logits, target = logits.float(), target.float()
        lesion, skin = F.logsigmoid(logits), F.logsigmoid(-logits)
        # (1 - p) ** gamma as exp(gamma log(1 - p)): for gamma < 1 the gradient of the power
        # itself is infinite where p rounds to 1, and NaN times the zero gradient of p.
        of_lesion = -alpha * (gamma * skin).exp() * lesion
        of_skin = -(1 - alpha) * (gamma * lesion).exp() * skin
        return (target * of_lesion + (1 - target) * of_skin).mean()

    return focal


def build_bce_dice(weight: float) -> Loss:
    """``weight`` x cross-entropy + (1 - ``weight``) x soft Dice loss."""
    bce, dice = build_bce(), build_dice()
    return lambda logits, target: weight * bce(logits, target) + (1 - weight) * dice(logits, target)


LOSSES: dict[str, Option] = {
    "bce": Option(build_bce, {}, "binary cross-entropy"),
    "dice": Option(build_dice, {}, "soft Dice, per image"),
    "focal": Option(
        build_focal,
        {"gamma": Float(0.5, 4.0, default=2.0), "alpha": Float(0.1, 0.9, default=0.5)},
        "focal loss; arXiv:1708.02002",
    ),
    "bce_dice": Option(
        build_bce_dice,
        {"weight": Float(0.1, 0.9, default=0.5)},
        "weighted sum of cross-entropy and soft Dice",
    ),
}


def build_loss(pick: Pick) -> Loss:
    """The picked loss; InputError if the pick is not in the table."""
    loss: Loss = build("loss", LOSSES, pick)
    return loss


def _soft_dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    probability, truth = logits.sigmoid().flatten(1), target.flatten(1)
    overlap = (probability * truth).sum(1)
    total = probability.sum(1) + truth.sum(1)
    return (1 - (2 * overlap + SMOOTH) / (total + SMOOTH)).mean()
