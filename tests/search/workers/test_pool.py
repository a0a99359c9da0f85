"""The supervisor's view of the state of a study."""

import pytest

from search.study.queue import retry_trials
from search.workers.pool import StudyMonitor
from tests.search.helpers import RecordingListener, open_tiny, search
from tests.search.workers.test_loop import QUICK, SIX


@pytest.fixture
def exhausted(tiny_data, tmp_path):
    """A study that has tried all six configurations of its space before its budget is spent."""
    opened = open_tiny(tiny_data, tmp_path / "s", {**SIX, "budget.trials": 9})
    assert search(opened, options=QUICK).reason == "exhausted"
    return opened


def test_a_queued_retry_is_trained_although_the_space_is_exhausted(exhausted):
    """Workers on Ray or SLURM run until the monitor finds no more trials."""
    monitor = StudyMonitor(exhausted, RecordingListener(), print)
    assert monitor.is_done()
    (number,) = retry_trials(exhausted.study, [2])
    assert not monitor.is_done()
    assert search(exhausted, options=QUICK).trials == 1
    assert exhausted.study.trials[number].state.name == "COMPLETE"
    assert monitor.is_done()
    assert monitor.stop_reason() == "exhausted"


def test_a_raised_budget_is_seen(exhausted):
    monitor = StudyMonitor(exhausted, RecordingListener(), print)
    spec = exhausted.study.user_attrs["spec"]
    exhausted.study.set_user_attr("spec", spec | {"budget": spec["budget"] | {"trials": 6}})
    assert monitor.stop_reason() == "done"
