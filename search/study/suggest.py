"""The only translation from a Domain to ``trial.suggest_*``."""

from __future__ import annotations

from typing import Any

import optuna

from lesionseg.config import TrialConfig
from lesionseg.space import Categorical, Float, Int, Pick, Scalar
from search.spec.search_space import Param, Params, SearchSpace


def suggest(trial: optuna.Trial, space: SearchSpace) -> TrialConfig:
    """Draws a configuration; the trial then holds each choice under its dotted name.

    The parameter ``gamma`` of the loss ``focal`` is called ``loss.focal.gamma``: conditional
    parameters never collide. What a study leaves no choice in is no parameter of the trial.
    """
    picks: dict[str, Any] = {}
    for family, options in space.families.items():
        name = _one_of(trial, family, tuple(options))
        picks[family] = Pick(name, _params(trial, f"{family}.{name}.", options[name]))
    return TrialConfig(**picks, **_params(trial, "", space.settings))  # type: ignore[arg-type]


def _params(trial: optuna.Trial, prefix: str, params: Params) -> dict[str, Scalar]:
    return {key: _draw(trial, prefix + key, param) for key, param in params.items()}


def _one_of(trial: optuna.Trial, name: str, choices: tuple[str, ...]) -> str:
    if len(choices) == 1:
        return choices[0]
    chosen: str = trial.suggest_categorical(name, choices)
    return chosen


def _draw(trial: optuna.Trial, name: str, param: Param) -> Scalar:
    match param:
        case Float(low, high, _, log):
            return low if low == high else trial.suggest_float(name, low, high, log=log)
        case Int(low, high, _, log, step):
            return low if low == high else trial.suggest_int(name, low, high, log=log, step=step)
        case Categorical(choices):
            if len(choices) == 1:
                return choices[0]
            chosen = trial.suggest_categorical(name, choices)
            assert chosen is not None
            return chosen
        case value:
            return value
