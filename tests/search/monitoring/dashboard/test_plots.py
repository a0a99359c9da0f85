"""The study's own figures: what is in them, and that the dashboard gets them whole."""

from __future__ import annotations

import json
import math

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects

from search.monitoring.dashboard import plots, study_note
from tests.search.helpers import in_memory


def trial(state="COMPLETE", value=None, model="unet", steps=(), **attrs):
    return create_trial(
        state=TrialState[state],
        value=value,
        intermediate_values=dict(enumerate(steps, 1)),
        user_attrs={"config": {"model": {model: {}}}, **attrs},
    )


def known(*made):
    study = in_memory()
    study.add_trials(made)
    return study.trials


SOME = (
    trial(value=0.7, seconds=10.0, params=1_000_000, steps=(0.6, 0.7)),
    trial(value=0.8, seconds=20.0, params=3_000_000, model="segnet", steps=(0.5, 0.8)),
    trial(value=0.75, seconds=40.0, params=2_000_000),
    trial("PRUNED", steps=(0.1, 0.2)),
    trial("FAIL", reason="oom"),
)


def test_of_points_only_those_that_none_beats_are_in_front():
    points = [(1, 0.5, 0), (2, 0.4, 1), (2, 0.6, 2), (3, 0.6, 3), (4, 0.9, 4), (1, 0.3, 5)]
    assert plots.pareto_front(points) == [(1, 0.5, 0), (2, 0.6, 2), (4, 0.9, 4)]
    assert plots.pareto_front([]) == []


@pytest.mark.parametrize(
    ("name", "x"),
    [("lesionsearch-dice-seconds", {"unet": [10, 40], "segnet": [20], "Pareto front": [10, 20]}),
     ("lesionsearch-dice-parameters", {"unet": [1, 2], "segnet": [3], "Pareto front": [1, 2, 3]})],
)  # fmt: skip
def test_complete_trials_stand_by_what_they_cost(name, x):
    figure = plots.make_figures(known(*SOME))[name]
    assert {line.name: sorted(line.x) for line in figure.data} == x


def test_pruned_curves_stand_beside_the_best():
    pruned, best = plots.make_figures(known(*SOME))["lesionsearch-pruned"].data
    assert pruned.x == (1, 2, None)
    assert pruned.y == (0.1, 0.2, None)
    assert (best.name, best.y) == ("trial 1, the best", (0.5, 0.8))


def test_of_many_pruned_curves_some_are_drawn():
    many = [trial("PRUNED", steps=(0.1,)) for _ in range(950)]
    (curves,) = plots.make_figures(known(*many))["lesionsearch-pruned"].data
    assert curves.name == "95 of 950 pruned"
    assert len(curves.x) == 95 * 2


def test_what_would_be_empty_is_left_out():
    assert plots.make_figures([]) == {}
    assert set(plots.make_figures(known(trial("FAIL")))) == {"lesionsearch-cost"}


def test_one_trial_and_one_without_numbers_can_be_drawn():
    drawn = plots.make_figures(known(trial(value=0.5), trial(value=0.6, seconds=math.inf, params=1)))
    assert [len(t.x) for t in drawn["lesionsearch-dice-parameters"].data] == [1]


def test_the_dashboard_gets_them_whole_again_and_again():
    study = in_memory()
    told = {}
    for count in (300, 2, 40):  # fewer parts than before leave none of the old ones
        made = known(
            *[trial(value=0.5 + i / 1000, seconds=1.0 + i, params=i + 1) for i in range(count)]
        )
        told |= study_note._figures(made, told)
        found = get_plotly_graph_objects(told)
        figure = json.loads(found["lesionsearch-dice-seconds"])
        assert len(figure["data"][0]["x"]) == count
        assert figure["layout"]["title"]["text"].startswith("Validation Dice against")
    assert study.trials == []
    assert all(isinstance(key, str) and isinstance(v, str) for key, v in told.items())
    assert optuna.__version__
