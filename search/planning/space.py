"""The search space of a plan: small for few trials, and larger for many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lesionseg.models import MODELS
from lesionseg.models.encoders import UNSUPPORTED
from search.planning.policy import LITE0, TIERS, TRANSFORMERS, Tier

Section = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """What is searched from a number of trials on. The first option of each list is the default.

    has_encoders: whether more than one encoder and one decoder width are searched.
    """

    trials: int
    architectures: tuple[str, ...]
    losses: Section
    augments: Section
    optimizers: Section
    schedules: tuple[str, ...]
    has_encoders: bool = False
    mix: tuple[str, ...] = ("none",)
    settings: Section | None = None
    model: Section | None = None


_FIXED_LOSSES: Section = {
    "bce_dice": {"weight": 0.5},
    "dice": {},
    "focal_dice": {"weight": 0.5, "alpha": 0.5, "gamma": 2.0},
}
_LOSSES: Section = {
    "bce_dice": {},
    "dice": {},
    "focal_dice": {},
    "jaccard": {},
    "tversky": {},
    "focal_tversky": {},
    "lovasz": {},
}
_AUGMENTS: Section = {"geometric": {}, "full": {}, "rotations": {}, "flips": {}, "dermoscopy": {}}
_WIDELY_USED = ("smp_fpn", "smp_segformer", "smp_unet", "smp_deeplabv3plus", "smp_unetplusplus")

#: From few trials to many. With few, only what matters most for a pretrained network is searched:
#: the learning rates, the loss and the augmentation.
STAGES = (
    Stage(
        trials=0,
        architectures=("smp_fpn",),
        losses=_FIXED_LOSSES,
        augments={"geometric": {"strength": 0.5}, "full": {"strength": 0.5}},
        optimizers={"adamw": {"lr": [5e-4, 3e-3], "weight_decay": 0.01}},
        schedules=("onecycle",),
    ),
    Stage(
        trials=16,
        architectures=("smp_fpn", "smp_segformer", "smp_unet"),
        losses=_FIXED_LOSSES,
        augments={"geometric": {}, "full": {}, "flips": {}},
        optimizers={"adamw": {"lr": [3e-4, 4e-3], "weight_decay": 0.01}},
        schedules=("onecycle", "cosine"),
    ),
    Stage(
        trials=25,
        architectures=_WIDELY_USED,
        losses=_LOSSES,
        augments=_AUGMENTS,
        optimizers={"adamw": {"lr": [2e-4, 5e-3], "weight_decay": [1e-4, 0.1]}},
        schedules=("onecycle", "cosine", "polynomial"),
        has_encoders=True,
        mix=("none", "cutmix"),
        settings={"batch_size": [8, 32], "ema": {"choices": [0.0, 0.99]}},
    ),
    Stage(
        trials=80,
        architectures=(*_WIDELY_USED, "smp_manet", "smp_linknet"),
        losses=_LOSSES | {"bce": {}, "focal": {}, "mcc": {}, "boundary": {}},
        augments=_AUGMENTS | {"colour": {}},
        optimizers={
            "adamw": {"lr": [1e-4, 5e-3]},
            "sgd": {"lr": [5e-3, 0.5]},
            "lion": {"lr": [1e-5, 5e-4]},
        },
        schedules=("onecycle", "cosine", "polynomial", "constant", "plateau"),
        has_encoders=True,
        mix=("none", "cutmix", "mixup"),
        settings={
            "batch_size": [8, 32],
            "ema": {"choices": [0.0, 0.99, 0.999]},
            "label_smoothing": {"choices": [0.0, 0.05]},
        },
        model={"layer_decay": {"choices": [1.0, 0.85]}},
    ),
)


def stage_for(trials: int) -> Stage:
    """Return the space for a number of trials."""
    return next(stage for stage in reversed(STAGES) if trials >= stage.trials)


def usable_encoders(tier: Tier, weights: Mapping[str, str]) -> list[str]:
    """Return the tier's encoders that have weights; EfficientNet-Lite0 if none has."""
    return [e for e in tier.encoders if weights.get(e, "none") != "none"] or [LITE0]


def search_section(tier: Tier, trials: int, weights: Mapping[str, str]) -> Section:
    """Return the section ``search`` of a study file.

    Args:
        tier: the networks.
        trials: number of trials.
        weights: source of each encoder's weights.
    """
    stage = stage_for(trials)
    section = {
        "model": _models(tier, stage, weights),
        "loss": stage.losses,
        "augment": stage.augments,
        "optimizer": stage.optimizers,
        "schedule": list(stage.schedules),
    }
    if len(stage.mix) > 1:
        section["mix"] = list(stage.mix)
    return section | (stage.settings or {})


def _models(tier: Tier, stage: Stage, weights: Mapping[str, str]) -> Section:
    encoders = usable_encoders(tier, weights)
    encoders = encoders if stage.has_encoders else encoders[:1]
    models: Section = {}
    for name in stage.architectures:
        refused = UNSUPPORTED.get(name.removeprefix("smp_"), frozenset())
        names = [e for e in encoders if e not in refused]
        if not names:
            continue
        models[name] = {
            "encoder": names if len(names) > 1 else names[0],
            "encoder_lr_factor": [0.1, 1.0],
            **(stage.model or {}),
        }
        if "decoder_width" in MODELS[name].space:
            models[name]["decoder_width"] = _decoder_width(tier, stage)
    if stage is STAGES[-1] and tier is TIERS[-1]:
        transformers = [e for e in TRANSFORMERS if weights.get(e, "none") != "none"]
        if transformers:
            models["smp_dpt"] = {"encoder": transformers, "encoder_lr_factor": [0.03, 1.0]}
        models |= tier.scratch
    return models


def _decoder_width(tier: Tier, stage: Stage) -> Any:
    """Return the decoder's width; the small tier's encoder is smaller than smp's decoders."""
    width, others = (0.5, [0.25, 1.0]) if tier is TIERS[0] else (1.0, [0.5])
    return {"choices": [width, *others]} if stage.has_encoders else width
