"""What ``metrics.json`` says about search, retrainings and ensemble."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from search.results.final_network import FinalNetwork
from search.results.final_training import FinalSetup
from search.results.finalists import Finalist, search_dice
from search.storage import trial_records
from search.storage.final_report import (
    EnsembleReport,
    Fidelities,
    Fidelity,
    FinalTime,
    Member,
    Optimism,
    ValidationDice,
)
from search.storage.final_report import Finalist as FinalistReport

#: The largest gap in validation Dice at which the retraining counts as a reproduction.
REPRODUCTION_TOLERANCE = 0.02


def fidelities(setup: FinalSetup) -> Fidelities:
    """Return image size and epochs of the search's trials and of the final's trainings."""
    spec = setup.search.spec
    search: Fidelity = {"image_size": spec.data.image_size, "epochs": spec.budget.epochs}
    size, epochs = setup.final.cache.image_size, setup.schedule.plan.epochs
    return {"search": search, "final": {"image_size": size, "epochs": epochs}}


def validation_dice(chosen: Finalist, *, held_out: bool, is_repetition: bool) -> ValidationDice:
    """Return the validation Dice of the chosen trial and of its retrainings.

    Args:
        chosen: the chosen trial.
        held_out: whether the validation images were not trained on.
        is_repetition: whether image size and epochs are those of the search. The retraining with
            the trial's seed is then compared with the trial, in a cross-validation with its first
            fold.
    """
    trial = chosen.trial
    seed = trial_records.config_of(trial)["seed"]
    first = next((model.val_dice for model in chosen.models if model.seed == seed), None)
    comparable = first if held_out and is_repetition else None
    gap = None if comparable is None else comparable - search_dice(trial)
    return {
        "search": trial.value,
        "retrained": first if held_out else None,
        "gap": gap,
        "reproduced": None if gap is None else abs(gap) <= REPRODUCTION_TOLERANCE,
        "seeds": {str(model.seed): model.val_dice for model in chosen.models} if held_out else None,
        "folds": trial_records.folds_of(trial),
    }


def finalist_reports(finalists: Sequence[Finalist], chosen: Finalist) -> list[FinalistReport]:
    """Return the finalists in the order of the search."""
    return [
        {
            "trial": finalist.trial.number,
            "search": float(finalist.trial.value or 0.0),
            "dice": [model.val_dice for model in finalist.models],
            "mean": finalist.mean,
            "deviation": finalist.deviation,
            "seconds": sum(model.result.seconds for model in finalist.models),
            "chosen": finalist is chosen,
        }
        for finalist in finalists
    ]


def measure_optimism(
    finalists: Sequence[Finalist], best: int, *, is_repetition: bool
) -> Optimism | None:
    """Return how much of the lead of the search's best trial remained; None if it is not known.

    Args:
        finalists: with their retrainings.
        best: number of the search's best trial.
        is_repetition: whether image size and epochs are those of the search.
    """
    winner = next((each for each in finalists if each.trial.number == best), None)
    others = [each for each in finalists if each is not winner]
    if winner is None or not (others or is_repetition):
        return None
    gap = search_dice(winner.trial) - winner.mean if is_repetition else None
    if not others:
        return {"search_lead": None, "final_lead": None, "gap": gap}
    values = [float(each.trial.value or 0.0) for each in others]
    return {
        "search_lead": float(winner.trial.value or 0.0) - statistics.fmean(values),
        "final_lead": winner.mean - statistics.fmean(each.mean for each in others),
        "gap": gap,
    }


def ensemble_report(network: FinalNetwork, speed: Mapping[str, float]) -> EnsembleReport | None:
    """Return members, gain and cost of an ensemble; None for a single network.

    speed: images per second of the ensemble, ``batch``, and of its best member, ``member``.
    """
    if len(network.members) == 1:
        return None
    selected, best = network.selection, network.members[network.best_member].candidate
    members: list[Member] = [
        {
            "kind": member.candidate.kind,
            "trial": member.candidate.trial,
            "seed": member.candidate.config["seed"],
            "weight": member.weight,
            "dice": member.dice,
            "config": member.candidate.config,
        }
        for member in network.members
    ]
    return {
        "members": members,
        "dice": selected.dice if selected else None,
        "best_dice": selected.best_dice if selected else None,
        "gain": selected.gain if selected else None,
        "standard_error": selected.standard_error if selected else None,
        "images_per_second": speed["batch"],
        "best_images_per_second": speed["member"],
        "mb": network.weights.stat().st_size / 1e6,
        "best_mb": best.weights.stat().st_size / 1e6,
    }


def encoder_weights(config: Mapping[str, Any]) -> str | None:
    """Return the weights that a configuration's encoder started from; None if it has none."""
    (params,) = config["model"].values()
    weights: str | None = params.get("weights")
    return weights


def time_report(setup: FinalSetup, used_s: float) -> FinalTime | None:
    """Return the time of a final test; None without a limit or without a forecast."""
    left_s, forecast_s = setup.schedule.left_s, setup.schedule.forecast_s
    if left_s is None or forecast_s is None:
        return None
    return {"left_s": left_s, "forecast_s": forecast_s, "used_s": used_s}
