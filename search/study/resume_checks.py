"""Checks before a study is resumed: same spec, same data, same artifact store."""

from __future__ import annotations

from typing import Any

import optuna

from lesionseg.data.index import DatasetIndex
from lesionseg.errors import InputError
from search.spec.loading import find_differing_keys, parse_spec
from search.spec.study_spec import StudySpec
from search.storage.trial_records import StudyAttr

#: Keys that may differ when a study is resumed, as no trial depends on them.
RESUMABLE_KEYS = (
    "budget.trials",
    "budget.hours",
    "budget.gpu_hours",
    "budget.trial_minutes",
    "budget.stall_minutes",
    "final.fit_on",
    "final.seeds",
    "final.tta",
    "final.postprocess",
)


def check_resumable(
    study: optuna.Study, spec: StudySpec, index: DatasetIndex, artifacts: str | None
) -> None:
    """Raise InputError if a study cannot be resumed with this spec, data and artifact store."""
    stored = _update_spec(study.user_attrs[StudyAttr.SPEC])
    keys = find_differing_keys(stored, spec.model_dump(mode="json"))
    keys = [key for key in keys if key not in RESUMABLE_KEYS]
    if keys:
        raise InputError(
            f"study {study.study_name!r} exists with another spec: {', '.join(keys)} differ; "
            f"restore the old values, or start a new study with another --out"
        )
    check_data(study, index)
    location = study.user_attrs.get(StudyAttr.ARTIFACTS)
    if artifacts not in (None, location):
        raise InputError(
            f"--artifacts: study {study.study_name!r} keeps its checkpoints in "
            f"{location or 'its own folder'}, got {artifacts}; leave the option out"
        )


def check_data(study: optuna.Study, index: DatasetIndex) -> None:
    """Raise InputError if the data are not those that a study was created with."""
    fingerprint = study.user_attrs[StudyAttr.DATA]
    if fingerprint != index.fingerprint():
        raise InputError(
            f"study {study.study_name!r} was run on other data (fingerprint {fingerprint}, now "
            f"{index.fingerprint()}); give the same folders, or start a new study with another "
            f"--out"
        )


def _update_spec(stored: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of keys that are newer than the stored spec."""
    try:
        return parse_spec(stored, "the stored spec").model_dump(mode="json")
    except InputError:  # a key or an option was removed: report the difference as it is
        return stored
