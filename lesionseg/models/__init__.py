"""MODELS: networks from an RGB image to one logit per pixel.

Every row builds an ``nn.Module`` that maps float images [N, 3, H, W], normalised, to logits
[N, 1, H, W], where H and W are multiples of the row's ``stride``. In training mode a network
with deep supervision gives a tuple of such logits, the main output first.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

from torch import nn

from lesionseg.errors import InputError
from lesionseg.models import monai, smp
from lesionseg.models.hardnet_mseg import HARDNET_MSEG
from lesionseg.models.monai import monai_options
from lesionseg.models.segnet import SEGNET
from lesionseg.models.smp import smp_options
from lesionseg.models.unet import UNET
from lesionseg.models.weights import skip_pretrained_weights
from lesionseg.space import ComponentConfig, RegistryEntry, build, lookup

MODELS: dict[str, RegistryEntry] = {
    "unet": UNET,
    "segnet": SEGNET,
    "hardnet_mseg": HARDNET_MSEG,
    **monai_options(),
    **smp_options(),
}


def build_model(component: ComponentConfig, *, image_size: int, load_pretrained: bool = True) -> nn.Module:
    """The picked network for square images of ``image_size`` pixels.

    fresh: its weights are to be trained from here on, so that pretrained ones are looked up; else
    they are about to be replaced, and nothing is.
    Raises InputError: the component is not in the table, its parameters do not go together, or the
    pretrained weights are not at hand.
    """
    with nullcontext() if load_pretrained else skip_pretrained_weights():
        model: nn.Module = build("model", MODELS, component, image_size=image_size)
    return model


def check_size(component: ComponentConfig, image_size: int) -> None:
    """InputError where the component is none, or cannot take square images of ``image_size`` pixels."""
    option = lookup("model", MODELS, component.name)
    try:
        stride = option.stride(**option.resolve(component.params))
    except InputError as error:
        raise InputError(f"model.{component.name}: {error}") from None
    least = max(stride, option.min_image_size)
    if image_size % stride or image_size < least:
        raise InputError(
            f"image_size: {component.name} takes multiples of {stride} from {least} on, got {image_size}"
        )


def required_imports(names: Iterable[str]) -> tuple[str, ...]:
    """Modules that building these rows of the table imports, which takes seconds.

    A process that others are forked from imports them beforehand.
    """
    known = {**dict.fromkeys(monai_options(), monai), **dict.fromkeys(smp_options(), smp)}
    return tuple(dict.fromkeys(m for n in names if n in known for m in known[n].REQUIRED_IMPORTS))


def count_params(model: nn.Module) -> int:
    """Trainable parameters of a network."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
