"""From the search's fidelity (image size, epochs, images) to the final's.

``final.image_size`` and ``final.epochs`` may be larger than those of the search. A configuration is
carried over by these rules:

- The image size is the final's. The number of epochs is multiplied by the ratio of the final's to
  the search's: a configuration that was trained for a part of the search's epochs keeps its part.
- Learning rate, batch size, decay and clipping stay the same.
- Schedules depend on the share of the steps that are done, and so stretch by themselves.
- What is counted in epochs (the patience of early stopping and of the schedule ``plateau``, the
  epochs with a frozen encoder) is multiplied by the ratio of the epochs. 0 remains 0, and other
  numbers are at least 1. The result is limited to the parameter's range.
- The moving average of the weights covers the same share of the training: 1 - ``ema`` is divided by
  the ratio of the optimizer steps.
"""

from __future__ import annotations

from dataclasses import replace

from lesionseg.config import SETTINGS, TrialConfig
from lesionseg.errors import InputError
from lesionseg.models import check_size
from lesionseg.registry import FAMILIES
from lesionseg.space import ComponentConfig, Domain, Float, Int
from search.spec.study_spec import StudySpec

#: Parameters of components that are counted in epochs.
_IN_EPOCHS = {"frozen_epochs", "patience"}


def to_final(config: TrialConfig, spec: StudySpec) -> TrialConfig:
    """Return a trial's configuration for the final training.

    With the search's image size and epochs, that is the same configuration.

    Raises:
        InputError: If the network does not accept the final's image size.
    """
    image_size = spec.final.image_size or spec.data.image_size
    if image_size != config.image_size:
        try:
            check_size(config.model, image_size)
        except InputError as error:
            raise InputError(f"final.{error}") from None
    final_epochs = spec.final.epochs or spec.budget.epochs
    epochs = max(1, round(config.epochs * final_epochs / spec.budget.epochs))
    ratio = epochs / config.epochs
    return replace(
        config,
        image_size=image_size,
        epochs=epochs,
        patience=_scale_count(config.patience, ratio, SETTINGS["patience"]),
        ema=_scale_ema(config.ema, ratio, SETTINGS["ema"]),
        model=_scale_component("model", config.model, ratio),
        schedule=_scale_component("schedule", config.schedule, ratio),
    )


def _scale_count(count: int, ratio: float, domain: Domain) -> int:
    assert isinstance(domain, Int)
    return min(max(1, round(count * ratio)), domain.high) if count else 0


def _scale_ema(decay: float, steps_ratio: float, domain: Domain) -> float:
    """Scale the number of averaged steps, about 1 / (1 - decay); 0 is no average."""
    assert isinstance(domain, Float)
    if steps_ratio == 1.0 or decay == 0.0:
        return decay
    return min(max(1 - (1 - decay) / steps_ratio, domain.low), domain.high)


def _scale_component(family: str, component: ComponentConfig, ratio: float) -> ComponentConfig:
    space, params = FAMILIES[family][component.name].space, dict(component.params)
    for name in _IN_EPOCHS & params.keys():
        params[name] = _scale_count(int(params[name]), ratio, space[name])
    return replace(component, params=params)
