"""Losses that weight wrong pixels by their distance from the boundary, combined with soft Dice.

Distances are computed by OpenCV's exact Euclidean transform per image on the CPU, so that every
call synchronises with the device; two transforms of a 256 x 256 mask take about 1 ms. Their unit
is a tenth of the image's diagonal: they do not depend on the image size, and the loss is of the
order of soft Dice for all exponents. For empty and full masks distances are 0, and only soft Dice
has a gradient.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lesionseg.losses.overlap import Loss, blend, build_dice

#: Unit of distances as a share of the image's diagonal.
UNIT = 0.1


def build_boundary(pooled: bool, weight: float) -> Loss:
    """Build ``weight`` x boundary loss + (1 - ``weight``) x soft Dice; arXiv:1812.07032.

    Kervadec et al. The boundary loss is the mean of phi (p - g), with the signed distance phi and
    the rounded target g. The paper omits the constant mean of phi g; with it the minimum is 0.
    Soft targets are used by Dice only.
    """

    def boundary(logits: Tensor, target: Tensor) -> Tensor:
        lesion = target > 0.5
        return (signed_distance(lesion) * (logits.float().sigmoid() - lesion.float())).mean()

    return blend(weight, boundary, build_dice(pooled))


def build_hausdorff(pooled: bool, alpha: float, weight: float) -> Loss:
    """Build ``weight`` x distance-transform loss + (1 - ``weight``) x soft Dice; arXiv:1904.10030.

    Karimi and Salcudean, with both distance maps: the mean of (p - t)^2 (d_t^alpha + d_p^alpha),
    with the distances d from the boundaries of the rounded target and of the predicted mask. The
    latter are discontinuous where a logit changes sign.
    """

    # MONAI's HausdorffDTLoss is equal except for the unit, but uses SciPy's transform, which is
    # five times as slow.
    def hausdorff(logits: Tensor, target: Tensor) -> Tensor:
        distances = [signed_distance(mask).abs() ** alpha for mask in (target > 0.5, logits > 0)]
        return ((logits.float().sigmoid() - target.float()) ** 2 * sum(distances)).mean()

    return blend(weight, hausdorff, build_dice(pooled))


@torch.no_grad()
def signed_distance(masks: Tensor) -> Tensor:
    """Return each pixel's distance to the nearest one of the other class; negative in the lesion.

    Args:
        masks: bool [N, 1, H, W].

    Returns:
        float32 [N, 1, H, W] in units of UNIT times the diagonal; 0 for empty and full masks.
    """
    unit = UNIT * math.hypot(*masks.shape[-2:])
    maps = [_signed_distance_px(mask) for mask in masks[:, 0].cpu().numpy().astype(np.uint8)]
    return torch.from_numpy(np.stack(maps)[:, None] / np.float32(unit)).to(masks.device)


def _signed_distance_px(lesion: NDArray[np.uint8]) -> NDArray[np.float32]:
    if lesion.all() or not lesion.any():
        return np.zeros(lesion.shape, np.float32)
    to_background = cv2.distanceTransform(lesion, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    to_lesion = cv2.distanceTransform(1 - lesion, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(to_lesion - to_background, np.float32)
