"""All pruners with ask, report and tell: which trials are stopped, and when."""

import math
import pickle
import warnings
from collections import Counter

import numpy as np
import optuna
import pytest
from optuna.pruners import HyperbandPruner
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from search.storage import trial_records
from search.study.pruners import PRUNERS, Halving, Hyperband
from search.study.samplers import SAMPLERS
from tests.search.helpers import find_pruned, in_memory


def pruned(name, curves, *, epochs, min_epochs, startup=0, study_name="curves"):
    """Return trial and epoch of each stopped trial, for trials that run in sequence."""
    pruner = PRUNERS[name](epochs, min_epochs, startup)
    return find_pruned(pruner, [dict(enumerate(c, 1)) for c in curves], study_name)


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


def test_median_stops_trials_below_the_median():
    stopped = pruned("median", MEDIAN_CURVES, epochs=6, min_epochs=3, startup=2)
    assert stopped == [(2, 3), (3, 4), (5, 5)]


def test_median_needs_its_startup_trials():
    curves = [[0.5] * 4, [0.1] * 4, [0.2] * 4, [0.1] * 4]
    # Until three are complete nobody is judged; then 0.1 is below the median 0.2.
    assert pruned("median", curves, epochs=4, min_epochs=1, startup=3) == [(3, 1)]
    assert pruned("median", curves, epochs=4, min_epochs=1, startup=4) == []


def test_median_starts_at_min_epochs():
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


def test_hyperband_with_two_brackets():
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


def find_study_name(pairs):
    """Return a name with which the second trial of each of the first pairs is deferred."""
    names = (f"curves{i}" for i in range(1000))
    return next(n for n in names if all(Halving.is_deferred(n, 2 * k + 1) for k in range(pairs)))


#: Epochs below eight and min_epochs 1 leave rungs at 1, 2, 4 and 8.
HALVING_CURVES = [
    [0.1] * 9,  # alone it passes everything
    # An odd number is judged from the third rung on: at epoch 4 it is the worse of two.
    [0.0, 0.0, 0.0, 0.05, 0.9, 0.9, 0.9, 0.9, 0.9],
    # Below one of three: of three, one passes.
    [0.05] * 9,
    # A slow starter with an odd number lives to be the best.
    [0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6],
    # Its best so far counts, not its last value: it passes the rung at 2, and that at 4 as the
    # second of four, and is the second of three at 8.
    [0.2, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.9],
    # As good as another: nobody is better, and it passes.
    [0.2, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.7],
]


def test_halving_passes_the_better_half_at_each_rung():
    name = find_study_name(3)
    stopped = pruned("halving", HALVING_CURVES, epochs=9, min_epochs=1, study_name=name)
    assert stopped == [(1, 4), (2, 1), (4, 8)]


def test_one_of_every_two_trials_is_deferred():
    deferred = [[Halving.is_deferred(name, n) for n in range(400)] for name in "abc"]
    assert all(a != b for each in deferred for a, b in zip(each[::2], each[1::2], strict=True))
    # A fair lot gives 70 to 130 of 200 in all but one of 50,000 names.
    assert all(70 < sum(each[1::2]) < 130 for each in deferred)
    assert deferred[0] != deferred[1] != deferred[2]


def test_deferral_is_independent_of_a_sobol_sequence():
    study = in_memory(SAMPLERS["qmc"](0, 0), "sobol")
    where = Counter()
    for _ in range(128):
        trial = study.ask()
        high = [trial.suggest_float(name, 0, 1) > 0.5 for name in "xyz"]
        deferred = Halving.is_deferred("sobol", trial.number)
        where.update((i, side, deferred) for i, side in enumerate(high))
        study.tell(trial, 0.5)
    assert all(where[i, side, True] >= 16 for i in range(3) for side in (False, True))


def test_a_requeued_trial_stays_deferred():
    name = find_study_name(2)
    study = in_memory(pruner=PRUNERS["halving"](9, 1, 0), name=name)
    first = study.ask()
    first.report(0.9, 1)
    study.tell(first, 0.9)
    for number, of, stopped_at in ((1, None, None), (2, 1, None), (3, 0, 1)):
        trial = study.ask()
        if of is not None:
            trial.set_user_attr(trial_records.TrialAttr.REQUEUED_FROM, of)
        trial.report(0.1, 1)
        assert (trial.number, trial.should_prune()) == (number, stopped_at == 1)
        trial.set_user_attr("reason", trial_records.EndReason.LOST)
        study.tell(trial, state=TrialState.FAIL)


