"""Optuna's storage with retries while the database is restarted, out of reach or busy."""

from __future__ import annotations

import functools
import random
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple, NoReturn, TypeVar, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, and_, event, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError

from search.errors import JobFailed
from search.storage.optuna_internals import (
    OptunaStorage,
    models,
    rdb_storage_logger,
    storage_of,
    study_id,
    unwrap_storage,
)
from search.storage.queries import read_trials
from search.storage.transient_errors import STORAGE_ERRORS, transient_reason
from search.storage.trial_records import StudyAttr

T = TypeVar("T")

RETRY_TIMEOUT_S = 900.0
#: The first pause between two attempts, which doubles up to the longest one.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0


class StorageUnavailable(JobFailed):
    """The storage was unavailable for longer than the timeout; one line."""


class StudyDeleted(JobFailed):
    """The study was deleted from its database while this process worked on it; one line."""


def retry_transient(
    work: Callable[[], T],
    *,
    stop_event: threading.Event | None = None,
    timeout_s: float = RETRY_TIMEOUT_S,
    on_wait: Callable[[str], None] | None = None,
    redact: Callable[[str], str] = str,
) -> T:
    """Repeat work while the storage is unavailable, and return its result.

    Args:
        work: must be repeatable: an attempt may succeed although its acknowledgement is lost.
        stop_event: stops the retries when set; the work is still attempted once.
        timeout_s: how long to wait in all.
        on_wait: called with a line when the waiting begins and with one when it ends.
        redact: removes secrets from these lines.

    Raises:
        StorageUnavailable: the database was still unavailable. Other errors are not caught.
    """
    pause, lost_at, notify = FIRST_PAUSE_S, None, on_wait or (lambda _: None)
    while True:
        reason = None
        try:
            return work()
        except Exception as error:
            reason = transient_reason(error)
            if reason is None:
                raise
        finally:  # after an error of another kind too: the storage answered
            if reason is None and lost_at is not None:
                notify(f"storage back after {time.monotonic() - lost_at:.1f} s")
        reason = redact(reason)
        if lost_at is None:
            lost_at = time.monotonic()
            notify(f"storage lost: {reason}; waiting")
        left = lost_at + timeout_s - time.monotonic()
        if left <= 0:
            raise StorageUnavailable(f"storage lost for {timeout_s:g} s: {reason}")
        # Jitter: all workers lose a server at the same instant and must not return at the same.
        seconds = min(left, pause * random.uniform(0.5, 1))  # noqa: S311
        if stop_event is None:
            time.sleep(seconds)
        elif stop_event.is_set() or stop_event.wait(seconds):
            raise StorageUnavailable(f"storage lost; stopped while waiting for it: {reason}")
        pause = min(2 * pause, LONGEST_PAUSE_S)


class SampledParam(NamedTuple):
    """A parameter as Optuna stores it. previous: its distribution in earlier trials, if known."""

    name: str
    value: float
    distribution: BaseDistribution
    previous: BaseDistribution | None


def retried(operation: Callable[..., T]) -> Callable[..., T]:
    """Return a method that retries an operation which may be repeated without a further check."""

    @functools.wraps(operation)
    def method(self: RetryingStorage, *args: Any, **kwargs: Any) -> T:
        return self.retry_transient(lambda: operation(self, *args, **kwargs))

    return method


#: The parameters that a thread collects within ``collect_params``.
_collected: ContextVar[list[SampledParam] | None] = ContextVar("collected", default=None)


def _print_line(message: str) -> None:
    with suppress(OSError):
        print(f"lesionsearch: {message}", file=sys.stderr, flush=True)


