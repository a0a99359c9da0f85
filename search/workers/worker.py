"""A worker: claims trials and trains each in a process of its own."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError
from search.storage import trial_records
from search.storage.artifact_store import ArtifactStoreUnavailable
from search.storage.lease_types import Claim, Refusal, WorkerExpired
from search.storage.optuna_internals import forget_cached_trials
from search.storage.retention import delete_old_pictures, kept_weights
from search.storage.trial_records import EndReason, TrialAttr
from search.study.suggest import suggest
from search.trial_process.supervisor import LeaseLost
from search.workers.trial_context import TrialContext
from search.workers.trial_progress import (
    delete_weights,
    finish_trial,
    requeue_trial,
    take_over_files,
)
from search.workers.trial_runner import TrialRunner


class Worker:
    """Runs trials one after another; use it as a context manager, which starts its heartbeat.

    keep_all: keep the weights and pictures of all trials, not only of the best ones.
    allow_duplicates: train configurations that were already trained.
    """

    def __init__(
        self,
        context: TrialContext,
        *,
        keep_all: bool = False,
        allow_duplicates: bool = False,
    ) -> None:
        self.context, self.leases, self.heartbeat = context, context.leases, context.heartbeat
        self.keep_best = None if keep_all else kept_weights(context.spec.final)
        self.allow_duplicates = allow_duplicates

    def __enter__(self) -> Worker:
        self.heartbeat.__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.heartbeat.__exit__(*exc_info)

    def claim(self, *, bounded: bool = True, fresh: bool = True) -> Claim | Refusal:
        """Claim a trial, as ``TrialLeases.claim``; raise WorkerBlocked if none can be trained."""
        self.context.restore_cache()
        while True:
            registration = self.heartbeat.worker
            try:
                claim = self.leases.claim(registration, bounded=bounded, fresh=fresh)
            except WorkerExpired:  # the process slept for longer than the grace period
                self.heartbeat.expire(registration)
                continue
            self.heartbeat.set_claim(claim if isinstance(claim, Claim) else None)
            return claim

    def run(self, claim: Claim) -> FrozenTrial:
        """Run a claimed trial to its end and return its record.

        A failed training is recorded and raises nothing. A suspended trial is requeued with its
        state; so is a trial that KeyboardInterrupt or an error of disk or network interrupts, and
        the exception is raised again.
        """
        try:
            self._run(claim)
        except KeyboardInterrupt:
            requeue_trial(self.context, claim)
            raise
        except (OSError, ArtifactStoreUnavailable):
            with suppress(Exception):  # otherwise the trial is requeued when the worker expires
                requeue_trial(self.context, claim)
            raise
        except (LeaseLost, UpdateFinishedTrialError):
            pass  # nothing is deleted: the other worker may need the files
        finally:
            self.heartbeat.set_claim(None)
        trials = trial_records.all_trials(self.context.study)
        trial, ranking = trials[claim.number], trial_records.rank_trials(trials)
        if self.keep_best is not None:
            delete_weights(self.context.store, trial, ranking, self.keep_best)
            with suppress(Exception):  # a picture that is left costs no trial
                delete_old_pictures(self.context.store, trials)
        self.context.listener.trial_ended(trial, ranking[0] if ranking else None)
        return trial

    def _run(self, claim: Claim) -> None:
        trial = load_claimed_trial(self.context.study, claim)
        attrs: dict[str, Any] = {}
        try:
            config, original = self._configure(claim, trial)
        except InputError as error:  # queued by hand or by another version
            attrs = {"reason": EndReason.CONFIG, "message": str(error)}
        else:
            if original is not None:
                message = f"the same configuration as trial {original}"
                attrs = {"reason": EndReason.DUPLICATE, "message": message}
                attrs[TrialAttr.DUPLICATE_OF] = original
        if attrs:
            finish_trial(self.context, claim, TrialState.FAIL, attrs=attrs)
            return
        self.context.listener.trial_started(claim.number, config)
        attempts = trial.user_attrs.get(TrialAttr.ATTEMPTS, [])
        take_over_files(self.context, claim.number, attempts)
        TrialRunner(self.context, claim, trial, config).run()

    def _configure(self, claim: Claim, trial: optuna.Trial) -> tuple[TrialConfig, int | None]:
        """Sample and record the configuration; return it and the trial that it duplicates."""
        fixed = trial.user_attrs.get(TrialAttr.FIXED_CONFIG)
        with self.leases.storage.collect_params() as params:
            if fixed:
                config = TrialConfig.from_dict(fixed)
            else:
                config = suggest(trial, self.context.spec.space)
        digest = config.digest()
        may_repeat = self.allow_duplicates or TrialAttr.ALLOW_DUPLICATE in trial.user_attrs
        original = self.leases.record_config(
            claim,
            {TrialAttr.CONFIG: config.to_dict(), TrialAttr.DIGEST: digest},
            digest=None if may_repeat else digest,
            params=params,
        )
        return config, original


def load_claimed_trial(study: optuna.Study, claim: Claim) -> optuna.Trial:
    """Return a claimed trial as ``study.ask`` would; the sampler draws here, outside any lock."""
    forget_cached_trials(study)  # else the sampler sees the trials of its previous call
    trial_records.all_trials(study)  # reads finished trials into the storage's cache
    return optuna.Trial(study, claim.trial_id)
