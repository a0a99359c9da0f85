"""Suggest a trial's configuration: from a Domain to ``trial.suggest_*``."""

from __future__ import annotations

from typing import Any

import optuna

from lesionseg.config import TrialConfig
from lesionseg.models.encoders import check_drop_path
from lesionseg.models.weights import ensure_weights
from lesionseg.space import Categorical, ComponentConfig, Float, Int, Scalar
from search.spec.search_space import Param, Params, SearchSpace, possible_values
from search.study.encoder_weights import replace_auto


def suggest(trial: optuna.Trial, space: SearchSpace) -> TrialConfig:
    """Sample a configuration.

    The parameter ``gamma`` of the loss ``focal`` is called ``loss.focal.gamma``, so that
    conditional parameters never collide. A parameter with one value is not suggested. Weights that
    are ``auto`` are replaced by the study's.
    """
    components: dict[str, Any] = {}
    for family, options in space.families.items():
        name = str(_suggest_choice(trial, family, tuple(options)))
        components[family] = ComponentConfig(
            name, _suggest_all(trial, f"{family}.{name}.", options[name])
        )
    config = TrialConfig(**components, **_suggest_all(trial, "", space.settings))  # type: ignore[arg-type]
    return replace_auto(config, space.encoder_weights)


def _suggest_all(trial: optuna.Trial, prefix: str, params: Params) -> dict[str, Scalar]:
    return {key: _suggest_one(trial, prefix + key, param) for key, param in params.items()}


def _suggest_one(trial: optuna.Trial, name: str, param: Param) -> Scalar:
    match param:
        case Float(low, high, _, log):
            return low if low == high else trial.suggest_float(name, low, high, log=log)
        case Int(low, high, _, log, step):
            return low if low == high else trial.suggest_int(name, low, high, log=log, step=step)
        case Categorical(choices):
            return _suggest_choice(trial, name, choices)
        case value:
            return value


def _suggest_choice(trial: optuna.Trial, name: str, choices: tuple[Scalar, ...]) -> Scalar:
    if len(choices) == 1:
        return choices[0]
    choice = trial.suggest_categorical(name, choices)
    assert choice is not None
    return choice


def ensure_space_weights(space: SearchSpace) -> None:
    """Raise InputError, with a remedy, if an encoder lacks weights or a drop path of a trial.

    ``auto`` is never an error, except for weights that the study found when it was created.
    """
    for encoder, weights in (space.encoder_weights or {}).items():
        ensure_weights(encoder, weights)
    for params in space.families["model"].values():
        if "weights" in params:
            for encoder in map(str, possible_values(params["encoder"])):
                for rate in possible_values(params["drop_path"]):
                    check_drop_path(encoder, float(rate))
                for weights in map(str, possible_values(params["weights"])):
                    if weights != "auto":
                        ensure_weights(encoder, weights)
