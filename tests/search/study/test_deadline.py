"""The clock of a job, and the end of its search."""

import time

import pytest
from optuna.trial import TrialState

from search.storage import trial_records
from search.storage.trial_records import StudyAttr
from search.study import deadline, forecast
from search.study.deadline import (
    JobClock,
    elapsed_s,
    final_work,
    has_time_for_trial,
    is_job_running,
    is_search_over,
    remaining_s,
)
from search.trial_process.slot import Slot
from tests.search.helpers import open_tiny
from tests.search.study.trials import finished_trial


@pytest.fixture
def opened(tiny_data, tmp_path):
    changes = {"budget.total_hours": 1.0, "final": {"epochs": 10, "image_size": 32}}
    return open_tiny(tiny_data, tmp_path / "study", changes)


def trained(number, start, end, value=0.5, **attrs):
    """Return a trial between two times of the study's training."""
    times = {"training_start_s": float(start), "training_end_s": float(end)}
    state = TrialState.PRUNED if value is None else TrialState.COMPLETE
    return finished_trial(number, value, {**times, **attrs}, state)


def set_clock(opened, **clock):
    opened.study.set_user_attr(StudyAttr.CLOCK, clock)


def test_without_total_hours_there_is_no_limit_and_no_clock(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "study")
    with JobClock(opened, time.monotonic()):
        assert StudyAttr.CLOCK not in opened.study.user_attrs
    assert remaining_s(opened) is None
    assert has_time_for_trial(opened, [])
    assert not is_search_over(opened, [])


def test_a_study_without_a_clock_has_taken_its_training_time(opened):
    trials = [trained(0, 0, 100), trained(1, 50, 130)]
    assert elapsed_s(opened.study, trials) == pytest.approx(130)
    assert remaining_s(opened) == pytest.approx(3600)


def test_training_after_the_clock_was_recorded_counts(opened):
    trials = [trained(0, 0, 100)]
    set_clock(opened, seconds=160.0, training_s=90.0, at=None)
    assert elapsed_s(opened.study, trials) == pytest.approx(170)
    # Of an open session, the time since the record; of one that was killed, one period.
    set_clock(opened, seconds=160.0, training_s=100.0, at=time.time() - 3)
    assert elapsed_s(opened.study, trials) == pytest.approx(163, abs=1)
    assert is_job_running(opened.study)
    set_clock(opened, seconds=160.0, training_s=100.0, at=time.time() - 9999)
    assert elapsed_s(opened.study, trials) == pytest.approx(160 + deadline.RECORD_S)
    assert not is_job_running(opened.study)


def test_sessions_add_up_without_the_time_between_them(opened):
    with JobClock(opened, time.monotonic() - 100, slots=3 * [Slot("cpu")]):
        assert remaining_s(opened) == pytest.approx(3500, abs=2)
        assert is_job_running(opened.study)
        assert final_work(opened).slots == 3 and final_work(opened).is_cpu
        assert final_work(opened).reading_s > 0
    assert not is_job_running(opened.study)
    with JobClock(opened, time.monotonic() - 50):
        assert remaining_s(opened) == pytest.approx(3450, abs=2)
    assert remaining_s(opened) == pytest.approx(3450, abs=2)


def test_the_clock_is_recorded_while_the_job_runs(opened, monkeypatch):
    monkeypatch.setattr(deadline, "RECORD_S", 0.05)
    with JobClock(opened, time.monotonic()):
        first = opened.study.user_attrs[StudyAttr.CLOCK]["seconds"]
        end = time.monotonic() + 30
        while opened.study.user_attrs[StudyAttr.CLOCK]["seconds"] == first:
            assert time.monotonic() < end
            time.sleep(0.02)


def test_the_search_ends_where_the_final_must_begin(opened, monkeypatch):
    for name in ("START_S", "EPOCH_S", "REPORT_S", "POSTPROCESS_PIXEL_S", "SCORE_S"):
        monkeypatch.setattr(forecast, name, 0.0)
    monkeypatch.setattr(forecast, "VAL_COST", 0.0)
    train = len(opened.split.train)
    # Two epochs in 100 s at 16 px: 10 epochs at 32 px take 500 s times 3.48. 1859 s are left for
    # the search, and another trial takes 100 s.
    trial = trained(0, 0, 100, seconds=100.0, epochs=2)
    assert final_work(opened).fit == train
    cases = [(0, False, True), (1800, False, True), (1820, False, False), (1870, True, False)]
    for used, is_over, has_time in cases:
        set_clock(opened, seconds=float(used), training_s=100.0, at=None)
        assert is_search_over(opened, [trial]) is is_over, used
        assert has_time_for_trial(opened, [trial]) is has_time, used
    # Without a complete trial there is nothing to test: the search may take all.
    pruned = trained(1, 0, 100, None, seconds=100.0, epochs=2)
    set_clock(opened, seconds=3500.0, training_s=100.0, at=None)
    assert not is_search_over(opened, [pruned])
    set_clock(opened, seconds=3600.0, training_s=100.0, at=None)
    assert is_search_over(opened, [pruned])
    assert trial_records.rank_trials([pruned]) == []


def test_the_search_has_a_fifth_of_the_time_whatever_the_final_takes(opened):
    slow = trained(0, 0, 100, seconds=1000.0, epochs=2)
    for used, is_over in ((700, False), (740, True)):
        set_clock(opened, seconds=float(used), training_s=100.0, at=None)
        assert is_search_over(opened, [slow]) is is_over
