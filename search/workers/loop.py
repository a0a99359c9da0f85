"""The loop of a worker, and a worker as a process of its own: signals, log lines and exit."""

from __future__ import annotations

import errno
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from optuna.trial import FrozenTrial

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError
from lesionseg.runtime.device import pick_device
from lesionseg.training.types import EpochRecord
from search.errors import JobFailed, WorkerBlocked
from search.output import tolerant_output
from search.signals import SignalHandler
from search.spec.loading import find_differing_keys, load_spec
from search.storage import trial_records
from search.storage.artifact_store import ArtifactStoreUnavailable
from search.storage.lease_types import Claim, Command, Refusal
from search.storage.leases import TrialLeases
from search.storage.retention import delete_unneeded_files
from search.storage.retrying_storage import StorageUnavailable, backend_of, retry_transient
from search.storage.training_time import is_time_over
from search.storage.transient_errors import STORAGE_ERRORS
from search.study.creation import RESUMABLE_KEYS
from search.study.deadline import has_time_for_trial, is_search_over
from search.study.encoder_weights import take_stored_weights
from search.study.location import StudyLocation
from search.study.opening import OpenStudy, join_study
from search.study.samplers import SAMPLERS, prepare_sampling
from search.study.suggest import ensure_space_weights
from search.trial_process.protocol import CHILD_PROGRAM
from search.trial_process.slot import Slot
from search.workers.failure_streak import FailureStreak
from search.workers.trial_context import TrialContext, TrialListener
from search.workers.worker import Worker
from search.workers.worker_result import DESCRIPTIONS, StopReason, WorkerResult

#: Skipped trials in a row after which random sampling replaces the study's sampler ...
SKIPPED_BEFORE_RANDOM = 10
#: ... and after which an infinite search space counts as exhausted.
SKIPPED_BEFORE_EXHAUSTED = 100
#: Seconds that a starting worker waits for a database that is not available.
CONNECT_TIMEOUT_S = 60.0
#: Pauses of a worker without a trial grow from the shortest to the longest.
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0


class LogListener:
    """Logs the start and the end of each trial; epochs are in history.csv."""

    def trial_started(self, number: int, config: TrialConfig) -> None:
        log(f"trial {number}: {config.digest()} started")

    def epoch_ended(self, number: int, record: EpochRecord) -> None: ...

    def trial_ended(self, trial: FrozenTrial, best: FrozenTrial | None) -> None:
        value = "" if trial.value is None else f" {trial.value:.4f}"
        reason = trial_records.reason_of(trial)
        if reason and not trial_records.was_interrupted(trial):
            value += f" ({reason})"
        log(f"trial {trial.number}: {trial_records.describe_state(trial)}{value}")


