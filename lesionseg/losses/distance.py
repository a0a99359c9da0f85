"""Losses that weigh a wrong pixel by its distance from the boundary, each with soft Dice.

Distances come from OpenCV's exact Euclidean transform, image by image on the CPU, so that every
call waits for the device; two transforms of a mask of 256 x 256 take about 1 ms. They are
measured in tenths of the image's diagonal: the image's size makes no difference, and the loss
is about as large as soft Dice whatever the exponent. Without a boundary, in an empty or full
mask, distances are 0 and soft Dice alone teaches.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lesionseg.losses.base import Loss, blend
from lesionseg.losses.overlap import build_dice

#: The unit of distance, as a part of the image's diagonal.
UNIT = 0.1


def build_boundary(pooled: bool, weight: float) -> Loss:
    """``weight`` x boundary loss + (1 - ``weight``) x soft Dice; Kervadec et al., arXiv:1812.07032.

    The boundary loss is the mean of phi (p - g), for the signed distance phi and the rounded
    target g. The paper leaves out its constant, the mean of phi g: with it the loss is 0
    at best and never negative. Soft targets are soft for Dice alone.
    """
    return blend(weight, _boundary, build_dice(pooled))


def build_hausdorff(pooled: bool, alpha: float, weight: float) -> Loss:
    """``weight`` x distance-transform loss + (1 - ``weight``) x soft Dice.

    Karimi and Salcudean, arXiv:1904.10030, the form with both distance maps: the mean of
    (p - t)^2 (d_t^alpha + d_p^alpha), for distances d from the boundaries of the rounded target
    and of the predicted mask. Twice the transforms of the boundary loss. The distances from the
    prediction jump where a logit changes sign, so a slightly better mask may cost more.

    alpha: how much more a far error counts than a near one.
    """

    # MONAI's HausdorffDTLoss is the same but for the unit; it takes SciPy's transform, five times
    # as slow, and seconds to import.
    def hausdorff(logits: Tensor, target: Tensor) -> Tensor:
        far = _power(target > 0.5, alpha) + _power(logits > 0, alpha)
        return ((logits.float().sigmoid() - target.float()) ** 2 * far).mean()

    return blend(weight, hausdorff, build_dice(pooled))


@torch.no_grad()
def signed_distance(masks: Tensor) -> Tensor:
    """How far every pixel is from the nearest pixel of the other side; negative in the lesion.

    Args:
        masks: bool [N, 1, H, W].

    Returns:
        float32 [N, 1, H, W], in UNIT of the diagonal; 0 for an empty or full mask.
    """
    unit = UNIT * math.hypot(*masks.shape[-2:])
    maps = [_in_pixels(mask) for mask in masks[:, 0].cpu().numpy().astype(np.uint8)]
    return torch.from_numpy(np.stack(maps)[:, None] / np.float32(unit)).to(masks.device)


def _boundary(logits: Tensor, target: Tensor) -> Tensor:
    lesion = target > 0.5
    return (signed_distance(lesion) * (logits.float().sigmoid() - lesion.float())).mean()


def _power(masks: Tensor, alpha: float) -> Tensor:
    return signed_distance(masks).abs() ** alpha


def _in_pixels(lesion: NDArray[np.uint8]) -> NDArray[np.float32]:
    if lesion.all() or not lesion.any():
        return np.zeros(lesion.shape, np.float32)
    to_skin = cv2.distanceTransform(lesion, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    to_lesion = cv2.distanceTransform(1 - lesion, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(to_lesion - to_skin, np.float32)
