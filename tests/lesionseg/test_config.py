"""TrialConfig: plain data and back, its name, what it refuses."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lesionseg.config import DEFAULT_COMPONENTS, SETTING_DESCRIPTIONS, SETTINGS, TrialConfig
from lesionseg.errors import InputError
from lesionseg.registry import FAMILIES
from lesionseg.space import Categorical, ComponentConfig, Float, Int

FULL = TrialConfig(
    model=ComponentConfig("unet", {"width": 8, "depth": 2}),
    loss=ComponentConfig("focal", {"gamma": 2.5, "alpha": 0.25}),
    augment=ComponentConfig("full", {"strength": 0.1}),
    mix=ComponentConfig("cutmix", {"alpha": 1.0}),
    optimizer=ComponentConfig("adamw", {"lr": 1e-4, "weight_decay": 1e-6}),
    schedule=ComponentConfig("plateau", {"factor": 0.5, "patience": 3}),
    image_size=128,
    batch_size=4,
    epochs=3,
    patience=2,
    clip_norm=0.0,
    accumulate=2,
    overlap="batch",
    label_smoothing=0.1,
    flooding=0.05,
    ema=0.99,
    amp="off",
    seed=2**31 - 1,
)


def values_of(domain):
    match domain:
        case Float(low, high):
            return st.floats(low, high)
        case Int(low, high, _, _, step):
            return st.integers(0, (high - low) // step).map(lambda k: low + k * step)
        case Categorical(choices):
            return st.sampled_from(choices)


def picks_of(table):
    return st.sampled_from(sorted(table)).flatmap(
        lambda name: st.builds(
            ComponentConfig,
            st.just(name),
            st.fixed_dictionaries({p: values_of(d) for p, d in table[name].space.items()}),
        )
    )


configs = st.builds(
    TrialConfig,
    **{family: picks_of(table) for family, table in FAMILIES.items()},
    **{name: values_of(domain) for name, domain in SETTINGS.items()},
)


@given(configs)
def test_round_trip_of_dict_json_and_yaml(config):
    plain = config.to_dict()
    for copy in (plain, json.loads(json.dumps(plain)), yaml.safe_load(yaml.safe_dump(plain))):
        again = TrialConfig.from_dict(copy)
        assert again == config
        assert again.digest() == config.digest()


def test_to_dict_has_all_families_and_settings():
    assert FULL.to_dict() == {
        "model": {"unet": {"width": 8, "depth": 2}},
        "loss": {"focal": {"gamma": 2.5, "alpha": 0.25}},
        "augment": {"full": {"strength": 0.1}},
        "mix": {"cutmix": {"alpha": 1.0}},
        "optimizer": {"adamw": {"lr": 1e-4, "weight_decay": 1e-6}},
        "schedule": {"plateau": {"factor": 0.5, "patience": 3}},
        "image_size": 128,
        "batch_size": 4,
        "accumulate": 2,
        "epochs": 3,
        "patience": 2,
        "clip_norm": 0.0,
        "overlap": "batch",
        "label_smoothing": 0.1,
        "flooding": 0.05,
        "ema": 0.99,
        "amp": "off",
        "seed": 2147483647,
    }
    assert list(FULL.to_dict()) == [f.name for f in dataclasses.fields(TrialConfig)]


def test_tables_and_class_agree():
    """Settings stand in SETTINGS for the search and in the class for the reader."""
    fields = {f.name: f.default for f in dataclasses.fields(TrialConfig)}
    assert list(DEFAULT_COMPONENTS) == list(FAMILIES)
    assert set(fields) == set(DEFAULT_COMPONENTS) | set(SETTINGS)
    assert {name: fields[name] for name in SETTINGS} == {n: d.default for n, d in SETTINGS.items()}
    assert set(SETTING_DESCRIPTIONS) == set(SETTINGS)
    for family, name in DEFAULT_COMPONENTS.items():
        assert name in FAMILIES[family]
        assert fields[family] == ComponentConfig(name)


def test_from_dict_completes_defaults():
    assert TrialConfig.from_dict({}) == TrialConfig()
    assert TrialConfig.from_dict({"model": "segnet", "loss": {"bce": None}}) == TrialConfig(
        model=ComponentConfig("segnet"), loss=ComponentConfig("bce")
    )


def test_the_digest_is_the_same_in_another_process():
    """Hashes of strings differ from process to process; a name must not."""
    code = (
        "import json, sys; from lesionseg.config import TrialConfig;"
        "print(TrialConfig.from_dict(json.loads(sys.argv[1])).digest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(FULL.to_dict())],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert done.stdout.strip() == FULL.digest()
    assert len(FULL.digest()) == 12 and int(FULL.digest(), 16) >= 0


def test_the_order_of_parameters_does_not_change_the_digest():
    swapped = dataclasses.replace(FULL, model=ComponentConfig("unet", {"depth": 2, "width": 8}))
    assert swapped.digest() == FULL.digest()


CHANGES = {
    "model": ComponentConfig("unet", {"width": 8, "depth": 3}),
    "loss": ComponentConfig("focal", {"gamma": 2.5, "alpha": 0.26}),
    "augment": ComponentConfig("none"),
    "mix": ComponentConfig("mixup", {"alpha": 1.0}),
    "optimizer": ComponentConfig("adamw", {"lr": 1e-4, "weight_decay": 2e-6}),
    "schedule": ComponentConfig("plateau", {"factor": 0.5, "patience": 4}),
    "image_size": 129,
    "batch_size": 5,
    "accumulate": 3,
    "epochs": 4,
    "patience": 3,
    "clip_norm": 1e-9,
    "overlap": "image",
    "label_smoothing": 0.2,
    "flooding": 0.06,
    "ema": 0.9,
    "amp": "auto",
    "seed": 0,
}


def test_each_single_change_gives_another_digest():
    assert set(CHANGES) == {f.name for f in dataclasses.fields(TrialConfig)}
    digests = [dataclasses.replace(FULL, **{k: v}).digest() for k, v in CHANGES.items()]
    assert len({FULL.digest(), *digests}) == len(CHANGES) + 1


@given(configs, configs)
@settings(max_examples=30)
def test_two_configurations_share_a_digest_only_if_they_are_equal(one, other):
    assert (one.digest() == other.digest()) == (one == other)


def test_settings_are_converted_to_their_type():
    """Otherwise equal configurations would have two names, and a batch size be a string."""
    config = TrialConfig.from_dict({"batch_size": "4", "epochs": 3.0, "clip_norm": 1})
    assert config == TrialConfig(batch_size=4, epochs=3, clip_norm=1.0)
    assert config.digest() == TrialConfig(batch_size=4, epochs=3, clip_norm=1.0).digest()
    kinds = [type(v) for v in (config.batch_size, config.epochs, config.clip_norm)]
    assert kinds == [int, int, float]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 15}, "image_size must lie in [16, 4096], got 15"),
        ({"batch_size": 0}, "batch_size must lie in [1, 4096], got 0"),
        ({"epochs": 0}, "epochs must lie in [1, 100000], got 0"),
        ({"epochs": 2.5}, "epochs must be a whole number, got 2.5"),
        ({"patience": -1}, "patience must lie in [0, 100000], got -1"),
        ({"clip_norm": -0.1}, "clip_norm must lie in [0, 1e+06], got -0.1"),
        ({"clip_norm": float("nan")}, "clip_norm must be finite, got nan"),
        ({"seed": 2**31}, "seed must lie in [0, 2147483647], got 2147483648"),
        ({"seed": True}, "seed must be a number, got True"),
        ({"amp": "on"}, "amp must be one of its choices, got 'on' (known: auto, off)"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, message):
    for make in (lambda: TrialConfig(**settings), lambda: TrialConfig.from_dict(settings)):
        with pytest.raises(InputError) as caught:
            make()
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"modle": "unet"}, "unknown key 'modle' (did you mean 'model'?)"),
        ({3: "unet"}, "unknown key 3 (known: accumulate, amp, augment, batch_size"),
        (
            {"model": {"unet": {}, "segnet": {}}},
            "a component must be a name or {name: parameters}, got",
        ),
        ({"model": {}}, "a component must be a name or {name: parameters}, got {}"),
        ({"model": None}, "a component must be a name or {name: parameters}, got None"),
        ({"model": ["unet"]}, "a component must be a name or {name: parameters}, got ['unet']"),
        (
            {"model": {"unet": [1, 2]}},
            "a component must be a name or {name: parameters}, got {'unet'",
        ),
    ],
)
def test_invalid_data_is_refused(plain, message):
    with pytest.raises(InputError) as caught:
        TrialConfig.from_dict(plain)
    assert str(caught.value).startswith(message)
