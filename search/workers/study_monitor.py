"""Observation of a study on which other processes work."""

from __future__ import annotations

import time
from collections.abc import Callable

from optuna.trial import FrozenTrial

from search.storage import trial_records
from search.storage.lease_types import Command
from search.storage.leases import TrialLeases
from search.storage.training_time import TimeBudget
from search.study.opening import OpenStudy
from search.workers.listener import TrialListener

#: Seconds between two reads of the trials, and between two searches for dead workers.
POLL_S, REAP_S = 1.0, 5.0


class StudyMonitor:
    """Notifies a listener of ended trials and requeues the trials of dead workers."""

    def __init__(
        self, opened: OpenStudy, listener: TrialListener, on_event: Callable[[str], None]
    ) -> None:
        self.opened, self.listener, self.on_event = opened, listener, on_event
        self.leases = TrialLeases(opened.study, on_wait=on_event)
        budget = opened.spec.budget
        self.time_budget = TimeBudget(budget.hours, budget.gpu_hours)
        self.ended = {trial.number for trial in self._trials() if trial.state.is_finished()}
        self._polled_at = self._reaped_at = 0.0

    def poll(self, *, force: bool = False) -> None:
        """Notify the listener of trials that ended, at most every POLL_S seconds."""
        now = time.monotonic()
        if now - self._polled_at < POLL_S and not force:
            return
        self._polled_at = now
        if now - self._reaped_at > REAP_S:
            self._reaped_at = now
            for number, successor in self.leases.reap_expired():
                action = "closed" if successor is None else f"requeued as trial {successor}"
                self.on_event(f"trial {number} lost its worker; {action}")
        trials = self._trials()
        ranking = trial_records.rank_trials(trials)
        for trial in trials:
            if trial.state.is_finished() and trial.number not in self.ended:
                self.ended.add(trial.number)
                self.listener.trial_ended(trial, ranking[0] if ranking else None)

    def count_finished(self) -> int:
        """Count the trials that cost budget and have ended."""
        return trial_records.count_finished(self._trials())

    def is_done(self) -> bool:
        """Return whether the study needs no worker."""
        trials = self._trials()
        if trial_records.count_finished(trials) >= self.opened.spec.budget.trials:
            return True
        if trial_records.count_by_state(trials)["running"]:
            return False
        # A finite search space may be exhausted before the budget is spent.
        tried = len(trial_records.tried_digests(trials))
        return (
            tried >= self.opened.spec.space.size()
            or self.time_budget.is_over(trials)
            or self.leases.command == Command.STOP
        )

    def _trials(self) -> list[FrozenTrial]:
        return trial_records.all_trials(self.opened.study)
