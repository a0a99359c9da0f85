"""Add trials to a study's queue: finished trials again, or configurations from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from lesionseg.errors import InputError
from search.spec.loading import join_errors
from search.spec.study_spec import StudySpec
from search.storage import trial_records
from search.storage.leases import QueueEntry, TrialLeases
from search.storage.trial_records import StudyAttr, TrialAttr
from search.study.queue_file import read_entries


def retry_trials(study: optuna.Study, numbers: Sequence[int]) -> list[int]:
    """Queue finished trials again, all or none; return the numbers of the new trials.

    Raises:
        InputError: With all errors: no such trial, not finished, or without a configuration.
    """
    trials = trial_records.all_trials(study)
    errors: list[str] = []
    entries: list[QueueEntry] = []
    for number in dict.fromkeys(numbers):
        try:
            entries.append(_repeat(trials, number))
        except InputError as error:
            errors.append(str(error))
    if errors:
        raise InputError(f"study {study.study_name!r}: {join_errors(errors)}")
    return TrialLeases(study).enqueue(entries)


def enqueue_file(study: optuna.Study, spec: StudySpec, path: Path) -> list[int]:
    """Queue the configurations of a file, all or none; return the numbers of the new trials."""
    return TrialLeases(study).enqueue(read_entries(path, spec))


def count_free_trials(study: optuna.Study) -> int:
    """Return how many trials the budget allows beyond the queue; negative if it is too small."""
    trials = trial_records.all_trials(study)
    counts = trial_records.count_by_state(trials)
    budget: int = study.user_attrs[StudyAttr.SPEC]["budget"]["trials"]
    return budget - trial_records.count_finished(trials) - counts["running"] - counts["waiting"]


def _repeat(trials: Sequence[FrozenTrial], number: int) -> QueueEntry:
    if not 0 <= number < len(trials):
        existing = f"the trials are 0 to {len(trials) - 1}" if trials else "the study has none"
        raise InputError(f"no trial {number}: {existing}")
    trial = trials[number]
    if not trial.state.is_finished():
        state = trial_records.state_of(trial)
        raise InputError(f"trial {number} is {state}: only finished trials can be queued again")
    attrs = trial.user_attrs
    params = trial.system_attrs.get("fixed_params", {}) | trial.params
    if not params and TrialAttr.FIXED_CONFIG not in attrs and TrialAttr.CONFIG not in attrs:
        raise InputError(f"trial {number} ended before it had a configuration")
    kept = {k: attrs[k] for k in (TrialAttr.BASELINE, TrialAttr.FIXED_CONFIG) if k in attrs}
    return params, {**kept, TrialAttr.ALLOW_DUPLICATE: True, TrialAttr.REPEAT_OF: number}
