"""What a study's trials leave behind, and what of it is kept."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from search.storage import trial_records
from search.storage.artifact_store import ArtifactStore

WEIGHTS, STATE, HISTORY = "model.safetensors", "state.pt", "history.csv"
#: What the folds of a cross-validation that are done have given, while there are others to do.
FOLDS = "folds.json"
#: Some validation images with their outlines.
PICTURE = "validation.jpg"
#: Pictures are kept of this many of the best trials, and of the latest.
BEST_PICTURES, LATEST_PICTURES = 16, 16
#: Of trials just behind the ones that something is kept of, so many are looked at.
PUSHED_OUT = 8


def pictured(known: Sequence[FrozenTrial]) -> set[int]:
    """Numbers of the trials whose pictures are kept, if they have any."""
    best = [t.number for t in trial_records.rank_trials(known)[:BEST_PICTURES]]
    return {*best, *_latest(known)[:LATEST_PICTURES]}


def delete_old_pictures(store: ArtifactStore, known: Sequence[FrozenTrial]) -> None:
    """Deletes the pictures that were kept until lately; ``sweep`` finds those left over.

    A store of thousands of trials is not asked for each.
    """
    best = [t.number for t in trial_records.rank_trials(known)]
    behind = {
        *best[BEST_PICTURES : BEST_PICTURES + PUSHED_OUT],
        *_latest(known)[LATEST_PICTURES : LATEST_PICTURES + PUSHED_OUT],
    }
    for number in sorted(behind - pictured(known)):
        store.delete(number, PICTURE)


def _latest(known: Sequence[FrozenTrial]) -> list[int]:
    """Trials that may have a picture, the latest first."""
    drawn = {"complete", "pruned"}
    return [t.number for t in reversed(known) if trial_records.state_of(t) in drawn]


def sweep(store: ArtifactStore, known: Sequence[FrozenTrial]) -> None:
    """Deletes what nobody needs any more: states of trials that ended, all of those handed on.

    Workers clear up behind themselves; this is for what those left who were killed. What a trial
    in the queue or at work may go on from stays. Pictures go as ``pictured`` says.
    """
    shown = pictured(known)
    needed = {
        number
        for t in known
        if not t.state.is_finished()
        for number in (t.number, *t.user_attrs.get(trial_records.TrialAttr.ATTEMPTS, ()))
    }
    by_number = {t.number: t for t in known}
    for number in store.list_trials():
        trial = by_number.get(number)
        if trial is None or number in needed:
            continue
        if trial_records.was_interrupted(trial):
            store.delete_trial(number)
        else:
            store.delete(number, STATE)
            store.delete(number, FOLDS)
            store.delete_partial_files(number)
            if number not in shown:
                store.delete(number, PICTURE)
