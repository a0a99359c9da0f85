"""One slot's work: claim a trial, train it in a child process, report, prune, tell."""

from __future__ import annotations

import csv
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError
from lesionseg.models import MODELS, needs
from lesionseg.train import EpochRecord, TrainResult
from search import artifacts, notes, trials
from search.attempt import Fenced, Limits, Watch, follow
from search.depot import Depot, DepotLost
from search.jobs import (
    PROGRAM,
    Alive,
    Broke,
    Built,
    Resumed,
    Saved,
    Suspended,
    Trained,
    TrainJob,
)
from search.join import Slot, Stopping
from search.ledger import Claim, Expired, Ledger, Refusal
from search.pulse import Pulse
from search.run import Failed
from search.spec import StudySpec
from search.suggest import suggest
from search.tidy import HISTORY, PICTURE, PUSHED_OUT, STATE, WEIGHTS, drop_pictures

#: Weights are kept for this many of the best trials.
KEEP_BEST = 3


@dataclass(frozen=True)
class Material:
    """What every trial of a study trains and is judged on: positions in one cache."""

    cache: Path
    train: NDArray[np.int64]
    val: NDArray[np.int64]


class Listener(Protocol):
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
    program: the module that trains (see ``search.jobs``).
    """

    def __init__(
        self,
        study: optuna.Study,
        spec: StudySpec,
        material: Material,
        depot: Depot,
        slot: Slot,
        listener: Listener,
        *,
        ledger: Ledger | None = None,
        stopping: Stopping | None = None,
        deadline: Callable[[], bool] = lambda: False,
        keep: int | None = KEEP_BEST,
        twins: bool = False,
        program: str = PROGRAM,
    ) -> None:
        self.study, self.spec, self.material = study, spec, material
        self.depot, self.slot, self.listener = depot, slot, listener
        self.ledger = ledger or Ledger(study)
        self.stopping: Stopping = stopping or threading.Event()
        self.deadline, self.keep, self.twins, self.program = deadline, keep, twins, program
        self.mark = str(study.user_attrs.get("uuid", ""))
        self.pulse = Pulse(self.ledger, slot)
        presets = MODELS if spec.warm_start else ()
        self.imports = needs([*spec.space.picks["model"], *presets])

    def __enter__(self) -> Worker:
        self.pulse.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.pulse.__exit__(kind, error, at)

    def claim(self, *, bounded: bool = True, fresh: bool = True) -> Claim | Refusal:
        """The next trial as this worker's; see ``Ledger.claim``."""
        while True:
            row = self.pulse.row
            try:
                claimed = self.ledger.claim(row, bounded=bounded, fresh=fresh)
            except Expired:  # it slept so long that it was taken for dead
                self.pulse.expired(row)
                continue
            self.pulse.hold(claimed if isinstance(claimed, Claim) else None)
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
            self._put_back(claim)
            raise
        except (Fenced, UpdateFinishedTrialError):
            pass  # nothing is deleted: who has the trial now may need what lies there
        finally:
            self.pulse.hold(None)
        known = trials.all_trials(self.study)
        done, ranking = known[claim.number], trials.ranked(known)
        if self.keep is not None:
            self._drop_weights(done, ranking)
        with suppress(Exception):  # what people look at: no trial is worse for the lack of it
            self.ledger.describe(notes.attrs_of(done))
            if self.keep is not None:
                drop_pictures(self.depot, known)
        self.listener.trial_ended(done, ranking[0] if ranking else None)
        return done

    def _run(self, claim: Claim) -> None:
        trial = _taken_up(self.study, claim)
        given = trial.user_attrs.get(trials.GIVEN)
        try:
            with self.ledger.gathering() as drawn:
                config = TrialConfig.from_dict(given) if given else suggest(trial, self.spec.space)
        except InputError as error:  # one that was queued by hand, or by another version
            self._fail(claim, trials.CONFIG, str(error))
            return
        may_repeat = self.twins or trials.AGAIN in trial.user_attrs
        twin = self.ledger.configure(
            claim,
            {"config": config.to_dict(), "digest": config.digest()},
            digest=None if may_repeat else config.digest(),
            drawn=drawn,
        )
        if twin is not None:
            text = f"the same configuration as trial {twin}"
            self._fail(claim, trials.DUPLICATE, text, {"twin": twin})
            return
        self.listener.trial_started(claim.number, config)
        self._fetch_state(claim, trial.user_attrs.get(trials.ATTEMPTS, []))
        Training(self, claim, trial, config).to_its_end()

    def _fetch_state(self, claim: Claim, attempts: Sequence[int]) -> None:
        """Takes over the state of the latest earlier attempt that left one."""
        for number in reversed(attempts):
            state = self.depot.fetch(number, STATE)
            if state is not None:
                mine = self.depot.local(claim.number, STATE)
                mine.parent.mkdir(parents=True, exist_ok=True)
                state.replace(mine)
                self.depot.put(claim.number, STATE)
                break
        for number in attempts:
            self.depot.clear(number)

    def _put_back(self, claim: Claim) -> None:
        if self.ledger.requeue(claim, trials.INTERRUPTED) is None:
            return
        # What it goes on from stays; the rest is written anew.
        for name in (HISTORY, WEIGHTS, PICTURE):
            self.depot.drop(claim.number, name)

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

        files: names of what the depot has of it for people to look at.
        """
        listed = artifacts.listed(self.mark, claim.number, files)
        if not self.ledger.finish(claim, state, value, attrs, listed):
            raise Fenced("the trial was handed on to another worker")
        # Not before: a worker that dies between the two must not have to begin anew.
        self.depot.drop(claim.number, STATE)

    def _drop_weights(self, done: FrozenTrial, ranking: Sequence[FrozenTrial]) -> None:
        """Of this trial, unless it is among the best, and of those that it pushed out."""
        assert self.keep is not None
        numbers = [t.number for t in ranking]
        if done.number not in numbers[: self.keep] and done.state.is_finished():
            self.depot.drop(done.number, WEIGHTS)
        # Several may be pushed out at once; a depot of thousands is not asked for each.
        for number in numbers[self.keep : self.keep + PUSHED_OUT]:
            self.depot.drop(number, WEIGHTS)


class Training:
    """One claimed trial's training, with as many attempts as memory makes necessary."""

    def __init__(
        self, worker: Worker, claim: Claim, trial: optuna.Trial, config: TrialConfig
    ) -> None:
        self.worker, self.claim, self.trial, self.config = worker, claim, trial, config
        self.history: list[EpochRecord] = []
        self.verdict: str | None = None
        self.uploads = Uploads(worker.depot, claim.number)

    def to_its_end(self) -> None:
        """Trains, and tells how it ended."""
        parts = 1
        while True:
            self.history = []
            end = follow(self._job(parts), self._hear, self._limits(), self._watch())
            if not (isinstance(end, Broke) and end.reason == "oom" and self._can_halve(parts)):
                break
            parts *= 2
            self.worker.ledger.note(self.claim, {"parts": parts, "spared": end.message})
        self.uploads.finish()
        match end:
            case Trained(result):
                self._finish(result)
            case Suspended():
                self._put_down()
            case Broke("disk", text):
                # Every other trial would fail of it too: this is no fault of the configuration.
                self.worker._put_back(self.claim)
                raise Failed(f"{text}; make room in {self.worker.depot.root} and start again")
            case Broke() if self.verdict == trials.CONSTRAINT:
                self._told(TrialState.PRUNED)
            case Broke(reason, text, trace):
                told = {"reason": reason, "message": text, "trace": trace[-4000:]}
                self._told(TrialState.FAIL, attrs=told)

    def _put_down(self) -> None:
        depot, number = self.worker.depot, self.claim.number
        if depot.local(number, STATE).is_file():  # else it begins anew
            depot.put(number, STATE)
        self.worker._put_back(self.claim)

    def _can_halve(self, parts: int) -> bool:
        """Whether a batch can be computed in twice as many parts, its meaning unchanged."""
        return self.config.accumulate * parts * 2 <= self.config.batch_size

    def _job(self, parts: int) -> TrainJob:
        material, slot, place = self.worker.material, self.worker.slot, self.worker.depot.local
        return TrainJob(
            self.config.to_dict(),
            material.cache,
            material.train,
            material.val,
            slot.device,
            slot.threads,
            save_to=place(self.claim.number, WEIGHTS),
            state=place(self.claim.number, STATE),
            parts=parts,
            share=slot.share,
            program=self.worker.program,
            imports=self.worker.imports,
            picture=place(self.claim.number, PICTURE),
        )

    def _limits(self) -> Limits:
        budget, memory = self.worker.spec.budget, self.worker.slot.memory_gb
        return Limits(
            seconds=budget.trial_minutes and budget.trial_minutes * 60,
            stall=budget.stall_minutes and budget.stall_minutes * 60,
            memory=None if memory is None else int(memory * 1e9),
        )

    def _watch(self) -> Watch:
        worker = self.worker
        return Watch(
            suspend=lambda: worker.stopping.is_set() or worker.pulse.command != "run",
            fenced=lambda: worker.pulse.fenced,
        )

    def _hear(self, message: Any) -> bool:
        """Takes in what the child says; whether it shall stop."""
        match message:
            case Built():
                self.verdict = self._refused(message)
            case Resumed(history):
                self._take_up(history)
            case EpochRecord():
                self._record([message])
                self._report(message)
                self.worker.listener.epoch_ended(self.claim.number, message)
                self.verdict = self._stop(message)
            case Saved():
                self.uploads.state()
            case Alive():
                pass  # that it was said is all
        return self.verdict is not None

    def _report(self, record: EpochRecord) -> None:
        known = self.trial._cached_frozen_trial.intermediate_values
        if record.epoch in known:  # of an attempt that memory did not suffice for
            self.worker.ledger.report(self.claim, {record.epoch: record.metrics.dice})
            known[record.epoch] = record.metrics.dice
            return
        self.trial.report(record.metrics.dice, record.epoch)

    def _take_up(self, history: Sequence[EpochRecord]) -> None:
        """Epochs of an earlier attempt become this trial's own."""
        self.worker.ledger.note(self.claim, {"resumed_at": len(history)})
        if history:
            values = {r.epoch: r.metrics.dice for r in history}
            self.worker.ledger.report(self.claim, values)
            self.trial._cached_frozen_trial.intermediate_values.update(values)
            self._record(history)

    def _refused(self, built: Built) -> str | None:
        attrs: dict[str, Any] = {"params": built.params, "macs": built.macs}
        limits = self.worker.spec.constraints
        told = []
        for key, value, limit, what in (
            ("max_params_m", built.params / 1e6, limits.max_params_m, "million parameters"),
            ("max_gmacs", built.macs / 1e9, limits.max_gmacs, "billion multiply-adds an image"),
        ):
            if limit is None:
                continue
            self.trial.set_constraint(key, value - limit)
            # The dashboard shows user attributes and does not see Optuna's constraints.
            attrs[f"constraint.{key}"] = round(value - limit, 6)
            if value > limit:
                told.append(f"{value:.2f} {what}; constraints.{key} is {limit:g}")
        if told:
            attrs |= {"reason": trials.CONSTRAINT, "message": "; ".join(told)}
        self.worker.ledger.note(self.claim, attrs)
        return trials.CONSTRAINT if told else None

    def _stop(self, record: EpochRecord) -> str | None:
        if record.epoch == self.worker.spec.budget.epochs:
            return None  # it has run its course: nothing is saved by stopping it
        if self.trial.should_prune():
            return "pruned"
        # Out of time: the first complete trial is let through, or there would be no result.
        if self.worker.deadline() and trials.ranked(trials.all_trials(self.worker.study)):
            return "time"
        return None

    def _finish(self, result: TrainResult) -> None:
        best = result.best
        attrs: dict[str, Any] = {
            "best_epoch": best.epoch,
            "epochs": len(result.history),
            "val": asdict(best.metrics),
            "seconds": round(result.seconds, 3),
            "peak_memory": result.peak_memory,
        }
        if result.stopped == "early":
            attrs["reason"] = "early stopping"
        if self.verdict == "time":
            attrs["reason"] = self.verdict
        if self.verdict is not None:
            self._told(TrialState.PRUNED, attrs=attrs)
            return
        self.worker.depot.put(self.claim.number, WEIGHTS)
        self._told(TrialState.COMPLETE, best.metrics.dice, attrs)

    def _told(
        self, state: TrialState, value: float | None = None, attrs: dict[str, Any] | None = None
    ) -> None:
        depot, files = self.worker.depot, []
        if self.history:  # one that is refused before training has none
            depot.put(self.claim.number, HISTORY)
            files.append(HISTORY)
        with suppress(DepotLost, InputError, OSError):  # there may be no picture
            depot.put(self.claim.number, PICTURE)
            files.append(PICTURE)
        self.worker.told(self.claim, state, value, attrs, files)

    def _record(self, records: Sequence[EpochRecord]) -> None:
        """Adds epochs to the history file; the first ones begin it anew."""
        path = self.worker.depot.local(self.claim.number, HISTORY)
        path.parent.mkdir(parents=True, exist_ok=True)
        begins = not self.history
        with path.open("w" if begins else "a", newline="") as file:
            writer = csv.DictWriter(file, list(flat(records[0])))
            if begins:
                writer.writeheader()
            writer.writerows(flat(record) for record in records)
        self.history += records
        self.worker.pulse.at(self.history[-1].epoch)


