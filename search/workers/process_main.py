"""A worker as a process of its own: signals in, one line out for what happens, an exit code."""

from __future__ import annotations

import signal
import sys
import time

from optuna.trial import FrozenTrial

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError
from lesionseg.training.train import EpochRecord
from search.signals import SignalHandler
from search.spec.loading import find_differing_keys, load_spec
from search.storage import trial_records
from search.study.lifecycle import RESUMABLE_KEYS, join_study
from search.study.location import StudyLocation
from search.trial_process.slot import Slot
from search.workers.loop import WorkerOptions, serve

WHY = {
    "done": "the study is done",
    "time": "the study's time is over",
    "exhausted": "no new configuration is left to try",
    "asked": "asked to leave",
    "enough": "its share of trials is done",
}


class Log:
    """A listener that writes a line for each trial, with the time in UTC."""

    def trial_started(self, number: int, config: TrialConfig) -> None:
        """Says so."""
        say(f"trial {number}: {config.digest()} begins")

    def epoch_ended(self, number: int, record: EpochRecord) -> None:
        """Epochs are in the trial's history.csv."""

    def trial_ended(self, trial: FrozenTrial, best: FrozenTrial | None) -> None:
        """Says how."""
        reason = trial_records.reason_of(trial)
        value = "" if trial.value is None else f" {trial.value:.4f}"
        why = f" ({reason})" if reason else ""
        say(f"trial {trial.number}: {trial_records.state_of(trial)}{value}{why}")


def say(text: str) -> None:
    """One line, at once: a log is read while it is written."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}", flush=True)


def run_worker(
    join: StudyLocation,
    slot: Slot,
    *,
    study: str | None = None,
    max_trials: int | None = None,
    forever: bool = False,
) -> None:
    """Works until the study needs it no more.

    SIGTERM: the trial at work is saved and queued again, and the call returns. Ctrl-C: the same,
    and KeyboardInterrupt goes on up. study: a study file that the study must agree with.
    """
    if study is not None:
        _refuse_another(join, study)
    signals = SignalHandler()
    try:
        with signals.installed(), signals.deferred():
            say(f"worker on {slot.device} joins {join.name}")
            served = serve(
                join,
                slot,
                signals.stop_event,
                WorkerOptions(max_trials=max_trials, forever=forever),
                Log(),
                say,
            )
            say(f"{served.trials} trials; {WHY[served.why]}")
    except KeyboardInterrupt:
        if signals.signal_number != signal.SIGTERM:
            raise
    sys.stdout.flush()


def _refuse_another(join: StudyLocation, study: str) -> None:
    spec, opened = load_spec(study), join_study(join)
    keys = find_differing_keys(opened.spec.model_dump(mode="json"), spec.model_dump(mode="json"))
    keys = [k for k in keys if k not in RESUMABLE_KEYS]
    if keys:
        raise InputError(
            f"--study: {study} is not the study {join.name!r}: {', '.join(keys)} differ"
        )
