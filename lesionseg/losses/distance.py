"""Losses that weight wrong pixels by their distance from the boundary, combined with soft Dice.

Distances are exact Euclidean ones, computed by OpenCV on a CPU and by torch on other devices, so
that a training step does not synchronise with the device. Their unit is a tenth of the image's
diagonal: they do not depend on the image size, and the loss is of the order of soft Dice for all
exponents. For empty and full masks distances are 0, and only soft Dice has a gradient.
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
#: Values that the transform on a device holds at once, which limits its memory to 64 MiB.
MAX_VALUES = 2**24


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
    transform = opencv_distance if masks.device.type == "cpu" else torch_distance
    return transform(masks[:, 0]).unsqueeze(1) / unit


def torch_distance(lesion: Tensor) -> Tensor:
    """Compute ``signed_distance`` in pixels by torch on the masks' device, [N, H, W]."""
    n_lesion = lesion.flatten(1).sum(1)
    has_both = ((n_lesion > 0) & (n_lesion < lesion[0].numel())).view(-1, 1, 1)
    distance = _squared_distance(lesion).sqrt() - _squared_distance(~lesion).sqrt()
    return torch.where(has_both, distance, 0.0)


def _squared_distance(mask: Tensor) -> Tensor:
    """Return the squared distance of each pixel to the nearest True one, float32 [N, H, W].

    Exact: first the distance along each column, then for each pixel the minimum over its row of
    squared column distance plus squared offset (Felzenszwalb and Huttenlocher, Theory of
    Computing 8, 2012). Without a True pixel the values have no meaning.
    """
    n, h, w = mask.shape
    row = torch.arange(h, device=mask.device).view(1, h, 1)
    far = h + w  # farther than any pixel
    above = torch.where(mask, row, -far).cummax(1).values
    below = torch.where(mask, row, 2 * far).flip(1).cummin(1).values.flip(1)
    columns = torch.minimum(row - above, below - row).float().square().flatten(0, 1)
    x = torch.arange(w, device=mask.device, dtype=torch.float32)
    offsets = (x[:, None] - x[None, :]).square()
    chunks = torch.split(columns, max(1, MAX_VALUES // w**2))
    nearest = [(chunk[:, None, :] + offsets).amin(-1) for chunk in chunks]
    return torch.cat(nearest).view(n, h, w)


def opencv_distance(lesion: Tensor) -> Tensor:
    """Compute ``signed_distance`` in pixels by OpenCV, [N, H, W] on the CPU."""
    return torch.from_numpy(np.stack([_opencv_distance(m) for m in lesion.numpy().view(np.uint8)]))


def _opencv_distance(lesion: NDArray[np.uint8]) -> NDArray[np.float32]:
    if lesion.all() or not lesion.any():
        return np.zeros(lesion.shape, np.float32)
    to_background = cv2.distanceTransform(lesion, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    to_lesion = cv2.distanceTransform(1 - lesion, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(to_lesion - to_background, np.float32)
