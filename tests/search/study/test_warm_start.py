"""Published systems as a study's first trials."""

import math

import pytest

from lesionseg.errors import InputError
from search.spec import baselines
from search.storage import trial_records
from search.study.opening import open_study
from search.study.queue import find_point, first_trials, flatten_config
from search.study.samplers import SAMPLERS
from search.study.suggest import suggest
from search.workers.loop import WorkerOptions
from tests.search import failing_training
from tests.search.helpers import RecordingListener, in_memory, open_tiny, search, tiny_spec

#: A space that holds most of the U-Nets among the baselines.
WIDE = {
    "data.image_size": 32,
    "search": {
        "model": {"unet": {"width": [8, 64], "depth": [3, 5]}},
        "loss": ["bce", "bce_dice", "dice"],
        "augment": ["none", "full", "rotations"],
        "optimizer": {"adam": {"lr": [1e-4, 1e-2]}},
        "schedule": "constant",
        "batch_size": [8, 16],
        "clip_norm": {"choices": [0, 1]},
    },
    "fixed": {},
}


def find_params(config, spec):
    return find_point(flatten_config(config.to_dict()), spec.space)


def test_suggest_returns_the_configuration_of_a_point():
    spec = tiny_spec(WIDE)
    config = baselines.build_config("c-bigger-unet", 32, spec.budget.epochs)
    params, errors = find_params(config, spec)
    assert not errors and params == {
        "model.unet.width": 64,
        "model.unet.depth": 4,
        "loss": "bce_dice",
        "loss.bce_dice.weight": 0.5,
        "augment": "none",
        "optimizer.adam.lr": 1e-3,
        "batch_size": 16,
        "clip_norm": 0.0,
    }
    study = in_memory()
    study.enqueue_trial(params)
    assert suggest(study.ask(), spec.space).digest() == config.digest()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("segnet-bce", "another network"),
        ("unet-focal", "another loss"),
        ("c-baseline-scheduler", "another schedule"),
        ("c-baseline-flooding", "a setting that the study leaves at its default"),
        ("e-unet-ham-v1", "half of the epochs"),
    ],
)
def test_configurations_outside_the_space(name, why):
    spec = tiny_spec(WIDE)
    assert find_params(baselines.build_config(name, 32, spec.budget.epochs), spec)[1], why


def test_a_value_outside_a_narrowed_range():
    spec = tiny_spec(WIDE | {"search.model": {"unet": {"width": [8, 32], "depth": [3, 5]}}})
    assert find_params(baselines.build_config("c-bigger-unet", 32, 2), spec)[1] == [
        "model.unet.width: must lie in [8, 32], got 64"
    ]
    assert not find_params(baselines.build_config("c-deeper-unet", 32, 2), spec)[1]


def test_every_baseline_is_queued_once_with_its_name():
    spec = tiny_spec(WIDE | {"warm_start": ["baselines"], "data.image_size": 64})
    queued = first_trials(spec)
    assert [attrs[trial_records.TrialAttr.BASELINE] for _, attrs in queued] == list(
        baselines.load_baselines()
    )
    for params, attrs in queued:
        config = baselines.build_config(attrs[trial_records.TrialAttr.BASELINE], 64, 2)
        assert (attrs.get(trial_records.TrialAttr.FIXED_CONFIG) == config.to_dict()) != bool(params)
    assert first_trials(tiny_spec(WIDE)) == []


def test_the_first_trial_has_the_defaults(tiny_data, tmp_path):
    changes = WIDE | {"warm_start": ["defaults", "c-baseline-unet", "defaults"]}
    changes["budget"] = {"trials": 2, "epochs": 1}
    expected = {
        "loss": "bce",
        "model.unet.width": 32,
        "model.unet.depth": 4,
        "augment": "none",
        "optimizer.adam.lr": 1e-3,
        "batch_size": 16,
        "clip_norm": 0.0,  # the first of the study's choices
    }
    queued = first_trials(tiny_spec(changes))
    assert queued[0] == (expected, {}) and len(queued) == 2
    for _ in range(2):
        opened = open_tiny(tiny_data, tmp_path / "s", changes)
        first, _ = trial_records.all_trials(opened.study)
        assert first.system_attrs["fixed_params"] == expected
    space = tiny_spec({"search.model": {"unet": {"width": [40, 64], "depth": 1}}}).space
    assert space.default_config().model.params["width"] == 40  # the nearest value to the default


def test_defaults_of_a_space_without_open_parameters():
    changes = {
        "warm_start": ["defaults"],
        "search": {"model": {"unet": {"width": 8, "depth": 1, "dropout": 0}}, "loss": "bce"},
    }
    spec = tiny_spec(changes | {"search.augment": "none"})
    ((params, attrs),) = first_trials(spec)
    config = attrs[trial_records.TrialAttr.FIXED_CONFIG]
    assert not params and suggest(in_memory().ask(), spec.space).to_dict() == config


