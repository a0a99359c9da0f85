"""Everything that a report says, built once as plain data; report.json is this as it stands.

Its keys are told in docs/report.md. The numbers of the test are those of ``final/metrics.json``,
which lies within it word for word; everything else comes from the study's records and files.
"""

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
from search.results.report.comparison import compared
from search.results.report.final_test_facts import tested
from search.results.report.search_facts import searched
from search.storage import trial_records
from search.storage.study_dir import read_metrics
from search.study import data_audit
from search.study.data_summary import read_data_summary
from search.study.lifecycle import list_test_evaluations

#: Raised when a key of report.json changes its meaning or goes away.
FORMAT = 1


def report_facts(
    folder: Path,
    study: optuna.Study,
    known: Sequence[FrozenTrial],
    about: Mapping[str, Any],
    *,
    against: Path | None = None,
    storage: str | None = None,
) -> dict[str, Any]:
    """What is known of a study, fit for JSON: no NaN, no infinity.

    known: its trials. about: its run.json. against: the folder of a ``baselines run`` to compare the
    test with.
    Raises InputError as ``report.against.compared``.
    """
    stored = study.user_attrs
    ranking = trial_records.rank_trials(known)
    final = read_metrics(folder)
    test = tested(folder, final, stored["spec"], list_test_evaluations(study))
    facts = {
        "format": FORMAT,
        "study": study.study_name,
        "version": about["version"],
        "data": _data(folder, stored, about),
        "search": searched(known) | {"budget": stored["spec"]["budget"]},
        "winner": _winner(final, ranking),
        "test": test,
        "comparison": compared(folder, test.get("images", []), against, storage),
        "environment": _environment(known, stored["spec"], final, about),
        "repeat": {"command": _command(folder), "spec": stored["spec"]},
    }
    cleaned: dict[str, Any] = _finite(facts)
    return cleaned


def _data(folder: Path, stored: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "layout": about["layout"],
        "fingerprint": stored["data"],
        "image_size": stored["spec"]["data"]["image_size"],
        "split": {part: len(stored["split"][part]) for part in SPLITS},
        "folds": [len(names) for names in stored["split"].get("folds", ())],
        "card": read_data_summary(folder),
        "audit": data_audit.summarize_audit(folder, stored["split"]),
    }


def _winner(
    final: Mapping[str, Any] | None, ranking: Sequence[FrozenTrial]
) -> dict[str, Any] | None:
    """What was tested; before that, the best so far."""
    if final:
        return {
            "trial": final["trial"],
            "baseline": final.get("baseline"),
            "config": final["config"],
        }
    if not ranking:
        return None
    best = ranking[0]
    return {
        "trial": best.number,
        "baseline": best.user_attrs.get(trial_records.TrialAttr.BASELINE),
        "config": trial_records.config_of(best),
    }


def _environment(
    known: Sequence[FrozenTrial],
    spec: Mapping[str, Any],
    final: Mapping[str, Any] | None,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    owners = [t.user_attrs["owner"] for t in known if "owner" in t.user_attrs]
    counted = Counter((o["device"], o["threads"], o["share"]) for o in owners)
    return {
        "versions": final["versions"] if final else {"lesionsearch": about["version"]},
        "seed": spec["seed"],
        "hosts": len({o["host"] for o in owners}),
        "searched_on": [
            {"device": device, "threads": threads, "share": share, "trials": n}
            for (device, threads, share), n in sorted(counted.items())
        ],
        "tested_on": final.get("device") if final else None,
    }


def _command(folder: Path) -> str:
    study = shlex.quote(str(folder / "study.yaml"))
    return f"lesionsearch run {study} --data DIR --out NEW"


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
