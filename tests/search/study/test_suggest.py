"""Sample configurations and build them."""

import optuna
import pytest
import torch
from torch import nn

from lesionseg.augment import build_augment
from lesionseg.augment.mix import build_mix
from lesionseg.config import DEFAULT_COMPONENTS, TrialConfig
from lesionseg.errors import InputError
from lesionseg.losses import build_loss
from lesionseg.models import build_model
from lesionseg.optim import build_optimizer, build_schedule
from lesionseg.registry import FAMILIES
from lesionseg.space import Categorical, Float, Int
from search.spec.search_space import SearchSpace
from search.study.samplers import SAMPLERS
from search.study.suggest import ensure_space_weights, suggest
from tests.search.helpers import in_memory, tiny_spec
from tests.search.spec.test_search_space import ROWS, parse


def build_on_meta_device(component):
    """Build a network without allocating its weights."""
    # The mit encoders ask for a number while they are built, so that they need real ones.
    real = str(component.params.get("encoder", "")).startswith("mit")
    with torch.device("cpu" if real else "meta"):
        return build_model(component, image_size=256)


def _optimizer(component=None):
    parameters = [nn.Parameter(torch.zeros(1))]
    return build_optimizer(component or TrialConfig().optimizer, parameters)


BUILDERS = {
    "model": build_on_meta_device,
    "loss": build_loss,
    "augment": build_augment,
    "mix": build_mix,
    "optimizer": _optimizer,
    "schedule": lambda component: build_schedule(component, _optimizer(), 3, 5),
}


def drawn(space, n, seed=0):
    study = in_memory(SAMPLERS["random"](seed, 0))
    for _ in range(n):
        trial = study.ask()
        yield trial, suggest(trial, space)


def opened(family, name):
    """Return the parameters that are open by default."""
    option = FAMILIES[family][name]
    return set(option.space) - option.fixed_by_default


def test_every_family_has_a_builder():
    assert BUILDERS.keys() == FAMILIES.keys()


@pytest.mark.parametrize(("family", "name"), ROWS)
def test_every_option_can_be_sampled_and_built(family, name):
    space, errors = parse({family: name})
    assert errors == []
    for trial, config in drawn(space, 3):
        component = getattr(config, family)
        assert component.name == name
        assert component.params.keys() == FAMILIES[family][name].space.keys()
        BUILDERS[family](component)
        assert TrialConfig.from_dict(config.to_dict()) == config
        # Every choice is in the record under its dotted name, and nothing else is.
        assert trial.params == {
            f"{family}.{name}.{k}": v
            for k, v in component.params.items()
            if k in opened(family, name)
        }


@pytest.mark.parametrize("family", FAMILIES)
def test_only_parameters_of_the_chosen_option_are_sampled(family):
    space, _ = parse({family: "all"})
    seen = set()
    for trial, config in drawn(space, 300):
        name = getattr(config, family).name
        seen.add(name)
        inner = {f"{family}.{name}.{key}" for key in opened(family, name)}
        assert trial.params.keys() == {family} | inner
        assert trial.params[family] == name
    assert seen == FAMILIES[family].keys()


def test_parameters_with_one_value_are_not_suggested():
    search = {
        "model": {"unet": {"width": [8, 8], "depth": 3}},
        "loss": {"focal": {"gamma": 1, "alpha": [0.25, 0.25]}},
        "optimizer": {"adam": {"lr": [0.01, 0.01]}},
        "batch_size": [4, 4],
        "amp": ["off"],
    }
    space, errors = parse(search)
    assert errors == []
    ((trial, config),) = drawn(space, 1)
    assert trial.params == {}
    assert config.model.params == dict(FAMILIES["model"]["unet"].resolve({"width": 8, "depth": 3}))
    assert config.loss.params == {"gamma": 1.0, "alpha": 0.25}
    assert (config.batch_size, config.amp) == (4, "off")


def test_names_of_settings():
    space, _ = parse({"batch_size": [4, 8], "clip_norm": [0, 1], "amp": ["auto", "off"]})
    ((trial, config),) = drawn(space, 1)
    assert trial.params == {
        "batch_size": config.batch_size,
        "clip_norm": config.clip_norm,
        "amp": config.amp,
    }


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        (Float(0.5, 2, 1), optuna.distributions.FloatDistribution(0.5, 2)),
        (Float(0.5, 2, 1, log=True), optuna.distributions.FloatDistribution(0.5, 2, log=True)),
        (Int(1, 9, 1), optuna.distributions.IntDistribution(1, 9)),
        (Int(1, 9, 1, log=True), optuna.distributions.IntDistribution(1, 9, log=True)),
        (Int(1, 9, 1, step=4), optuna.distributions.IntDistribution(1, 9, step=4)),
        (Categorical(("a", 1), "a"), optuna.distributions.CategoricalDistribution(("a", 1))),
    ],
)
def test_distributions_of_domains(domain, expected):
    plain, _ = parse()
    space = SearchSpace({**plain.families, "loss": {"bce": {"x": domain}}}, plain.settings)
    trial = in_memory(SAMPLERS["random"](0, 0)).ask()
    config = suggest(trial, space)
    assert trial.distributions == {"loss.bce.x": expected}
    assert trial.params == {"loss.bce.x": config.loss.params["x"]}


def test_queued_parameters_are_used():
    space, _ = parse({"model": "all", "loss": ["bce", "focal"]})
    study = in_memory()
    queued = {"model": "unet", "model.unet.width": 9, "model.unet.depth": 2, "loss": "bce"}
    study.enqueue_trial(queued)
    trial = study.ask()
    config = suggest(trial, space)
    assert trial.params == queued
    assert config.model.name == "unet"
    assert (config.model.params["width"], config.model.params["depth"]) == (9, 2)
    assert config.loss.name == "bce"


def test_the_default_space():
    ((_, config),) = drawn(parse()[0], 1)
    for family, default in DEFAULT_COMPONENTS.items():
        assert getattr(config, family).name == default
    assert config.image_size == 4096


def test_missing_weights_of_a_search_space_are_reported():
    ensure_space_weights(tiny_spec().space)  # needs none
    choice = {"smp_fpn": {"encoder": "resnet18", "weights": "/no/such/file.safetensors"}}
    spec = tiny_spec({"search.model": choice, "data.image_size": 32})
    with pytest.raises(InputError, match=r"/no/such/file\.safetensors"):
        ensure_space_weights(spec.space)


@pytest.mark.parametrize("rate", [0.1, [0, 0.1]])
def test_drop_path_of_an_encoder_without_it_is_refused_before_the_first_trial(rate):
    choice = {"smp_fpn": {"encoder": ["tu-convnext_atto", "resnet18"], "drop_path": rate}}
    spec = tiny_spec({"search.model": choice, "data.image_size": 32})
    with pytest.raises(InputError, match=r"drop_path: only encoders of timm .* 'resnet18'"):
        ensure_space_weights(spec.space)
    choice["smp_fpn"]["encoder"] = ["tu-convnext_atto", "tu-pvt_v2_b0"]
    spec = tiny_spec({"search.model": choice, "data.image_size": 32})
    ensure_space_weights(spec.space)
