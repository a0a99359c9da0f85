"""The sampler and the pruner of a study."""

import optuna

from search.study.pruners import PRUNERS
from search.study.samplers import prepare_sampling
from search.study.suggest import suggest
from tests.search.helpers import open_tiny


def test_a_resumed_study_does_not_repeat_trials(tiny_data, tmp_path):
    digests = []
    for _ in range(3):
        opened = open_tiny(tiny_data, tmp_path / "s")
        for _ in range(3):
            trial = opened.study.ask()
            digests.append(suggest(trial, opened.spec.space).digest())
            opened.study.tell(trial, 0.5)
    assert len(set(digests)) == 9


def test_equal_seeds_sample_equal_trials(tiny_data, tmp_path):
    proposed = []
    for name in ("a", "b"):
        opened = open_tiny(tiny_data, tmp_path / name)
        proposed.append([suggest(opened.study.ask(), opened.spec.space).digest() for _ in range(3)])
    assert proposed[0] == proposed[1]


def test_sampler_and_pruner_are_those_of_the_spec(tiny_data, tmp_path):
    changes = {"sampler.name": "tpe", "pruner": {"name": "median", "min_epochs": 1}}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    prepare_sampling(opened)
    assert isinstance(opened.study.sampler, optuna.samplers.TPESampler)
    assert type(opened.study.pruner) is type(PRUNERS["median"](1, 1, 1))
