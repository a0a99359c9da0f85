"""Importances against spaces whose answer is known."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from search.storage import trial_records
from search.study.importance import compute_importances


def open_study(values: list[float], names: tuple[str, ...] = ("model", "lr", "width")):
    """A study in memory whose value depends on nothing; width is there for the model a alone."""
    study = optuna.create_study(direction="maximize")
    for i, value in enumerate(values):
        params, distributions = {}, {}
        if "model" in names:
            params["model"] = "ab"[i % 2]
            distributions["model"] = optuna.distributions.CategoricalDistribution(("a", "b"))
        if "lr" in names:
            params["lr"] = value if value <= 1 else 1.0
            distributions["lr"] = optuna.distributions.FloatDistribution(0, 1)
        if "width" in names and params.get("model") == "a":
            params["width"] = i
            distributions["width"] = optuna.distributions.IntDistribution(0, 100)
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=value)
        )
    return study


def importances_of(study):
    return compute_importances(trial_records.all_trials(study))


def test_importances_find_the_parameter_that_matters_and_add_up_to_one():
    rng = np.random.default_rng(0)
    shares, note = importances_of(open_study(rng.random(40).tolist()))
    assert next(iter(shares)) == "lr"
    assert set(shares) == {"lr", "model", "width"}
    assert sum(shares.values()) == pytest.approx(1)
    assert "the better half (20) of the 40 complete and pruned trials" in note


def test_importances_leave_out_what_few_trials_have():
    rng = np.random.default_rng(0)
    shares, note = importances_of(open_study(rng.random(19).tolist()))
    assert set(shares) == {"lr", "model", "width"}
    shares, note = importances_of(open_study(rng.random(18).tolist()))
    assert set(shares) == {"lr", "model"}
    assert "Left out: 1 that fewer than 10 of them have." in note


@pytest.mark.parametrize(
    ("values", "names", "why"),
    [
        (
            [0.1 * i for i in range(9)],
            ("model", "lr"),
            "need 10 complete or pruned trials; there are 9",
        ),
        ([0.5] * 12, ("model", "lr"), "too much alike"),
        ([0.1] * 8 + [0.2] * 4, ("model", "lr"), "too much alike"),
        ([0.1 * i for i in range(12)], ("lr",), "only lr was open"),
        ([0.1 * i for i in range(12)], (), "no parameter was open"),
    ],
)
def test_importances_that_would_mean_nothing_are_not_given(values, names, why):
    shares, note = importances_of(open_study(values, names))
    assert shares == {}
    assert why in note


def test_trials_without_a_value_take_no_part():
    study = open_study(np.random.default_rng(0).random(20).tolist())
    before = importances_of(study)
    for state in (TrialState.PRUNED, TrialState.FAIL):
        study.add_trial(optuna.trial.create_trial(state=state))
    assert importances_of(study) == before


def test_a_pruned_trial_ranks_below_every_complete_one():
    # The good half was stopped at once with a high value; were that value taken at its word,
    # the large lr would look good.
    pruned = open_study([0.9 + i / 100 for i in range(8)], ("lr", "model"))
    study = open_study([i / 100 for i in range(8)], ("lr", "model"))
    for t in pruned.trials:
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.PRUNED,
                params=t.params,
                distributions=t.distributions,
                intermediate_values={1: t.value},
            )
        )
    shares, note = importances_of(study)
    assert "the better half (8) of the 16 complete and pruned trials" in note
    assert shares["lr"] > 0.9
