"""The first trials of a study: published systems, within its search space or outside of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lesionseg.config import TrialConfig
from search.spec import baselines
from search.spec.search_space import SearchSpace
from search.spec.study_spec import StudySpec
from search.storage.leases import QueueEntry
from search.storage.trial_records import TrialAttr
from search.study.points import find_point, flatten_config


def first_trials(spec: StudySpec) -> list[QueueEntry]:
    """Return parameters and user attributes of the trials that ``warm_start`` names."""
    return [
        queue_entry(baseline_config(name, spec), spec.space, {TrialAttr.BASELINE: name})
        for name in baselines.expand_names(spec.warm_start)
    ]


def baseline_config(name: str, spec: StudySpec) -> TrialConfig:
    """Return a published system with the image size, epochs, patience and seed of a study.

    Raises:
        InputError: If there is no baseline of that name.
    """
    budget = spec.budget
    return baselines.build_config(
        name, spec.data.image_size, budget.epochs, seed=spec.seed, patience=budget.patience
    )


def queue_entry(config: TrialConfig, space: SearchSpace, attrs: Mapping[str, Any]) -> QueueEntry:
    """Return a queue entry for a configuration.

    A configuration within the search space is queued by its parameters, so that the sampler learns
    from it. Any other is queued as a fixed configuration: it is trained and ranked like any trial,
    but the sampler ignores it.
    """
    point, errors = find_point(flatten_config(config.to_dict()), space)
    if errors or not point:
        return {}, {**attrs, TrialAttr.FIXED_CONFIG: config.to_dict()}
    return point, attrs
