"""The architectures of segmentation-models-pytorch, one row each, through one builder."""

from __future__ import annotations

from functools import partial

import segmentation_models_pytorch as smp
from torch import nn

from lesionseg.errors import InputError
from lesionseg.space import Categorical, Option

ENCODERS = ("resnet18", "resnet34", "resnet50", "mobilenet_v2", "efficientnet-b0", "mit_b0")

#: Architecture of the library -> (its name there, the stride of its default encoder depth).
ARCHITECTURES = {
    "unet": ("Unet", 32),
    "unetplusplus": ("UnetPlusPlus", 32),
    "manet": ("MAnet", 32),
    "linknet": ("Linknet", 32),
    "fpn": ("FPN", 32),
    "pspnet": ("PSPNet", 8),
    "deeplabv3": ("DeepLabV3", 8),
    "deeplabv3plus": ("DeepLabV3Plus", 16),
    "pan": ("PAN", 16),
    "upernet": ("UPerNet", 32),
    "segformer": ("Segformer", 32),
}

#: Pairs that the library refuses to build; the tests hold this against the library itself.
REFUSED = {"unetplusplus": {"mit_b0"}, "linknet": {"mit_b0"}}


def build_smp(architecture: str, *, encoder: str) -> nn.Module:
    """One of ARCHITECTURES with a randomly initialised encoder.

    Raises InputError with the library's reason where the two do not go together.
    """
    # By name from the module, so that no misspelt argument is swallowed on the way.
    maker = getattr(smp, ARCHITECTURES[architecture][0])
    try:
        model: nn.Module = maker(encoder_name=encoder, encoder_weights=None, classes=1)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise InputError(f"model.smp_{architecture}: encoder {encoder!r}: {error}") from error
    return model


def smp_options() -> dict[str, Option]:
    """The rows ``smp_unet``, ``smp_fpn``, ... of MODELS."""
    return {f"smp_{name}": _row(name) for name in ARCHITECTURES}


def _row(name: str) -> Option:
    theirs, stride = ARCHITECTURES[name]
    choices = tuple(e for e in ENCODERS if e not in REFUSED.get(name, ()))
    return Option(
        partial(build_smp, name),
        {"encoder": Categorical(choices, default="resnet18")},
        f"{theirs} of segmentation-models-pytorch",
        stride=lambda encoder: stride,
        # pan halves its features three times more; mit_b0 has nothing left of less than 32.
        smallest=128 if name == "pan" else 32,
    )