def test_hyperband_uses_earlier_values_of_a_requeued_trial():
    """Epochs 1 to 7 are done elsewhere; a rival at rung 3 competes with the value there."""
    study = in_memory(pruner=PRUNERS["hyperband"](9, 1, 0), name="resumed")
    numbers = [n for n in range(1, 50) if study.pruner.bracket_of("resumed", n) == 0]
    trial = study.ask()
    trial.set_user_attr(trial_records.TrialAttr.REQUEUED_FROM, numbers[0])
    for epoch, value in enumerate([0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8], 1):
        trial.report(value, epoch)
    rival = study.ask()
    rival.set_user_attr(trial_records.TrialAttr.REQUEUED_FROM, numbers[1])
    rival.report(0.4, 3)
    assert rival.should_prune()
    trial.report(0.9, 9)
    assert not trial.should_prune()


def test_hyperband_ignores_interrupted_trials():
    study = in_memory(pruner=PRUNERS["hyperband"](2, 1, 0), name="ghosts")
    for reason in (trial_records.EndReason.LOST, trial_records.EndReason.INTERRUPTED, None):
        trial = study.ask()
        trial.report(0.9 if reason else 0.5, 1)
        assert not trial.should_prune()  # 0.5 is alone
        if reason:
            trial.set_user_attr("reason", reason)
        study.tell(trial, state=TrialState.FAIL if reason else TrialState.PRUNED)


def test_halving_judges_deferred_trials_at_a_late_rung():
    good, bad = [0.9] * 12, [0.1] * 12
    rounds = [good, good, bad, bad]
    for min_epochs, late in ((1, 4), (2, 8), (3, 12), (5, 10), (7, 7)):
        stopped = pruned(
            "halving", rounds, epochs=12, min_epochs=min_epochs, study_name=find_study_name(2)
        )
        assert stopped == [(2, min_epochs), (3, late)]


def test_halving_ignores_interrupted_trials():
    study = in_memory(pruner=PRUNERS["halving"](4, 1, 0), name=find_study_name(3))
    told = [
        (0.9, None),
        (0.1, trial_records.EndReason.LOST),
        (0.1, trial_records.EndReason.INTERRUPTED),
        (0.1, trial_records.EndReason.LOST),
    ]
    for value, reason in told:
        trial = study.ask()
        trial.report(value, 1)
        if reason:
            trial.set_user_attr("reason", reason)
        study.tell(trial, None if reason else value, TrialState.FAIL if reason else None)
    last = study.ask()
    last.report(0.5, 1)
    # The worse of two. Beside the three that were cut off it would be the second of five.
    assert last.should_prune()


def test_halving_stops_trials_with_nan_only():
    nan = float("nan")
    curves = [[nan, 0.5, 0.5], [0.4] * 3, [0.1, nan, 0.5], [nan] * 3]
    # The first rung finds no number in the first; the third is second to 0.4 there.
    name = find_study_name(2)
    stopped = pruned("halving", curves, epochs=3, min_epochs=1, study_name=name)
    assert stopped == [(0, 1), (2, 1), (3, 2)]
    assert pruned("halving", [curves[1], curves[1], curves[2]], epochs=2, min_epochs=2) == [(2, 2)]


def test_none_never_stops_a_trial():
    curves = [[0.9] * 5] * 5 + [[0.0] * 5] * 5
    assert pruned("none", curves, epochs=5, min_epochs=1) == []


@pytest.mark.parametrize("name", PRUNERS)
def test_one_epoch(name):
    assert pruned(name, [[0.5]], epochs=1, min_epochs=1) == []


@pytest.mark.parametrize("name", PRUNERS)
def test_pruners_have_no_state(name):
    """All information of a pruner is in the study."""
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


