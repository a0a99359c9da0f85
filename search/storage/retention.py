"""The files of a trial, and how long each of them is kept."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from search.spec.study_spec import FinalSpec
from search.storage import trial_records
from search.storage.artifact_store import ArtifactStore
from search.storage.trial_records import State, TrialAttr

WEIGHTS, STATE, HISTORY = "model.safetensors", "state.pt", "history.csv"
#: Results of the finished folds of a cross-validation that has others left.
FOLDS = "folds.json"
#: Some validation images with outlines.
PICTURE = "validation.jpg"
#: Weights are kept for at least this number of the best trials.
KEEP_BEST = 3
#: Pictures are kept of the best trials and of the latest ones.
BEST_PICTURES, LATEST_PICTURES = 16, 16
#: Trials just behind those whose files are kept that are cleaned up when a trial ends.
CLEANUP_WINDOW = 8


def kept_weights(final: FinalSpec) -> int:
    """Return for how many of the best trials the weights are kept: at least the finalists."""
    return max(KEEP_BEST, final.finalists)


def trials_with_pictures(trials: Sequence[FrozenTrial]) -> set[int]:
    """Return the numbers of the trials whose pictures are kept, if they have any."""
    best = [t.number for t in trial_records.rank_trials(trials)[:BEST_PICTURES]]
    return {*best, *_latest(trials)[:LATEST_PICTURES]}


def delete_old_pictures(store: ArtifactStore, trials: Sequence[FrozenTrial]) -> None:
    """Delete the pictures of trials just behind those whose pictures are kept.

    The store is not listed, which takes long for thousands of trials; ``delete_unneeded_files``
    deletes what this leaves.
    """
    best = [t.number for t in trial_records.rank_trials(trials)]
    behind = {
        *best[BEST_PICTURES : BEST_PICTURES + CLEANUP_WINDOW],
        *_latest(trials)[LATEST_PICTURES : LATEST_PICTURES + CLEANUP_WINDOW],
    }
    for number in sorted(behind - trials_with_pictures(trials)):
        store.delete(number, PICTURE)


def delete_unneeded_files(store: ArtifactStore, trials: Sequence[FrozenTrial]) -> None:
    """Delete all files of requeued trials, and states and old pictures of other finished ones.

    Workers delete these themselves; this is for the files of workers that were killed. Files from
    which a waiting or running trial may resume stay.
    """
    with_pictures = trials_with_pictures(trials)
    needed = {
        number
        for t in trials
        if not t.state.is_finished()
        for number in (t.number, *t.user_attrs.get(TrialAttr.ATTEMPTS, ()))
    }
    by_number = {t.number: t for t in trials}
    for number in store.list_trials():
        trial = by_number.get(number)
        if trial is None or number in needed:
            continue
        if trial_records.was_interrupted(trial):
            store.delete_trial(number)
            continue
        for name in (STATE, FOLDS) if number in with_pictures else (STATE, FOLDS, PICTURE):
            store.delete(number, name)
        store.delete_partial_files(number)


def _latest(trials: Sequence[FrozenTrial]) -> list[int]:
    """Return the numbers of trials that may have a picture, the latest first."""
    states = {State.COMPLETE, State.PRUNED}
    return [t.number for t in reversed(trials) if trial_records.state_of(t) in states]
