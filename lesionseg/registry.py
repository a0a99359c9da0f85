"""FAMILIES: the registry tables by the name that studies and TrialConfig use."""

from __future__ import annotations

from collections.abc import Mapping

from lesionseg.augment import AUGMENTS
from lesionseg.augment.mix import MIXES
from lesionseg.losses import LOSSES
from lesionseg.models import MODELS
from lesionseg.optim import OPTIMIZERS, SCHEDULES
from lesionseg.space import RegistryEntry

FAMILIES: Mapping[str, Mapping[str, RegistryEntry]] = {
    "model": MODELS,
    "loss": LOSSES,
    "augment": AUGMENTS,
    "mix": MIXES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
}
