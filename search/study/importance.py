"""How much each parameter mattered in a search."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.storage import trial_records

#: Trials that must have a parameter before its importance is more than chance.
ENOUGH = 10


def importances(known: Sequence[FrozenTrial]) -> tuple[dict[str, float], str]:
    """Each open parameter's share of PED-ANOVA's importance, the largest first; and a note.

    Watanabe, Bansal, Hutter, arXiv:2304.10255: how far the values of a parameter among the better
    trials differ from those among all. Only the order of trials matters to it, so that pruned ones
    take part, below every complete one. The note says what the shares mean and which trials they
    are of; where they would mean nothing, there are none, and the note says why.
    """
    judged = _judged(known)
    values = sorted((t.value for t in judged if t.value is not None), reverse=True)
    had = Counter(n for t in judged for n, d in t.distributions.items() if not d.single())
    names = sorted(name for name, n in had.items() if n >= ENOUGH)
    half = math.ceil(len(judged) / 2)
    if len(judged) < ENOUGH:
        return {}, f"Importances need {ENOUGH} complete or pruned trials; there are {len(judged)}."
    if len(names) < 2:
        only = f"only {names[0]}" if names else "no parameter"
        return {}, f"Nothing to compare: {only} was open in {ENOUGH} trials or more."
    if values[half - 1] == values[-1]:
        return {}, "The trials are too much alike: no better half can be told apart."
    # Half a trial less: rounding must not let one more in.
    shares = _ped_anova(judged, names, (half - 0.5) / len(judged))
    return shares, _note(half, len(judged), len(had) - len(names))


def _judged(known: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Complete trials, and pruned ones moved below them: a Dice less 1 is less than any Dice."""
    ranked = trial_records.rank_trials(known)
    stopped = [
        create_trial(
            state=TrialState.COMPLETE,
            params=t.params,
            distributions=t.distributions,
            value=t.intermediate_values[max(t.intermediate_values)] - 1,
        )
        for t in known
        if trial_records.state_of(t) == "pruned"
        and t.intermediate_values
        and not trial_records.reason_of(t)
    ]
    return [*ranked, *stopped]


def _ped_anova(judged: list[FrozenTrial], names: list[str], best: float) -> dict[str, float]:
    """best: the part of the trials that is compared with all of them.

    Optuna's own choice is the best tenth. Of the few dozen trials that a study has that is a
    handful, and chance puts a parameter first that hardly any trial has.
    """
    study = optuna.create_study(direction="maximize")
    study.add_trials(judged)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=best)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters that only some trials have; the note tells
        found = get_param_importances(study, evaluator=evaluator, params=names)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _note(half: int, judged: int, left_out: int) -> str:
    parts = [
        f"Shares of the PED-ANOVA importance, 1 in all: how far the values of a parameter in the "
        f"better half ({half}) of the {judged} complete and pruned trials differ from those in all "
        f"of them; pruned ones rank below complete ones. A parameter that only some trials have, "
        f"such as loss.focal.gamma, is judged among those and weighted by their part in the better "
        f"half."
    ]
    if left_out:
        parts.append(f"Left out: {left_out} that fewer than {ENOUGH} of them have.")
    parts.append(
        "The shares describe this search and prove no cause: what the sampler settled early "
        "varies little and has a small share."
    )
    if judged < 50:
        parts.append("With so few trials they are a hint, no more.")
    return " ".join(parts)
