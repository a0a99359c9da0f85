"""Importance of the parameters in a search."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.storage import trial_records
from search.storage.trial_records import State

#: Fewest trials that a parameter's importance is estimated from.
MIN_TRIALS = 10


def compute_importances(trials: Sequence[FrozenTrial]) -> tuple[dict[str, float], str]:
    """Compute the PED-ANOVA importance of each open parameter.

    It compares the values of a parameter among the better trials with those among all; Watanabe,
    Bansal, Hutter, arXiv:2304.10255. Only the order of the trials matters, so pruned trials take
    part, ranked below all complete ones.

    Returns:
        Shares that add up to 1 by parameter, largest first, and a note that explains them. Without
        enough trials there are no shares, and the note gives the reason.
    """
    ranked = _rank_with_pruned(trials)
    values = sorted((t.value for t in ranked if t.value is not None), reverse=True)
    counts = Counter(n for t in ranked for n, d in t.distributions.items() if not d.single())
    names = sorted(name for name, count in counts.items() if count >= MIN_TRIALS)
    n_better = math.ceil(len(ranked) / 2)
    if len(ranked) < MIN_TRIALS:
        return {}, (
            f"Importances need {MIN_TRIALS} complete or pruned trials; there are {len(ranked)}."
        )
    if len(names) < 2:
        subject = f"only {names[0]}" if names else "no parameter"
        return {}, f"Nothing to compare: {subject} was open in {MIN_TRIALS} trials or more."
    if values[n_better - 1] == values[-1]:
        return {}, "The trials are too similar: there is no better half."
    study = optuna.create_study(direction="maximize")
    study.add_trials(ranked)
    # Optuna's default of a tenth is too few of some dozens: chance would put a parameter first that
    # hardly any trial has. Half a trial less, so that rounding does not add one.
    evaluator = PedAnovaImportanceEvaluator(target_quantile=(n_better - 0.5) / len(ranked))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about conditional parameters, which the note explains
        shares = get_param_importances(study, evaluator=evaluator, params=names)
    ordered = dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))
    return ordered, _explain(n_better, len(ranked), len(counts) - len(names))


def _rank_with_pruned(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return complete trials, and pruned ones with their Dice less 1, which is below any Dice."""
    pruned = [
        create_trial(
            state=TrialState.COMPLETE,
            params=t.params,
            distributions=t.distributions,
            value=t.intermediate_values[max(t.intermediate_values)] - 1,
        )
        for t in trials
        if trial_records.state_of(t) == State.PRUNED
        and t.intermediate_values
        and not trial_records.reason_of(t)
    ]
    return [*trial_records.rank_trials(trials), *pruned]


def _explain(n_better: int, n_trials: int, n_left_out: int) -> str:
    note = (
        f"Shares of the PED-ANOVA importance, 1 in total: how far the values of a parameter in the "
        f"better half ({n_better}) of the {n_trials} complete and pruned trials differ from those "
        f"in all of them; pruned trials rank below complete ones. A parameter that only some "
        f"trials have, such as loss.focal.gamma, is compared among those and weighted by their "
        f"share of the better half. The shares describe this search and prove no cause: what the "
        f"sampler settled early varies little and has a small share."
    )
    if n_left_out:
        note += f" Left out: {n_left_out} that fewer than {MIN_TRIALS} of them have."
    if n_trials < 50:
        note += " With so few trials the shares are only a hint."
    return note
