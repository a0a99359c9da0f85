"""What a trial of ours is, seen from its record in the storage.

Optuna knows waiting, running, complete, pruned and failed. Ours has one more word, skipped,
for trials that were closed without being trained to an end of their own: a configuration that
was already tried or that a constraint forbids, or a training that was cut off and put back into
the queue. Skipped trials cost no budget.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as Optuna

State = Literal["waiting", "running", "complete", "pruned", "failed", "skipped"]
STATES: tuple[State, ...] = ("waiting", "running", "complete", "pruned", "failed", "skipped")

#: Reasons that a trial was skipped for.
DUPLICATE, CONSTRAINT, CONFIG = "duplicate", "constraint", "config"
LOST, INTERRUPTED = "lost", "interrupted"
#: ... of these, the ones that go on under another number.
HANDED_ON = frozenset({LOST, INTERRUPTED})
SKIPS = frozenset({DUPLICATE, CONSTRAINT, CONFIG}) | HANDED_ON

#: User attributes of a trial that was queued for a published system: the baseline's name and, where
#: the study's space does not hold it, the configuration itself.
#: AGAIN: its configuration may have been tried already.
#: RETRIES: the number of the trial that it repeats.
BASELINE, GIVEN, AGAIN, RETRIES = "baseline", "given", "again", "retries"
QUEUED = frozenset({BASELINE, GIVEN, AGAIN, RETRIES})

#: User attributes of a trial that goes on with another: the number it had first, and the numbers
#: of the latest attempts, oldest first.
RETRY_OF, ATTEMPTS = "retry_of", "attempts"

#: The user attribute of a trial that is cross-validated: what its folds have given.
FOLDS = "folds"

#: The study's user attribute that says what its workers are to do.
COMMAND = "command"

_STATES: dict[Optuna, State] = {
    Optuna.WAITING: "waiting",
    Optuna.RUNNING: "running",
    Optuna.COMPLETE: "complete",
    Optuna.PRUNED: "pruned",
    Optuna.FAIL: "failed",
}


def curve(trial: FrozenTrial) -> dict[int, float]:
    """The validation Dice of each epoch; of a cross-validation, of its first fold's epochs."""
    epochs = trial.user_attrs.get("config", {}).get("epochs")
    reported = sorted(trial.intermediate_values.items())
    return {step: value for step, value in reported if epochs is None or step <= epochs}


def folds_of(trial: FrozenTrial) -> dict[str, Any] | None:
    """What its folds have given so far (``search.study.cross_validation.summary``); None where it has none."""
    found: dict[str, Any] | None = trial.user_attrs.get(FOLDS)
    return found


def state_of(trial: FrozenTrial) -> State:
    """Its state in our words."""
    return "skipped" if reason_of(trial) in SKIPS else _STATES[trial.state]


def reason_of(trial: FrozenTrial) -> str | None:
    """Why it failed, was skipped or ended early; None for a trial that simply ran."""
    reason: str | None = trial.user_attrs.get("reason")
    return reason


def was_interrupted(trial: FrozenTrial) -> bool:
    """Whether its training was ended from outside; its parameters were queued again."""
    return reason_of(trial) in HANDED_ON


def first_number(trial: FrozenTrial) -> int:
    """The number that it had first, if it goes on with a trial that was cut off; else its own."""
    return int(trial.user_attrs.get(RETRY_OF, trial.number))


def has_fixed_config(trial: FrozenTrial) -> bool:
    """Whether its configuration was given and not drawn: it may lie outside the study's space."""
    return GIVEN in trial.user_attrs


