"""Where a study stands, as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from lesionseg.errors import InputError
from search import trials
from search.final import read_metrics
from search.study import open_records, test_looks
from search.worker import is_gone


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
    """The study's counts, budget and best trial, fit for JSON.

    ``best`` is None before a trial was completed. ``workers`` holds the trials at work now.
    """
    study, _ = open_records(folder, storage=storage)
    known = trials.all_trials(study)
    ranking = trials.ranked(known)
    best = ranking[0] if ranking else None
    budget = study.user_attrs["spec"]["budget"]
    final = read_metrics(folder)
    return {
        "study": study.study_name,
        "counts": trials.counts(known),
        "reasons": trials.reasons(known),
        "spent": trials.spent(known),
        "hours": round(trials.hours_spent(known), 6),
        "budget": {"trials": budget["trials"], "hours": budget["hours"]},
        "best": best
        and {"number": best.number, "value": best.value, "config": trials.config_of(best)},
        "workers": [
            {"trial": t.number, "epoch": t.last_step or 0, **t.user_attrs.get("owner", {})}
            for t in known
            if _is_at_work(t)
        ],
        "test_looks": len(test_looks(study)),
        "test": final and {"dice": final["test"]["dice"], "ci95": final["ci95"]["dice"]},
    }


def _is_at_work(trial: FrozenTrial) -> bool:
    # One without an owner was claimed this very moment; one whose owner is gone waits to be found.
    owner = trial.user_attrs.get("owner")
    return trials.state_of(trial) == "running" and not (owner and is_gone(owner))
