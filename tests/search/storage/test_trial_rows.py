"""Trials read as plain rows against Optuna's own reading of them."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState

from search.storage import queries
from search.storage.database import open_storage, storage_url
from search.storage.queries import RowStorage
from search.storage.retrying_storage import RetryingStorage, backend_of
from tests.search.study.test_transfer import fill, plain


@pytest.fixture(params=["sqlite", "postgresql"])
def both(request, tmp_path):
    """One study of every kind of trial, in Optuna's storage and in the one of rows."""
    url = f"sqlite:///{tmp_path}/s.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    study = fill(url, "other")
    study = fill(url)
    study.ask({"x": optuna.distributions.IntDistribution(1, 9)})
    own = open_storage(storage_url(url, tmp_path))
    return own, RowStorage.for_reading(own), study._study_id


def whole(trial):
    """All of a trial; values by epoch in order, which databases give as they like."""
    steps = sorted(map(repr, trial.intermediate_values.items()))
    return plain(trial) | {"id": trial._trial_id, "intermediate_values": steps}


def same(a, b):
    return list(map(whole, a)) == list(map(whole, b))


def test_every_field_of_every_trial_is_the_same(both):
    own, quick, study_id = both
    known = own._get_trials(study_id, None, set(), -1)
    assert len(known) > 6
    assert same(quick._get_trials(study_id, None, set(), -1), known)


@pytest.mark.parametrize("many", [queries.MAX_IDS, 1])
def test_so_are_parts_of_them(both, many, monkeypatch):
    monkeypatch.setattr(queries, "MAX_IDS", many)
    own, quick, study_id = both
    ids = [t._trial_id for t in own._get_trials(study_id, None, set(), -1)]
    for included, since in (({ids[0], ids[2]}, ids[4]), (set(), ids[3]), ({ids[1]}, ids[-1])):
        asked = (study_id, None, included, since)
        assert same(quick._get_trials(*asked), own._get_trials(*asked))
    done = (study_id, (TrialState.COMPLETE,), set(), -1)
    assert same(quick._get_trials(*done), own._get_trials(*done))


def test_what_is_asked_one_by_one_and_written_is_as_ever(both):
    own, quick, _ = both
    assert isinstance(quick, RetryingStorage)
    study = optuna.load_study(study_name="one", storage=quick)
    trial = study.ask()
    trial.set_user_attr("a", 1)
    study.tell(trial, 0.25)
    assert own.get_trial(trial._trial_id).value == 0.25
    assert study.trials[-1].user_attrs == {"a": 1}


def test_several_objectives_keep_their_order(tmp_path):
    url = f"sqlite:///{tmp_path}/s.db"
    study = optuna.create_study(storage=url, directions=["minimize", "maximize"])
    study.add_trial(optuna.trial.create_trial(values=[2.0, -1.0]))
    quick = RowStorage.for_reading(open_storage(storage_url(url, tmp_path)))
    assert quick._get_trials(study._study_id, None, set(), -1)[0].values == [2.0, -1.0]


def test_nobody_has_to_wait_for_who_only_looks(tmp_path):
    url = f"sqlite:///{tmp_path}/s.db"
    study = fill(url)
    quick = RowStorage.for_reading(open_storage(storage_url(url, tmp_path)))
    quick.timeout_s = 0.2
    with backend_of(study).engine.begin():  # a worker in the middle of its transaction
        assert len(quick._get_trials(study._study_id, None, set(), -1)) > 6
        assert quick.get_all_studies()
