"""What a study's trials leave behind, and what of it is kept."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from search import trials
from search.depot import Depot

WEIGHTS, STATE, HISTORY = "model.safetensors", "state.pt", "history.csv"


def sweep(depot: Depot, known: Sequence[FrozenTrial]) -> None:
    """Deletes what nobody needs any more: states of trials that ended, all of those handed on.

    Workers clear up behind themselves; this is for what those left who were killed. What a trial
    in the queue or at work may go on from stays.
    """
    needed = {
        number
        for t in known
        if not t.state.is_finished()
        for number in (t.number, *t.user_attrs.get(trials.ATTEMPTS, ()))
    }
    by_number = {t.number: t for t in known}
    for number in depot.numbers():
        trial = by_number.get(number)
        if trial is None or number in needed:
            continue
        if trials.was_cut_off(trial):
            depot.clear(number)
        else:
            depot.drop(number, STATE)
            depot.drop_parts(number)
