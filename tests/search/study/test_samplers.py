"""Every row of SAMPLERS through real ask, report and tell."""

import warnings

import numpy as np
import optuna
import pytest
from optuna.pruners import HyperbandPruner
from optuna.samplers import TPESampler
from optuna.samplers._tpe.sampler import default_gamma
from optuna.trial import TrialState

from search.storage import trial_records
from search.study.pruners import PRUNERS
from search.study.samplers import MAX_MODELLED, SAMPLERS, BoundedTPE
from search.study.suggest import suggest
from tests.search.helpers import in_memory
from tests.search.spec.test_search_space import parse

#: Conditional parameters, and finite, so that a grid can list it: 3 x 5 + 2 = 17, x 2 losses.
SPACE, _ = parse(
    {
        "model": {"unet": {"width": [4, 8], "depth": [1, 3]}, "segnet": {"width": [4, 5]}},
        "loss": ["bce", "dice"],
    }
)
#: The same with real numbers.
REAL, _ = parse(
    {"model": ["unet", "segnet"], "loss": ["bce", "focal"], "optimizer": ["adam", "adamw", "sgd"]}
)


def value_of(trial) -> float:
    """A made-up Dice that depends on what was drawn."""
    return 1 / (1 + trial.params.get("model.unet.width", 9)) + 0.1 * (trial.params["loss"] == "bce")


def proposals(name, seed, n, space=SPACE, startup=4):
    study = in_memory(SAMPLERS[name](seed, startup))
    drawn = []
    for _ in range(n):
        trial = study.ask()
        drawn.append(suggest(trial, space).digest())
        trial.report(0.1, 1)
        if trial.number % 5 == 4:  # samplers look at every state
            study.tell(trial, state=TrialState.FAIL)
        elif trial.number % 4 == 3:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, value_of(trial))
    return drawn


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_seed_proposes_the_same_and_another_seed_another(name):
    first = proposals(name, 1, 16)
    assert proposals(name, 1, 16) == first
    assert proposals(name, 2, 16) != first


@pytest.mark.parametrize("name", [n for n in SAMPLERS if n != "grid"])
def test_real_ranges_and_conditional_parameters_are_proposed_without_a_repetition(name):
    drawn = proposals(name, 1, 24, REAL)
    assert len(set(drawn)) == len(drawn)
    assert proposals(name, 1, 24, REAL) == drawn


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_largest_seed_is_taken(name):
    assert proposals(name, 2**31 - 1, 2)


def test_tpe_draws_at_random_until_it_has_its_startup_trials():
    """Without a finished trial to learn from, TPE is random search: what it is told is nothing."""
    told = []
    for value in (0.0, 1.0):
        study = in_memory(SAMPLERS["tpe"](3, 8))
        drawn = []
        for i in range(8):
            trial = study.ask()
            drawn.append(suggest(trial, REAL).digest())
            study.tell(trial, value if i % 2 else 1 - value)
        told.append(drawn)
    assert told[0] == told[1]


def test_tpe_learns_which_option_and_which_value_is_good():
    study = in_memory(SAMPLERS["tpe"](0, 8))
    for _ in range(60):
        trial = study.ask()
        suggest(trial, REAL)
        lr = trial.params.get("optimizer.sgd.lr")
        study.tell(trial, 0.1 if lr is None else 0.5 + (lr > 0.1))
    late = [t.params for t in study.trials[30:]]
    assert sum(p["optimizer"] == "sgd" for p in late) > 20  # a third at random
    lrs = [p["optimizer.sgd.lr"] for p in late if p["optimizer"] == "sgd"]
    assert sum(lr > 0.1 for lr in lrs) > len(lrs) * 0.6  # a quarter at random, on a log scale


def proposed(startup, given_at, value, n=16):
    """What TPE draws in a study in which others were given, outside the space, of that value."""
    study = in_memory(SAMPLERS["tpe"](5, startup))
    drawn = []
    while len(drawn) < n:
        trial = study.ask()
        if trial.number in given_at:
            trial.set_user_attr(trial_records.TrialAttr.FIXED_CONFIG, {"model": "elsewhere"})
            study.tell(trial, value)
            continue
        drawn.append(suggest(trial, REAL).digest())
        study.tell(trial, value_of(trial))
    return drawn


@pytest.mark.parametrize("startup", [3, 6])
@pytest.mark.parametrize("value", [0.0, 0.99])
def test_what_was_given_outside_the_space_changes_no_proposal(startup, value):
    """Neither as trials to begin with nor as good ones, in whose place others would be missing."""
    alone = proposed(startup, (), value)
    assert proposed(startup, range(8), value) == alone
    assert proposed(startup, (2, 5, 6, 11, 12, 13), value) == alone


