"""Write the trials of a study as a CSV table."""

from __future__ import annotations

import csv
from typing import Any, TextIO

import optuna
from optuna.trial import FrozenTrial

from lesionseg.config import DEFAULT_COMPONENTS, SETTINGS
from search.storage import training_time, trial_records
from search.storage.study_rows import read_study
from search.storage.trial_records import TrialAttr
from search.study.points import flatten_config

#: The columns before those of the configuration.
COLUMNS = ("number", "state", "reason", "value", "epochs", "seconds", "baseline")


def write_csv(study: optuna.Study, file: TextIO) -> int:
    """Write one row per trial; return the number of trials.

    The columns are COLUMNS and the configuration's, named as in ``search.study.suggest`` and empty
    if a trial has no value.

    Args:
        study: The study.
        file: A text file opened with ``newline=""``.
    """
    rows = [_trial_row(trial) for trial in read_study(study)[-1]]
    keys = {key for row in rows for key in row} - set(COLUMNS)
    common = [key for key in (*DEFAULT_COMPONENTS, *SETTINGS) if key in keys]
    columns = [*COLUMNS, *common, *sorted(keys - set(common))]
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return len(rows)


def _trial_row(trial: FrozenTrial) -> dict[str, Any]:
    has_started = trial.datetime_start is not None
    seconds = round(training_time.hours_spent([trial]) * 3600, 3) if has_started else None
    return {
        "number": trial.number,
        "state": trial_records.state_of(trial),
        "reason": trial_records.reason_of(trial),
        "value": trial.value,
        "epochs": len(trial.intermediate_values),
        "seconds": seconds,
        "baseline": trial.user_attrs.get(TrialAttr.BASELINE),
        **_flatten_config(trial),
    }


def _flatten_config(trial: FrozenTrial) -> dict[str, Any]:
    attrs = trial.user_attrs
    config = attrs.get("config", attrs.get(TrialAttr.FIXED_CONFIG))
    if config is None:  # not started: the parameters that it was queued with
        queued: dict[str, Any] = trial.system_attrs.get("fixed_params", {}) | trial.params
        return queued
    flat = flatten_config(config)
    flat["max_epochs"] = flat.pop("epochs")
    return flat
