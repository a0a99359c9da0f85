"""Choose the networks and the final of a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from search.planning import policy
from search.planning.plan_inputs import PlanInputs
from search.planning.policy import LEVELS, TIERS, Tier
from search.planning.space import usable_encoders
from search.study.forecast import FinalWork, final_epoch_s, fixed_final_s, forecast_final_s


@dataclass(frozen=True)
class FinalChoice:
    """A planned final.

    level: its number in LEVELS.
    limit: of the training images, if any.
    fit_on: as in ``FinalSpec``. A single training needs no validation images to be chosen.
    """

    level: int
    work: FinalWork
    limit: int | None
    fit_on: Literal["train", "train_val"]
    seconds: float


def choose_tier(inputs: PlanInputs, weights: Mapping[str, str]) -> tuple[Tier, FinalChoice]:
    """Return the networks and the final: larger networks once the time suffices for large images.

    A larger tier needs an encoder of its own with weights, except for the largest, which has
    networks without an encoder, too.
    """
    for tier in reversed(TIERS[1:]):
        final = choose_final(inputs, tier)
        own = [e for e in usable_encoders(tier, weights) if e not in TIERS[0].encoders]
        if final.level >= policy.TIER_LEVEL and (own or tier is TIERS[-1]):
            return tier, final
    return TIERS[0], choose_final(inputs, TIERS[0])


def choose_final(inputs: PlanInputs, tier: Tier) -> FinalChoice:
    """Return the largest final that fits, with as many epochs as fit below the next level."""
    # More epochs of the largest images are for the largest networks.
    count = len(LEVELS) if tier is TIERS[-1] else policy.TIER_LEVEL + 1
    finals = [_final(inputs, tier, i) for i in range(count)]
    seconds, speeds = inputs.final_share_s, inputs.speeds
    fitting = [
        final
        for final in finals
        if final.seconds <= seconds and speeds.fits(tier.anchor, final.work.image_size)
    ]
    if not fitting:
        return smallest_final(inputs, tier)
    chosen = fitting[-1]
    if chosen is finals[-1]:
        return chosen
    work, above = chosen.work, finals[chosen.level + 1].work
    image_s = inputs.image_s(tier, work.image_size)
    spare_s = seconds - fixed_final_s(work, image_s)
    affordable = int(spare_s / final_epoch_s(work, image_s))
    most = above.epochs * above.image_size // work.image_size
    work = replace(work, epochs=max(work.epochs, min(affordable, most)))
    return replace(chosen, work=work, seconds=_seconds(inputs, tier, work))


def smallest_final(inputs: PlanInputs, tier: Tier) -> FinalChoice:
    """Return the smallest final, a single training, without what follows it where time is short."""
    final = _final(inputs, tier, 0, most=1)
    work = final.work
    options = [work, replace(work, postprocess=False), replace(work, postprocess=False, tta=False)]
    seconds = [_seconds(inputs, tier, each) for each in options]
    share_s = inputs.final_share_s
    i = next((i for i, s in enumerate(seconds) if s <= share_s), len(options) - 1)
    return replace(final, work=options[i], seconds=seconds[i])


def scale_epochs(epochs: int, images: int) -> tuple[int, int | None]:
    """Return a level's epochs for a number of training images, and the limit of the images.

    Few images are repeated more often. Of many images a network needs fewer epochs; if it could not
    even see them twice, a part of them is used.
    """
    if images <= policy.TYPICAL_IMAGES:
        factor = max(1.0, policy.FEW_IMAGES / images)
        return min(policy.MAX_EPOCHS, math.ceil(epochs * factor)), None
    seen = epochs * policy.TYPICAL_IMAGES
    if seen >= policy.MIN_FINAL_EPOCHS * images:
        return seen // images, None
    return policy.MIN_FINAL_EPOCHS, seen // policy.MIN_FINAL_EPOCHS


def _final(inputs: PlanInputs, tier: Tier, number: int, most: int | None = None) -> FinalChoice:
    """Return the final of a level, with at most ``most`` trainings."""
    level, data, quality = LEVELS[number], inputs.data, inputs.quality
    # Trainings on GPUs that are free anyway cost nothing. On a CPU a single one has all threads.
    free = 1 if inputs.speeds.is_cpu else inputs.slots
    most = most or max(level.trainings, free)
    finalists = min(quality.finalists, most)
    trainings = finalists * min(quality.seeds, most // finalists)
    epochs, limit = scale_epochs(level.epochs, data.train)
    fit = limit or data.train
    is_joint = trainings == 1 and limit is None
    if is_joint:
        fit += data.val
        epochs, _ = scale_epochs(level.epochs, fit)
    work = FinalWork(
        fit=fit,
        val=data.val,
        test=data.test,
        test_megapixels=data.test * data.megapixels,
        image_size=_clamp_size(level.image_size, data.side),
        epochs=epochs,
        trainings=trainings,
        slots=inputs.slots,
        members=min(quality.ensemble, trainings),
        # The weights of the search are used, whose images are smaller by one to three sizes.
        selection_size=_clamp_size(level.image_size, data.side) // 2 if is_joint else None,
        reading_s=data.reading_s,
        is_cpu=inputs.speeds.is_cpu,
    )
    fit_on: Literal["train", "train_val"] = "train_val" if is_joint else "train"
    return FinalChoice(number, work, limit, fit_on, _seconds(inputs, tier, work))


def _seconds(inputs: PlanInputs, tier: Tier, work: FinalWork) -> float:
    return forecast_final_s(work, inputs.image_s(tier, work.image_size))


def _clamp_size(size: int, side: int) -> int:
    """Return the size, but not above the images' own size; a multiple of 32."""
    return min(size, max(32, side // 32 * 32))
