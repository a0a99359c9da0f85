"""Trials read as plain rows are those that Optuna reads."""

import math

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from lesionseg.config import TrialConfig
from search.storage import queries, training_time, trial_records
from search.storage.database import open_storage, storage_url
from search.storage.leases import TrialLeases
from search.storage.optuna_internals import storage_of, study_id, trial_id
from search.storage.queries import SUMMARY_ATTRS, RowStorage, TrialReader
from search.storage.retrying_storage import backend_of
from search.storage.trial_records import EndReason, TrialAttr
from search.trial_process.slot import Slot

CONFIG = {TrialAttr.CONFIG: TrialConfig().to_dict()}
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


# --- summaries ---------------------------------------------------------------------------------


@pytest.fixture
def study(url):
    """A study with trials in every state."""
    study = create_study(url)
    study.set_user_attr("spec", {"budget": {"trials": 20}})
    leases = TrialLeases(study)
    worker = leases.register_worker(Slot("cpu", 1))
    for reason, state, value in (
        (None, TrialState.COMPLETE, 0.5),
        (None, TrialState.COMPLETE, 0.75),
        (None, TrialState.PRUNED, None),
        (EndReason.OOM, TrialState.FAIL, None),
        (EndReason.DUPLICATE, TrialState.FAIL, None),
    ):
        claim = leases.claim(worker)
        leases.record_epochs(claim, {1: 0.25, 2: 0.5})
        leases.finish(claim, state, value, CONFIG | ({TrialAttr.REASON: reason} if reason else {}))
    claim = leases.claim(worker)
    leases.record_epochs(claim, {1: 0.125, 2: math.inf})
    leases.set_trial_attrs(claim, CONFIG)
    leases.enqueue([({"lr": 0.1}, {})])
    return study


def check_summaries(summaries, study):
    trials = trial_records.all_trials(study)
    for field in ("number", "state", "value", "datetime_start", "datetime_complete", "_trial_id"):
        assert [getattr(t, field) for t in summaries] == [getattr(t, field) for t in trials]
    best = trial_records.rank_trials(trials)[0].number
    for summary, trial in zip(summaries, trials, strict=True):
        keys = set(SUMMARY_ATTRS)
        if not trial.state.is_finished():
            assert summary.intermediate_values == trial.intermediate_values
        if trial.number == best or not trial.state.is_finished():
            keys.add(TrialAttr.CONFIG)
        expected = {k: v for k, v in trial.user_attrs.items() if k in keys}
        # A trial that was the best may still have its configuration.
        assert {k: v for k, v in summary.user_attrs.items() if k in expected} == expected
    assert trial_records.count_by_state(summaries) == trial_records.count_by_state(trials)
    assert trial_records.count_reasons(summaries) == trial_records.count_reasons(trials)
    assert training_time.hours_spent(summaries, 3e9) == training_time.hours_spent(trials, 3e9)


def test_summaries_agree_with_optunas_trials(study):
    summaries = TrialReader(study).read()
    check_summaries(summaries, study)
    assert [trial_records.state_of(t) for t in summaries] == [
        "complete", "complete", "pruned", "failed", "skipped", "running", "waiting",
    ]  # fmt: skip


def test_changes_are_read_and_finished_trials_are_not_read_again(study):
    reader, leases = TrialReader(study), TrialLeases(study)
    before = reader.read()
    (worker,) = leases.list_workers()
    claim = leases.claim(worker)
    leases.record_epochs(claim, {3: 0.25})
    check_summaries(reader.read(), study)
    leases.finish(claim, TrialState.COMPLETE, 0.875, {})
    leases.enqueue([({"lr": 0.2}, {})])
    after = reader.read()
    check_summaries(after, study)
    assert after[0] is before[0]
    assert reader.first_unfinished_id == trial_id(after[6])


def test_other_studies_in_the_storage_are_not_read(study):
    other = optuna.create_study(study_name="other", storage=storage_of(study))
    other.add_trial(create_trial(value=0.1))
    assert len(TrialReader(study).read()) == 7
    assert [t.value for t in TrialReader(other).read()] == [0.1]


def test_a_study_without_trials_has_no_summaries(tmp_path):
    reader = TrialReader(create_study(f"sqlite:///{tmp_path}/study.db"))
    assert [reader.read(), reader.read()] == [[], []]


# --- complete trials ---------------------------------------------------------------------------


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
    study = fill(url)
    return backend_of(study), RowStorage.for_reading(backend_of(study)), study_id(study)


def test_rows_give_every_field_of_every_trial(filled):
    storage, rows, study = filled
    assert comparable(rows.get_all_trials(study)) == comparable(storage.get_all_trials(study))
    assert rows.get_n_trials(study) == 6


@pytest.mark.parametrize("max_ids", [queries.MAX_IDS, 1])
def test_rows_give_the_same_selections(filled, max_ids, monkeypatch):
    monkeypatch.setattr(queries, "MAX_IDS", max_ids)
    storage, rows, study = filled
    ids = [trial_id(t) for t in storage.get_all_trials(study)]
    for selection in (
        (study, None, {ids[0], ids[2]}, ids[3]),
        (study, None, set(), ids[3]),
        (study, None, {ids[1]}, ids[-1]),
        (study, (TrialState.COMPLETE,), set(), -1),
    ):
        expected = comparable(storage.read_trials(*selection))
        assert comparable(rows.read_trials(*selection)) == expected


def test_single_reads_and_writes_work_as_in_any_storage(filled):
    storage, rows, _ = filled
    study = optuna.load_study(study_name="study", storage=rows)
    trial = study.ask()
    trial.set_user_attr("a", 1)
    study.tell(trial, 0.25)
    assert storage.get_trial(trial_id(trial)).value == 0.25
    assert study.trials[-1].user_attrs == {"a": 1}


def test_several_objectives_keep_their_order(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    study = create_study(url, directions=["minimize", "maximize"])
    study.add_trial(create_trial(values=[2.0, -1.0]))
    rows = RowStorage.for_reading(backend_of(study))
    assert rows.get_all_trials(study_id(study))[0].values == [2.0, -1.0]


def test_reading_does_not_wait_for_a_writer_of_sqlite(tmp_path):
    study = fill(f"sqlite:///{tmp_path}/study.db")
    rows = RowStorage.for_reading(backend_of(study))
    rows.timeout_s = 0.2
    with backend_of(study).engine.begin():  # a worker in the middle of its transaction
        assert len(rows.get_all_trials(study_id(study))) == 6
        assert rows.get_all_studies()
