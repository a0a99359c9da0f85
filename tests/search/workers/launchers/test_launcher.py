"""Back-off of workers that died, with a fake clock."""

from dataclasses import dataclass, replace

import pytest

from search.workers.launchers.launcher import RestartPolicy


@dataclass
class FakeClock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def policy(clock):
    return RestartPolicy(max_failures=5, longest_pause_s=4.0, steady_s=100.0, clock=clock)


def test_pauses_double_up_to_the_longest_and_end(policy, clock):
    actions = []
    while not policy.is_exhausted:
        assert policy.is_due()
        policy.record_start()
        clock.now += 1
        actions.append(policy.record_failure(finished_trials=0))
        assert not policy.is_due()
        clock.now += 4
    assert actions == [f"restarts in {n} s" for n in (1, 2, 4, 4)] + [
        "given up after 5 failures in a row"
    ]
    clock.now += 1e6
    assert not policy.is_due()


def test_pause_is_waited_for_exactly(policy, clock):
    policy.record_failure(0)
    clock.now += 0.999
    assert not policy.is_due()
    clock.now += 0.001
    assert policy.is_due()


@pytest.mark.parametrize(("ran_s", "finished", "failures"), [(99, 3, 2), (100, 3, 1), (99, 4, 1)])
def test_long_runs_and_finished_trials_reset_the_count(policy, clock, ran_s, finished, failures):
    policy.record_failure(finished_trials=3)
    policy.record_start()
    clock.now += ran_s
    policy.record_failure(finished)
    assert policy.failures == failures


def test_worker_that_never_started_is_not_steady(policy, clock):
    for _ in range(2):
        clock.now += 1000
        policy.record_failure(0)
    assert policy.failures == 2


def test_copy_shares_settings_but_no_state(policy):
    policy.record_failure(0)
    copy = replace(policy)
    assert (copy.failures, copy.is_due(), copy.max_failures) == (0, True, 5)
