"""Changes of the wall clock during a study cost no trial, no lease and no budgeted time."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from search.monitoring.status import StatusReader
from search.storage import trial_records
from search.storage.lease_types import GRACE_VARIABLE
from search.study.creation import create_or_resume
from search.study.location import StudyLocation
from tests.conftest import _lacking
from tests.search import stub_training
from tests.search.helpers import LONG_WAIT_S, tiny_spec, wait_until
from tests.search.worker_processes import WorkerProcesses

DAY_S = 24 * 3600


@pytest.fixture
def clock(tmp_path, monkeypatch):
    """A file that holds the difference of the clock of child processes from the true one."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        _lacking("no libfaketime; install the package faketime")
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(tmp_path / "clock"))
    monkeypatch.setenv("FAKETIME_CACHE_DURATION", "1")
    monkeypatch.setenv("DONT_FAKE_MONOTONIC", "1")
    (tmp_path / "clock").write_text("+0\n")
    return tmp_path / "clock"


@pytest.mark.slow
def test_steps_of_the_clock_cost_nothing(clock, tiny_data, tmp_path):
    spec = tiny_spec({"budget.trials": 6, "budget.epochs": 20, "budget.hours": 0.5})
    opened = create_or_resume(spec, tiny_data, tmp_path / "s")
    environment = {stub_training.SECONDS: "0.15 0.15", GRACE_VARIABLE: "4"}

    def heartbeats() -> list[float]:
        with closing(sqlite3.connect(tmp_path / "s" / "study.db", timeout=60)) as database:
            query = "SELECT heartbeat_at FROM lesionsearch_workers ORDER BY ordinal"
            return [row[0] for row in database.execute(query)]

    def moved(before: list[float]) -> bool:
        pairs = zip(heartbeats(), before, strict=True)
        return all(abs(new - old) > DAY_S / 2 for new, old in pairs)

    def has_ended() -> int:
        ended.update(processes.ended())
        return len(ended)

    ended: dict[int, int] = {}
    with WorkerProcesses() as processes:
        for _ in range(2):
            location = StudyLocation("s", tmp_path / "s")
            processes.start(location, tmp_path / "log", environment)
        # Until a trial is complete, the time budget does not end the study.
        assert wait_until(lambda: trial_records.rank_trials(opened.study.get_trials()), LONG_WAIT_S)
        for offset in (DAY_S, -DAY_S):
            clock.write_text(f"{offset:+}\n")
            before = heartbeats()
            # Both workers use the changed clock.
            assert wait_until(lambda before=before: has_ended() or moved(before), LONG_WAIT_S)
        assert wait_until(lambda: has_ended() == 2, LONG_WAIT_S)
    assert set(ended.values()) == {0}, (tmp_path / "log").read_text()
    trials = trial_records.all_trials(opened.study)
    assert [trial_records.state_of(trial) for trial in trials] == ["complete"] * 6
    assert 0 < StatusReader(tmp_path / "s").read().hours < 0.1
