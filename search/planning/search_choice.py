"""Choose the search of a plan: image size, epochs and number of trials."""

from __future__ import annotations

from dataclasses import dataclass, replace

from search.planning import policy
from search.planning.final_choice import FinalChoice
from search.planning.plan_inputs import PlanInputs
from search.planning.policy import FIDELITIES, Fidelity, Tier
from search.study.forecast import START_S, epoch_s


@dataclass(frozen=True)
class SearchChoice:
    """A planned search; trial_s: seconds of a mean trial."""

    image_size: int
    epochs: int
    trials: int
    trial_s: float


def choose_search(inputs: PlanInputs, tier: Tier, final: FinalChoice) -> SearchChoice:
    """Return the search in the time besides the final; a single trial if it is too short."""
    for fidelity in FIDELITIES:
        search = _search(inputs, tier, final, fidelity)
        if search.trials >= fidelity.trials:
            return search
    return only_trial(inputs, tier, final)


def only_trial(inputs: PlanInputs, tier: Tier, final: FinalChoice) -> SearchChoice:
    """Return the smallest possible trial in place of a search."""
    size = _smaller_size(final.work.image_size, len(policy.SEARCH_SIZES))
    return SearchChoice(size, 1, 1, _trial_s(inputs, tier, final, size, 1))


def _search(inputs: PlanInputs, tier: Tier, final: FinalChoice, fidelity: Fidelity) -> SearchChoice:
    size = _smaller_size(final.work.image_size, fidelity.steps)
    epochs = max(1, round(fidelity.share * final.work.epochs))
    trial_s = _trial_s(inputs, tier, final, size, epochs)
    seconds = inputs.available_s - final.seconds
    trials = min(policy.MAX_TRIALS, inputs.slots * int(seconds / trial_s))
    return SearchChoice(size, epochs, trials, trial_s)


def _trial_s(inputs: PlanInputs, tier: Tier, final: FinalChoice, size: int, epochs: int) -> float:
    work = replace(final.work, fit=final.limit or inputs.data.train)
    images_s = epochs * epoch_s(work, inputs.image_s(tier, size))
    pruned = policy.PRUNED_COST if epochs >= policy.PRUNED_EPOCHS else 1.0
    return START_S + images_s * policy.MEAN_COST * pruned


def _smaller_size(size: int, steps: int) -> int:
    """Return the search's size some steps below the final's; the smallest one at least."""
    below = [s for s in policy.SEARCH_SIZES if s < size]
    return [*below, size][max(0, len(below) - steps)]
