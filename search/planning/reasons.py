"""Why a plan is so: one sentence or two for each choice."""

from __future__ import annotations

from collections.abc import Mapping

from lesionseg.errors import format_some
from search.planning import policy
from search.planning.fingerprint import DataFingerprint
from search.planning.plan_inputs import Forecast
from search.planning.policy import Tier
from search.planning.speeds import MachineSpeeds
from search.spec.study_spec import StudySpec

#: Images of val or test below which the user is warned.
FEW_IMAGES = 10


def format_time(seconds: float) -> str:
    """Return a duration for people: ``40 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def give_reasons(
    spec: StudySpec,
    data: DataFingerprint,
    speeds: MachineSpeeds,
    tier: Tier,
    quality: str,
    forecast: Forecast,
) -> dict[str, str]:
    """Return the reasons by dotted key of the study file."""
    final, budget = spec.final, spec.budget
    final_size = final.image_size or spec.data.image_size
    rate = 1 / speeds.of(tier.anchor).image_s.at(final_size)
    trainings = final.finalists * final.seeds
    trials = forecast.trials
    reasons = {
        "data.image_size": f"of the search; the final uses {final_size} px. Small images keep the "
        "ranking of configurations and cost little.",
        "data.limit": f"at this image size a network needs fewer images than "
        f"{policy.MIN_FINAL_EPOCHS} epochs on all {data.train} training images have.",
        "budget.trials": f"about {trials} trials are expected in {format_time(forecast.search_s)}; "
        "the time ends the search, and more trials are run if they are faster."
        if forecast.has_search
        else "the time is too short for a search: one short trial of the defaults, and all of the "
        "time for the final.",
        "budget.epochs": f"of a trial; a training of the final has {final.epochs}.",
        "budget.total_hours": f"of the whole job. Forecast: start {format_time(forecast.start_s)}, "
        f"search {format_time(forecast.search_s)}, final {format_time(forecast.final_s)}.",
        "sampler": "random trials first, then the tree-structured Parzen estimator.",
        "pruner": "stops the worse half of the trials early."
        if budget.epochs > 1
        else "a trial has one epoch, so there is nothing to stop early.",
        "constraints.max_gmacs": f"{policy.MAX_COST:g} times {tier.anchor}, which the forecast is "
        "made with; slower networks would not fit the time.",
        "fixed.batch_size": "enough steps in an epoch; with few trials it is not searched.",
        "search.model": "pretrained encoders with ImageNet weights on this machine.",
        "search": f"a space for about {trials} trials; the first option of each list is the "
        "default.",
        "warm_start": "the first trial has the default of every parameter.",
        "final.fit_on": "the validation images choose the epoch, the finalist, the ensemble and "
        "the inference steps."
        if final.fit_on == "train"
        else "a single training is not chosen from others: it has the validation images, too.",
        "final.image_size": f"the largest size at which the network sees enough images in time; "
        f"the images have about {data.side} px. {tier.anchor} trains {rate:.3g} images/s at this "
        "size on this machine.",
        "final.epochs": f"{final.epochs} epochs of {_fit(spec, data)} images. More, if time is "
        "left; fewer, if the chosen network is slower.",
        "final.finalists": "of the search are trained again and compared; "
        f"{_count(trainings, 'training')} in all.",
        "final.seeds": "trainings of each finalist.",
        "final.ensemble": f"the largest number of networks in the result, for quality {quality}.",
        "final.tta": "chosen on the validation images if it helps."
        if final.tta
        else "the time is too short to choose it.",
        "final.postprocess": "chosen on the validation images if it helps."
        if final.postprocess
        else "the time is too short to choose it.",
    }
    return reasons


def _fit(spec: StudySpec, data: DataFingerprint) -> int:
    train = spec.data.limit.train or data.train
    return train + data.val if spec.final.fit_on == "train_val" else train


def summarize(
    spec: StudySpec,
    data: DataFingerprint,
    forecast: Forecast,
    weights: Mapping[str, str],
) -> list[str]:
    """Return the main points of a plan for the console."""
    low, middle, high = (f"{100 * area:.0f}%" for area in data.areas)
    final, size = spec.final, spec.data.image_size
    models = spec.space.families["model"]
    start = [f"{e} ({weights.get(e, 'none')})" for e in spec.space.auto_encoders()]
    trainings = final.finalists * final.seeds
    search = (
        f"search: about {forecast.trials} trials at {size} px, "
        f"{_count(spec.budget.epochs, 'epoch')} each: {format_time(forecast.search_s)}"
    )
    if not forecast.has_search:
        search = "search: none, the time is too short; the defaults are trained"
    few = min(data.val, data.test)
    warning = f"only {few} images to choose or to test with: their scores say little; add images"
    return [
        f"data: {data.images} images of about {data.side} px in {data.groups} groups, lesion area "
        f"{middle} ({low} to {high}); train {data.train}, val {data.val}, test {data.test}"
        f"{', official test part' if data.is_official else ''}",
        f"networks: {', '.join(models)}; encoders: {format_some(start)}",
        search,
        f"final: {_count(trainings, 'training')} at "
        f"{final.image_size} px, {final.epochs} epochs: {format_time(forecast.final_s)} with the "
        f"test",
        f"forecast: the end after {format_time(forecast.total_s)}",
        *([warning] if few < FEW_IMAGES else []),
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
