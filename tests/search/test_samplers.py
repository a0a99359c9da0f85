"""Every row of SAMPLERS through real ask, report and tell."""

import pytest
from optuna.trial import TrialState

from search import trials
from search.samplers import SAMPLERS
from search.suggest import suggest
from tests.search.helpers import in_memory
from tests.search.test_space import parse

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


@pytest.mark.parametrize("seed", range(3))
def test_a_grid_lists_every_configuration_once(seed):
    drawn = proposals("grid", seed, 34)
    assert SPACE.size() == 34
    assert len(set(drawn)) == 34


def test_a_grid_that_is_listed_goes_on_without_an_error():
    assert len(set(proposals("grid", 0, 40))) == 34


@pytest.mark.parametrize("reason", [trials.LOST, trials.INTERRUPTED])
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
