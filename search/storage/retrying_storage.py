"""Waiting for a database that is away: restarted, out of reach, or busy with somebody else."""

from __future__ import annotations

import functools
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, NamedTuple, NoReturn, TypeVar

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError

from search.storage.optuna_internals import models
from search.storage.transient_errors import transient_reason
from search.trial_process.slot import StopEvent

T = TypeVar("T")

#: Seconds: how long a lost storage is waited for, and the first and the longest pause between
#: two attempts.
PATIENCE, FIRST, LONGEST = 900.0, 0.1, 10.0


class StorageUnavailable(RuntimeError):
    """The storage was away for longer than anybody wanted to wait; one line."""


def retry_transient(
    work: Callable[[], T],
    *,
    stopping: StopEvent | None = None,
    patience: float = PATIENCE,
    on_wait: Callable[[str], None] | None = None,
    hide: Callable[[str], str] = str,
) -> T:
    """Repeats the work while the storage is lost, for at most so many seconds; what it returned.

    stopping: ends the waiting when it is set; the work itself is tried once all the same.
    on_wait: told once that the waiting begins and once that it is over.
    hide: takes secrets out of what is told.

    The work must be fit to be repeated: its last attempt may have been done although its
    acknowledgement was lost. StorageLost when the waiting ends in vain; whatever else the work
    raises goes up at once.
    """
    began, pause, tell = None, FIRST, on_wait or (lambda _: None)
    while True:
        reason = None
        try:
            return work()
        except Exception as error:
            reason = transient_reason(error)
            if reason is None:
                raise
        finally:  # whatever came of it, the storage answered
            if reason is None and began is not None:
                tell(f"storage back after {time.monotonic() - began:.1f} s")
        reason = hide(reason)
        if began is None:
            began = time.monotonic()
            tell(f"storage lost: {reason}; waiting")
        left = began + patience - time.monotonic()
        if left <= 0:
            raise StorageUnavailable(f"storage lost for {patience:g} s: {reason}")
        # Many workers lose one server at the same instant; they shall not all come back at one.
        if _waited(min(left, pause * random.uniform(0.5, 1)), stopping):  # noqa: S311
            raise StorageUnavailable(f"storage lost, and asked to stop meanwhile: {reason}")
        pause = min(2 * pause, LONGEST)


class Drawn(NamedTuple):
    """A parameter as Optuna writes it. before: its distribution in earlier trials, if known."""

    name: str
    value: float
    distribution: BaseDistribution
    before: BaseDistribution | None


