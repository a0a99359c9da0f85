"""Trials read as plain rows are those that Optuna reads."""

import math

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from sqlalchemy import event

from search.storage.database import open_for_reading, open_storage, storage_url
from search.storage.optuna_internals import OptunaStorage, study_id, trial_id
from search.storage.retrying_storage import backend_of

PARAMS = {"model": "unet", "model.unet.depth": 3, "lr": 0.01}
SPACES = {
    "model": CategoricalDistribution(["unet", "segnet"]),
    "model.unet.depth": IntDistribution(1, 4),
    "lr": FloatDistribution(1e-4, 1.0, log=True),
}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "postgresql":
        return request.getfixturevalue("postgres_url")
    return f"sqlite:///{tmp_path}/study.db"


def create_study(url, name="study", **kwargs) -> optuna.Study:
    storage = open_storage(storage_url(url, None))
    kwargs = kwargs or {"direction": "maximize"}
    return optuna.create_study(study_name=name, storage=storage, **kwargs)


def fill(url, name="study") -> optuna.Study:
    """A study with trials in every state and values of every kind."""
    study = create_study(url, name)
    given = {"params": PARAMS, "distributions": SPACES}
    for trial in (
        create_trial(value=0.5, **given, user_attrs={"a": [1, None]}, system_attrs={"b": "ü"}),
        create_trial(state=TrialState.PRUNED, value=0.25, **given, intermediate_values={2: 0.25}),
        create_trial(
            state=TrialState.FAIL,
            intermediate_values={1: math.nan, 2: math.inf, 3: -math.inf, 10: 1e-300},
        ),
        create_trial(value=-math.inf),
    ):
        study.add_trial(trial)
    study.ask(SPACES).report(0.125, 1)
    study.enqueue_trial({"lr": 0.5})
    return study


def comparable(trials) -> list[str]:
    """All fields of trials; steps in order, which databases return as they like."""
    return [
        repr({**vars(t), "intermediate_values": sorted(t.intermediate_values.items())})
        for t in trials
    ]


@pytest.fixture
def filled(url):
    """The storage as Optuna reads it, the same read as rows, and a study's id."""
    fill(url, "other")
    rows = backend_of(fill(url))
    plain = RDBStorage(rows.engine.url.render_as_string(hide_password=False))
    return plain, rows, rows.get_study_id_from_name("study")


def test_rows_give_every_field_of_every_trial(filled):
    plain, rows, study = filled
    assert comparable(rows.get_all_trials(study)) == comparable(plain.get_all_trials(study))
    assert rows.get_n_trials(study) == 6


def test_rows_give_the_same_selections(filled):
    _, rows, study = filled
    ids = [trial_id(t) for t in rows.get_all_trials(study)]
    for selection in (
        (study, None, {ids[0], ids[2]}, ids[3]),
        (study, None, set(), ids[3]),
        (study, None, {ids[1]}, ids[-1]),
        (study, (TrialState.COMPLETE,), set(), -1),
    ):
        expected = comparable(OptunaStorage.read_trials(rows, *selection))
        assert comparable(rows.read_trials(*selection)) == expected


def test_a_trial_that_ends_while_it_is_read_has_not_ended_without_a_value(postgres_url):
    study = create_study(postgres_url)
    trial, rows = study.ask(), backend_of(study)
    writer = open_storage(rows.engine.url)

    @event.listens_for(rows.engine, "after_cursor_execute")
    def end_trial(*_):
        if not writer.get_trial(trial_id(trial)).state.is_finished():
            writer.set_trial_state_values(trial_id(trial), TrialState.COMPLETE, [0.5])

    (first,) = rows.get_all_trials(study_id(study))
    (second,) = rows.get_all_trials(study_id(study))
    assert not first.state.is_finished()
    assert (second.state, second.value) == (TrialState.COMPLETE, 0.5)


def test_several_objectives_keep_their_order(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    study = create_study(url, directions=["minimize", "maximize"])
    study.add_trial(create_trial(values=[2.0, -1.0]))
    assert backend_of(study).get_all_trials(study_id(study))[0].values == [2.0, -1.0]


def test_reading_does_not_wait_for_a_writer_of_sqlite(tmp_path):
    study = fill(f"sqlite:///{tmp_path}/study.db")
    reader = open_for_reading(backend_of(study))
    reader.timeout_s = 0.2
    with backend_of(study).engine.begin():  # a worker in the middle of its transaction
        assert len(reader.get_all_trials(study_id(study))) == 6
        assert reader.get_all_studies()
    trial = optuna.load_study(study_name="study", storage=reader).ask()
    assert backend_of(study).get_trial(trial_id(trial)).state == TrialState.RUNNING
