"""What a study carries for a dashboard: its note, and the notes of trials that have none."""

from __future__ import annotations

import optuna_dashboard
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects

from search.monitoring.dashboard import study_note
from search.storage.leases import TrialLeases
from tests.search.helpers import open_tiny, queue, worker_of


def told(opened):
    return opened.study._storage.get_study_system_attrs(opened.study._study_id)


def test_trials_that_a_worker_did_not_describe_are(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s")
    worker = worker_of(opened)
    worker.run_one()
    leases = TrialLeases(opened.study)
    leases.claim(leases.register_worker(worker.slot), bounded=False)
    claim = worker.claim(bounded=False)
    leases.requeue(claim, "lost")
    lacking = [t.number for t in find_trials_without_note(told(opened), opened.study.trials)]
    assert lacking == [claim.number]
    study_note.refresh(opened.study)
    assert find_trials_without_note(told(opened), opened.study.trials) == []
    text = "".join(
        v for v in group_notes(told(opened))[claim.trial_id].values() if isinstance(v, str)
    )
    assert text.startswith("**skipped**: lost")


def test_the_studys_note_is_of_its_records(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "<b>bold", {"budget.hours": 2})
    study_note.refresh(opened.study)
    empty = optuna_dashboard.get_note(opened.study)
    assert empty.startswith("# \\<b\\>bold\n")
    assert "no trial yet" in empty
    assert "Leaderboard" not in empty
    queue(opened)
    done = worker_of(opened).run_one()
    study_note.refresh(opened.study)
    text = optuna_dashboard.get_note(opened.study)
    assert f"| 1 | 0 | {done.value:.4f} | unet".replace(".", "\\.") in text
    assert f"| train images | {len(opened.split.train)} |" in text
    assert "| hours | 2\\.0 | 0\\.0" in text
    assert "| trials | 3 | 1 |" in text
    figures = get_plotly_graph_objects(told(opened))
    assert {"lesionsearch-cost", "lesionsearch-dice-seconds"} <= figures.keys()


def test_it_may_be_done_as_often_as_one_likes(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s")
    worker_of(opened).run_one()
    for _ in range(3):
        study_note.refresh(opened.study)
    version = told(opened)[version_key(None)]
    assert version == told(opened)[study_note.WRITTEN_VERSION] == 3
    assert optuna_dashboard.get_note(opened.study).count("## Leaderboard") == 1
