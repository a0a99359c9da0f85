"""TrialConfig: the complete configuration of one training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lesionseg.errors import InputError, suggest_name
from lesionseg.space import Categorical, ComponentConfig, Domain, Float, Int

#: The settings of a configuration besides its components.
SETTINGS: Mapping[str, Domain] = {
    "image_size": Int(16, 4096, default=256),
    "batch_size": Int(1, 4096, default=16, log=True),
    "accumulate": Int(1, 64, default=1),
    "epochs": Int(1, 100_000, default=40),
    "patience": Int(0, 100_000, default=0),
    "clip_norm": Float(0.0, 1e6, default=1.0),
    "overlap": Categorical(("image", "batch"), default="image"),
    "label_smoothing": Float(0.0, 0.5, default=0.0),
    "flooding": Float(0.0, 1.0, default=0.0),
    "ema": Float(0.0, 0.9999, default=0.0),
    "amp": Categorical(("auto", "off"), default="auto"),
    "seed": Int(0, 2**31 - 1, default=0),
}

#: One line on each setting, for help and docs.
SETTING_DESCRIPTIONS: Mapping[str, str] = {
    "image_size": "side in pixels of the square that images are resized to",
    "batch_size": "images in one step",
    "accumulate": "number of parts that a batch is computed in: less memory, the same step except "
    "for what depends on the whole batch (batch norm, flooding, pooled overlap)",
    "epochs": "maximum number of passes over the training images",
    "patience": "epochs without a better validation Dice before early stopping; 0 disables it",
    "clip_norm": "maximum norm of the gradient; 0 disables clipping",
    "overlap": "whether overlap losses are means over images or pooled over the batch",
    "label_smoothing": "weight of the value 0.5 in each training target",
    "flooding": "level b of the training loss |loss - b| + b; 0 disables it; arXiv:2002.08709",
    "ema": "decay of the moving average of the weights, which is then validated and saved; 0 "
    "disables it",
    "amp": "mixed precision if the device supports it, or off",
    "seed": "random seed of the weights, the order of images and the augmentation",
}


@dataclass(frozen=True)
class TrialConfig:
    """One point of the search space. Equal configurations give equal trainings.

    Raises:
        InputError: a setting lies outside its domain in SETTINGS.
    """

    model: ComponentConfig = ComponentConfig("unet")
    loss: ComponentConfig = ComponentConfig("bce_dice")
    augment: ComponentConfig = ComponentConfig("flips")
    mix: ComponentConfig = ComponentConfig("none")
    optimizer: ComponentConfig = ComponentConfig("adamw")
    schedule: ComponentConfig = ComponentConfig("cosine")
    image_size: int = 256
    batch_size: int = 16
    accumulate: int = 1
    epochs: int = 40
    patience: int = 0
    clip_norm: float = 1.0
    overlap: str = "image"
    label_smoothing: float = 0.0
    flooding: float = 0.0
    ema: float = 0.0
    amp: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, domain in SETTINGS.items():
            try:
                value = domain.check(getattr(self, name))
            except InputError as error:
                raise InputError(f"{name} {error}") from None
            object.__setattr__(self, name, value)  # "16" and 16.0 become 16

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible data for ``from_dict``."""
        data: dict[str, Any] = {}
        for family in DEFAULT_COMPONENTS:
            component: ComponentConfig = getattr(self, family)
            data[family] = {component.name: dict(component.params)}
        return data | {name: getattr(self, name) for name in SETTINGS}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrialConfig:
        """Create a configuration from the data of ``to_dict``; missing keys get their default.

        Raises:
            InputError: a key is unknown or a value cannot be used.
        """
        names = [f.name for f in fields(cls)]
        for key in data:
            if key not in names:
                raise InputError(f"unknown key {key!r} ({suggest_name(key, names)})")
        values: dict[str, Any] = {
            k: parse_component(v) if k in DEFAULT_COMPONENTS else v for k, v in data.items()
        }
        return cls(**values)

    def digest(self) -> str:
        """Return twelve hexadecimal digits that identify this configuration."""
        canonical = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


#: The component of each family that a study does not name.
DEFAULT_COMPONENTS: Mapping[str, str] = {
    f.name: f.default.name for f in fields(TrialConfig) if isinstance(f.default, ComponentConfig)
}


def parse_component(value: object) -> ComponentConfig:
    """Parse a component: a name, or a mapping of the name to the parameters."""
    if isinstance(value, str):
        return ComponentConfig(value)
    if isinstance(value, Mapping) and len(value) == 1:
        name, params = next(iter(value.items()))
        if params is None or isinstance(params, Mapping):
            return ComponentConfig(name, dict(params or {}))
    raise InputError(f"a component must be a name or {{name: parameters}}, got {value!r}")