@pytest.mark.parametrize("seed", range(3))
def test_a_grid_lists_every_configuration_once(seed):
    drawn = proposals("grid", seed, 34)
    assert SPACE.size() == 34
    assert len(set(drawn)) == 34


def test_a_grid_that_is_listed_goes_on_without_an_error():
    assert len(set(proposals("grid", 0, 40))) == 34


@pytest.mark.parametrize(
    "reason", [trial_records.EndReason.LOST, trial_records.EndReason.INTERRUPTED]
)
@pytest.mark.parametrize("drawn", ["nothing", "half", "all"])
def test_a_grid_survives_trials_that_were_cut_off_and_lists_theirs_again(reason, drawn):
    study = in_memory(SAMPLERS["grid"](0, 0))
    digests = set()
    for i in range(36):
        trial = study.ask()
        if i in (0, 9):
            if drawn == "half":
                trial.suggest_categorical("model", ("unet", "segnet"))
            if drawn == "all":
                suggest(trial, SPACE)
            trial.set_user_attr("reason", reason)
            study.tell(trial, state=TrialState.FAIL)
            continue
        digests.add(suggest(trial, SPACE).digest())
        study.tell(trial, 0.5)
    assert len(digests) == 34


@pytest.mark.parametrize("name", SAMPLERS)
def test_several_trials_at_once_are_proposed(name):
    study = in_memory(SAMPLERS[name](0, 2))
    asked = []
    for _ in range(5):
        asked.append(study.ask())
        suggest(asked[-1], SPACE)
    for trial in reversed(asked):
        study.tell(trial, value_of(trial))
    if name == "grid":
        assert len({str(t.params) for t in asked}) == 5
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 5


def tpe_of_optuna(seed, startup, kind=TPESampler):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return kind(seed=seed, n_startup_trials=startup, multivariate=True, group=True)


class Recorded:
    """Keeps the numbers of the trials that each density was made of."""

    made: list[tuple[bool, list[int]]]

    def _build_parzen_estimator(self, study, search_space, trials, handle_below):
        held = [t for t in trials if search_space.keys() <= self._get_params(t, study).keys()]
        self.made.append((handle_below, [t.number for t in held]))
        return super()._build_parzen_estimator(study, search_space, trials, handle_below)


class RecordedOptuna(Recorded, TPESampler):
    pass


class RecordedOurs(Recorded, BoundedTPE):
    pass


def searched(sampler, n, *, pruner=None, at_once=1, space=REAL, seed=0):
    """Parameters and states of n trials of every end there is, some of them at work together."""
    study = in_memory(sampler, pruner, name="searched")
    rng = np.random.default_rng(seed)
    for _ in range(0, n, at_once):
        asked = [study.ask() for _ in range(at_once)]
        for trial in asked:
            suggest(trial, space)
        for trial in reversed(asked):
            if trial.number % 11 == 5:
                trial.set_constraint("size", float(rng.normal()))
            end(study, trial, float(rng.uniform()))
    return [(t.params, t.state, t.value) for t in study.trials]


def end(study, trial, dice):
    for epoch in range(1, 10):
        trial.report(dice * epoch / 9, epoch)
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return
    failed = trial.number % 9 == 4
    study.tell(trial, None if failed else dice, TrialState.FAIL if failed else None)


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("space", [SPACE, REAL])
def test_tpe_proposes_what_optunas_own_does_up_to_its_bound(space, at_once):
    ours = searched(SAMPLERS["tpe"](5, 6), 36, at_once=at_once, space=space)
    assert ours == searched(tpe_of_optuna(5, 6), 36, at_once=at_once, space=space)


