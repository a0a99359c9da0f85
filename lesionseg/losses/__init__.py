"""LOSSES: segmentation losses, lower for a better mask.

Every entry builds a callable of logits [N, 1, H, W] of any float dtype and targets [N, 1, H, W]
in [0, 1], which may be soft (MixUp, label smoothing). It returns a finite float32 scalar with
finite gradients, also for empty and full masks. The first argument of ``build`` is ``pooled``:
whether overlap is counted over the whole batch, or per image and then averaged, like the metric
of the search. Losses that are means over pixels do not depend on it.
"""

from __future__ import annotations

from lesionseg.errors import InputError
from lesionseg.losses.distance import build_boundary, build_hausdorff
from lesionseg.losses.modifiers import Criterion, Outputs, over_outputs
from lesionseg.losses.overlap import (
    Loss,
    build_dice,
    build_focal_tversky,
    build_jaccard,
    build_lovasz,
    build_mcc,
    build_tversky,
)
from lesionseg.losses.pixel import build_bce, build_bce_dice, build_focal, build_focal_dice
from lesionseg.space import ComponentConfig, Float, RegistryEntry, build

__all__ = ["LOSSES", "OVERLAPS", "Criterion", "Loss", "Outputs", "build_loss", "over_outputs"]

#: Where overlap is counted: per image and then averaged, or over the batch.
OVERLAPS = ("image", "batch")

_FOCAL = {"gamma": Float(0.5, 4.0, default=2.0), "alpha": Float(0.1, 0.9, default=0.5)}
_WEIGHT = {"weight": Float(0.1, 0.9, default=0.5)}
_TVERSKY = {"alpha": Float(0.1, 0.9, default=0.3), "beta": Float(0.1, 0.9, default=0.7)}

LOSSES: dict[str, RegistryEntry] = {
    "bce": RegistryEntry(
        build_bce,
        {"pos_weight": Float(0.1, 20.0, default=1.0, log=True)},
        "binary cross-entropy",
        fixed_by_default=frozenset({"pos_weight"}),
    ),
    "dice": RegistryEntry(build_dice, {}, "soft Dice; arXiv:1606.04797"),
    "jaccard": RegistryEntry(build_jaccard, {}, "soft Jaccard (IoU); arXiv:2302.05666"),
    "focal": RegistryEntry(build_focal, _FOCAL, "focal loss; arXiv:1708.02002"),
    "bce_dice": RegistryEntry(
        build_bce_dice, _WEIGHT, "weighted sum of cross-entropy and soft Dice"
    ),
    "focal_dice": RegistryEntry(
        build_focal_dice, {**_FOCAL, **_WEIGHT}, "weighted sum of focal loss and soft Dice"
    ),
    "tversky": RegistryEntry(
        build_tversky, _TVERSKY, "false positives and negatives weighed apart; arXiv:1706.05721"
    ),
    "focal_tversky": RegistryEntry(
        build_focal_tversky,
        {**_TVERSKY, "gamma": Float(1.0, 3.0, default=4 / 3)},
        "root of Tversky, emphasises nearly correct masks; arXiv:1810.07842",
    ),
    "lovasz": RegistryEntry(
        build_lovasz, {}, "Lovasz hinge, a convex form of Jaccard; arXiv:1705.08790"
    ),
    "mcc": RegistryEntry(build_mcc, {}, "Matthews correlation coefficient; arXiv:2010.13454"),
    "boundary": RegistryEntry(
        build_boundary, _WEIGHT, "weighted sum of boundary loss and soft Dice; arXiv:1812.07032"
    ),
    "hausdorff": RegistryEntry(
        build_hausdorff,
        {"alpha": Float(1.0, 3.0, default=2.0), **_WEIGHT},
        "weighted sum of Hausdorff distance-transform loss and soft Dice; arXiv:1904.10030",
    ),
}


def build_loss(
    component: ComponentConfig,
    *,
    overlap: str = "image",
    label_smoothing: float = 0.0,
    flooding: float = 0.0,
) -> Criterion:
    """Build a loss of one or several outputs; without modifiers it is the validation loss.

    Args:
        component: an entry of LOSSES and its parameters.
        overlap: one of OVERLAPS; "image" gives small and large lesions the same weight.
        label_smoothing: in [0, 1); moves targets towards 1/2.
        flooding: level below which the loss is reflected, at least 0.

    Raises:
        InputError: unknown entry or parameter, or a value outside its range.
    """
    if overlap not in OVERLAPS:
        raise InputError(f"loss: overlap must be {' or '.join(OVERLAPS)}, got {overlap!r}")
    if not 0 <= label_smoothing < 1:
        raise InputError(f"loss: label_smoothing must lie in [0, 1), got {label_smoothing!r}")
    if not 0 <= flooding < float("inf"):
        raise InputError(f"loss: flooding must be finite and at least 0, got {flooding!r}")
    loss: Loss = build("loss", LOSSES, component, overlap == "batch")
    return Criterion(loss, label_smoothing, flooding)
