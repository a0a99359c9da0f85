"""The fast route returns the same content as optuna-dashboard's own."""

from __future__ import annotations

import gzip
import io
import json
import random
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import pytest
from optuna.trial import TrialState, create_trial

from search.monitoring.dashboard import study_api
from search.monitoring.dashboard.study_api import OMITTED_ATTRS, StudyDetailPlugin
from search.monitoring.notes import trial_note_attrs
from search.storage import artifact_ids
from search.storage.note_attrs import note_attrs
from search.storage.retention import HISTORY, PICTURE
from tests.search.helpers import in_memory

MARK = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(study_api, "CACHE_S", 0.0)


def add(study, number, rng):
    """Add a finished trial with a conditional search space, a note and artifacts."""
    state = rng.choice([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
    model = optuna.distributions.CategoricalDistribution(("unet", "segnet"))
    width = optuna.distributions.IntDistribution(4, 64)
    lr = optuna.distributions.FloatDistribution(1e-4, 10 ** -rng.choice([1, 2]), log=True)
    name = rng.choice(["unet", "segnet"])
    params = {"model": name, f"model.{name}.width": rng.randint(4, 64), "lr": 1e-3}
    kinds = {"model": model, f"model.{name}.width": width, "lr": lr}
    study.add_trial(
        create_trial(
            state=state,
            value=rng.random() if state == TrialState.COMPLETE else None,
            params=params,
            distributions=kinds,
            intermediate_values={1: 0.5, 2: float("nan"), 3: rng.random()},
            user_attrs={"config": {"model": {name: {}}}, "params": 1000 + number,
                        "owner": {"host": "lab"}, "reason": "<b>"},
            system_attrs=artifact_ids.artifact_attrs(MARK, number, [HISTORY, PICTURE]),
        )
    )  # fmt: skip
    for key, value in trial_note_attrs(study.trials[-1]).items():
        study._storage.set_study_system_attr(study._study_id, key, value)


@pytest.fixture
def study():
    made, rng = in_memory(name="<i>a study</i>"), random.Random(0)
    made.set_user_attr("spec", {"budget": {"trials": 9}})
    for number in range(40):
        add(made, number, rng)
    for key, value in note_attrs(None, "# the study").items():
        made._storage.set_study_system_attr(made._study_id, key, value)
    made._storage.set_study_system_attr(made._study_id, "dashboard:plot_data:f:0", '{"data": []}')
    return made


def get(app, path, **environ):
    """Return status, headers and body of a WSGI app's response."""
    given = {"PATH_INFO": path.partition("?")[0], "QUERY_STRING": path.partition("?")[2]}
    setup_testing_defaults(given)
    told = {}
    body = b"".join(
        app({**given, "wsgi.input": io.BytesIO(), **environ},
            lambda status, headers, exc=None: told.update(status=status[:3], headers=dict(headers)))
    )  # fmt: skip
    return int(told["status"]), told["headers"], body


def both(study, path):
    """Return the responses of optuna-dashboard without and with the plugin."""
    own = optuna_dashboard.wsgi(study._storage)
    mine = optuna_dashboard.wsgi(study._storage)
    mine.install(StudyDetailPlugin(study._storage))
    return [json.loads(get(app, path)[2]) for app in (own, mine)]


def are_equal(own, mine):
    """Compare two responses except for attributes that are omitted on purpose."""
    for trial in (*own["trials"], *own["best_trials"]):
        trial["user_attrs"] = [a for a in trial["user_attrs"] if a["key"] not in OMITTED_ATTRS]
    own["union_user_attrs"] = [a for a in own["union_user_attrs"] if a["key"] not in OMITTED_ATTRS]
    assert mine.pop("objective_names", None) == ["validation Dice"]  # better than "Objective 0"
    for side in (own, mine):
        for space in ("union_search_space", "intersection_search_space"):
            for parameter in side[space]:  # choices come out of a set
                choices = parameter["distribution"].get("choices", [])
                choices.sort(key=lambda c: c["value"])
        side["union_user_attrs"].sort(key=lambda a: a["key"])
    return own == mine


@pytest.mark.parametrize("after", ["", "?after=0", "?after=38", "?after=40", "?after=99"])
def test_response_equals_that_of_optuna_dashboard(study, after, monkeypatch):
    monkeypatch.setattr(study_api, "trials_with_pictures", lambda known: {t.number for t in known})
    own, mine = both(study, f"/api/studies/{study._study_id}{after}")
    assert own["trials"] or after in {"?after=40", "?after=99"}
    assert are_equal(own, mine)


def test_responses_stay_equal_while_trials_run_and_end(study, monkeypatch):
    monkeypatch.setattr(study_api, "trials_with_pictures", lambda known: {t.number for t in known})
    own = optuna_dashboard.wsgi(study._storage)
    mine = optuna_dashboard.wsgi(study._storage)
    mine.install(StudyDetailPlugin(study._storage))
    path, rng = f"/api/studies/{study._study_id}", random.Random(1)
    running = study.ask({"lr": optuna.distributions.FloatDistribution(1e-6, 1.0, log=True)})
    for step in range(4):
        if step == 1:
            add(study, 41, rng)
        if step == 2:
            running.report(0.7, 1)
            running.set_user_attr("late", 1)
        if step == 3:
            study.tell(running, 0.99)
            changed = note_attrs(study.trials[0]._trial_id, "by hand", 2)
            for key, value in changed.items():
                study._storage.set_study_system_attr(study._study_id, key, value)
        own._inmemory_cache.clear()
        responses = [json.loads(get(app, path)[2]) for app in (own, mine)]
        assert are_equal(*responses), step
    assert responses[1]["best_trials"][0]["number"] == running.number
    assert responses[1]["trials"][0]["note"] == {"version": 2, "body": "by hand"}


def test_only_existing_pictures_are_listed(study):
    _, mine = both(study, f"/api/studies/{study._study_id}")
    kept = study_api.trials_with_pictures(study.trials)
    assert 0 < len(kept) < 40
    for trial in mine["trials"]:
        names = [a["filename"] for a in trial["artifacts"]]
        assert (PICTURE in names) == (trial["number"] in kept)


def test_other_studies_are_served_by_optuna_dashboard():
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.add_trial(create_trial(values=[1.0, 2.0]))
    own, mine = both(study, f"/api/studies/{study._study_id}")
    assert own == mine


def test_a_missing_study_is_not_found(study):
    app = optuna_dashboard.wsgi(study._storage)
    app.install(StudyDetailPlugin(study._storage))
    assert get(app, "/api/studies/77")[0] == 404
    assert get(app, f"/api/studies/{study._study_id}?after=x")[0] >= 400


def test_responses_are_compressed_on_request(study):
    app = optuna_dashboard.wsgi(study._storage)
    app.install(StudyDetailPlugin(study._storage))
    path = f"/api/studies/{study._study_id}"
    _, headers, packed = get(app, path, HTTP_ACCEPT_ENCODING="gzip, br")
    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed) == get(app, path)[2]
