"""A fully connected conditional random field over a probability map, on local windows.

Mean-field inference of Kraehenbuehl and Koltun, arXiv:1210.5644, for two classes and the Potts
model. As in Teichmann and Cipolla, arXiv:1805.04777, the appearance kernel is cut off at a
window, so that its messages are sums over shifted views instead of a filter in five dimensions.
The smoothness kernel needs no window: it is separable, two products with a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Probabilities are kept this far from 0 and 1: a network that is too sure would else have
#: infinite energy, and no message could ever change it.
MARGIN = 1e-4

#: Below half a pixel a kernel has no neighbours left.
NARROWEST = 0.5

#: Sums of weights below this are taken for no neighbour at all, not divided by.
NOTHING = 1e-20

Message = Callable[[Tensor], Tensor]


@torch.inference_mode()
def crf(
    probability: NDArray[np.float32],
    image: NDArray[np.uint8],
    *,
    weight: float,
    colour: float,
    steps: int = 5,
    spread: float = 0.03,
    near: float = 0.01,
    share: float = 0.25,
    radius: int = 3,
    dilation: int | None = None,
) -> NDArray[np.float32]:
    """A probability map whose edges follow those of the image.

    One step (arXiv:1210.5644, algorithm 1) adds to a pixel's own logit the ``weight`` times the
    mean of 2 Q - 1 over all other pixels, weighed by the kernels. The kernels are normalised at
    each pixel: so the weight is in logits, whatever the window, and a uniform field stays so.

    Args:
        probability: of the lesion, [S, S] in [0, 1].
        image: [S, S, 3], RGB of 0..255.
        weight: of all messages, in logits; 0 changes nothing.
        colour: bandwidth of the appearance kernel in units of 0..255 (theta beta).
        steps: of mean field.
        spread: bandwidth of the appearance kernel as a share of the image's side (theta alpha).
        near: bandwidth of the smoothness kernel as a share of the image's side (theta gamma).
        share: of the weight that is the smoothness kernel's, in [0, 1].
        radius: of the appearance kernel's window, in its own points.
        dilation: pixels from one point of the window to the next; without it, such that the
            window reaches two bandwidths.

    Returns:
        Probabilities [S, S] in [0, 1], finite for probabilities of 0 and 1 too.

    Raises:
        ValueError: the two do not have one height and width.
    """
    if image.shape != (*probability.shape, 3):
        raise ValueError(
            f"image must be {(*probability.shape, 3)} for this probability, got {image.shape}"
        )
    side = max(probability.shape)
    wide = max(NARROWEST, spread * side)
    gap = dilation or max(1, round(2 * wide / radius))
    own = torch.logit(torch.from_numpy(probability.astype(np.float32)), eps=MARGIN)
    appearance = _appearance(image, wide, colour, radius, gap)
    smoothness = _smoothness(own, max(NARROWEST, near * side))
    logit = own
    for _ in range(steps):
        field = torch.tanh(logit / 2)  # 2 Q - 1
        logit = own + weight * ((1 - share) * appearance(field) + share * smoothness(field))
    refined: NDArray[np.float32] = torch.sigmoid(logit).numpy()
    return refined


def _smoothness(like: Tensor, sigma: float) -> Message:
    """The mean of a field [H, W] over all other pixels, by their distance."""
    rows, columns = (_gaussian(length, sigma) for length in like.shape)

    def others(field: Tensor) -> Tensor:
        return rows @ field @ columns - field

    total = others(torch.ones_like(like)).clamp_min(NOTHING)
    return lambda field: others(field) / total


def _gaussian(length: int, sigma: float) -> Tensor:
    """The kernel between all places on a line, [length, length]."""
    place = torch.arange(length, dtype=torch.float32)
    return torch.exp(-((place[:, None] - place) ** 2) / (2 * sigma**2))


def _appearance(
    image: NDArray[np.uint8], sigma: float, colour: float, radius: int, gap: int
) -> Message:
    """The mean of a field [H, W] over its window, by distance and likeness in colour."""
    # Half of the window: a pair of pixels has the same weight seen from either.
    scaled = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1) / (colour * 2**0.5)
    scaled = scaled.contiguous()
    kernels = []
    for dy, dx in _half_window(image.shape[:2], radius, gap):
        here, there = _pair(scaled, dy, dx)
        distance = (here - there).square_().sum(0).add_((dy**2 + dx**2) / (2 * sigma**2))
        kernels.append((dy, dx, distance.neg_().exp_()))

    def gather(field: Tensor) -> Tensor:
        message = torch.zeros_like(field)
        for dy, dx, kernel in kernels:
            (to_here, to_there), (here, there) = _pair(message, dy, dx), _pair(field, dy, dx)
            to_here.addcmul_(kernel, there)
            to_there.addcmul_(kernel, here)
        return message

    total = gather(torch.ones(image.shape[:2])).clamp_min_(NOTHING)
    return lambda field: gather(field).div_(total)


def _half_window(shape: tuple[int, ...], radius: int, gap: int) -> Iterator[tuple[int, int]]:
    """One of each two opposite offsets in the window that do not leave the image."""
    for y in range(radius + 1):
        for x in range(-radius if y else 1, radius + 1):
            if y * gap < shape[0] and abs(x) * gap < shape[1]:
                yield y * gap, x * gap


def _pair(x: Tensor, dy: int, dx: int) -> tuple[Tensor, Tensor]:
    """Views of [..., H, W]: the pixels that have a neighbour at that offset, and these."""
    height, width = x.shape[-2:]
    left, right = max(0, -dx), max(0, dx)
    return x[..., : height - dy, left : width - right], x[..., dy:, right : width - left]
