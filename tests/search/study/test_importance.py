"""Importances in spaces with known results."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from search.storage import trial_records
from search.study.importance import compute_importances


def open_study(values: list[float], names: tuple[str, ...] = ("model", "lr", "width")):
    """Return a study in memory; width is a parameter of model a alone."""
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


def test_importances_of_known_parameters():
    rng = np.random.default_rng(0)
    shares, note = importances_of(open_study(rng.random(40).tolist()))
    assert next(iter(shares)) == "lr"
    assert set(shares) == {"lr", "model", "width"}
    assert sum(shares.values()) == pytest.approx(1)
    assert "the better half (20) of the 40 complete and pruned trials" in note


def test_rare_parameters_are_left_out():
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
        ([0.5] * 12, ("model", "lr"), "too similar"),
        ([0.1] * 8 + [0.2] * 4, ("model", "lr"), "too similar"),
        ([0.1 * i for i in range(12)], ("lr",), "only lr was open"),
        ([0.1 * i for i in range(12)], (), "no parameter was open"),
    ],
)
def test_no_importances_without_enough_trials(values, names, why):
    shares, note = importances_of(open_study(values, names))
    assert shares == {}
    assert why in note


def test_trials_without_a_value_are_ignored():
    study = open_study(np.random.default_rng(0).random(20).tolist())
    before = importances_of(study)
    for state in (TrialState.PRUNED, TrialState.FAIL):
        study.add_trial(optuna.trial.create_trial(state=state))
    assert importances_of(study) == before


def test_pruned_trials_rank_below_complete_ones():
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
