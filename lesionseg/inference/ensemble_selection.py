"""Selection of an ensemble's members on validation images.

Greedy selection with replacement, from Caruana et al., "Ensemble selection from libraries of
models", ICML 2004 (doi:10.1145/1015330.1015432): of all candidates the one whose addition to the
mean helps most is added, possibly again. A member's weight is how often it was added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lesionseg.errors import InputError
from lesionseg.inference.ensemble import MAX_MEMBERS, Ensemble
from lesionseg.inference.postprocess import DEFAULT_THRESHOLD, Mask
from lesionseg.inference.selection import (
    MAX_FLOAT32_VALUES,
    MIN_GAIN,
    paired_gain,
    predict_validation,
)
from lesionseg.metrics.overlap import Floats, dice_score
from lesionseg.training import checkpoint

#: Bytes for the probabilities of all candidates, if not stated otherwise.
MAX_BYTES = 2 * 10**9


@dataclass(frozen=True)
class EnsembleMember:
    """A selected candidate: its index, its weight, and its mean Dice alone."""

    index: int
    weight: float
    dice: float


@dataclass(frozen=True)
class EnsembleChoice:
    """Result of the selection, by Dice at the network's size and a threshold of one half.

    members: the largest weight first, of equals the better one.
    dice, best_dice: mean Dice over the images, of the ensemble and of the best candidate alone.
    gain: their mean difference per image, and its standard error (None for a single image).
    """

    members: tuple[EnsembleMember, ...]
    dice: float
    best_dice: float
    gain: float
    standard_error: float | None


def select_ensemble(
    candidates: Sequence[Path],
    images: NDArray[np.uint8],
    masks: NDArray[np.uint8],
    *,
    limit: int,
    device: torch.device,
    max_bytes: int = MAX_BYTES,
) -> EnsembleChoice:
    """Select members among checkpoints of single networks, without test-time augmentation.

    One network is loaded at a time. If the probabilities of all candidates exceed ``max_bytes``,
    the candidates with the lowest Dice are left out.

    Args:
        candidates: checkpoints, at least one.
        images: uint8 [N, S, S, 3], RGB, with N of at least 1.
        masks: [N, S, S]; positive values are lesion.
        limit: largest number of members, 1 to MAX_MEMBERS.
        device: device of the networks.
        max_bytes: bytes for the probabilities; those of two candidates are always kept.

    Raises:
        InputError: a candidate cannot be loaded, is an ensemble, or is of another image size.
    """
    truth = masks > 0
    dtype = np.float16 if len(candidates) * truth.size > MAX_FLOAT32_VALUES else np.float32
    kept: dict[int, NDArray[Any]] = {}
    dice: dict[int, float] = {}
    for index, path in enumerate(candidates):
        kept[index] = _predict_candidate(path, images, device).astype(dtype, copy=False)
        dice[index] = float(_dice([kept[index]], truth, [0], {}).mean())
        if len(kept) > max(2, max_bytes // kept[index].nbytes):
            # Of equal candidates the last, because the first of equals is selected.
            del kept[min(kept, key=lambda i: (dice[i], -i))]
    choice, indices = select_members(list(kept.values()), truth, limit), list(kept)
    members = tuple(replace(member, index=indices[member.index]) for member in choice.members)
    return replace(choice, members=members)


def select_members(
    probabilities: Sequence[NDArray[Any]],
    truth: Mask,
    limit: int,
) -> EnsembleChoice:
    """Select members by the probabilities of candidates.

    The first member is the candidate with the best mean Dice. A candidate is added only if its
    mean gain in Dice over the images exceeds its standard error and MIN_GAIN, so that the ensemble
    is never worse than its best member on these images. Of equal candidates the first is added.

    Args:
        probabilities: of M candidates, [N, S, S] in [0, 1] each, float16 or float32.
        truth: bool [N, S, S].
        limit: largest number of different members, 1 to MAX_MEMBERS.

    Raises:
        ValueError: no candidate, no image, arrays of different shapes, or an invalid limit.
    """
    if (
        not len(probabilities)
        or not len(truth)
        or {p.shape for p in probabilities} != {truth.shape}
    ):
        raise ValueError("needs candidates with a probability for each pixel of the masks")
    if not 1 <= limit <= MAX_MEMBERS:
        raise ValueError(f"the limit must lie in [1, {MAX_MEMBERS}], got {limit}")
    candidates = range(len(probabilities))
    alone = _dice(probabilities, truth, candidates, {})
    best = int(alone.mean(axis=1).argmax())
    counts, dice = Counter([best]), alone[best]
    while True:
        options = candidates if len(counts) < limit else sorted(counts)
        added = _dice(probabilities, truth, options, counts)
        step = int(added.mean(axis=1).argmax())
        gain, error = paired_gain(added[step], dice)
        if error is None or not gain > max(error, MIN_GAIN):
            break
        counts[options[step]] += 1
        dice = added[step]
    gain, error = paired_gain(dice, alone[best])
    members = [
        EnsembleMember(i, count / counts.total(), float(alone[i].mean()))
        for i, count in counts.items()
    ]
    members.sort(key=lambda member: (-member.weight, -member.dice, member.index))
    return EnsembleChoice(
        tuple(members), float(dice.mean()), float(alone[best].mean()), gain, error
    )


def _dice(
    probabilities: Sequence[NDArray[Any]],
    truth: Mask,
    options: Sequence[int],
    counts: Mapping[int, int],
) -> Floats:
    """Return the Dice of each image with each option added to the members, float64 [options, N].

    counts: how often each member was added so far.
    """
    dice = np.empty((len(options), len(truth)))
    threshold = DEFAULT_THRESHOLD * (1 + sum(counts.values()))
    for n, mask in enumerate(truth):  # one image at a time, for little memory
        total = np.zeros(mask.shape, np.float32)
        for i, count in counts.items():
            total += count * probabilities[i][n].astype(np.float32)
        for row, i in enumerate(options):
            dice[row, n] = dice_score(total + probabilities[i][n] > threshold, mask)
    return dice


def _predict_candidate(
    path: Path, images: NDArray[np.uint8], device: torch.device
) -> NDArray[np.floating]:
    model, config = checkpoint.load(path)
    if isinstance(model, Ensemble) or config.image_size != images.shape[1]:
        raise InputError(
            f"{path}: a member must be a single network of {images.shape[1]} px, got "
            f"{'an ensemble' if isinstance(model, Ensemble) else f'{config.image_size} px'}"
        )
    return predict_validation(model, images, ("none",), device, amp=config.amp)["none"]
