"""Every row of PRUNERS through real ask, report and tell: exactly who is stopped, and when."""

import pytest
from optuna.trial import TrialState

from search.pruners import PRUNERS
from tests.search.helpers import in_memory


def pruned(name, curves, *, epochs, min_epochs, startup=0, study_name="curves"):
    """(trial, epoch) of each that was stopped, when the curves are trained one after another."""
    pruner = PRUNERS[name](epochs, min_epochs, startup)
    study = in_memory(pruner=pruner, name=study_name)
    stopped = []
    for curve in curves:
        trial = study.ask()
        for epoch, dice in enumerate(curve, 1):
            trial.report(dice, epoch)
            if trial.should_prune():
                stopped.append((trial.number, epoch))
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, max(curve))
    return stopped


MEDIAN_CURVES = [
    [0.1, 0.2, 0.5, 0.6, 0.7, 0.75],
    [0.1, 0.2, 0.3, 0.4, 0.9, 0.9],
    # Below the median 0.4 of epoch 3, but not before two trials are complete.
    [0.0, 0.0, 0.1, 0.1, 0.1, 0.1],
    # Above it at epoch 3, below the median 0.5 at epoch 4.
    [0.4, 0.4, 0.45, 0.45, 0.45, 0.45],
    # Its best so far counts, not its last value; 0.85 is above the medians to the end.
    [0.0, 0.0, 0.85, 0.0, 0.0, 0.0],
    # Three are complete now: at epoch 5 their median is 0.7.
    [0.5, 0.6, 0.6, 0.6, 0.6, 0.9],
    # As good as the median at every epoch is good enough.
    [0.1, 0.2, 0.5, 0.5, 0.7, 0.8],
]


def test_median_stops_exactly_those_below_the_median_of_the_complete():
    stopped = pruned("median", MEDIAN_CURVES, epochs=6, min_epochs=3, startup=2)
    assert stopped == [(2, 3), (3, 4), (5, 5)]


def test_median_waits_for_its_startup_trials():
    curves = [[0.5] * 4, [0.1] * 4, [0.2] * 4, [0.1] * 4]
    # Until three are complete nobody is judged; then 0.1 is below the median 0.2.
    assert pruned("median", curves, epochs=4, min_epochs=1, startup=3) == [(3, 1)]
    assert pruned("median", curves, epochs=4, min_epochs=1, startup=4) == []


def test_median_judges_from_min_epochs_on():
    curves = [[0.5] * 6, [0.5] * 6, [0.1] * 6]
    for min_epochs in range(1, 7):
        stopped = pruned("median", curves, epochs=6, min_epochs=min_epochs, startup=2)
        assert stopped == [(2, min_epochs)]


def test_hyperband_passes_a_third_of_the_trials_at_each_rung():
    """Epochs below three times min_epochs leave one bracket: successive halving by hand.

    At epoch 3 a trial goes on if it is among the best third, rounded down, of those that have
    been there, itself included; while that is nobody, if it is the best.
    """
    at_rung = [0.5, 0.4, 0.6, 0.55, 0.58, 0.57, 0.59, 0.59]
    curves = [[0.1, 0.1, value, 0.7, 0.7] for value in at_rung]
    stopped = pruned("hyperband", curves, epochs=5, min_epochs=3)
    # 0.59 is the second best of 7 when it comes first, and equal to the second best of 8 then.
    assert stopped == [(1, 3), (3, 3), (4, 3), (5, 3)]


def test_hyperband_judges_again_at_three_times_as_many_epochs():
    """Two brackets, one with rungs at 2 and 6 and one with a rung at 6; trials are dealt to them
    by the study's name and their number. The second trial is the better one at epoch 2 and the
    worse at epoch 6: there it is stopped where both are in one bracket, and else never."""
    curves = [[0.5] * 5 + [0.6] * 3, [0.6] * 5 + [0.5] * 3]
    found = {
        tuple(pruned("hyperband", curves, epochs=8, min_epochs=2, study_name=f"study{i}"))
        for i in range(10)
    }
    assert found == {(), ((1, 6),)}


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("min_epochs", [1, 2, 3, 4, 8, 9])
def test_no_trial_is_stopped_before_min_epochs(name, min_epochs):
    good, bad = [0.9] * 9, [0.01] * 9
    curves = [good, good, good] + [bad, good, bad] * 8
    stopped = pruned(name, curves, epochs=9, min_epochs=min_epochs, startup=1)
    assert all(epoch >= min_epochs for _, epoch in stopped)
    # Only the bad ones go; every pruner but none finds some.
    assert all(number >= 3 and (number - 3) % 3 != 1 for number, _ in stopped)
    assert bool(stopped) == (name != "none")


def test_none_never_stops_a_trial():
    curves = [[0.9] * 5] * 5 + [[0.0] * 5] * 5
    assert pruned("none", curves, epochs=5, min_epochs=1) == []


@pytest.mark.parametrize("name", PRUNERS)
def test_a_study_of_one_epoch_is_possible(name):
    assert pruned(name, [[0.5]], epochs=1, min_epochs=1) == []


@pytest.mark.parametrize("name", PRUNERS)
def test_two_sessions_decide_as_one_would(name):
    """A pruner keeps nothing in memory: what it knows is in the study."""
    curves = [[0.1 * (i % 7)] * 9 for i in range(20)]
    whole = pruned(name, curves, epochs=9, min_epochs=1, startup=2)
    study = in_memory(name="curves")
    stopped = []
    for curve in curves:
        study.pruner = PRUNERS[name](9, 1, 2)  # anew for each
        trial = study.ask()
        for epoch, dice in enumerate(curve, 1):
            trial.report(dice, epoch)
            if trial.should_prune():
                stopped.append((trial.number, epoch))
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, max(curve))
    assert stopped == whole
