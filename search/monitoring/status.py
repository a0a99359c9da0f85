"""Where a study stands, as plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from lesionseg.errors import InputError
from search.storage import trial_records
from search.storage.artifact_store import open_artifact_store
from search.storage.lease_types import WorkerInfo
from search.storage.leases import TrialLeases
from search.storage.queries import TrialReader
from search.storage.study_dir import read_metrics
from search.study.evaluations import list_test_evaluations
from search.study.opening import load_study


def find_run(name: str, root: Path = Path("runs")) -> Path:
    """The folder of a study: a path, or a name under ``runs/``. InputError if it is neither."""
    for folder in (Path(name), root / name):
        if (folder / "run.json").is_file():
            return folder
    known = ", ".join(list_runs(root)) or "none"
    raise InputError(f"no study {name!r} here or under {root}/ (there: {known})")


def list_runs(root: Path = Path("runs")) -> list[str]:
    """Names of the studies under a folder."""
    return sorted(p.parent.name for p in root.glob("*/run.json"))


def status(folder: Path, storage: str | None = None) -> dict[str, Any]:
    """The study's counts, budget, workers and best trial, fit for JSON; see ``Standing.look``."""
    return StudyStatus(folder, storage).look()


def looking(name: str | None, storage: str | None = None) -> Callable[..., list[dict[str, Any]]]:
    """Called, it gives the standing of that study, or of all under ``runs/``; as ``look`` does.

    Called again, it looks at the same ones over the same connections.
    """
    known: dict[str, StudyStatus] = {}

    def look(*, disk: bool = True) -> list[dict[str, Any]]:
        found = []
        for each in [name] if name else list_runs():
            if each not in known:
                known[each] = StudyStatus(find_run(each), storage)
            found.append(known[each].look(disk=disk))
        return found

    return look


class StudyStatus:
    """A study that is looked at again and again, over one connection.

    A second look reads what is new and what runs.
    InputError as ``load_study``.
    """

    def __init__(self, folder: Path, storage: str | None = None) -> None:
        self.folder = folder
        self.study = load_study(folder, storage=storage)
        self.leases = TrialLeases(self.study)
        self.reader = TrialReader(self.study)

    def look(self, *, disk: bool = True) -> dict[str, Any]:
        """Where it stands now.

        ``best`` is None before a trial was completed. ``workers``: everyone who has not left, with
        the trial that is held, if any, and the seconds since the last beat. ``running``: the
        trials at work with the validation Dice of each epoch so far. Of a cross-validation both
        have ``folds`` (``search.study.cross_validation.summarize_folds``) too, and ``epochs`` are those of all folds, the
        curve is the first one's. ``hours_left``: see
        ``hours_left``. ``disk_bytes``: None where ``disk`` says not to count them.
        """
        study, folder = self.study, self.folder
        known = self.reader.read()
        ranking = trial_records.rank_trials(known)
        best = ranking[0] if ranking else None
        spec = study.user_attrs["spec"]
        budget, epochs = spec["budget"], spec["budget"]["epochs"]
        final = read_metrics(folder)
        return {
            "study": study.study_name,
            "command": self.leases.command,
            "counts": trial_records.count_by_state(known),
            "reasons": trial_records.count_reasons(known),
            "spent": trial_records.count_finished(known),
            "hours": round(trial_records.hours_spent(known), 6),
            "gpu_hours": round(trial_records.gpu_hours_spent(known), 6),
            "hours_left": hours_left(known, budget),
            "budget": {key: budget.get(key) for key in ("trials", "hours", "gpu_hours")},
            "best": best and _best(best),
            "queue": [_queued(t) for t in known if trial_records.state_of(t) == "waiting"],
            "running": [
                _running(t, epochs) for t in known if trial_records.state_of(t) == "running"
            ],
            "workers": [_worker(row, self.leases.grace_s) for row in self.leases.list_workers()],
            "disk_bytes": self._size() if disk else None,
            "test_evaluations": len(list_test_evaluations(study)),
            "test": final and {"dice": final["test"]["dice"], "ci95": final["ci95"]["dice"]},
        }

    def _size(self) -> int:
        where = self.study.user_attrs.get("artifacts")
        return open_artifact_store(where, self.folder, self.study.study_name).total_bytes()


def hours_left(known: Sequence[FrozenTrial], budget: Mapping[str, Any]) -> float | None:
    """How long the study will go on, by the clock; None while nothing tells.

    By the pace: the hours in which anybody trained so far, divided by the trials that have ended
    and the parts of trials at work (epochs of ``budget.epochs``), times the trials that are left.
    By the clock: what ``budget.hours`` and ``budget.gpu_hours`` leave. The shortest counts. There
    is no pace before the first trial has ended.
    """
    spent, hours, gpu = (
        trial_records.count_finished(known),
        trial_records.hours_spent(known),
        trial_records.gpu_hours_spent(known),
    )
    done = spent + sum(
        _part_done(t, budget["epochs"]) for t in known if trial_records.state_of(t) == "running"
    )
    by = []
    if spent and hours:
        by.append(hours / done * (budget["trials"] - done))
    if budget.get("hours") is not None:
        by.append(budget["hours"] - hours)
    if budget.get("gpu_hours") is not None and gpu:
        by.append((budget["gpu_hours"] - gpu) * hours / gpu)
    return round(max(0.0, float(min(by))), 6) if by else None


def _part_done(trial: FrozenTrial, epochs: int) -> float:
    """How much of a trial at work is done, in [0, 1]; of a fold after the first nothing tells."""
    folds = trial_records.folds_of(trial)
    first = min(1.0, len(trial_records.dice_by_epoch(trial)) / epochs)
    return max(first, len(folds["dice"])) / folds["of"] if folds else first


def _best(trial: FrozenTrial) -> dict[str, Any]:
    config, folds = trial_records.config_of(trial), trial_records.folds_of(trial)
    told = {"number": trial.number, "value": trial.value, "config": config}
    return told | ({"folds": folds} if folds else {})


def _running(trial: FrozenTrial, epochs: int) -> dict[str, Any]:
    config, folds = trial.user_attrs.get("config"), trial_records.folds_of(trial)
    each = config["epochs"] if config else epochs
    return {
        "number": trial.number,
        "epochs": each * folds["of"] if folds else each,
        # A value that is no number has no place in JSON.
        "curve": [
            v if math.isfinite(v) else None for v in trial_records.dice_by_epoch(trial).values()
        ],
        **({"folds": folds} if folds else {}),
        "config": config,
        "baseline": trial.user_attrs.get(trial_records.TrialAttr.BASELINE),
    }


def _queued(trial: FrozenTrial) -> dict[str, Any]:
    attrs = trial.user_attrs
    return {
        "number": trial.number,
        "requeued_from": attrs.get(trial_records.TrialAttr.REQUEUED_FROM),
        "baseline": attrs.get(trial_records.TrialAttr.BASELINE),
    }


def _worker(row: WorkerInfo, grace: float) -> dict[str, Any]:
    return {
        "id": row.id,
        "host": row.process.host,
        "pid": row.process.pid,
        "device": row.slot.device,
        "share": row.slot.share,
        "threads": row.slot.threads,
        "state": row.state,
        "trial": row.trial,
        "epoch": row.epoch,
        "beat_seconds_ago": round(row.heartbeat_age_s, 1),
        # It will be taken for dead by whoever looks next.
        "silent": row.heartbeat_age_s > grace or row.process.has_exited(),
    }