class Uploads:
    """Takes states to where other hosts can get them, beside the training; the latest only."""

    def __init__(self, depot: Depot, number: int) -> None:
        self.depot, self.number = depot, number
        self.thread: threading.Thread | None = None

    def state(self) -> None:
        """There is a new state."""
        if self.depot.is_here or (self.thread is not None and self.thread.is_alive()):
            return
        self.thread = threading.Thread(target=self._put, daemon=True)
        self.thread.start()

    def _put(self) -> None:
        # The next state tries again; what must arrive is put by the worker itself.
        with suppress(DepotLost, InputError, OSError):
            self.depot.put(self.number, STATE)

    def finish(self) -> None:
        """Waits for what is under way."""
        if self.thread is not None:
            self.thread.join()


def flat(record: EpochRecord) -> dict[str, Any]:
    """An epoch as one row."""
    row = asdict(record)
    return {**{k: v for k, v in row.items() if k != "metrics"}, **row["metrics"]}


def _taken_up(study: optuna.Study, claim: Claim) -> optuna.Trial:
    """A claimed trial as Optuna's own: with what ``study.ask`` does after it took one.

    The sampler draws here, outside every lock.
    """
    study._thread_local.cached_all_trials = None  # or it would see the trials of its last call
    trials.all_trials(study)  # the cache of finished trials learns of this one
    return optuna.Trial(study, claim.trial_id)
