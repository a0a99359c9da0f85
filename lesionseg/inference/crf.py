"""Fully connected conditional random field over a probability map.

Mean-field inference of Kraehenbuehl and Koltun, arXiv:1210.5644, for two classes and the Potts
model. As in Teichmann and Cipolla, arXiv:1805.04777, the appearance kernel is truncated to a
window, so that its messages are sums over shifted views instead of a five-dimensional filter.
The smoothness kernel is separable and not truncated: two matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Probabilities are clamped to this distance from 0 and 1, where the energy would be infinite.
MARGIN = 1e-4

#: Minimum bandwidth in pixels; below it a kernel has no neighbours.
MIN_BANDWIDTH_PX = 0.5

#: Lower bound of the sums of kernel weights that messages are divided by.
MIN_WEIGHT_SUM = 1e-20

Message = Callable[[Tensor], Tensor]


@torch.inference_mode()
def crf(
    probability: NDArray[np.float32],
    image: NDArray[np.uint8],
    *,
    weight: float,
    colour: float,
    steps: int = 5,
    appearance_sigma: float = 0.03,
    smoothness_sigma: float = 0.01,
    smoothness_share: float = 0.25,
    radius: int = 3,
    dilation: int | None = None,
) -> NDArray[np.float32]:
    """Refine a probability map so that its edges follow those of the image.

    One step (arXiv:1210.5644, algorithm 1) adds to each pixel's logit ``weight`` times the
    kernel-weighted mean of 2 Q - 1 over the other pixels. The kernels are normalised per pixel:
    the weight is in logits for any window, and a uniform field remains uniform.

    Args:
        probability: of the lesion, float32 [S, S] in [0, 1].
        image: uint8 [S, S, 3], RGB.
        weight: of all messages, in logits; 0 changes nothing.
        colour: bandwidth of the appearance kernel in units of 0..255 (theta beta).
        steps: number of mean-field steps.
        appearance_sigma: bandwidth of the appearance kernel as a share of the image's side
            (theta alpha).
        smoothness_sigma: bandwidth of the smoothness kernel as a share of the image's side
            (theta gamma).
        smoothness_share: share of the weight for the smoothness kernel, in [0, 1].
        radius: radius of the appearance kernel's window, in its sampling points.
        dilation: pixels between the window's sampling points; by default the window reaches two
            bandwidths.

    Returns:
        float32 [S, S] in [0, 1], finite also for probabilities of 0 and 1.
    """
    side = max(probability.shape)
    sigma = max(MIN_BANDWIDTH_PX, appearance_sigma * side)
    dilation = dilation or max(1, round(2 * sigma / radius))
    unary = torch.logit(torch.from_numpy(probability.astype(np.float32)), eps=MARGIN)
    appearance = _appearance_message(image, sigma, colour, radius, dilation)
    smoothness = _smoothness_message(unary, max(MIN_BANDWIDTH_PX, smoothness_sigma * side))
    share, logit = smoothness_share, unary
    for _ in range(steps):
        field = torch.tanh(logit / 2)  # 2 Q - 1
        logit = unary + weight * ((1 - share) * appearance(field) + share * smoothness(field))
    refined: NDArray[np.float32] = torch.sigmoid(logit).numpy()
    return refined


def _smoothness_message(like: Tensor, sigma: float) -> Message:
    """Return the mean of a field [H, W] over the other pixels, weighted by distance."""
    positions = [torch.arange(length, dtype=torch.float32) for length in like.shape]
    rows, columns = (torch.exp(-((p[:, None] - p) ** 2) / (2 * sigma**2)) for p in positions)

    def weighted_sum(field: Tensor) -> Tensor:
        return rows @ field @ columns - field

    total = weighted_sum(torch.ones_like(like)).clamp_min(MIN_WEIGHT_SUM)
    return lambda field: weighted_sum(field) / total


def _appearance_message(
    image: NDArray[np.uint8], sigma: float, colour: float, radius: int, dilation: int
) -> Message:
    """Return the mean of a field [H, W] over the window, weighted by distance and colour."""
    # Half of the window suffices: the weight of a pair of pixels is symmetric.
    scaled = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1) / (colour * 2**0.5)
    scaled = scaled.contiguous()
    kernels = []
    window = product(range(radius + 1), range(-radius, radius + 1))
    for dy, dx in ((y * dilation, x * dilation) for y, x in window if y or x > 0):
        if dy >= image.shape[0] or abs(dx) >= image.shape[1]:
            continue
        first, second = _pair(scaled, dy, dx)
        distance = (first - second).square_().sum(0).add_((dy**2 + dx**2) / (2 * sigma**2))
        kernels.append((dy, dx, distance.neg_().exp_()))

    def weighted_sum(field: Tensor) -> Tensor:
        message = torch.zeros_like(field)
        for dy, dx, kernel in kernels:
            (to_first, to_second), (first, second) = _pair(message, dy, dx), _pair(field, dy, dx)
            to_first.addcmul_(kernel, second)
            to_second.addcmul_(kernel, first)
        return message

    total = weighted_sum(torch.ones(image.shape[:2])).clamp_min_(MIN_WEIGHT_SUM)
    return lambda field: weighted_sum(field).div_(total)


def _pair(x: Tensor, dy: int, dx: int) -> tuple[Tensor, Tensor]:
    """Return views of [..., H, W]: pixels with a neighbour at an offset, and the neighbours."""
    height, width = x.shape[-2:]
    left, right = max(0, -dx), max(0, dx)
    return x[..., : height - dy, left : width - right], x[..., dy:, right : width - left]