class RetryingStorage(OptunaStorage):
    """Optuna's storage; operations are retried while the database is away.

    Reads, and writes that overwrite with the same value, may be repeated. Of Optuna's other writes
    this project uses ``create_new_study`` alone, for a study that may exist; what must be done once
    is a transaction of ``TrialLeases``.

    stop_event, on_wait, timeout_s, redact: arguments of ``retry_transient``, set from outside; by
    default the waiting is reported on stderr. Every operation may raise StorageUnavailable and,
    after ``bind``, StudyDeleted.
    """

    _is_bound = False

    stop_event: threading.Event | None = None
    on_wait: Callable[[str], None] | None = staticmethod(_print_line)
    timeout_s: float = RETRY_TIMEOUT_S
    redact: Callable[[str], str] = staticmethod(str)

    def retry_transient(
        self, work: Callable[[], T], *, on_wait: Callable[[str], None] | None = None
    ) -> T:
        """Repeat work on this storage's engine while the database is unavailable."""

        def attempt() -> T:
            try:
                return work()
            except (KeyError, IntegrityError, StaleDataError):  # the study may have been deleted
                if self._is_bound:
                    with self.engine.begin():  # raises StudyDeleted
                        pass
                raise
            except STORAGE_ERRORS as error:
                if transient_reason(error):
                    # A server that became a standby stays read-only: connect to the new primary.
                    self.engine.dispose()
                raise

        return retry_transient(
            attempt,
            stop_event=self.stop_event,
            timeout_s=self.timeout_s,
            on_wait=on_wait or self.on_wait,
            redact=self.redact,
        )

    def bind(self, study: optuna.Study) -> None:
        """Let each transaction from now on raise StudyDeleted unless the study still exists.

        A database may reuse the ids of a deleted study and its trials, as SQLite does with the
        tables that Optuna creates. The study's uuid is never reused.
        The check is a part of each transaction: in SQLite no other process can write in between,
        and PostgreSQL does not reuse ids.
        """
        model: Any = models.StudyModel
        attr: Any = models.StudyUserAttributeModel
        has_uuid = and_(attr.study_id == model.study_id, attr.key == StudyAttr.UUID)
        query = (
            select(model.study_name, attr.value_json)
            .outerjoin(attr, has_uuid)
            .where(model.study_id == study_id(study))
        )

        def read() -> Any:
            with self.engine.begin() as connection:
                return connection.execute(query).one()

        bound = self.retry_transient(read)

        @event.listens_for(self.engine, "begin")
        def _check(connection: Connection) -> None:
            if connection.execute(query).one_or_none() != bound:
                masked = self.engine.url.render_as_string(hide_password=True)
                raise StudyDeleted(
                    f"the study was deleted: {masked} no longer holds the study "
                    f"{bound.study_name!r} that this process opened; restore the database from a "
                    "backup, or start a new study"
                )

        self._is_bound = True

    @contextmanager
    def collect_params(self) -> Iterator[list[SampledParam]]:
        """Collect the parameters that this thread samples; the caller writes them.

        Otherwise each of them is written in a transaction of its own.
        """
        params: list[SampledParam] = []
        token = _collected.set(params)
        try:
            yield params
        finally:
            _collected.reset(token)

    @retried
    def write_param(self, trial_id: int, *param: Any) -> None:
        """Write a sampled parameter, or collect it within ``collect_params``."""
        collected = _collected.get()
        if collected is None:
            super().write_param(trial_id, *param)
        else:
            collected.append(SampledParam(*param))

    @retried
    def read_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Return the study's trials with a larger id and the included ones, by id.

        They are read as of one moment: in SQLite a transaction keeps writers out.
        """
        engine, trial = self.engine, cast(Any, models.TrialModel)
        if engine.name != "sqlite":
            engine = engine.execution_options(isolation_level="REPEATABLE READ")
        is_new = trial.trial_id > trial_id_greater_than
        wanted = (trial.study_id == study_id) & (is_new | trial.trial_id.in_(included_trial_ids))
        with engine.begin() as connection:
            trials = read_trials(connection, wanted)
        return [t for t in trials if states is None or t.state in states]

    @retried
    def delete_study(self, study_id: int) -> None:
        """Delete a study and its trials.

        Optuna's method silently does nothing if a worker writes at the same time.
        """
        while True:
            super().delete_study(study_id)
            try:
                super().get_study_name_from_id(study_id)
            except (KeyError, StudyDeleted):
                return

    def check_trial_is_updatable(self, trial_id: int, trial_state: TrialState) -> None:
        """Raise UpdateFinishedTrialError if the trial has ended.

        Optuna's reads the trial again for its message, through a second connection. Within a
        transaction of ``TrialLeases``, SQLite would have that wait for the first one.
        """
        if trial_state.is_finished():
            raise UpdateFinishedTrialError(f"the trial with id {trial_id} has finished already")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a storage is not pickled, with its password: open it in each process")


for _name in (
    *("get_study_id_from_name", "get_study_name_from_id", "get_study_directions"),
    *("get_study_user_attrs", "get_study_system_attrs", "get_all_studies", "set_study_user_attr"),
    *("set_study_system_attr", "get_trial", "get_trial_id_from_study_id_trial_number"),
    *("get_trial_param", "get_trial_user_attrs", "get_trial_system_attrs", "set_trial_user_attr"),
    *("set_trial_system_attr", "set_trial_intermediate_value", "create_new_study"),
    *("write_trial", "set_trial_state_values", "find_best_trial_id"),
):
    setattr(RetryingStorage, _name, retried(getattr(OptunaStorage, _name)))


def bind_storage(study: optuna.Study) -> optuna.Study:
    """Bind the storage of a study to it, and return the study; see ``RetryingStorage.bind``."""
    backend_of(study).bind(study)
    return study


def backend_of(study: optuna.Study) -> RetryingStorage:
    """Return a study's storage without Optuna's cache of finished trials."""
    backend = unwrap_storage(storage_of(study))
    assert isinstance(backend, RetryingStorage)
    return backend


# Optuna mistakes a lost connection for an oversized query and logs a warning.
rdb_storage_logger.addFilter(
    lambda record: "Falling back to a slower alternative" not in str(record.msg)
)
