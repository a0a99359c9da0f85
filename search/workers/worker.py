"""One slot's work: claim a trial, train it in a child process, report, prune, tell."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError
from lesionseg.models import MODELS, needs
from lesionseg.training.train import EpochRecord
from search.monitoring import notes
from search.spec.study_spec import StudySpec
from search.storage import artifact_ids, trial_records
from search.storage.artifact_store import ArtifactStore
from search.storage.lease_types import Claim, Refusal, WorkerExpired
from search.storage.leases import TrialLeases
from search.storage.optuna_internals import forget_cached_trials
from search.storage.retention import (
    FOLDS,
    HISTORY,
    PICTURE,
    PUSHED_OUT,
    STATE,
    WEIGHTS,
    delete_old_pictures,
)
from search.study.suggest import suggest
from search.study.trial_data import TrialData
from search.trial_process.protocol import PROGRAM
from search.trial_process.slot import Slot, StopEvent
from search.trial_process.supervisor import LeaseLost
from search.workers.heartbeat import Heartbeat
from search.workers.trial_runner import TrialRunner

#: Weights are kept for this many of the best trials.
KEEP_BEST = 3


class TrialListener(Protocol):
    """Who wants to know; the command line shows it."""

    def trial_started(self, number: int, config: TrialConfig) -> None:
        """A trial was claimed and goes into its child process."""

    def epoch_ended(self, number: int, record: EpochRecord) -> None:
        """One of its epochs ended."""

    def trial_ended(self, trial: FrozenTrial, best: FrozenTrial | None) -> None:
        """It was told; best: the best complete trial so far."""


class Worker:
    """Runs the trials of one study in one slot, one after the other, while it is entered.

    keep: weights are kept for this many of the best trials; None keeps all, pictures too.
    twins: a configuration that was tried already is trained once more.
    stopping: set when the trial at work is to be put down and queued again.
    program: the module that trains (see ``search.trial_process.protocol``).
    """

    def __init__(
        self,
        study: optuna.Study,
        spec: StudySpec,
        material: TrialData,
        store: ArtifactStore,
        slot: Slot,
        listener: TrialListener,
        *,
        leases: TrialLeases | None = None,
        stopping: StopEvent | None = None,
        deadline: Callable[[], bool] = lambda: False,
        keep: int | None = KEEP_BEST,
        twins: bool = False,
        program: str = PROGRAM,
    ) -> None:
        self.study, self.spec, self.material = study, spec, material
        self.store, self.slot, self.listener = store, slot, listener
        self.leases = leases or TrialLeases(study)
        self.stopping: StopEvent = stopping or threading.Event()
        self.deadline, self.keep, self.twins, self.program = deadline, keep, twins, program
        self.mark = str(study.user_attrs.get("uuid", ""))
        self.heartbeat = Heartbeat(self.leases, slot)
        baselines = MODELS if spec.warm_start else ()
        self.imports = needs([*spec.space.families["model"], *baselines])

    def __enter__(self) -> Worker:
        self.heartbeat.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.heartbeat.__exit__(kind, error, at)

    def claim(self, *, bounded: bool = True, fresh: bool = True) -> Claim | Refusal:
        """The next trial as this worker's; see ``Ledger.claim``."""
        while True:
            row = self.heartbeat.row
            try:
                claimed = self.leases.claim(row, bounded=bounded, fresh=fresh)
            except WorkerExpired:  # it slept so long that it was taken for dead
                self.heartbeat.expired(row)
                continue
            self.heartbeat.hold(claimed if isinstance(claimed, Claim) else None)
            return claimed

    def run_one(self) -> FrozenTrial:
        """Claims and finishes one trial whatever the budget; its record afterwards."""
        claimed = self.claim(bounded=False)
        assert isinstance(claimed, Claim)
        return self.run(claimed)

    def run(self, claim: Claim) -> FrozenTrial:
        """Brings a claimed trial to its end; its record afterwards.

        A training that fails is recorded and raises nothing. One that is put down goes back into
        the queue with its state; so does one that KeyboardInterrupt cuts off, which goes on up.
        """
        try:
            self._run(claim)
        except KeyboardInterrupt:
            self.put_back(claim)
            raise
        except (LeaseLost, UpdateFinishedTrialError):
            pass  # nothing is deleted: who has the trial now may need what lies there
        finally:
            self.heartbeat.hold(None)
        known = trial_records.all_trials(self.study)
        done, ranking = known[claim.number], trial_records.rank_trials(known)
        if self.keep is not None:
            self._drop_weights(done, ranking)
        with suppress(Exception):  # what people look at: no trial is worse for the lack of it
            self.leases.set_study_system_attrs(notes.trial_note_attrs(done))
            if self.keep is not None:
                delete_old_pictures(self.store, known)
        self.listener.trial_ended(done, ranking[0] if ranking else None)
        return done

    def _run(self, claim: Claim) -> None:
        trial = load_claimed_trial(self.study, claim)
        given = trial.user_attrs.get(trial_records.TrialAttr.FIXED_CONFIG)
        try:
            with self.leases.collect_params() as drawn:
                config = TrialConfig.from_dict(given) if given else suggest(trial, self.spec.space)
        except InputError as error:  # one that was queued by hand, or by another version
            self._fail(claim, trial_records.EndReason.CONFIG, str(error))
            return
        may_repeat = self.twins or trial_records.TrialAttr.ALLOW_DUPLICATE in trial.user_attrs
        twin = self.leases.record_config(
            claim,
            {"config": config.to_dict(), "digest": config.digest()},
            digest=None if may_repeat else config.digest(),
            params=drawn,
        )
        if twin is not None:
            text = f"the same configuration as trial {twin}"
            self._fail(claim, trial_records.EndReason.DUPLICATE, text, {trial_records.TrialAttr.DUPLICATE_OF: twin})
            return
        self.listener.trial_started(claim.number, config)
        self._fetch_state(claim, trial.user_attrs.get(trial_records.TrialAttr.ATTEMPTS, []))
        TrialRunner(self, claim, trial, config).to_its_end()

    def _fetch_state(self, claim: Claim, attempts: Sequence[int]) -> None:
        """Takes over what the latest earlier attempt left to go on from."""
        # The folds come last: where they are, all that they gave is.
        carried = (WEIGHTS, PICTURE, FOLDS) if self.material.folds else ()
        for name in (STATE, *carried):
            for number in reversed(attempts):
                file = self.store.fetch(number, name)
                if file is not None:
                    mine = self.store.local_path(claim.number, name)
                    mine.parent.mkdir(parents=True, exist_ok=True)
                    file.replace(mine)
                    self.store.put(claim.number, name)
                    break
        for number in attempts:
            self.store.delete_trial(number)

    def put_back(self, claim: Claim) -> None:
        """Queues a trial again that was put down, with what it goes on from."""
        if self.leases.requeue(claim, trial_records.EndReason.INTERRUPTED) is None:
            return
        # What it goes on from stays; the rest is written anew.
        goes_on = self.material.folds and self.store.local_path(claim.number, FOLDS).is_file()
        for name in (HISTORY,) if goes_on else (HISTORY, WEIGHTS, PICTURE):
            self.store.delete(claim.number, name)

    def _fail(
        self, claim: Claim, reason: str, text: str, attrs: dict[str, Any] | None = None
    ) -> None:
        self.told(
            claim, TrialState.FAIL, attrs={"reason": reason, "message": text, **(attrs or {})}
        )

    def told(
        self,
        claim: Claim,
        state: TrialState,
        value: float | None = None,
        attrs: dict[str, Any] | None = None,
        files: Sequence[str] = (),
    ) -> None:
        """Brings a trial to its end. Raises Fenced where it is another's by now.

        files: names of what the store has of it for people to look at.
        """
        listed = artifact_ids.artifact_attrs(self.mark, claim.number, files)
        if not self.leases.finish(claim, state, value, attrs, listed):
            raise LeaseLost("the trial was handed on to another worker")
        # Not before: a worker that dies between the two must not have to begin anew.
        self.store.delete(claim.number, STATE)
        if self.material.folds:
            self.store.delete(claim.number, FOLDS)

    def _drop_weights(self, done: FrozenTrial, ranking: Sequence[FrozenTrial]) -> None:
        """Of this trial, unless it is among the best, and of those that it pushed out."""
        assert self.keep is not None
        numbers = [t.number for t in ranking]
        ended = done.state.is_finished() and not trial_records.was_interrupted(done)
        if done.number not in numbers[: self.keep] and ended:
            self.store.delete(done.number, WEIGHTS)
        # Several may be pushed out at once; a store of thousands is not asked for each.
        for number in numbers[self.keep : self.keep + PUSHED_OUT]:
            self.store.delete(number, WEIGHTS)


def load_claimed_trial(study: optuna.Study, claim: Claim) -> optuna.Trial:
    """A claimed trial as Optuna's own: with what ``study.ask`` does after it took one.

    The sampler draws here, outside every lock.
    """
    forget_cached_trials(study)  # or it would see the trials of its last call
    trial_records.all_trials(study)  # the cache of finished trials learns of this one
    return optuna.Trial(study, claim.trial_id)