@pytest.mark.parametrize("at_once", [1, 3])
def test_tpe_and_hyperband_together_search_as_optunas_own_do(at_once):
    ours = searched(
        SAMPLERS["tpe"](1, 6), 36, pruner=PRUNERS["hyperband"](9, 1, 0), at_once=at_once
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        pruner = HyperbandPruner(min_resource=1, max_resource=9, reduction_factor=3)
    assert ours == searched(tpe_of_optuna(1, 6), 36, pruner=pruner, at_once=at_once)
    assert {state.name for _, state, _ in ours} == {"COMPLETE", "PRUNED", "FAIL"}


def test_the_bound_is_exact():
    """With a bound of as many as are not good nothing is left out; with half of it, many are."""
    whole = searched(tpe_of_optuna(2, 5), 40)
    ended = sum(state.name != "FAIL" for _, state, _ in whole[:-1])
    others = ended - default_gamma(ended)
    assert searched(BoundedTPE(2, 5, others), 40) == whole
    assert searched(BoundedTPE(2, 5, others // 2), 40) != whole


def recorded(kind, sampler, n, at_work):
    """What the densities of trial n are made of, with so many others at work."""
    study = in_memory()
    study.sampler = SAMPLERS["random"](0, 0)
    rng = np.random.default_rng(1)
    for _ in range(n - at_work):
        trial = study.ask()
        suggest(trial, REAL)
        study.tell(trial, float(rng.uniform()))
    for _ in range(at_work):
        suggest(study.ask(), REAL)
    sampler.made = []
    study.sampler = sampler
    suggest(study.ask(), REAL)
    return sampler.made


@pytest.mark.parametrize(("bound", "at_work"), [(1, 0), (20, 3), (60, 3)])
def test_above_the_bound_good_trials_are_optunas_and_the_others_an_even_spread(bound, at_work):
    n = 150
    ours = recorded(RecordedOurs, RecordedOurs(0, 5, bound), n, at_work)
    own = recorded(RecordedOptuna, tpe_of_optuna(0, 5, RecordedOptuna), n, at_work)
    assert len(ours) == len(own) > 6
    running = set(range(n - at_work, n))
    for (good, mine), (_, theirs) in zip(ours, own, strict=True):
        if good:
            assert mine == theirs
            continue
        ended = [number for number in theirs if number not in running]
        spread = [number for number in mine if number not in running]
        assert set(mine) & running == set(theirs) & running
        assert len(spread) == min(len(ended), bound)
        assert spread[-1] == ended[-1]
        places = [ended.index(number) for number in spread]
        steps = np.diff(places)
        assert bound == 1 or steps.max() - steps.min() <= 1
        assert places[0] <= len(ended) / bound


def test_a_long_study_models_no_more_than_the_bound():
    made = recorded(RecordedOurs, RecordedOurs(0, 5), MAX_MODELLED + 60, 0)
    assert max(len(numbers) for good, numbers in made if not good) == MAX_MODELLED
    assert {len(numbers) for good, numbers in made if good} <= set(range(26))


def test_the_good_ones_are_a_tenth_and_at_most_25():
    """Optuna's private default_gamma, on which the bound of the good ones rests."""
    assert [default_gamma(n) for n in (0, 1, 10, 11, 250, 251, 10**6)] == [0, 1, 1, 2, 25, 25, 25]


def test_a_bounded_tpe_learns_as_well():
    """With a bound of 20 of 80: the option and the range that are good, from the second half."""
    study = in_memory(BoundedTPE(0, 8, 20))
    for _ in range(80):
        trial = study.ask()
        suggest(trial, REAL)
        lr = trial.params.get("optimizer.sgd.lr")
        study.tell(trial, 0.1 if lr is None else 0.5 + (lr > 0.1))
    late = [t.params for t in study.trials[40:]]
    assert sum(p["optimizer"] == "sgd" for p in late) > 27  # a third at random
    lrs = [p["optimizer.sgd.lr"] for p in late if p["optimizer"] == "sgd"]
    assert sum(lr > 0.1 for lr in lrs) > len(lrs) * 0.6  # a quarter at random, on a log scale


def test_the_first_trials_that_name_a_parameter_later_are_modelled_too():
    """Groups are split when a trial comes that has half of one; the same with and without us."""

    def told(sampler):
        study = in_memory(sampler)
        for i in range(40):
            trial = study.ask()
            x = trial.suggest_float("x", 0, 1)
            y = trial.suggest_float("y", 0, 1) if i % 3 or i < 9 else 0.0
            z = trial.suggest_int("z", 1, 9) if i > 20 and x > 0.5 else 0
            study.tell(trial, x - y + z)
        return [t.params for t in study.trials]

    assert told(BoundedTPE(3, 4)) == told(tpe_of_optuna(3, 4))


def test_a_grid_under_hyperband_lists_every_configuration_once():
    """Under Optuna's own pruner a sampler sees one bracket's trials, and a grid repeats itself."""
    study = in_memory(SAMPLERS["grid"](0, 0), PRUNERS["hyperband"](9, 1, 0), name="grid")
    digests = []
    for _ in range(34):
        trial = study.ask()
        digests.append(suggest(trial, SPACE).digest())
        end(study, trial, value_of(trial))
    assert len(set(digests)) == 34
