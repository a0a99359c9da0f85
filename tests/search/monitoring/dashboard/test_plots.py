"""Figures of a study, and how the dashboard reads them."""

from __future__ import annotations

import json
import math

import pytest
from optuna.trial import TrialState, create_trial

from search.monitoring.dashboard import plots
from search.monitoring.dashboard.dashboard_internals import read_figures
from search.monitoring.notes import figure_attrs
from tests.search.helpers import in_memory


def trial(state="COMPLETE", value=None, model="unet", steps=(), **attrs):
    return create_trial(
        state=TrialState[state],
        value=value,
        intermediate_values=dict(enumerate(steps, 1)),
        user_attrs={"config": {"model": {model: {}}}, **attrs},
    )


def add_trials(*trials):
    study = in_memory()
    study.add_trials(trials)
    return study.trials


SOME = (
    trial(value=0.7, seconds=10.0, params=1_000_000, steps=(0.6, 0.7)),
    trial(value=0.8, seconds=20.0, params=3_000_000, model="segnet", steps=(0.5, 0.8)),
    trial(value=0.75, seconds=40.0, params=2_000_000),
    trial("PRUNED", steps=(0.1, 0.2)),
    trial("FAIL", reason="oom"),
)


def test_pareto_front_contains_undominated_points():
    values = [(1, 0.5, 0), (2, 0.4, 1), (2, 0.6, 2), (3, 0.6, 3), (4, 0.9, 4), (1, 0.3, 5)]
    assert plots.pareto_front(values) == [(1, 0.5, 0), (2, 0.6, 2), (4, 0.9, 4)]
    assert plots.pareto_front([]) == []


@pytest.mark.parametrize(
    ("name", "x"),
    [("lesionsearch-dice-seconds", {"unet": [10, 40], "segnet": [20], "Pareto front": [10, 20]}),
     ("lesionsearch-dice-parameters", {"unet": [1, 2], "segnet": [3], "Pareto front": [1, 2, 3]})],
)  # fmt: skip
def test_complete_trials_are_drawn_by_cost(name, x):
    figure = plots.make_figures(add_trials(*SOME))[name]
    assert {line.name: sorted(line.x) for line in figure.data} == x


def test_pruned_curves_are_drawn_with_the_best_trial():
    pruned, best = plots.make_figures(add_trials(*SOME))["lesionsearch-pruned"].data
    assert pruned.x == (1, 2, None)
    assert pruned.y == (0.1, 0.2, None)
    assert (best.name, best.y) == ("trial 1 (best)", (0.5, 0.8))


def test_few_of_many_pruned_curves_are_drawn():
    many = [trial("PRUNED", steps=(0.1,)) for _ in range(950)]
    (curves,) = plots.make_figures(add_trials(*many))["lesionsearch-pruned"].data
    assert curves.name == "95 of 950 pruned trials"
    assert len(curves.x) == 95 * 2


def test_empty_figures_are_omitted():
    assert plots.make_figures([]) == {}
    assert set(plots.make_figures(add_trials(trial("FAIL")))) == {"lesionsearch-cost"}


def test_trials_without_finite_cost_are_omitted():
    trials = add_trials(trial(value=0.5), trial(value=0.6, seconds=math.inf, params=1))
    assert [len(t.x) for t in plots.make_figures(trials)["lesionsearch-dice-parameters"].data] == [
        1
    ]


def test_shorter_figures_replace_longer_ones():
    attrs = {}
    for count in (300, 2, 40):  # fewer parts than before leave none of the old ones
        trials = add_trials(
            *[trial(value=0.5 + i / 1000, seconds=1.0 + i, params=i + 1) for i in range(count)]
        )
        attrs |= figure_attrs(trials, attrs)
        figure = json.loads(read_figures(attrs)["lesionsearch-dice-seconds"])
        assert len(figure["data"][0]["x"]) == count
        assert figure["layout"]["title"]["text"].startswith("Validation Dice against")
    assert all(isinstance(key, str) and isinstance(v, str) for key, v in attrs.items())
