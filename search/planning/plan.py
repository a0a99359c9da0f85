"""make_plan: from data, speed, slots, time and quality to a study. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lesionseg.errors import InputError
from search.planning import policy
from search.planning.final_choice import FinalChoice, choose_tier, smallest_final
from search.planning.fingerprint import DataFingerprint
from search.planning.plan_inputs import Forecast, PlanInputs
from search.planning.policy import ANCHORS, TIERS, Tier
from search.planning.reasons import give_reasons
from search.planning.search_choice import SearchChoice, choose_search, only_trial
from search.planning.space import search_section
from search.planning.speeds import MachineSpeeds
from search.spec.loading import parse_spec
from search.spec.study_spec import StudySpec


@dataclass(frozen=True)
class Plan:
    """A study, why it is so by dotted key of the study file, and how long it takes."""

    spec: StudySpec
    reasons: Mapping[str, str]
    forecast: Forecast


def make_plan(
    data: DataFingerprint,
    speeds: MachineSpeeds,
    *,
    slots: int,
    hours: float,
    quality: str,
    weights: Mapping[str, str],
    spent_s: float = 0.0,
    name: str = "auto",
) -> Plan:
    """Plan a study.

    Args:
        data: fingerprint of the data set.
        speeds: of one slot.
        slots: number of trainings that run at once.
        hours: wall-clock time of the whole job.
        quality: a name in QUALITIES.
        weights: source of the weights of each encoder, as ``resolve_weights`` returns it.
        spent_s: seconds of ``hours`` that the planning took.
        name: of the study.

    Raises:
        InputError: an unknown quality, or the time is too short for one training; the message
            contains the least time.
    """
    start_s = spent_s + policy.START_S + policy.READINGS * data.reading_s
    start_s += policy.AUDIT_S * data.images
    available_s = 3600 * hours * (1 - policy.MARGIN) - start_s
    inputs = PlanInputs(data, speeds, slots, available_s, policy.find_quality(quality))
    _check_time(inputs, hours, start_s)
    tier, final = choose_tier(inputs, weights)
    search = choose_search(inputs, tier, final)
    # Trials are limited in number, too, and then the time is not used up.
    search_s = min(available_s - final.seconds, math.ceil(search.trials / slots) * search.trial_s)
    forecast = Forecast(start_s, search_s, final.seconds, search.trials)
    spec = parse_spec(
        {
            "name": name,
            **_data_and_budget(hours, tier, final, search, forecast),
            **_search_sections(tier, final, search, weights),
            "final": _final_section(inputs, final, search),
        },
        "the plan",
    )
    return Plan(spec, give_reasons(spec, data, speeds, tier, quality, forecast), forecast)


def candidate_encoders() -> tuple[str, ...]:
    """Return the encoders that a plan may name."""
    encoders = (encoder for tier in TIERS for encoder in tier.encoders)
    return tuple(dict.fromkeys([*encoders, *policy.TRANSFORMERS]))


def _check_time(inputs: PlanInputs, hours: float, start_s: float) -> None:
    """Raise InputError if the time is too short for a trial and the smallest final."""
    tier = TIERS[0]
    final = smallest_final(replace(inputs, available_s=0.0), tier)
    needed_s = final.seconds + only_trial(inputs, tier, final).trial_s
    if inputs.available_s < needed_s:
        least = (needed_s + start_s) / (1 - policy.MARGIN) / 3600
        raise InputError(
            f"--hours: {hours:g} is too short for one training on these images; this machine needs "
            f"at least {math.ceil(1000 * least) / 1000:g}"
        )


def _data_and_budget(
    hours: float, tier: Tier, final: FinalChoice, search: SearchChoice, forecast: Forecast
) -> dict[str, Any]:
    limits = {} if final.limit is None else {"limit": {"train": final.limit}}
    trials = math.ceil(search.trials * policy.TRIALS_RESERVE) if forecast.has_search else 1
    macs = policy.MAX_COST * ANCHORS[tier.anchor].macs_per_pixel * search.image_size**2
    return {
        "data": {"image_size": search.image_size, **limits},
        "budget": {"trials": trials, "epochs": search.epochs, "total_hours": hours},
        "sampler": {"name": "tpe", "startup": max(3, min(16, trials // 4))},
        "pruner": {"name": "halving" if search.epochs > 1 else "none"},
        "constraints": {"max_gmacs": float(f"{macs / 1e9:.3g}")},
    }


def _search_sections(
    tier: Tier, final: FinalChoice, search: SearchChoice, weights: Mapping[str, str]
) -> dict[str, Any]:
    section = search_section(tier, search.trials, weights)
    # An epoch must have some steps, however few the images are.
    batch_size = max(2, min(policy.BATCH_SIZE, final.work.fit // 4))
    if batch_size < policy.BATCH_SIZE:
        section.pop("batch_size", None)
    fixed = {} if "batch_size" in section else {"fixed": {"batch_size": batch_size}}
    return {**fixed, "search": section, "warm_start": ["defaults"]}


def _final_section(inputs: PlanInputs, final: FinalChoice, search: SearchChoice) -> dict[str, Any]:
    work, quality = final.work, inputs.quality
    # Of few trials only the better half is worth another training.
    finalists = max(1, min(quality.finalists, work.trainings, search.trials // 2))
    return {
        "fit_on": final.fit_on,
        "image_size": work.image_size,
        "epochs": work.epochs,
        "finalists": finalists,
        "seeds": max(1, min(quality.seeds, work.trainings // finalists)),
        "ensemble": quality.ensemble,
        "tta": work.tta,
        "postprocess": work.postprocess,
    }
