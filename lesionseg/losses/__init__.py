"""LOSSES: segmentation losses, lower for a better mask.

Every entry builds a callable of logits [N, 1, H, W] of any float dtype and targets [N, 1, H, W]
in [0, 1], which may be soft (MixUp, label smoothing). It returns a finite float32 scalar with
finite gradients, also for empty and full masks. The first argument of ``build`` is ``pooled``:
whether overlap is counted over the whole batch, or per image and then averaged, like the metric
of the search. Losses that are means over pixels do not depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lesionseg.losses.distance import build_boundary, build_hausdorff
from lesionseg.losses.overlap import (
    Loss,
    blend,
    build_dice,
    build_focal_tversky,
    build_lovasz,
    build_mcc,
    build_tversky,
)
from lesionseg.losses.pixel import build_bce, build_focal
from lesionseg.space import ComponentConfig, Float, RegistryEntry, build

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
    # 1 - tp / (tp + fp + fn)
    "jaccard": RegistryEntry(
        partial(build_tversky, alpha=1.0, beta=1.0), {}, "soft Jaccard (IoU); arXiv:2302.05666"
    ),
    "focal": RegistryEntry(build_focal, _FOCAL, "focal loss; arXiv:1708.02002"),
    "bce_dice": RegistryEntry(
        lambda pooled, weight: blend(weight, build_bce(pooled), build_dice(pooled)),
        _WEIGHT,
        "weighted sum of cross-entropy and soft Dice",
    ),
    "focal_dice": RegistryEntry(
        lambda pooled, weight, **focal: blend(
            weight, build_focal(pooled, **focal), build_dice(pooled)
        ),
        {**_FOCAL, **_WEIGHT},
        "weighted sum of focal loss and soft Dice",
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


@dataclass(frozen=True)
class Criterion:
    """A loss of one or several outputs with its modifiers; for validation it has none.

    The loss of several outputs is their weighted mean. The weights are 1, 1/2, 1/4, ..., divided
    by their sum, as in nnU-Net (Isensee et al., arXiv:1809.10486).

    loss: from logits and targets [N, 1, H, W] to a scalar.
    label_smoothing: s in [0, 1); a target t becomes t (1 - s) + s / 2.
    flooding: b >= 0; the loss L of a batch becomes |L - b| + b (Ishida et al.,
        arXiv:2002.08709). 0 changes nothing.
    """

    loss: Loss
    label_smoothing: float = 0.0
    flooding: float = 0.0

    def __call__(self, outputs: Tensor | tuple[Tensor, ...], masks: Tensor) -> Tensor:
        """Return the modified loss, a float32 scalar, of logits and masks [N, 1, H, W].

        Several logits, of deep supervision, all have the full size; the main ones come first.
        """
        s, b = self.label_smoothing, self.flooding
        targets = masks.float() * (1 - s) + s / 2 if s else masks
        all_outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        values = [self.loss(output, targets) for output in all_outputs]
        value = values[0]
        if len(values) > 1:
            weights = [0.5**depth for depth in range(len(values))]
            weighted = [weight * v for weight, v in zip(weights, values, strict=True)]
            value = torch.stack(weighted).sum() / sum(weights)
        # Rounding may make a loss negative; b = 0 must not change its sign.
        return (value - b).abs() + b if b else value


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
        overlap: where overlap is counted: per "image" and then averaged, which gives small and
            large lesions the same weight, or over the "batch".
        label_smoothing: as in Criterion.
        flooding: as in Criterion.

    Raises:
        InputError: unknown entry or parameter, or a value outside its range.
    """
    loss: Loss = build("loss", LOSSES, component, overlap == "batch")
    return Criterion(loss, label_smoothing, flooding)
