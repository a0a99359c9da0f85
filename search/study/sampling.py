"""Set a study's sampler and pruner."""

from __future__ import annotations

from search.storage import trial_records
from search.study.cross_validation import FoldPruner
from search.study.opening import OpenStudy
from search.study.pruners import PRUNERS
from search.study.samplers import SAMPLERS


def prepare_sampling(opened: OpenStudy, ordinal: int = 0) -> None:
    """Set the sampler and the pruner of the spec.

    The sampler's seed depends on the number of trials, so that a resumed study does not repeat its
    first trials, and on the worker.

    Args:
        opened: The study.
        ordinal: Number of the worker, from 0.
    """
    spec, study = opened.spec, opened.study
    n_trials = len(trial_records.all_trials(study))
    seed = (spec.seed + 1_000_003 * n_trials + 7_368_787 * ordinal) % 2**31
    study.sampler = SAMPLERS[spec.sampler.name](seed, spec.sampler.startup)
    study.pruner = PRUNERS[spec.pruner.name](
        spec.budget.epochs, spec.pruner.min_epochs, spec.pruner.startup
    )
    if spec.data.split.kfold and spec.pruner.name != "none":
        study.pruner = FoldPruner(study.pruner, spec.budget.epochs, spec.pruner.startup)
