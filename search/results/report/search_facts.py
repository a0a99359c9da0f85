"""The section ``search`` of report.json."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Any

from optuna.trial import FrozenTrial

from lesionseg.config import DEFAULT_COMPONENTS
from lesionseg.errors import format_some
from search.storage import training_time, trial_records
from search.storage.trial_records import State, TrialAttr, epochs_trained, state_of
from search.study.importance import compute_importances

#: Rows of the leaderboard.
LEADERS = 10


def search_facts(trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """Return the section ``search`` of report.json (docs/report.md)."""
    ranking = trial_records.rank_trials(trials)
    shares, note = compute_importances(trials)
    best = ranking[0] if ranking else None
    return {
        "counts": dict(trial_records.count_by_state(trials)),
        "finished": trial_records.count_finished(trials),
        "hours": training_time.hours_spent(trials),
        "gpu_hours": training_time.gpu_hours_spent(trials),
        "best": best and {"number": best.number, "dice": best.value},
        "complete": len(ranking),
        "leaderboard": [
            {key: row[key] for key in ("number", "dice", "model_params", "epochs", "seconds")}
            | {"options": {name: config[name] for name in DEFAULT_COMPONENTS}}
            for row, config in ((_trial(t), trial_records.config_of(t)) for t in ranking[:LEADERS])
        ],
        "reasons": _reasons(trials),
        "time": _time_by_state(trials),
        "pruning": estimate_pruning_savings(trials),
        "importances": shares,
        "importance_note": note,
        "varied_params": varied_params(trials, shares),
        "baselines": _baselines(trials, best),
        "trials": [_trial(t) for t in trials],
    }


def estimate_pruning_savings(trials: Iterable[FrozenTrial]) -> dict[str, Any]:
    """Estimate the training time that pruning saved.

    The estimate assumes that a pruned trial would have needed as many epochs as the complete trials
    on average, each as long as its own epochs. ``seconds_saved`` is None without complete trials.
    """
    trials = list(trials)
    lengths = [n for t in trials if state_of(t) == State.COMPLETE and (n := epochs_trained(t))]
    pruned = [t for t in trials if state_of(t) == State.PRUNED and not trial_records.reason_of(t)]
    timed = [
        (n, s) for t in pruned if (n := epochs_trained(t)) and (s := t.user_attrs.get("seconds"))
    ]
    mean_epochs = mean(lengths) if lengths else None
    return {
        "trials": len(pruned),
        "timed": len(timed),
        "mean_epochs": mean_epochs,
        "seconds_saved": mean_epochs and sum(max(0.0, mean_epochs - n) * s / n for n, s in timed),
        "seconds_spent": sum(s for _, s in timed),
    }


def varied_params(trials: Sequence[FrozenTrial], shares: dict[str, float]) -> list[str]:
    """Return the parameters with several values among trials with a Dice, most important first.

    Without importances, the parameters that most trials have come first.
    """
    values: dict[str, list[Any]] = {}
    for trial in trials:
        if _dice(trial) is not None:
            for name, value in trial.params.items():
                values.setdefault(name, []).append(value)
    varied = [name for name, each in values.items() if len(set(each)) > 1]
    return sorted(varied, key=lambda name: (-shares.get(name, -1.0), -len(values[name]), name))


def _trial(trial: FrozenTrial) -> dict[str, Any]:
    attrs = trial.user_attrs
    folds = trial_records.folds_of(trial)
    return {
        "number": trial.number,
        "state": state_of(trial),
        "reason": trial_records.reason_of(trial),
        "dice": _dice(trial),
        "params": trial.params,
        "baseline": attrs.get(TrialAttr.BASELINE),
        "model_params": attrs.get("params"),
        "epochs": attrs.get("epochs"),
        "best_epoch": attrs.get("best_epoch"),
        "seconds": attrs.get("seconds"),
        "worker_seconds": training_time.seconds_of(trial),
        "curve": [[epoch, value] for epoch, value in trial_records.dice_by_epoch(trial).items()],
        **({"folds": folds} if folds else {}),
    }


def _dice(trial: FrozenTrial) -> float | None:
    """Return the value of a complete trial, or the last reported value of a pruned one."""
    value = trial.value if state_of(trial) == State.COMPLETE else None
    if state_of(trial) == State.PRUNED and trial.last_step is not None:
        value = trial.intermediate_values[trial.last_step]
    return value if value is not None and math.isfinite(value) else None


def _reasons(trials: Iterable[FrozenTrial]) -> list[dict[str, Any]]:
    """Count reasons by state, in the order of State; the most frequent first."""
    groups: dict[tuple[State, str], list[FrozenTrial]] = {}
    for trial in trials:
        if reason := trial_records.reason_of(trial):
            groups.setdefault((state_of(trial), reason), []).append(trial)
    order = list(State)
    ranking = sorted(groups.items(), key=lambda item: (order.index(item[0][0]), -len(item[1])))
    return [
        {
            "state": state,
            "reason": reason,
            "count": len(members),
            "numbers": format_some(t.number for t in members),
            "message": next((m for t in members if (m := t.user_attrs.get(TrialAttr.MESSAGE))), ""),
        }
        for (state, reason), members in ranking
    ]


def _time_by_state(trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """Return the worker time of each state, data loading and start included."""
    rows = []
    for state in State:
        times = [training_time.seconds_of(t) for t in trials if state_of(t) == state]
        seconds = [s for s in times if s is not None]
        if seconds:
            rows.append({"state": state, "trials": len(times), "seconds": sum(seconds)})
    return rows


def _baselines(trials: Iterable[FrozenTrial], best: FrozenTrial | None) -> list[dict[str, Any]]:
    """Return the baselines among the trials, with their difference to the best trial."""
    rows = []
    for trial in trials:
        name = trial.user_attrs.get(TrialAttr.BASELINE)
        if name is None or trial_records.was_interrupted(trial):
            continue
        dice, difference = _dice(trial), None
        if state_of(trial) == State.COMPLETE and dice is not None and best and best.value:
            difference = dice - best.value
        row = {"baseline": name, "number": trial.number, "state": state_of(trial)}
        rows.append(row | {"dice": dice, "difference": difference})
    return sorted(rows, key=lambda row: (-(row["dice"] or -1.0), row["number"]))