class RetryingStorage(RDBStorage):
    """Optuna's storage, whose every operation waits for a lost database and is done once.

    stopping, on_wait, patience, hide: as ``retry_transient`` takes them; to be set from outside.

    Every operation raises StorageLost besides what Optuna's does.
    """

    stopping: StopEvent | None = None
    on_wait: Callable[[str], None] | None = None
    patience: float = PATIENCE
    hide: Callable[[str], str] = staticmethod(str)

    def retry_transient(self, work: Callable[[], T]) -> T:
        """``retry_transient`` in this storage's way, for work on its engine."""
        return retry_transient(
            work,
            stopping=self.stopping,
            patience=self.patience,
            on_wait=self.on_wait,
            hide=self.hide,
        )

    @contextmanager
    def gathering(self) -> Iterator[list[Drawn]]:
        """Within it, parameters that this thread draws are gathered here and not written.

        Otherwise each of them is a transaction of its own. Whoever enters it has to write them.
        """
        local = self.__dict__.setdefault("_local", threading.local())
        local.drawn = []
        try:
            yield local.drawn
        finally:
            local.drawn = None

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        drawn = Drawn(param_name, param_value_internal, distribution, previous_distribution)
        gathered: list[Drawn] | None = getattr(self.__dict__.get("_local"), "drawn", None)
        if gathered is not None:
            gathered.append(drawn)
            return
        plain = super()._set_trial_param
        self.retry_transient(lambda: plain(trial_id, *drawn))

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """As Optuna's; made once, and DuplicatedStudyError only for somebody else's."""
        name = study_name or f"no-name-{uuid.uuid4()}"
        made: list[int] = []

        def attempt() -> int:
            self._forget(made)
            try:
                with _create_scoped_session(self.scoped_session) as session:
                    ways = [
                        models.StudyDirectionModel(objective=i, direction=d)
                        for i, d in enumerate(directions)
                    ]
                    study = models.StudyModel(study_name=name, directions=ways)
                    session.add(study)
                    session.flush()
                    made.append(int(study.study_id))
            except IntegrityError:
                known = self.get_study_id_from_name(name)
                if known not in made:
                    raise DuplicatedStudyError(f"there is a study {name!r} already") from None
                return known
            return made[-1]

        return self.retry_transient(attempt)

    def delete_study(self, study_id: int) -> None:
        """As Optuna's; KeyError only where it was gone before."""
        self._once(lambda: super(RetryingStorage, self).delete_study(study_id), KeyError)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """As Optuna's; made once."""
        return self._create_new_trial(study_id, template_trial)._trial_id

    def _create_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None = None
    ) -> FrozenTrial:
        made: list[int] = []

        def attempt() -> int:
            self._forget(made)
            with _create_scoped_session(self.scoped_session) as session:
                # Trials are numbered one by one. The lock also waits for the end of a broken
                # attempt of ours that the server may still be about to commit.
                models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
                if not made or session.get(models.TrialModel, made[-1]) is None:
                    trial = self._get_prepared_new_trial(study_id, template_trial, session)
                    made.append(int(trial.trial_id))
            return made[-1]

        return self.get_trial(self.retry_transient(attempt))

    def check_trial_is_updatable(self, trial_id: int, trial_state: TrialState) -> None:
        """As Optuna's, which reads the trial once more for its message, by a second connection.

        Within a transaction of the leases's, SQLite would have that wait for the first one.
        """
        if trial_state.is_finished():
            raise UpdateFinishedTrialError(f"the trial with id {trial_id} has finished already")

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """As Optuna's. False for a trial to be claimed may also mean that this very call did so.

        A claim whose acknowledgement was lost cannot be told from somebody else's: better a
        trial that nobody trains, and that is found to be without an owner, than one trained twice.
        """

        def ours() -> bool:
            trial = self.get_trial(trial_id)
            asked = None if values is None else [float(v) for v in values]
            return trial.state == state and trial.values == asked

        done = self._once(
            lambda: super(RetryingStorage, self).set_trial_state_values(trial_id, state, values),
            UpdateFinishedTrialError,
            ours,
        )
        return True if done is None else done

    def _once(
        self,
        work: Callable[[], T],
        already: type[Exception],
        ours: Callable[[], bool] = lambda: True,
    ) -> T | None:
        """Work that raises ``already`` where it was done before; None where that was by itself."""
        lost = False

        def attempt() -> T | None:
            nonlocal lost
            try:
                return work()
            except already:
                if lost and ours():
                    return None
                raise
            except Exception as error:
                lost = lost or transient_reason(error) is not None
                raise

        return self.retry_transient(attempt)

    def _forget(self, made: list[int]) -> None:
        # What SQLite did not acknowledge it has not done, and it gives the same id to another.
        if self.engine.name == "sqlite":
            made.clear()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a storage is not pickled, with its password: open it in each process")

    @staticmethod
    def _fill_storage_url_template(template: str) -> str:
        return template  # a password may hold a brace


#: Operations of Optuna's that may be repeated as they are: they read, or write what they are told
#: over what there is.
REPEATED = (
    *("get_study_id_from_name", "get_study_name_from_id", "get_study_directions"),
    *("get_study_user_attrs", "get_study_system_attrs", "get_all_studies"),
    *("set_study_user_attr", "set_study_system_attr"),
    *("get_trial", "get_trial_id_from_study_id_trial_number", "get_trial_param"),
    *("get_trial_user_attrs", "get_trial_system_attrs", "_get_trials", "_get_best_trial_id"),
    "set_trial_intermediate_value",
    *("set_trial_user_attr", "set_trial_system_attr"),
    *("record_heartbeat", "_get_stale_trial_ids"),
)


def backend_of(study: optuna.Study) -> RetryingStorage:
    """A study's storage itself, under Optuna's cache of finished trials."""
    storage: Any = study._storage
    backend = getattr(storage, "_backend", storage)
    assert isinstance(backend, RetryingStorage)
    return backend


def local_time(stored: datetime | None) -> datetime | None:
    """A time of a row as Optuna has it in a trial: stored in UTC, told in local time, naive."""
    if stored is None:
        return None
    return stored.replace(tzinfo=timezone.utc).astimezone().replace(tzinfo=None)


def _repeated(plain: Callable[..., T]) -> Callable[..., T]:
    @functools.wraps(plain)
    def method(self: RetryingStorage, *args: Any, **kwargs: Any) -> T:
        return self.retry_transient(lambda: plain(self, *args, **kwargs))

    return method


for _name in REPEATED:
    setattr(RetryingStorage, _name, _repeated(getattr(RDBStorage, _name)))

# A lost connection is taken there for a query that is too long, and printed.
logging.getLogger("optuna.storages._rdb.storage").addFilter(
    lambda record: "Falling back to a slower alternative" not in str(record.msg)
)


def _waited(seconds: float, stopping: StopEvent | None) -> bool:
    if stopping is None:
        time.sleep(seconds)
        return False
    return stopping.is_set() or stopping.wait(seconds)
