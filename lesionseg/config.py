"""TrialConfig: everything that determines one training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lesionseg.errors import InputError, nearest
from lesionseg.space import Categorical, Domain, Float, Int, ComponentConfig

#: The plain numbers of a configuration, beside its components.
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

#: One line for people on each of them.
ABOUT_SETTINGS: Mapping[str, str] = {
    "image_size": "side in pixels of the square that images are resized to",
    "batch_size": "images in one step",
    "accumulate": "parts that a batch is computed in, one after the other: less memory, the same "
    "step but for what looks at a whole batch (batch norm, flooding, pooled overlap)",
    "epochs": "passes over the training images, at most",
    "patience": "epochs without a better validation Dice before stopping early; 0 never does",
    "clip_norm": "largest norm of the gradient; 0 clips nothing",
    "overlap": "whether overlap losses are means over images or pooled over the batch",
    "label_smoothing": "share of each target that is moved to one half, in training only",
    "flooding": "level b of |loss - b| + b, in training only; 0 floods nothing; arXiv:2002.08709",
    "ema": "decay of the moving average of the weights that is judged and kept; 0 keeps the "
    "weights themselves",
    "amp": "mixed precision where the device has it, or off",
    "seed": "of the weights, the order of images and the augmentation",
}

#: The component of a family that a study does not name.
DEFAULTS: Mapping[str, str] = {
    "model": "unet",
    "loss": "bce_dice",
    "augment": "flips",
    "mix": "none",
    "optimizer": "adamw",
    "schedule": "cosine",
}


@dataclass(frozen=True)
class TrialConfig:
    """One point of the search space, complete: two equal configurations train alike.

    Raises InputError where a setting lies outside its domain in SETTINGS.
    """

    model: ComponentConfig = ComponentConfig(DEFAULTS["model"])
    loss: ComponentConfig = ComponentConfig(DEFAULTS["loss"])
    augment: ComponentConfig = ComponentConfig(DEFAULTS["augment"])
    mix: ComponentConfig = ComponentConfig(DEFAULTS["mix"])
    optimizer: ComponentConfig = ComponentConfig(DEFAULTS["optimizer"])
    schedule: ComponentConfig = ComponentConfig(DEFAULTS["schedule"])
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
            object.__setattr__(self, name, value)  # "16" and 16.0 are 16

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON and YAML; ``from_dict`` gives the same configuration back."""
        plain: dict[str, Any] = {f: {getattr(self, f).name: dict(getattr(self, f).params)}
                                 for f in DEFAULTS}  # fmt: skip
        return plain | {name: getattr(self, name) for name in SETTINGS}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> TrialConfig:
        """The configuration of ``to_dict``; InputError names an unknown key."""
        known = [f.name for f in fields(cls)]
        for key in plain:
            if key not in known:
                raise InputError(f"unknown key {key!r} ({nearest(key, known)})")
        values: dict[str, Any] = {k: _pick(v) if k in DEFAULTS else v for k, v in plain.items()}
        return cls(**values)

    def digest(self) -> str:
        """Twelve hexadecimal digits that name this configuration."""
        canonical = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _pick(value: Any) -> ComponentConfig:
    if isinstance(value, str):
        return ComponentConfig(value)
    if isinstance(value, Mapping) and len(value) == 1:
        name, params = next(iter(value.items()))
        if params is None or isinstance(params, Mapping):
            return ComponentConfig(name, dict(params or {}))
    raise InputError(f"a component must be a name or {{name: parameters}}, got {value!r}")
