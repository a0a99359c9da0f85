"""Notes as system attributes of a study, and how optuna-dashboard reads them."""

import optuna_dashboard
from optuna.trial import TrialState, create_trial

from search.monitoring.dashboard.dashboard_internals import read_note
from search.storage.note_attrs import (
    find_trials_without_note,
    group_notes,
    note_attrs,
    renumber_notes,
    split_text,
)
from search.storage.optuna_internals import storage_of, study_id, trial_id
from tests.search.helpers import in_memory


def test_optuna_dashboard_reads_notes():
    study = in_memory()
    study.add_trial(create_trial(state=TrialState.COMPLETE, value=0.5))
    id_, body = trial_id(study.trials[0]), "x" * 5000
    attrs = note_attrs(id_, body)
    storage = storage_of(study)
    for key, value in attrs.items():
        storage.set_study_system_attr(study_id(study), key, value)
    stored = storage.get_study_system_attrs(study_id(study))
    assert optuna_dashboard.get_note(study) == ""
    assert read_note(stored, id_) == {"version": 1, "body": body}
    assert group_notes(stored) == {id_: attrs}
    assert find_trials_without_note(stored, study.trials) == []


def test_unfinished_trials_need_no_note():
    study = in_memory()
    study.add_trial(create_trial(state=TrialState.COMPLETE, value=0.5))
    study.ask()
    assert [t.number for t in find_trials_without_note({}, study.trials)] == [0]


def test_parts_of_a_longer_text_become_empty():
    existing = split_text("a:", "x" * 5000)
    assert split_text("a:", "short", existing) == {"a:0": "short", "a:1": "", "a:2": ""}
    assert split_text("b:", "short", existing) == {"b:0": "short"}


def test_notes_are_renumbered_and_notes_of_other_trials_are_dropped():
    attrs = {**note_attrs(1, "one"), **note_attrs(2, "two"), **note_attrs(8, "eight"), "other": 1}
    attrs |= note_attrs(None, "the study")
    assert renumber_notes(attrs, {1: 2, 2: 1}) == {
        **note_attrs(2, "one"), **note_attrs(1, "two"), **note_attrs(None, "the study"), "other": 1
    }  # fmt: skip
