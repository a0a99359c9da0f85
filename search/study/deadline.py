"""The time of a whole job, ``budget.total_hours``: what it has taken, and what is left.

The process of the job (``lesionsearch run``) keeps a clock in the study: the seconds of all its
sessions so far, planning and reading of images included, and the training time of the trials at
that moment. Every process reads it. What was trained since then, by workers that outlive the job's
process too, is added. The time between two sessions does not count.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import optuna
from optuna.trial import FrozenTrial

from search.storage import trial_records
from search.storage.training_time import hours_spent, seconds_of
from search.storage.trial_records import StudyAttr
from search.study.forecast import FinalWork, estimate_reading_s, forecast_from_trials
from search.study.opening import OpenStudy
from search.trial_process.slot import Slot

#: Seconds between two records of the clock, and records after which its process counts as ended.
RECORD_S, MISSED_RECORDS = 5.0, 12
#: Part of the time that is kept for the final at most. If its forecast is longer, it is given fewer
#: epochs, so that the search keeps some time.
MAX_FINAL_SHARE = 0.8
#: A trial is started if this part of a typical trial fits before the final.
MIN_TRIAL_SHARE = 0.5


def elapsed_s(study: optuna.Study, trials: Sequence[FrozenTrial]) -> float:
    """Return the seconds that a job has taken over all of its sessions. trials: all of the study.

    Without a clock, as for workers alone, it is the training time of the trials.
    """
    clock = study.user_attrs.get(StudyAttr.CLOCK, {})
    since = 3600 * hours_spent(trials) - clock.get("training_s", 0.0)
    if clock.get("at") is not None:  # an open session; a killed one counts for one period
        since = max(since, min(time.time() - clock["at"], RECORD_S))
    return float(clock.get("seconds", 0.0) + max(0.0, since))


def is_job_running(study: optuna.Study) -> bool:
    """Return whether a process of the job recorded its clock in the last periods."""
    at = study.user_attrs.get(StudyAttr.CLOCK, {}).get("at")
    return at is not None and time.time() - at < MISSED_RECORDS * RECORD_S


def remaining_s(opened: OpenStudy) -> float | None:
    """Return the seconds that are left of ``budget.total_hours``; None without that limit.

    Negative if the job has taken longer.
    """
    total_hours = opened.spec.budget.total_hours
    if total_hours is None:
        return None
    return 3600 * total_hours - elapsed_s(opened.study, trial_records.all_trials(opened.study))


def remaining_search_s(opened: OpenStudy, trials: Sequence[FrozenTrial]) -> float | None:
    """Return the seconds until the final must begin; None without ``budget.total_hours``.

    Until a trial is complete, there is no forecast of the final, and the search may take all.
    """
    total_hours = opened.spec.budget.total_hours
    if total_hours is None:
        return None
    final_s = forecast_from_trials(
        opened.spec, trials, final_work(opened), len(opened.trial_data.train)
    )
    total_s = 3600 * total_hours
    kept_s = min(final_s or 0.0, MAX_FINAL_SHARE * total_s)
    return total_s - kept_s - elapsed_s(opened.study, trials)


def is_search_over(opened: OpenStudy, trials: Sequence[FrozenTrial]) -> bool:
    """Return whether the rest of ``budget.total_hours`` is needed for the final."""
    left = remaining_search_s(opened, trials)
    return left is not None and left <= 0


def has_time_for_trial(opened: OpenStudy, trials: Sequence[FrozenTrial]) -> bool:
    """Return whether a trial should be started: whether half of a typical one fits."""
    left = remaining_search_s(opened, trials)
    if left is None:
        return True
    ended = [t for t in trials if trial_records.state_of(t) in _ENDED]
    seconds = [s for t in ended if (s := seconds_of(t)) is not None]
    typical = sum(seconds) / len(seconds) if seconds else 0.0
    return left > MIN_TRIAL_SHARE * typical


_ENDED = {trial_records.State.COMPLETE, trial_records.State.PRUNED}


def final_work(opened: OpenStudy) -> FinalWork:
    """Return what the final of a study does."""
    spec, split = opened.spec, opened.split
    clock = opened.study.user_attrs.get(StudyAttr.CLOCK, {})
    shapes = dict(zip(opened.cache.names, opened.cache.shapes, strict=True))
    fit = len(split.train) + (len(split.val) if spec.final.fit_on == "train_val" else 0)
    # With train_val, several finalists are compared first, and the chosen one is trained again.
    finalists = spec.final.finalists
    is_trained_again = spec.final.fit_on == "train_val" and finalists > 1
    trainings = spec.final.seeds * (finalists + is_trained_again)
    return FinalWork(
        fit=fit,
        val=len(split.val),
        test=len(split.test),
        test_megapixels=sum(shapes[n][0] * shapes[n][1] for n in split.test) / 1e6,
        image_size=spec.final.image_size or spec.data.image_size,
        epochs=spec.final.epochs or spec.budget.epochs,
        trainings=trainings,
        slots=clock.get("slots", 1),
        members=min(spec.final.ensemble, trainings),
        reading_s=clock.get("reading_s", 0.0),
        tta=spec.final.tta,
        postprocess=spec.final.postprocess,
        selection_size=spec.data.image_size if spec.final.selects_on_search else None,
        is_cpu=clock.get("is_cpu", False),
    )


class JobClock:
    """Keeps the clock of a job while it runs; without ``budget.total_hours`` it does nothing.

    started_at: monotonic seconds when the job's process began. slots: where the final is trained.
    """

    def __init__(
        self, opened: OpenStudy, started_at: float, slots: Sequence[Slot] = (Slot(),)
    ) -> None:
        self._study, self._slots = opened.study, slots
        self._started_at = started_at
        self._is_used = opened.spec.budget.total_hours is not None
        self._earlier_s = self._reading_s = 0.0
        self._stop_event = threading.Event()
        self._thread = threading.Thread(target=self._run, name="job clock", daemon=True)
        if self._is_used:
            self._earlier_s = elapsed_s(self._study, self._trials())
            work = final_work(opened)
            if work.image_size != opened.spec.data.image_size:
                self._reading_s = estimate_reading_s(opened.index.records, work.image_size)

    def record(self, *, is_open: bool = True) -> None:
        """Write the clock. is_open: whether the session continues."""
        clock = {
            "seconds": self._earlier_s + time.monotonic() - self._started_at,
            "training_s": 3600 * hours_spent(self._trials()),
            "at": time.time() if is_open else None,
            "slots": len(self._slots),
            "is_cpu": all(slot.device == "cpu" for slot in self._slots),
            "reading_s": self._reading_s,
        }
        self._study.set_user_attr(StudyAttr.CLOCK, clock)

    def __enter__(self) -> JobClock:
        if self._is_used:
            self.record()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_used:
            self._stop_event.set()
            self._thread.join(timeout=RECORD_S)
            with suppress(Exception):  # an error of the storage must not hide that of the job
                self.record(is_open=False)

    def _run(self) -> None:
        while not self._stop_event.wait(RECORD_S):
            with suppress(Exception):  # the job's own calls raise errors of the storage
                self.record()

    def _trials(self) -> list[FrozenTrial]:
        return trial_records.all_trials(self._study)