def hyperband_of_optuna(epochs, min_epochs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return HyperbandPruner(min_resource=min_epochs, max_resource=epochs, reduction_factor=3)


def decisions(pruner, seed, *, trials=60, epochs=30):
    """Return every decision in a study of random curves.

    Four trials run at a time and report in any order; some values are NaN and some trials fail.
    """
    rng = np.random.default_rng(seed)
    study = in_memory(pruner=pruner, name=f"study{seed}")
    stops, running, left = [], {}, trials
    while left or running:
        while left and len(running) < 4:
            running[study.ask()], left = 0, left - 1
        trial = list(running)[int(rng.integers(len(running)))]
        running[trial] += 1
        epoch = running[trial]
        value = math.nan if rng.random() < 0.01 else round(float(rng.normal(0.5, 0.2)), 1)
        trial.report(value, epoch)
        stop = trial.should_prune()
        stops.append((trial.number, epoch, stop))
        if stop:
            study.tell(trial, state=TrialState.PRUNED)
            del running[trial]
        elif epoch >= epochs:
            failed = rng.random() < 0.1
            study.tell(trial, None if failed else 0.5, TrialState.FAIL if failed else None)
            del running[trial]
    return stops


@pytest.mark.parametrize("min_epochs", [1, 2, 5])
def test_decisions_equal_optunas(min_epochs):
    for seed in range(3):
        ours = decisions(PRUNERS["hyperband"](30, min_epochs, 3), seed)
        theirs = decisions(hyperband_of_optuna(30, min_epochs), seed)
        assert ours == theirs
    assert 0 < sum(stop for *_, stop in ours) < len(ours)


@pytest.mark.parametrize(
    ("epochs", "min_epochs"), [(1, 1), (2, 1), (3, 1), (8, 3), (9, 1), (60, 5), (243, 1), (4, 5)]
)
def test_brackets_equal_optunas(epochs, min_epochs):
    ours, own = Hyperband(min_epochs, epochs), hyperband_of_optuna(epochs, min_epochs)
    study = in_memory(name="dealt")
    own._try_initialization(study)
    assert ours.shares == own._trial_allocation_budgets
    for number in range(100 if ours.shares else 0):
        trial = optuna.trial.create_trial(value=0.0)
        trial.number = number
        assert ours.bracket_of("dealt", number) == own._get_bracket_id(study, trial)


class CountingStorage(InMemoryStorage):
    """An in-memory storage that counts reads."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def get_all_trials(self, *args, **kwargs):
        self.asked.append("all")
        return super().get_all_trials(*args, **kwargs)

    def get_trial_system_attrs(self, trial_id):
        self.asked.append("one")
        return super().get_trial_system_attrs(trial_id)


def reads(name, epochs, min_epochs, study_name="s"):
    """Return what is read at each epoch of a trial that is never stopped."""
    storage = CountingStorage()
    study = optuna.create_study(
        storage=storage, study_name=study_name, pruner=PRUNERS[name](epochs, min_epochs, 0)
    )
    trial, found = study.ask(), []
    for epoch in range(1, epochs + 1):
        storage.asked.clear()
        trial.report(0.5, epoch)
        assert not trial.should_prune()
        found.append(list(storage.asked))
    return trial.number, found


def test_hyperband_reads_the_trials_at_rungs_only():
    number, found = reads("hyperband", 20, 2)
    first = 2 * 3 ** Hyperband(2, 20).bracket_of("s", number)
    rungs = [first * 3**k for k in range(3)]
    assert [i + 1 for i, read in enumerate(found) if read] == [r for r in rungs if r <= 20]


def test_halving_reads_the_trials_at_rungs_only():
    _, found = reads("halving", 9, 2, find_study_name(1))
    assert [i + 1 for i, asked in enumerate(found) if asked] == [2, 4, 8]


def test_hyperband_without_a_report():
    study = in_memory(pruner=PRUNERS["hyperband"](9, 1, 0))
    assert not study.ask().should_prune()


@pytest.mark.parametrize("name", PRUNERS)
def test_pruners_can_be_pickled(name):
    sent = pickle.loads(pickle.dumps(PRUNERS[name](9, 1, 0)))
    assert type(sent) is type(PRUNERS[name](9, 1, 0))
