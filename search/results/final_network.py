"""The network that is tested, a single one or an ensemble, and its inference steps."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file

from lesionseg.config import TrialConfig
from lesionseg.inference.ensemble_selection import EnsembleChoice
from lesionseg.inference.selection import InferenceChoice
from lesionseg.training import checkpoint
from lesionseg.training.checkpoint import MemberWeights
from search.errors import JobFailed
from search.results.evaluation import run_job
from search.results.final_training import FinalSetup, Retrained
from search.results.finalists import search_dice
from search.results.retraining import RetrainedModel
from search.storage import trial_records
from search.storage.retention import WEIGHTS, kept_weights
from search.study.opening import OpenStudy
from search.trial_process.protocol import (
    EnsembleSelected,
    InferenceSelected,
    SelectEnsembleJob,
    SelectInferenceJob,
)


@dataclass(frozen=True)
class Candidate:
    """A network that may become a member.

    kind: whether a trial of the search or a retraining gave the weights.
    config: its ``TrialConfig`` as plain data.
    """

    kind: Literal["trial", "final"]
    trial: int
    config: dict[str, Any]
    params: int
    macs: int
    weights: Path


@dataclass(frozen=True)
class Member:
    """A member of the tested network. dice: alone, on the validation images, if it was measured."""

    candidate: Candidate
    weight: float
    dice: float | None = None


@dataclass(frozen=True)
class FinalNetwork:
    """The tested network.

    weights: its checkpoint.
    members: the largest weight first; one for a single network.
    selection: how the members were selected; None if they were not.
    """

    weights: Path
    members: tuple[Member, ...]
    selection: EnsembleChoice | None = None

    @property
    def best_member(self) -> int:
        """Position of the member with the best validation Dice, of equals the first."""
        return max(range(len(self.members)), key=lambda i: self.members[i].dice or 0.0)


def build_network(setup: FinalSetup, retrained: Retrained, out: Path) -> FinalNetwork:
    """Write the network to test to ``out``.

    It is the best seed of the chosen configuration, or an ensemble of retrained networks and of
    those that the search kept, if their images are of one size. If the networks were trained on the
    validation images, the ensemble is the mean over the seeds.

    Args:
        setup: of the final test.
        retrained: the trained networks.
        out: path of the checkpoint.
    """
    limit = setup.schedule.member_limit
    best = retrained.tested.best_model
    if setup.is_joint:
        models = [best] if limit == 1 else list(retrained.tested.models)[:limit]
        return _average(list(map(_retrained_candidate, models)), out)
    candidates = [best, *(model for model in retrained.models if model is not best)]
    networks = list(map(_retrained_candidate, candidates))
    if setup.has_size_of_search:
        networks += _stored_candidates(setup.search, retrained.models)
    selected = _select(setup, networks, out, limit) if limit > 1 and len(networks) > 1 else None
    if selected is None or len(selected.members) == 1:
        return _average(networks[:1], out)
    members = [Member(networks[m.index], m.weight, m.dice) for m in selected.members]
    return FinalNetwork(out, tuple(members), selected)


def _retrained_candidate(model: RetrainedModel) -> Candidate:
    return Candidate("final", model.trial, model.config, model.params, model.macs, model.weights)


def _stored_candidates(opened: OpenStudy, retrained: Sequence[RetrainedModel]) -> list[Candidate]:
    """Return the networks that the search kept of its best trials, without those that are repeated.

    A retraining on a CPU repeats its trial exactly.
    """
    repeated = {(model.trial, model.val_dice) for model in retrained}
    candidates = []
    ranking = trial_records.rank_trials(trial_records.all_trials(opened.study))
    for trial in ranking[: kept_weights(opened.spec.final)]:
        weights = opened.artifact_store.fetch(trial.number, WEIGHTS)
        if weights is None or (trial.number, search_dice(trial)) in repeated:
            continue
        params, macs = (int(trial.user_attrs[name]) for name in ("params", "macs"))
        config = trial_records.config_of(trial)
        candidates.append(Candidate("trial", trial.number, config, params, macs, weights))
    return candidates


def _select(
    setup: FinalSetup, candidates: Sequence[Candidate], out: Path, limit: int
) -> EnsembleChoice | None:
    """Select an ensemble; None if that fails, which is reported."""
    data = setup.final.trial_data
    paths = tuple(candidate.weights for candidate in candidates)
    job = SelectEnsembleJob(paths, out, limit, data.cache, data.val, setup.slot)
    try:
        return run_job(job, EnsembleSelected, "the selection of an ensemble").choice
    except JobFailed as error:
        setup.on_event(f"final: {error}; a single network is tested")
        return None


def _average(candidates: Sequence[Candidate], out: Path) -> FinalNetwork:
    """Write the mean of all networks to ``out``; of one network a copy."""
    if len(candidates) == 1:
        shutil.copyfile(candidates[0].weights, out)
    else:
        members = [
            MemberWeights(
                load_file(each.weights), TrialConfig.from_dict(each.config), 1 / len(candidates)
            )
            for each in candidates
        ]
        checkpoint.save_ensemble(out, members)
    return FinalNetwork(out, tuple(Member(each, 1 / len(candidates)) for each in candidates))


def select_inference(
    setup: FinalSetup, retrained: Retrained, weights: Path
) -> InferenceChoice | None:
    """Select test-time augmentation and post-processing on the validation images.

    The selection is written to the checkpoint ``weights``. A network that was trained on the
    validation images makes atypical errors on them. In that case the selection uses the network
    with which the finalists were compared, or else the weights that the search stored for the
    trial; if those are of another image size, only steps are selected that do not depend on it.

    Returns:
        The selection; None if the study allows no steps, too little time is left, or there is no
        network to judge.
    """
    final = setup.search.spec.final
    if not (final.tta or final.postprocess):
        return None
    if not setup.schedule.has_selection:
        setup.on_event("final: too little time is left to select inference steps")
        return None
    if not setup.is_joint:
        return _select_steps(setup, setup.final, weights)
    judged, opened = retrained.chosen.best_model.weights, setup.final
    if not retrained.finalists:
        number, opened = retrained.chosen.trial.number, setup.search
        stored = opened.artifact_store.fetch(number, WEIGHTS)
        if stored is None:
            return None
        judged = stored
    copied = weights.with_name("judged.safetensors")
    shutil.copyfile(judged, copied)
    choice = _select_steps(setup, opened, copied)
    copied.unlink()
    checkpoint.set_inference(weights, choice.inference)
    return choice


def _select_steps(setup: FinalSetup, opened: OpenStudy, weights: Path) -> InferenceChoice:
    """Select the steps for a network of the image size of the study's cache; write them to it."""
    final, data = opened.spec.final, opened.trial_data
    is_scaled = opened.cache.image_size != setup.final.cache.image_size
    job = SelectInferenceJob(
        weights, data.cache, data.val, setup.slot,
        tta=final.tta, postprocess=final.postprocess, scale_free=is_scaled,
    )  # fmt: skip
    return run_job(job, InferenceSelected, "the selection of inference steps").choice
