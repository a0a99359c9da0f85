"""Studies under random faults, and tests of the harness with injected defects."""

import random
import re
import subprocess
import sys
from collections import Counter
from contextlib import suppress

import pytest

from bench.faults.__main__ import describe_failure, shrink_schedule
from bench.faults.kinds import KINDS, Storage
from bench.faults.run import Site, run_schedule
from bench.faults.schedule import LONG, Fault, Schedule, Shape, draw
from bench.faults.shrink import shrink
from tests.conftest import IN_CI, ROOT, _lacking
from tests.postgres import binaries

pytestmark = pytest.mark.alone

SMALL = Shape(trials=6, grace_s=1.5, epoch_s="0.1 0.2", window_s=1)


@pytest.fixture(scope="module")
def site():
    with Site() as site:
        yield site


def draw_possible(site, seed, storage, shape):
    """Return a schedule without the kinds of faults that cannot be injected on this host."""
    if storage == Storage.POSTGRESQL and binaries() is None:
        _lacking("no initdb; install PostgreSQL's server")
    return draw(seed, shape, storage).without(site.lacking())


# --- the program ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_studies_under_random_faults(site):
    if binaries() is None:
        _lacking("no initdb; install PostgreSQL's server")
    assert not IN_CI or site.lacking() == {}
    command = [sys.executable, "-m", "bench.faults", "--seeds", "0:10", "--jobs", "3"]
    done = subprocess.run([*command, "--no-shrink"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall("^seed .*complete", done.stdout, re.MULTILINE)) == 10


@pytest.mark.long
@pytest.mark.parametrize("storage", Storage)
def test_long_study_under_random_faults(site, storage):
    outcome = run_schedule(site, draw_possible(site, 0, storage, LONG))
    assert outcome.violations == [], f"{outcome.schedule}\n{outcome.logs}"
    assert sum(outcome.applied.values()) > 40


# --- the schedules -------------------------------------------------------------------------------


def test_a_seed_determines_the_schedule():
    schedules = [draw(seed) for seed in range(200)]
    assert schedules == [draw(seed) for seed in range(200)]
    assert len({schedule.faults for schedule in schedules}) == 200
    assert [s.storage for s in schedules[:2]] == [Storage.SQLITE, Storage.POSTGRESQL]
    drawn = Counter((s.storage, fault.kind) for s in schedules for fault in s.faults)
    possible = {(storage, name) for name, kind in KINDS.items() for storage in kind.storages}
    assert set(drawn) == possible
    assert min(drawn.values()) >= 5
    for schedule in schedules:
        kinds = [KINDS[fault.kind] for fault in schedule.faults]
        assert sum(kind.loses for kind in kinds) <= Shape().most_losses
        assert 3 <= len(kinds) <= 7


@pytest.mark.parametrize("needed", [[], [4], [0, 9], [2, 3, 7], list(range(10))])
def test_shrinking_finds_the_items_that_a_failure_needs(needed):
    tried = []

    def fails(part: list[int]) -> bool:
        tried.append(tuple(part))
        return set(needed) <= set(part)

    assert shrink(range(10), fails) == needed
    assert len(tried) == len(set(tried)) <= 60


@pytest.mark.parametrize("seed", range(20))
def test_no_single_item_of_a_shrunk_list_can_be_left_out(seed):
    """The list fails if it contains one of three sets."""
    rng = random.Random(seed)
    failing = [set(rng.sample(range(8), rng.randint(1, 3))) for _ in range(3)]

    def fails(part: list[int]) -> bool:
        return any(each <= set(part) for each in failing)

    shrunk = shrink(range(8), fails)
    assert fails(shrunk)
    assert not any(fails([x for x in shrunk if x != each]) for each in shrunk)


# --- the checks: injected defects are found -------------------------------------------------


def spend_twice() -> None:
    """Let workers claim trials beyond the budget."""
    from search.workers.worker import Worker

    claim = Worker.claim

    def unbounded(self, *, bounded=True, fresh=True):
        found = claim(self, bounded=True, fresh=fresh)
        return found if found == "spent" else claim(self, bounded=False, fresh=fresh)

    Worker.claim = unbounded


def forget_lost_trials() -> None:
    """Close the trials of dead workers without queueing them again."""
    from search.storage.study_rows import StudyRows

    def requeue(self, trial, reason, ended_at):
        self.set_trial_attrs(trial.trial_id, {"reason": reason, "ended_at": ended_at})
        self.close_trial(trial, trial.state.FAIL)

    StudyRows.requeue = requeue


def ignore_lost_leases() -> None:
    """Let a worker that lost its lease continue to write."""
    from search.storage.leases import TrialLeases
    from search.storage.retrying_storage import RetryingStorage
    from search.workers.trial_progress import FoldProgress

    heartbeat = TrialLeases.heartbeat
    TrialLeases.heartbeat = lambda self, *args: (heartbeat(self, *args)[0], True)
    RetryingStorage.check_trial_is_updatable = lambda self, *args: None
    write_history = FoldProgress.write_history

    def write_if_possible(self, current):
        with suppress(FileNotFoundError):  # the next worker has deleted the folder
            write_history(self, current)

    FoldProgress.write_history = write_if_possible


@pytest.mark.slow
def test_exceeded_budget_is_found(site):
    schedule = Schedule(0, Storage.SQLITE, SMALL, ())
    violations = run_schedule(site, schedule, f"{__name__}:spend_twice").violations
    assert any("trials ended; the budget is 6" in line for line in violations)
    assert any("counted against the budget of 6 at one time" in line for line in violations)


@pytest.mark.slow
def test_writes_without_a_lease_are_found(site):
    stopped = Fault(0.0, "worker stopped for long", 2 * SMALL.grace_s, 1)
    schedule = Schedule(0, Storage.SQLITE, SMALL, (stopped,))
    violations = run_schedule(site, schedule, f"{__name__}:ignore_lost_leases").violations
    assert any("a write without a lease" in line for line in violations)


@pytest.mark.slow
def test_lost_trial_is_found_and_the_schedule_shrunk(site):
    kinds = ["database file copied", "worker killed", "training stopped"]
    faults = tuple(Fault(0.3 * i, kind, 0.3, i) for i, kind in enumerate(kinds))
    schedule = Schedule(7, Storage.SQLITE, SMALL, faults)
    setup = f"{__name__}:forget_lost_trials"
    violations = run_schedule(site, schedule, setup).violations
    assert any("was lost: [(" in line for line in violations)
    minimal = shrink_schedule(site, schedule, setup, repeats=1)
    assert [fault.kind for fault in minimal.faults] == ["worker killed"]
    text = describe_failure(schedule, minimal, violations)
    assert "needs 1 of 3 faults:\n  worker killed after 0.3 s" in text
    assert text.endswith("python -m bench.faults --seed 7 --storage sqlite --only 1")
