"""All facts of a report as plain data: the content of report.json (docs/report.md)."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from lesionseg.data.pairs import SPLITS
from search.results.report.comparison import comparison_facts
from search.results.report.final_test_facts import final_test_facts
from search.results.report.search_facts import search_facts
from search.storage import trial_records
from search.storage.study_dir import read_metrics
from search.study import data_audit
from search.study.data_summary import read_data_summary
from search.study.evaluations import list_test_evaluations

#: Incremented when a key of report.json changes its meaning or is removed.
FORMAT = 1


def report_facts(
    folder: Path,
    study: optuna.Study,
    trials: Sequence[FrozenTrial],
    run_info: Mapping[str, Any],
    *,
    against: Path | None = None,
    storage: str | None = None,
) -> dict[str, Any]:
    """Return the facts of a study, without NaN and infinity.

    Args:
        folder: the study's folder.
        study: the study.
        trials: its trials.
        run_info: content of its run.json.
        against: folder of a ``baselines run`` to compare the test results with.
        storage: URL of the study's storage.

    Raises:
        InputError: see ``comparison_facts``.
    """
    attrs = study.user_attrs
    final = read_metrics(folder)
    test = final_test_facts(folder, final, attrs["spec"], list_test_evaluations(study))
    facts = {
        "format": FORMAT,
        "study": study.study_name,
        "version": run_info["version"],
        "data": _data(folder, attrs, run_info),
        "search": search_facts(trials) | {"budget": attrs["spec"]["budget"]},
        "selected": _selected(final, trial_records.rank_trials(trials)),
        "test": test,
        "comparison": comparison_facts(folder, test.get("images", []), against, storage),
        "environment": _environment(trials, attrs["spec"], final, run_info),
        "reproduction": {"command": _command(folder), "spec": attrs["spec"]},
    }
    finite: dict[str, Any] = _replace_nan(facts)
    return finite


def _data(folder: Path, attrs: Mapping[str, Any], run_info: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "layout": run_info["layout"],
        "fingerprint": attrs["data"],
        "image_size": attrs["spec"]["data"]["image_size"],
        "split": {split: len(attrs["split"][split]) for split in SPLITS},
        "folds": [len(names) for names in attrs["split"].get("folds", ())],
        "summary": read_data_summary(folder),
        "audit": data_audit.summarize_audit(folder, attrs["split"]),
    }


def _selected(
    final: Mapping[str, Any] | None, ranking: Sequence[FrozenTrial]
) -> dict[str, Any] | None:
    """Return the tested trial; before the test, the best one so far."""
    if final:
        return {key: final[key] for key in ("trial", "baseline", "config")}
    if not ranking:
        return None
    best = ranking[0]
    return {
        "trial": best.number,
        "baseline": best.user_attrs.get(trial_records.TrialAttr.BASELINE),
        "config": trial_records.config_of(best),
    }


def _environment(
    trials: Sequence[FrozenTrial],
    spec: Mapping[str, Any],
    final: Mapping[str, Any] | None,
    run_info: Mapping[str, Any],
) -> dict[str, Any]:
    owner = trial_records.TrialAttr.OWNER
    owners = [t.user_attrs[owner] for t in trials if owner in t.user_attrs]
    counts = Counter((o["device"], o["threads"], o["share"]) for o in owners)
    return {
        "versions": final["versions"] if final else {"lesionsearch": run_info["version"]},
        "seed": spec["seed"],
        "hosts": len({o["host"] for o in owners}),
        "searched_on": [
            {"device": device, "threads": threads, "share": share, "trials": n}
            for (device, threads, share), n in sorted(counts.items())
        ],
        "tested_on": final["device"] if final else None,
    }


def _command(folder: Path) -> str:
    study = shlex.quote(str(folder / "study.yaml"))
    return f"lesionsearch run {study} --data DIR --out NEW"


def _replace_nan(value: Any) -> Any:
    """Replace NaN and infinity by None, because JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _replace_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nan(each) for each in value]
    return value
