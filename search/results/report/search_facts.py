"""What a report says of the search, as plain data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Any

from optuna.trial import FrozenTrial

from lesionseg.config import DEFAULTS
from lesionseg.errors import some
from search.storage import trial_records
from search.study.importance import importances

#: Rows of the leaderboard.
LEADERS = 10


def searched(known: Sequence[FrozenTrial], now: float | None = None) -> dict[str, Any]:
    """The section ``search`` of report.json (docs/report.md).

    now: seconds since 1970, the end of trials that are at work.
    """
    ranking = trial_records.rank_trials(known)
    shares, note = importances(known)
    best = ranking[0] if ranking else None
    return {
        "counts": dict(trial_records.count_by_state(known)),
        "spent": trial_records.count_finished(known),
        "hours": trial_records.hours_spent(known, now),
        "gpu_hours": trial_records.gpu_hours_spent(known, now),
        "best": best and {"number": best.number, "dice": best.value},
        "complete": len(ranking),
        "leaders": [_leader(t) for t in ranking[:LEADERS]],
        "reasons": _reasons(known),
        "time": _time(known, now),
        "saved": saved_by_pruning(known),
        "importances": shares,
        "importance_note": note,
        "shown": shown_parameters(known, shares),
        "baselines": _baselines(known, best),
        "trials": [_trial(t, now) for t in known],
    }


def saved_by_pruning(known: Iterable[FrozenTrial]) -> dict[str, Any]:
    """How long the pruned trials would have gone on training; an estimate.

    A pruned trial is taken to have needed as many epochs as the complete ones did on average, each
    as long as its own epochs were. ``seconds`` is None where no trial is complete, since there is
    nothing to judge by.
    """
    known = list(known)
    lengths = [n for t in known if trial_records.state_of(t) == "complete" and (n := _epochs(t))]
    pruned = [
        t for t in known if trial_records.state_of(t) == "pruned" and not trial_records.reason_of(t)
    ]
    timed = [(n, s) for t in pruned if (n := _epochs(t)) and (s := t.user_attrs.get("seconds"))]
    usual = mean(lengths) if lengths else None
    return {
        "trials": len(pruned),
        "timed": len(timed),
        "mean_epochs": usual,
        "seconds": usual and sum(max(0.0, usual - n) * s / n for n, s in timed),
        "spent_seconds": sum(s for _, s in timed),
    }


def shown_parameters(known: Sequence[FrozenTrial], shares: dict[str, float]) -> list[str]:
    """Parameters that had more than one value among trials with a Dice, the important ones first.

    Without importances, those that most trials have come first.
    """
    values: dict[str, set[Any]] = {}
    had: dict[str, int] = {}
    for trial in known:
        if _dice(trial) is not None:
            for name, value in trial.params.items():
                values.setdefault(name, set()).add(value)
                had[name] = had.get(name, 0) + 1
    varied = [name for name, seen in values.items() if len(seen) > 1]
    return sorted(varied, key=lambda name: (-shares.get(name, -1.0), -had[name], name))


def _trial(trial: FrozenTrial, now: float | None) -> dict[str, Any]:
    attrs = trial.user_attrs
    return {
        "number": trial.number,
        "state": trial_records.state_of(trial),
        "reason": trial_records.reason_of(trial),
        "dice": _dice(trial),
        "params": trial.params,
        "baseline": attrs.get(trial_records.TrialAttr.BASELINE),
        "parameters": attrs.get("params"),
        "epochs": attrs.get("epochs"),
        "best_epoch": attrs.get("best_epoch"),
        "seconds": attrs.get("seconds"),
        "worker_seconds": trial_records.seconds_of(trial, now),
        "curve": [
            [epoch, value if math.isfinite(value) else None]
            for epoch, value in trial_records.dice_by_epoch(trial).items()
        ],
        **({"folds": folds} if (folds := trial_records.folds_of(trial)) else {}),
    }


def _dice(trial: FrozenTrial) -> float | None:
    """Of a complete trial its value, of a pruned one the last that it reported."""
    state = trial_records.state_of(trial)
    if state == "pruned" and trial.last_step is not None:
        value: float | None = trial.intermediate_values[trial.last_step]
    else:
        value = trial.value if state == "complete" else None
    return value if value is not None and math.isfinite(value) else None


def _epochs(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get("epochs") or len(trial.intermediate_values))


def _leader(trial: FrozenTrial) -> dict[str, Any]:
    config, attrs = trial_records.config_of(trial), trial.user_attrs
    return {
        "number": trial.number,
        "dice": trial.value,
        "picks": {family: config[family] for family in DEFAULTS},
        "parameters": attrs.get("params"),
        "epochs": attrs.get("epochs"),
        "seconds": attrs.get("seconds"),
    }


def _reasons(known: Iterable[FrozenTrial]) -> list[dict[str, Any]]:
    """By state in the order of STATES, the most frequent first."""
    found: dict[tuple[str, str], list[FrozenTrial]] = {}
    for trial in known:
        if reason := trial_records.reason_of(trial):
            found.setdefault((trial_records.state_of(trial), reason), []).append(trial)
    ordered = sorted(found.items(), key=lambda f: (list(map(str, trial_records.State)).index(f[0][0]), -len(f[1])))
    return [
        {
            "state": state,
            "reason": reason,
            "count": len(members),
            "numbers": some(t.number for t in members),
            "message": next((m for t in members if (m := t.user_attrs.get("message"))), ""),
        }
        for (state, reason), members in ordered
    ]


def _time(known: Sequence[FrozenTrial], now: float | None) -> list[dict[str, Any]]:
    """What trials of each state cost their workers, data loading and start included."""
    rows = []
    for state in trial_records.State:
        members = [t for t in known if trial_records.state_of(t) == state]
        seconds = [s for t in members if (s := trial_records.seconds_of(t, now)) is not None]
        if seconds:
            rows.append({"state": state, "trials": len(members), "seconds": sum(seconds)})
    return rows


def _baselines(known: Iterable[FrozenTrial], best: FrozenTrial | None) -> list[dict[str, Any]]:
    """Published systems that were trials of this study; the gap is to its best trial."""
    rows = []
    for trial in known:
        name = trial.user_attrs.get(trial_records.TrialAttr.BASELINE)
        if name is None or trial_records.was_interrupted(trial):
            continue
        complete = trial_records.state_of(trial) == "complete"
        behind = trial.value - best.value if complete and best else None  # type: ignore[operator]
        rows.append(
            {
                "baseline": name,
                "number": trial.number,
                "state": trial_records.state_of(trial),
                "dice": _dice(trial),
                "behind": behind,
            }
        )
    return sorted(rows, key=lambda row: (-(row["dice"] or -1.0), row["number"]))
