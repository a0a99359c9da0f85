"""A worker as a process of its own: signal handling, log lines and exit."""

from __future__ import annotations

import signal
import sys
import time

from optuna.trial import FrozenTrial

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError
from search.signals import SignalHandler
from search.spec.loading import find_differing_keys, load_spec
from search.storage import trial_records
from search.study.location import StudyLocation
from search.study.opening import join_study
from search.study.resume_checks import RESUMABLE_KEYS
from search.trial_process.slot import Slot
from search.workers.listener import NullListener
from search.workers.loop import WorkerOptions, join_and_run_trials
from search.workers.worker_result import DESCRIPTIONS


class LogListener(NullListener):
    """Logs the start and the end of each trial; epochs are in history.csv."""

    def trial_started(self, number: int, config: TrialConfig) -> None:
        """Log the configuration's digest."""
        log(f"trial {number}: {config.digest()} started")

    def trial_ended(self, trial: FrozenTrial, best: FrozenTrial | None) -> None:
        """Log state, value and reason."""
        value = "" if trial.value is None else f" {trial.value:.4f}"
        reason = trial_records.reason_of(trial)
        if reason and not trial_records.was_interrupted(trial):
            value += f" ({reason})"
        log(f"trial {trial.number}: {trial_records.describe_state(trial)}{value}")


def log(message: str) -> None:
    """Print a line with the time in UTC, unbuffered."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {message}", flush=True)


def run_worker(
    location: StudyLocation,
    slot: Slot,
    *,
    study: str | None = None,
    max_trials: int | None = None,
    forever: bool = False,
) -> None:
    """Run trials until the study is done.

    On SIGTERM the running trial is requeued and the function returns; on Ctrl-C KeyboardInterrupt
    is raised after that. study: a study file that must agree with the study.
    """
    if study is not None:
        _check_same_study(location, study)
    signals = SignalHandler()
    options = WorkerOptions(max_trials=max_trials, forever=forever)
    try:
        with signals.installed(), signals.deferred():
            log(f"worker on {slot.device} joins {location.name}")
            result = join_and_run_trials(
                location, slot, signals.stop_event, options, LogListener(), log
            )
            log(f"{result.trials} trials; {DESCRIPTIONS[result.reason]}")
    except KeyboardInterrupt:
        if signals.signal_number != signal.SIGTERM:
            raise
    sys.stdout.flush()


def _check_same_study(location: StudyLocation, study: str) -> None:
    spec, opened = load_spec(study), join_study(location)
    keys = find_differing_keys(opened.spec.model_dump(mode="json"), spec.model_dump(mode="json"))
    keys = [key for key in keys if key not in RESUMABLE_KEYS]
    if keys:
        raise InputError(
            f"--study: {study} is not the study {location.name!r}: {', '.join(keys)} differ"
        )
