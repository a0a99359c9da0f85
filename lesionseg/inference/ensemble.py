"""Ensemble: several networks in one module, their mean probability, and how much they disagree.

Members are averaged by their weights. Where a single number per pixel or image is derived from
several members, each counts by its weight too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError
from lesionseg.inference.postprocess import DEFAULT_THRESHOLD

#: Largest number of members.
MAX_MEMBERS = 20
#: Largest accepted deviation of the sum of all weights from 1.
WEIGHT_TOLERANCE = 1e-6
#: The mean probability is clamped to this distance from 0 and 1, where its logit is infinite.
MARGIN = 1e-6


class Ensemble(nn.Module):
    """Networks of one image size whose probabilities are averaged.

    Like a network it maps normalised images [N, 3, S, S] to logits [N, 1, S, S].

    Args:
        members: networks, each from normalised images to logits.
        configs: the configuration of each member's training.
        weights: of the members, positive, of sum 1.

    Raises:
        InputError: see ``check_members``.
    """

    weights: Tensor

    def __init__(
        self, members: Sequence[nn.Module], configs: Sequence[TrialConfig], weights: Sequence[float]
    ) -> None:
        super().__init__()
        check_members(configs, weights)
        self.members, self.configs = nn.ModuleList(members), tuple(configs)
        self.register_buffer("weights", torch.tensor(list(weights), dtype=torch.float32))

    @property
    def config(self) -> TrialConfig:
        """The configuration of the member of the largest weight, of equals the first.

        Its ``amp`` is off if that of any member is.
        """
        config = self.configs[int(self.weights.argmax())]
        is_exact = any(each.amp == "off" for each in self.configs)
        return replace(config, amp="off") if is_exact else config

    def forward(self, images: Tensor) -> Tensor:
        """Return the logit of the mean probability, float32 [N, 1, S, S]."""
        # One member after the other, for less memory.
        mean = sum(
            weight * member(images).float().sigmoid()
            for weight, member in zip(self.weights, self.members, strict=True)
        )
        return torch.logit(torch.as_tensor(mean), eps=MARGIN)

    def member_probabilities(self, images: Tensor) -> Tensor:
        """Return the probabilities of each of M members, float32 [M, N, 1, S, S]."""
        return torch.stack([member(images).float().sigmoid() for member in self.members])


def check_members(configs: Sequence[TrialConfig], weights: Sequence[float]) -> None:
    """Check that networks of these configurations and weights can be an ensemble.

    Raises:
        InputError: not 1 to MAX_MEMBERS members, weights that are not positive or whose sum is not
            1, or different image sizes.
    """
    if not 1 <= len(configs) <= MAX_MEMBERS or len(weights) != len(configs):
        raise InputError(
            f"an ensemble has 1 to {MAX_MEMBERS} members, each with a weight, "
            f"got {len(configs)} members and {len(weights)} weights"
        )
    for weight in weights:
        # bool is a subclass of int. A NaN is not positive.
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
            raise InputError(
                f"the weight of a member must be a positive number, got {weight!r:.60}"
            )
    if not abs(math.fsum(weights) - 1) <= WEIGHT_TOLERANCE:
        raise InputError(
            f"the weights of the members must have the sum 1, got {math.fsum(weights):g}"
        )
    sizes = sorted({config.image_size for config in configs})
    if len(sizes) > 1:
        raise InputError(f"the members of an ensemble must have one image size, got {sizes}")


def mean_and_deviation(members: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted mean and standard deviation over members.

    Args:
        members: probabilities, float32 [M, ...].
        weights: [M], of sum 1.

    Returns:
        The mean in [0, 1] and the deviation in [0, 0.5], float32 [...] each.
    """
    factors = weights.reshape(-1, *[1] * (members.ndim - 1))
    mean = (factors * members).sum(0).clamp(0, 1)
    return mean, (factors * (members - mean).square()).sum(0).sqrt()


def disagreement(members: Tensor, mean: Tensor, weights: Tensor) -> Tensor:
    """Return 1 minus the weighted mean Dice of the members' masks with the ensemble's mask.

    Masks are of the network's size, at DEFAULT_THRESHOLD; the Dice of two empty masks is 1.

    Args:
        members: probabilities, [M, N, ...].
        mean: probabilities of the ensemble, [N, ...].
        weights: [M], of sum 1.

    Returns:
        float32 [N] in [0, 1].
    """
    masks, mask = members > DEFAULT_THRESHOLD, mean > DEFAULT_THRESHOLD
    both = (masks & mask).flatten(2).sum(2)
    areas = masks.flatten(2).sum(2) + mask.flatten(1).sum(1)
    dice = torch.where(areas > 0, 2 * both / areas.clamp_min(1), 1.0)
    return (1 - (weights[:, None] * dice).sum(0)).clamp(0, 1)
