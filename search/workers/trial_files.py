"""Files of a trial in the artifact store: taken over, uploaded, deleted."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress

from optuna.trial import FrozenTrial

from lesionseg.errors import InputError
from search.storage import trial_records
from search.storage.artifact_store import ArtifactStore, ArtifactStoreUnavailable
from search.storage.retention import CLEANUP_WINDOW, FOLDS, PICTURE, STATE, WEIGHTS

STORE_ERRORS = (ArtifactStoreUnavailable, InputError, OSError)


def put_optional(store: ArtifactStore, number: int, name: str) -> bool:
    """Upload a file that may not exist; return whether it was uploaded."""
    with suppress(*STORE_ERRORS):
        store.put(number, name)
        return True
    return False


def take_over_files(
    store: ArtifactStore, number: int, attempts: Sequence[int], *, has_folds: bool
) -> None:
    """Move the checkpoint of the latest earlier attempt to a trial; delete the attempts' files."""
    # The folds come last: if they exist, the files that belong to them exist too.
    for name in (STATE, WEIGHTS, PICTURE, FOLDS) if has_folds else (STATE,):
        for attempt in reversed(attempts):
            path = store.fetch(attempt, name)
            if path is not None:
                path.replace(store.local_path(number, name))
                store.put(number, name)
                break
    for attempt in attempts:
        store.delete_trial(attempt)


def delete_weights(
    store: ArtifactStore, trial: FrozenTrial, ranking: Sequence[FrozenTrial], keep_best: int
) -> None:
    """Delete the weights of an ended trial and of others that are not among the best."""
    numbers = [t.number for t in ranking]
    ended = trial.state.is_finished() and not trial_records.was_interrupted(trial)
    if ended and trial.number not in numbers[:keep_best]:
        store.delete(trial.number, WEIGHTS)
    # Several trials may leave the best ones at once; a check of all trials would be slow.
    for number in numbers[keep_best : keep_best + CLEANUP_WINDOW]:
        store.delete(number, WEIGHTS)


class StateUploader:
    """Uploads training states in the background, always the latest one."""

    def __init__(self, store: ArtifactStore, number: int) -> None:
        self.store, self.number = store, number
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        """Upload the current state, unless an upload is running: the next state follows."""
        if self.store.is_local or (self.thread is not None and self.thread.is_alive()):
            return
        self.thread = threading.Thread(
            target=put_optional, args=(self.store, self.number, STATE), daemon=True
        )
        self.thread.start()

    def wait(self) -> None:
        """Wait for a running upload."""
        if self.thread is not None:
            self.thread.join()

    def discard(self) -> None:
        """Delete the state when a running upload has ended, without waiting for it."""
        upload = self.thread
        if upload is None or not upload.is_alive():
            return

        def delete() -> None:
            upload.join()
            with suppress(*STORE_ERRORS):
                self.store.delete(self.number, STATE)

        threading.Thread(target=delete, daemon=True).start()
