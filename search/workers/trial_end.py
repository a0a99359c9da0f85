"""The end of a claimed trial: finished or requeued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import TrialState

from search.storage import artifact_ids
from search.storage.lease_types import Claim
from search.storage.retention import FOLDS, HISTORY, PICTURE, STATE, WEIGHTS
from search.storage.trial_records import EndReason
from search.trial_process.supervisor import LeaseLost
from search.workers.trial_context import TrialContext


def finish_trial(
    context: TrialContext,
    claim: Claim,
    state: TrialState,
    value: float | None = None,
    attrs: Mapping[str, Any] | None = None,
    files: Sequence[str] = (),
) -> None:
    """Close a trial and delete its checkpoint; raise LeaseLost if another worker holds it.

    files: names of the trial's files that dashboards list.
    """
    study_id = str(context.study.user_attrs.get("uuid", ""))
    artifacts = artifact_ids.artifact_attrs(study_id, claim.number, files)
    if not context.leases.finish(claim, state, value, attrs, artifacts):
        raise LeaseLost("another worker holds the trial")
    # Not before: a worker that dies in between would have to start the trial again.
    context.store.delete(claim.number, STATE)
    if context.data.folds:
        context.store.delete(claim.number, FOLDS)


def fail_trial(
    context: TrialContext, claim: Claim, reason: str, message: str, **attrs: object
) -> None:
    """Close a trial as failed; see ``finish_trial``."""
    attrs |= {"reason": reason, "message": message}
    finish_trial(context, claim, TrialState.FAIL, attrs=attrs)


def requeue_trial(context: TrialContext, claim: Claim) -> None:
    """Queue an interrupted trial again; only the files that it resumes from are kept."""
    if context.leases.requeue(claim, EndReason.INTERRUPTED) is None:
        return
    resumes_folds = bool(
        context.data.folds and context.store.local_path(claim.number, FOLDS).is_file()
    )
    for name in (HISTORY,) if resumes_folds else (HISTORY, WEIGHTS, PICTURE):
        context.store.delete(claim.number, name)