def all_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Every trial, by number; not to be changed."""
    return study.get_trials(deepcopy=False)


def counts(trials: Iterable[FrozenTrial]) -> dict[State, int]:
    """How many there are of each state."""
    counted = Counter(state_of(t) for t in trials)
    return {state: counted[state] for state in STATES}


def reasons(trials: Iterable[FrozenTrial]) -> dict[str, int]:
    """How often each reason occurs, most frequent first."""
    return dict(Counter(r for t in trials if (r := reason_of(t))).most_common())


def spent(trials: Iterable[FrozenTrial]) -> int:
    """Trials that count against the budget: those with an end of their own."""
    return sum(state_of(t) in {"complete", "pruned", "failed"} for t in trials)


def tried(trials: Iterable[FrozenTrial]) -> set[str]:
    """Digests of drawn configurations that need no other trial: trained, at work or forbidden."""
    drawn = [t for t in trials if not has_fixed_config(t)]
    found = [t for t in drawn if state_of(t) != "skipped" or reason_of(t) in {CONSTRAINT, CONFIG}]
    return {t.user_attrs["digest"] for t in found if "digest" in t.user_attrs}


def hours_spent(trials: Iterable[FrozenTrial], now: float | None = None) -> float:
    """Hours by the clock in which at least one worker trained.

    now: seconds since 1970, the end of trials at work. A lost trial ended with its worker's last
    beat.
    """
    total, until = 0.0, 0.0
    for began, ended in sorted(_spans(trials, now)):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total / 3600


def gpu_hours_spent(trials: Iterable[FrozenTrial], now: float | None = None) -> float:
    """Hours of training on GPUs, added up over all workers; one that has half a GPU counts half."""
    on_gpu = [t for t in trials if str(_owner(t).get("device")).startswith("cuda")]
    return (
        sum(
            (ended - began) * float(_owner(t).get("share", 1.0))
            for t in on_gpu
            for began, ended in _spans([t], now)
        )
        / 3600
    )


def seconds_of(trial: FrozenTrial, now: float | None = None) -> float | None:
    """Seconds by the clock that a worker had it; None for one that was never begun.

    now: as in ``hours_spent``.
    """
    spans = _spans([trial], now)
    return max(0.0, spans[0][1] - spans[0][0]) if spans else None


def ranked(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Complete trials, best first; the earlier of two equals before the later."""
    complete = [t for t in trials if state_of(t) == "complete" and t.value is not None]
    return sorted(complete, key=lambda t: (-_value(t), t.number))


def twin_of(digest: str, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """An earlier trial that was trained with this very configuration."""
    return next(
        (
            t
            for t in trials
            if t.user_attrs.get("digest") == digest
            and state_of(t) in {"complete", "pruned", "failed", "running"}
        ),
        None,
    )


def config_of(trial: FrozenTrial) -> dict[str, Any]:
    """Its TrialConfig as plain data."""
    config: dict[str, Any] = trial.user_attrs["config"]
    return config


def _owner(trial: FrozenTrial) -> dict[str, Any]:
    owner: dict[str, Any] = trial.user_attrs.get("owner", {})
    return owner


def _spans(trials: Iterable[FrozenTrial], now: float | None) -> list[tuple[float, float]]:
    """When trials were trained; by the database's clock, which is one for all hosts."""
    now = time.time() if now is None else now
    return [(_began(t), _ended(t, now)) for t in trials if t.datetime_start is not None]


def _began(trial: FrozenTrial) -> float:
    assert trial.datetime_start is not None
    return float(trial.user_attrs.get("began", trial.datetime_start.timestamp()))


def _ended(trial: FrozenTrial, now: float) -> float:
    if "ended" in trial.user_attrs:
        return float(trial.user_attrs["ended"])
    return now if trial.datetime_complete is None else trial.datetime_complete.timestamp()


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


class TimeBudget:
    """The hours that a study may take, those of earlier sessions and other workers included."""

    def __init__(self, hours: float | None, gpu_hours: float | None) -> None:
        self.hours, self.gpu_hours = hours, gpu_hours

    def is_over(self, known: Sequence[FrozenTrial]) -> bool:
        """Whether either is spent by these trials."""
        if self.hours is not None and hours_spent(known) >= self.hours:
            return True
        return self.gpu_hours is not None and gpu_hours_spent(known) >= self.gpu_hours