def test_baselines_are_queued_once(tiny_data, tmp_path):
    changes = {"warm_start": ["c-baseline-unet", "e-unet-ham-v1"], "data.image_size": 32}
    for _ in range(2):
        opened = open_tiny(tiny_data, tmp_path / "s", changes)
        trials = trial_records.all_trials(opened.study)
        assert [trial_records.state_of(t) for t in trials] == ["waiting"] * 2
        assert [t.user_attrs[trial_records.TrialAttr.BASELINE] for t in trials] == changes[
            "warm_start"
        ]


def test_baselines_are_the_first_trials(tiny_data, tmp_path):
    changes = {
        "data.image_size": 32,
        "warm_start": ["c-baseline-unet"],
        "budget": {"trials": 2, "epochs": 1},
    }
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    search(opened)
    first, second = trial_records.all_trials(opened.study)
    assert first.user_attrs[trial_records.TrialAttr.BASELINE] == "c-baseline-unet"
    expected = baselines.build_config("c-baseline-unet", 32, 1)
    assert trial_records.config_of(first) == expected.to_dict()
    assert trial_records.state_of(first) == "complete" and first.params == {}
    assert trial_records.TrialAttr.BASELINE not in second.user_attrs and second.params
    # Opening the study again adds no trial.
    assert len(trial_records.all_trials(open_study(tmp_path / "s").study)) == 2


def test_an_interrupted_baseline_is_requeued(tiny_data, tmp_path):
    changes = {"data.image_size": 32, "warm_start": ["c-baseline-unet"]}
    opened = open_tiny(tiny_data, tmp_path / "s", changes | {"budget": {"trials": 1, "epochs": 1}})

    class Interrupting(RecordingListener):
        def trial_started(self, number, config):
            super().trial_started(number, config)
            if number == 0:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(opened, Interrupting())
    search(open_study(tmp_path / "s"))
    lost, again = trial_records.all_trials(opened.study)
    assert trial_records.reason_of(lost) == trial_records.EndReason.INTERRUPTED
    assert again.user_attrs[trial_records.TrialAttr.BASELINE] == "c-baseline-unet"
    assert trial_records.config_of(again) == trial_records.config_of(lost)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_explores_the_space_after_baselines(tiny_data, tmp_path, sampler):
    """Baselines from outside the space do not count as one of its three configurations."""
    changes = {
        "data.image_size": 32,
        "sampler": {"name": sampler, "startup": 2},
        "warm_start": ["c-baseline-unet", "e-unet-ham-v1"],
        "budget": {"trials": 20, "epochs": 1},
        "search.model": {"unet": {"width": {"choices": [4, 5, 6]}, "depth": 1}},
        "search.optimizer": {"adam": {"lr": 0.01}},
    }
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    options = WorkerOptions(program=failing_training.__name__)
    assert search(opened, options=options).reason == "exhausted"
    done = [
        t for t in trial_records.all_trials(opened.study) if trial_records.state_of(t) == "complete"
    ]
    assert [t.user_attrs.get(trial_records.TrialAttr.BASELINE) for t in done[:2]] == changes[
        "warm_start"
    ]
    assert sorted(t.params["model.unet.width"] for t in done[2:]) == [4, 5, 6]


def test_sobol_points_after_a_baseline_without_parameters():
    study = in_memory(SAMPLERS["qmc"](0, 0))
    space = tiny_spec({"search.model": {"unet": {"width": [4, 128], "depth": [1, 4]}}}).space
    study.enqueue_trial({}, user_attrs={trial_records.TrialAttr.FIXED_CONFIG: {}})
    study.tell(study.ask(), 0.5)
    rates = []
    for _ in range(33):
        trial = study.ask()
        suggest(trial, space)
        rates.append(trial.params["optimizer.adam.lr"])
        study.tell(trial, 0.5)
    # Sobol points: equally many in each eighth of the range.
    eighth = [int(8 * math.log(lr / 0.001) / math.log(100)) for lr in rates[1:]]
    assert {eighth.count(i) for i in range(8)} <= {3, 4, 5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warm_start": ["baselins"]}, "did you mean 'baselines'?"),
        ({"warm_start": ["unet-dise"]}, "did you mean 'unet-dice'?"),
        ({"warm_start": "baselines"}, "warm_start"),
        (
            {"warm_start": ["segnet-bce"], "data.image_size": 48},
            "data.image_size: segnet-bce: segnet takes multiples of 32 from 32 on, got 48",
        ),
    ],
)
def test_invalid_baselines_are_errors_of_the_spec(changes, message):
    with pytest.raises(InputError) as caught:
        tiny_spec(changes)
    assert message in str(caught.value)