def log(message: str) -> None:
    """Print a line with the time in UTC, unbuffered."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {message}", flush=True)


@dataclass(frozen=True)
class WorkerOptions:
    """max_trials: end after this number. forever: wait for more trials when the study is done.

    keep_going: continue when consecutive trials fail for the same reason.
    """

    max_trials: int | None = None
    forever: bool = False
    keep_going: bool = False
    program: str = CHILD_PROGRAM


def join_and_run_trials(
    location: StudyLocation,
    slot: Slot,
    stop_event: threading.Event,
    options: WorkerOptions = WorkerOptions(),
    on_event: Callable[[str], None] = log,
) -> WorkerResult:
    """Join a study and run its trials until a StopReason applies; log them.

    A database that is not available is waited for: it may be started together with its workers.

    Raises:
        InputError: the study, its data or the slot is not usable.
        JobFailed: the work cannot continue, such as on a full disk.
        WorkerBlocked: the worker cannot train, and a restart would fail in the same way.
    """
    with tolerant_output():
        return _join_and_run_trials(location, slot, stop_event, options, on_event)


def _join_and_run_trials(
    location: StudyLocation,
    slot: Slot,
    stop_event: threading.Event,
    options: WorkerOptions,
    on_event: Callable[[str], None],
) -> WorkerResult:
    slot = replace(slot, device=str(pick_device(slot.device)))
    try:
        opened = retry_transient(
            lambda: join_study(location),
            stop_event=stop_event,
            timeout_s=CONNECT_TIMEOUT_S,
            on_wait=on_event,
        )
    except StorageUnavailable:
        if stop_event.is_set():
            return WorkerResult(0, StopReason.STOPPED)
        opened = join_study(location)  # raises the database's own error
    ensure_space_weights(opened.spec.space)
    return run_trials(opened, slot, LogListener(), stop_event, options, on_event)


def run_trials(
    opened: OpenStudy,
    slot: Slot,
    listener: TrialListener,
    stop_event: threading.Event,
    options: WorkerOptions = WorkerOptions(),
    on_event: Callable[[str], None] = log,
) -> WorkerResult:
    """Run trials of an open study; see ``join_and_run_trials``."""
    backend = backend_of(opened.study)
    backend.stop_event, backend.on_wait = stop_event, on_event
    budget = opened.spec.budget

    def is_out_of_time() -> bool:
        if (budget.hours, budget.gpu_hours, budget.total_hours) == (None, None, None):
            return False
        context.heartbeat.record_training_time()
        trials = trial_records.all_trials(opened.study)
        return is_time_over(trials, budget) or is_search_over(opened, trials)

    context = TrialContext(
        opened,
        slot,
        listener,
        TrialLeases(opened.study, on_wait=on_event),
        stop_event=stop_event,
        is_out_of_time=is_out_of_time,
        program=options.program,
        on_event=on_event,
    )
    loop = TrialLoop(context, options)
    try:
        return loop.run()
    except (StorageUnavailable, ArtifactStoreUnavailable) as error:
        if stop_event.is_set():
            return WorkerResult(loop.finished, StopReason.STOPPED)
        raise JobFailed(str(error)) from None
    except STORAGE_ERRORS as error:
        raise JobFailed(opened.describe_error(error)) from None
    except OSError as error:
        is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        advice = "make room and start again" if is_full else "remove the cause and start again"
        file = error.filename or opened.folder
        raise JobFailed(f"{file}: {error.strerror or error}; {advice}") from None


class TrialLoop:
    """Runs trials with one worker until a StopReason applies.

    finished: trials that this worker finished. skipped: the latest trials in a row that were
    duplicates or violated a constraint.
    """

    def __init__(self, context: TrialContext, options: WorkerOptions) -> None:
        self.opened, self.context, self.options = context.opened, context, options
        self.worker = Worker(context)
        self.finished = self.skipped = 0
        self.failures = FailureStreak()
        self._pauses = 0

    def run(self) -> WorkerResult:
        study = self.opened.study
        with self.worker as worker:
            worker.heartbeat.send()  # reads the current command
            prepare_sampling(self.opened, worker.heartbeat.worker.ordinal)
            self._sampler = study.sampler
            worker.leases.reap_expired()
            while (reason := self._run_one()) is None:
                pass
            delete_unneeded_files(self.context.store, trial_records.all_trials(study))
            return WorkerResult(self.finished, reason)

    def _run_one(self) -> StopReason | None:
        """Run one trial or wait once; return why the loop ends, if it does."""
        command = self.worker.heartbeat.command
        if self.context.stop_event.is_set() or command == Command.STOP:
            return StopReason.STOPPED
        if self.options.max_trials is not None and self.finished >= self.options.max_trials:
            return StopReason.MAX_TRIALS
        is_out_of_time = command != Command.PAUSE and self._is_out_of_time()
        if is_out_of_time and not self.options.forever:
            return StopReason.TIME
        if command == Command.PAUSE or is_out_of_time:
            self._wait()
            return None
        trials = trial_records.all_trials(self.opened.study)
        is_exhausted = self._is_exhausted(trials)
        self._choose_sampler(trials)
        claim = self.worker.claim(fresh=not is_exhausted)
        if isinstance(claim, Claim):
            self._run_trial(claim)
            return None
        if claim == Refusal.FULL or self.options.forever:
            self.worker.leases.reap_expired()
            self._wait()
            return None
        trials = trial_records.all_trials(self.opened.study)
        # The stored budget, which may have changed.
        budget = self.opened.study.user_attrs["spec"]["budget"]["trials"]
        is_spent = trial_records.count_finished(trials) >= budget
        return StopReason.EXHAUSTED if is_exhausted and not is_spent else StopReason.DONE

    def _is_out_of_time(self) -> bool:
        """Return whether the time is spent, or too short for another trial."""
        if self.context.is_out_of_time():
            return True
        return not has_time_for_trial(self.opened, trial_records.all_trials(self.opened.study))

    def _run_trial(self, claim: Claim) -> None:
        self._pauses, start = 0, time.monotonic()
        trial = self.worker.run(claim)
        self.failures.add(trial, time.monotonic() - start)
        if self.failures.is_complete and not self.options.keep_going:
            raise WorkerBlocked(self.failures.describe(self.opened.name))
        if trial_records.was_interrupted(trial):
            return
        self.finished += 1
        is_skipped = trial_records.state_of(trial) == trial_records.State.CLOSED
        self.skipped = self.skipped + 1 if is_skipped else 0

    def _wait(self) -> None:
        """Wait for other workers; each pause is longer than the previous one."""
        self._pauses += 1
        pause = SHORTEST_PAUSE_S * 1.5 ** min(self._pauses, 20)
        self.context.stop_event.wait(min(LONGEST_PAUSE_S, pause))

    def _is_exhausted(self, trials: Sequence[FrozenTrial]) -> bool:
        tried = len(trial_records.tried_digests(trials))
        return tried >= self.opened.spec.space.size() or self.skipped >= SKIPPED_BEFORE_EXHAUSTED

    def _choose_sampler(self, trials: Sequence[FrozenTrial]) -> None:
        sampler = self._sampler
        if self.skipped >= SKIPPED_BEFORE_RANDOM:
            name = "grid" if self.opened.spec.space.is_finite() else "random"
            sampler = SAMPLERS[name](self.opened.spec.seed + len(trials), 0)
        self.opened.study.sampler = sampler


def run_worker(
    location: StudyLocation,
    slot: Slot,
    *,
    study: str | None = None,
    options: WorkerOptions = WorkerOptions(),
) -> None:
    """Run trials until the study is done.

    On SIGTERM and SIGHUP the running trial is requeued and the function returns; on Ctrl-C
    KeyboardInterrupt is raised after that. study: a study file that must agree with the study.
    """
    if study is not None:
        ours = join_study(location).spec.model_dump(mode="json")
        theirs = take_stored_weights(load_spec(study), ours)
        keys = find_differing_keys(ours, theirs.model_dump(mode="json"))
        if keys := [key for key in keys if key not in RESUMABLE_KEYS]:
            raise InputError(
                f"--study: {study} is not the study {location.name!r}: {', '.join(keys)} differ"
            )
    signals = SignalHandler()
    try:
        with signals.installed(), signals.deferred():
            log(f"worker on {slot.device} joins {location.name}")
            result = join_and_run_trials(location, slot, signals.stop_event, options)
            log(f"{result.trials} trials; {DESCRIPTIONS[result.reason]}")
    except KeyboardInterrupt:
        if signals.signal_number == signal.SIGINT:
            raise
