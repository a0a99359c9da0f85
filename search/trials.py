"""What a trial of ours is, seen from its record in the storage.

Optuna knows waiting, running, complete, pruned and failed. Ours has one more word, skipped,
for trials that were closed without being trained to an end of their own: a configuration that
was already tried or that a constraint forbids, or a training that was cut off and put back into
the queue. Skipped trials cost no budget.
"""

from __future__ import annotations

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
SKIPS = frozenset({DUPLICATE, CONSTRAINT, CONFIG, LOST, INTERRUPTED})

#: User attributes of a trial that was queued for a published system: the preset's name and, where
#: the study's space does not hold it, the configuration itself.
PRESET, GIVEN = "preset", "given"
QUEUED = frozenset({PRESET, GIVEN})

_STATES: dict[Optuna, State] = {
    Optuna.WAITING: "waiting",
    Optuna.RUNNING: "running",
    Optuna.COMPLETE: "complete",
    Optuna.PRUNED: "pruned",
    Optuna.FAIL: "failed",
}


def state_of(trial: FrozenTrial) -> State:
    """Its state in our words."""
    return "skipped" if reason_of(trial) in SKIPS else _STATES[trial.state]


def reason_of(trial: FrozenTrial) -> str | None:
    """Why it failed, was skipped or ended early; None for a trial that simply ran."""
    reason: str | None = trial.user_attrs.get("reason")
    return reason


def was_cut_off(trial: FrozenTrial) -> bool:
    """Whether its training was ended from outside; its parameters were queued again."""
    return reason_of(trial) in {LOST, INTERRUPTED}


def is_given(trial: FrozenTrial) -> bool:
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
    drawn = [t for t in trials if not is_given(t)]
    found = [t for t in drawn if state_of(t) != "skipped" or reason_of(t) in {CONSTRAINT, CONFIG}]
    return {t.user_attrs["digest"] for t in found if "digest" in t.user_attrs}


def hours_spent(trials: Iterable[FrozenTrial]) -> float:
    """Hours of training over all sessions, what was interrupted included.

    Not that of lost trials: they were closed when the next session found them, and nobody knows
    when they ended.
    """
    known = [t.duration for t in trials if reason_of(t) != LOST]
    return sum(d.total_seconds() for d in known if d is not None) / 3600


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


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value
