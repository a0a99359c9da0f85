"""A reader against what Optuna itself reads of the same study."""

import optuna
import pytest
from optuna.trial import TrialState

from lesionseg.config import TrialConfig
from search.storage import trial_records
from search.storage.leases import TrialLeases
from search.storage.queries import SUMMARY_ATTRS, TrialReader
from search.study.creation import create_or_resume
from search.study.sampling import prepare_sampling
from tests.search.helpers import SLOT, open_tiny, queue, tiny_spec

CONFIG = {"config": TrialConfig().to_dict()}


@pytest.fixture(params=["sqlite", "postgresql"])
def opened(request, tiny_data, tmp_path):
    """A study with trials in every state, and its leases's worker."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    study = create_or_resume(tiny_spec({"budget.trials": 20}), tiny_data, tmp_path / "s", url)
    prepare_sampling(study)
    leases = TrialLeases(study.study)
    row = leases.register_worker(SLOT)
    for reason, state, value in (
        (None, TrialState.COMPLETE, 0.5),
        (None, TrialState.COMPLETE, 0.75),
        (None, TrialState.PRUNED, None),
        ("oom", TrialState.FAIL, None),
        (trial_records.EndReason.DUPLICATE, TrialState.FAIL, None),
    ):
        claim = leases.claim(row)
        leases.record_epochs(claim, {1: 0.25, 2: 0.5})
        leases.finish(claim, state, value, CONFIG | ({"reason": reason} if reason else {}))
    claim = leases.claim(row)
    leases.record_epochs(claim, {1: 0.125, 2: float("inf")})
    leases.set_trial_attrs(claim, CONFIG)
    queue(study)
    return study, leases, claim


def compare(glanced, study):
    known = trial_records.all_trials(study)
    for field in ("number", "state", "value", "datetime_start", "datetime_complete", "_trial_id"):
        assert [getattr(t, field) for t in glanced] == [getattr(t, field) for t in known]
    best = trial_records.rank_trials(known)[0].number
    for mine, whole in zip(glanced, known, strict=True):
        wanted = {k: v for k, v in whole.user_attrs.items() if k in SUMMARY_ATTRS}
        if not whole.state.is_finished():
            assert mine.intermediate_values == whole.intermediate_values
        if whole.number == best or not whole.state.is_finished():
            wanted |= {k: v for k, v in whole.user_attrs.items() if k == "config"}
        # One that was the best may still have its configuration.
        assert {k: v for k, v in mine.user_attrs.items() if k in wanted} == wanted
    assert trial_records.count_by_state(glanced) == trial_records.count_by_state(known)
    assert trial_records.count_reasons(glanced) == trial_records.count_reasons(known)
    assert trial_records.hours_spent(glanced, 3e9) == trial_records.hours_spent(known, 3e9)


def test_a_glance_sees_what_optuna_sees(opened):
    study, *_ = opened
    found = TrialReader(study.study).read()
    compare(found, study.study)
    assert [trial_records.state_of(t) for t in found] == [
        "complete", "complete", "pruned", "failed", "skipped", "running", "waiting",
    ]  # fmt: skip


def test_a_second_glance_sees_what_has_changed(opened):
    study, leases, claim = opened
    reader = TrialReader(study.study)
    before = reader.read()
    leases.record_epochs(claim, {3: 0.25})
    compare(reader.read(), study.study)
    leases.finish(claim, TrialState.COMPLETE, 0.875, {})
    queue(study, width=6)
    after = reader.read()
    compare(after, study.study)
    assert after[0] is before[0]  # what has ended is not read again
    assert reader.first_unfinished_id == after[6]._trial_id  # the first that waits


def test_studies_of_one_storage_are_told_apart(opened):
    study, *_ = opened
    other = optuna.create_study(study_name="other", storage=study.study._storage)
    other.add_trial(optuna.trial.create_trial(value=0.1))
    assert len(TrialReader(study.study).read()) == 7
    assert [t.value for t in TrialReader(other).read()] == [0.1]


def test_a_study_without_trials(tiny_data, tmp_path):
    study = open_tiny(tiny_data, tmp_path / "s").study
    reader = TrialReader(study)
    assert reader.read() == []
    assert reader.read() == []
