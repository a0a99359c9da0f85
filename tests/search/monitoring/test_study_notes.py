"""The study's note and figures, and notes of its trials."""

from __future__ import annotations

import optuna_dashboard
import pytest

from search.monitoring import notes
from search.monitoring.dashboard.dashboard_internals import read_figures, read_note
from search.storage.leases import TrialLeases
from search.storage.note_attrs import find_trials_without_note, note_attrs, version_key
from search.storage.optuna_internals import storage_of, study_id, trial_id
from search.storage.trial_records import EndReason
from tests.search.helpers import make_worker, open_tiny, queue


def read_attrs(opened):
    return storage_of(opened.study).get_study_system_attrs(study_id(opened.study))


@pytest.fixture
def opened(tiny_data, tmp_path):
    return open_tiny(tiny_data, tmp_path / "<b>bold", {"budget.hours": 2})


def test_refresh_writes_the_missing_notes_of_all_finished_trials(opened, monkeypatch):
    monkeypatch.setattr(notes, "NOTES_PER_TRANSACTION", 2)  # several transactions
    worker = make_worker(opened)
    for _ in range(3):
        worker.run_one()
    claim = worker.claim(bounded=False)
    TrialLeases(opened.study).requeue(claim, EndReason.LOST)
    assert len(find_trials_without_note(read_attrs(opened), opened.study.trials)) == 4
    edited = opened.study.trials[0]
    leases = TrialLeases(opened.study)
    leases.set_study_system_attrs(note_attrs(trial_id(edited), "edited", version=2))
    notes.refresh(opened.study)
    attrs, trials = read_attrs(opened), opened.study.trials
    assert find_trials_without_note(attrs, trials) == []
    bodies = [read_note(attrs, trial_id(t))["body"] for t in trials if t.state.is_finished()]
    assert bodies == ["edited", *map(notes.format_trial_note, trials[1:4])]


def test_note_of_a_study_follows_its_trials(opened):
    notes.refresh(opened.study)
    empty = optuna_dashboard.get_note(opened.study)
    assert empty.startswith("# \\<b\\>bold\n")
    assert "no trials yet" in empty
    assert "Leaderboard" not in empty and "encoder weights" not in empty
    queue(opened)
    trial = make_worker(opened).run_one()
    notes.refresh(opened.study)
    text = optuna_dashboard.get_note(opened.study)
    assert f"| 1 | 0 | {trial.value:.4f} | unet".replace(".", "\\.") in text
    assert f"| train images | {len(opened.split.train)} |" in text
    assert "| hours | 2\\.0 | 0\\.0" in text
    assert "| trials | 3 | 1 |" in text
    assert {"lesionsearch-cost", "lesionsearch-dice-seconds"} <= read_figures(
        read_attrs(opened)
    ).keys()


def test_note_of_a_study_names_the_encoder_weights(opened):
    spec = opened.study.user_attrs["spec"] | {"encoder_weights": {"mit_b0": "bundled"}}
    opened.study.set_user_attr("spec", spec)
    text = notes.format_study_note(opened.study, [])
    assert r"| encoder weights | ImageNet \(bundled\)\: mit\_b0 |" in text


def test_refresh_can_be_repeated_until_a_person_edits_the_note(opened):
    make_worker(opened).run_one()
    for _ in range(3):
        notes.refresh(opened.study)
    attrs = read_attrs(opened)
    assert attrs[version_key(None)] == attrs[notes.WRITTEN_VERSION] == 3
    assert optuna_dashboard.get_note(opened.study).count("## Leaderboard") == 1
    optuna_dashboard.save_note(opened.study, "edited")
    make_worker(opened).run_one()
    notes.refresh(opened.study)
    assert optuna_dashboard.get_note(opened.study) == "edited"
