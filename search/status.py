"""Where a study stands, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from lesionseg.errors import InputError
from search import trials
from search.depot import open_depot
from search.final import read_metrics
from search.ledger import Ledger, WorkerRow
from search.study import open_records, test_looks


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
    """The study's counts, budget, workers and best trial, fit for JSON.

    ``best`` is None before a trial was completed. ``workers``: everyone who has not left, with the
    trial that is held, if any, and the seconds since the last beat. ``hours_left``: what the trials
    that are left take at the pace so far, None before there is one.
    """
    study, _ = open_records(folder, storage=storage)
    known = trials.all_trials(study)
    ranking = trials.ranked(known)
    best = ranking[0] if ranking else None
    budget = study.user_attrs["spec"]["budget"]
    final = read_metrics(folder)
    ledger = Ledger(study)
    spent, hours = trials.spent(known), trials.hours_spent(known)
    depot = open_depot(study.user_attrs.get("artifacts"), folder, study.study_name)
    return {
        "study": study.study_name,
        "command": ledger.command,
        "counts": trials.counts(known),
        "reasons": trials.reasons(known),
        "spent": spent,
        "hours": round(hours, 6),
        "gpu_hours": round(trials.gpu_hours_spent(known), 6),
        "hours_left": _hours_left(budget, spent, hours),
        "budget": {key: budget.get(key) for key in ("trials", "hours", "gpu_hours")},
        "best": best
        and {"number": best.number, "value": best.value, "config": trials.config_of(best)},
        "queue": [_queued(t) for t in known if trials.state_of(t) == "waiting"],
        "workers": [_worker(row, ledger.grace) for row in ledger.workers()],
        "disk_bytes": depot.size(),
        "test_looks": len(test_looks(study)),
        "test": final and {"dice": final["test"]["dice"], "ci95": final["ci95"]["dice"]},
    }


def _hours_left(budget: Mapping[str, Any], spent: int, hours: float) -> float | None:
    left = budget["trials"] - spent
    by_pace = hours / spent * left if spent and hours else None
    by_clock = None if budget.get("hours") is None else budget["hours"] - hours
    known = [max(0.0, float(each)) for each in (by_pace, by_clock) if each is not None]
    return round(min(known), 6) if known else None


def _queued(trial: FrozenTrial) -> dict[str, Any]:
    attrs = trial.user_attrs
    return {
        "number": trial.number,
        "retry_of": attrs.get(trials.RETRY_OF),
        "preset": attrs.get(trials.PRESET),
    }


def _worker(row: WorkerRow, grace: float) -> dict[str, Any]:
    return {
        "id": row.id,
        "host": row.who.host,
        "pid": row.who.pid,
        "device": row.slot.device,
        "share": row.slot.share,
        "threads": row.slot.threads,
        "state": row.state,
        "trial": row.trial,
        "epoch": row.epoch,
        "beat_seconds_ago": round(row.age, 1),
        # It will be taken for dead by whoever looks next.
        "silent": row.age > grace or row.who.is_gone(),
    }
