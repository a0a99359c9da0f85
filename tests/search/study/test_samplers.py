"""All samplers with ask, report and tell."""

import warnings

import numpy as np
import optuna
import pytest
from optuna.pruners import HyperbandPruner
from optuna.samplers import TPESampler
from optuna.samplers._tpe.sampler import default_gamma
from optuna.trial import TrialState

from search.spec.study_spec import PRUNER_NAMES, SAMPLER_NAMES
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
    """Return a synthetic Dice that depends on the parameters."""
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
def test_proposals_depend_on_the_seed(name):
    first = proposals(name, 1, 16)
    assert proposals(name, 1, 16) == first
    assert proposals(name, 2, 16) != first


@pytest.mark.parametrize("name", [n for n in SAMPLERS if n != "grid"])
def test_proposals_do_not_repeat(name):
    drawn = proposals(name, 1, 24, REAL)
    assert len(set(drawn)) == len(drawn)
    assert proposals(name, 1, 24, REAL) == drawn


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_largest_seed(name):
    assert proposals(name, 2**31 - 1, 2)


def test_tpe_starts_with_random_trials():
    """Without finished trials TPE is random search."""
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


def test_tpe_learns():
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
    """Return proposals of TPE in a study with fixed configurations of this value."""
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
def test_fixed_configurations_change_no_proposal(startup, value):
    """They count neither as startup trials nor as good ones."""
    alone = proposed(startup, (), value)
    assert proposed(startup, range(8), value) == alone
    assert proposed(startup, (2, 5, 6, 11, 12, 13), value) == alone


@pytest.mark.parametrize("seed", range(3))
def test_a_grid_lists_every_configuration_once(seed):
    drawn = proposals("grid", seed, 34)
    assert SPACE.size() == 34
    assert len(set(drawn)) == 34


def test_an_exhausted_grid_continues():
    assert len(set(proposals("grid", 0, 40))) == 34


@pytest.mark.parametrize(
    "reason", [trial_records.EndReason.LOST, trial_records.EndReason.INTERRUPTED]
)
@pytest.mark.parametrize("drawn", ["nothing", "half", "all"])
def test_a_grid_repeats_interrupted_trials(reason, drawn):
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
def test_parallel_trials(name):
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


class RecordingSampler:
    """Records the numbers of the trials in each density."""

    made: list[tuple[bool, list[int]]]

    def _build_parzen_estimator(self, study, search_space, trials, handle_below):
        held = [t for t in trials if search_space.keys() <= self._get_params(t, study).keys()]
        self.made.append((handle_below, [t.number for t in held]))
        return super()._build_parzen_estimator(study, search_space, trials, handle_below)


class RecordingOptunaTpe(RecordingSampler, TPESampler):
    pass


class RecordingBoundedTpe(RecordingSampler, BoundedTPE):
    pass


def searched(sampler, n, *, pruner=None, at_once=1, space=REAL, seed=0):
    """Return parameters and states of n trials with all kinds of ends, some of them parallel."""
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
def test_tpe_equals_optunas_below_the_bound(space, at_once):
    ours = searched(SAMPLERS["tpe"](5, 6), 36, at_once=at_once, space=space)
    assert ours == searched(tpe_of_optuna(5, 6), 36, at_once=at_once, space=space)


@pytest.mark.parametrize("at_once", [1, 3])
def test_tpe_with_hyperband_equals_optunas(at_once):
    ours = searched(
        SAMPLERS["tpe"](1, 6), 36, pruner=PRUNERS["hyperband"](9, 1, 0), at_once=at_once
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        pruner = HyperbandPruner(min_resource=1, max_resource=9, reduction_factor=3)
    assert ours == searched(tpe_of_optuna(1, 6), 36, pruner=pruner, at_once=at_once)
    assert {state.name for _, state, _ in ours} == {"COMPLETE", "PRUNED", "FAIL"}


def test_the_bound_is_exact():
    """A bound of all other trials leaves none out, half of it does."""
    whole = searched(tpe_of_optuna(2, 5), 40)
    ended = sum(state.name != "FAIL" for _, state, _ in whole[:-1])
    others = ended - default_gamma(ended)
    assert searched(BoundedTPE(2, 5, others), 40) == whole
    assert searched(BoundedTPE(2, 5, others // 2), 40) != whole


def recorded(kind, sampler, n, at_work):
    """Return the trials in the densities of trial n, with other trials running."""
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
def test_tpe_above_the_bound(bound, at_work):
    n = 150
    ours = recorded(RecordingBoundedTpe, RecordingBoundedTpe(0, 5, bound), n, at_work)
    own = recorded(RecordingOptunaTpe, tpe_of_optuna(0, 5, RecordingOptunaTpe), n, at_work)
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


def test_tpe_models_at_most_the_bound():
    made = recorded(RecordingBoundedTpe, RecordingBoundedTpe(0, 5), MAX_MODELLED + 60, 0)
    assert max(len(numbers) for good, numbers in made if not good) == MAX_MODELLED
    assert {len(numbers) for good, numbers in made if good} <= set(range(26))


def test_gamma_is_a_tenth_and_at_most_25():
    """The number of good trials is Optuna's private default_gamma."""
    assert [default_gamma(n) for n in (0, 1, 10, 11, 250, 251, 10**6)] == [0, 1, 1, 2, 25, 25, 25]


def test_a_bounded_tpe_learns():
    """With a bound of 20 of 80 trials, the good option and range are found."""
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


def test_tpe_models_trials_of_a_split_group():
    """Groups are split as in Optuna when a trial has half of the parameters."""

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


def test_a_grid_with_hyperband():
    """With Optuna's pruner a sampler sees one bracket only, and a grid repeats itself."""
    study = in_memory(SAMPLERS["grid"](0, 0), PRUNERS["hyperband"](9, 1, 0), name="grid")
    digests = []
    for _ in range(34):
        trial = study.ask()
        digests.append(suggest(trial, SPACE).digest())
        end(study, trial, value_of(trial))
    assert len(set(digests)) == 34


def test_the_names_of_the_spec_are_those_of_the_tables():
    assert set(SAMPLER_NAMES) == set(SAMPLERS)
    assert set(PRUNER_NAMES) == set(PRUNERS)
