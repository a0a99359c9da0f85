"""MODELS: networks from an RGB image to one logit per pixel.

Every entry builds an ``nn.Module`` that maps normalised float images [N, 3, H, W] to logits
[N, 1, H, W], where H and W are multiples of the entry's ``stride``. In training mode a network
with deep supervision returns a tuple of such logits, the main output first.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from lesionseg.errors import InputError
from lesionseg.models.hardnet_mseg import HARDNET_MSEG
from lesionseg.models.monai import MONAI
from lesionseg.models.segnet import SEGNET
from lesionseg.models.smp import SMP
from lesionseg.models.unet import UNET
from lesionseg.space import ComponentConfig, RegistryEntry, build, lookup, resolve

MODELS: dict[str, RegistryEntry] = {
    "unet": UNET,
    "segnet": SEGNET,
    "hardnet_mseg": HARDNET_MSEG,
    **MONAI,
    **SMP,
}


def build_model(
    component: ComponentConfig, *, image_size: int, load_pretrained: bool = True
) -> nn.Module:
    """Build a network.

    Args:
        component: an entry of MODELS and its parameters.
        image_size: side of the square images in pixels.
        load_pretrained: False if the weights are replaced afterwards: pretrained weights that the
            component names, or has by default, are then not loaded.

    Raises:
        InputError: unknown entry, incompatible parameters, or unavailable pretrained weights.
    """
    if not load_pretrained and "weights" in lookup("model", MODELS, component.name).space:
        component = replace(component, params={**component.params, "weights": "none"})
    model: nn.Module = build("model", MODELS, component, image_size=image_size)
    return model


def check_size(component: ComponentConfig, image_size: int) -> None:
    """Raise InputError if the network does not exist or cannot process images of this size."""
    params = resolve("model", MODELS, component)
    entry = MODELS[component.name]
    stride = entry.stride(**params)
    minimum = max(stride, entry.min_image_size)
    if image_size % stride or image_size < minimum:
        raise InputError(
            f"image_size: {component.name} takes multiples of {stride} from {minimum} on, "
            f"got {image_size}"
        )


def required_imports(names: Collection[str]) -> tuple[str, ...]:
    """Return the modules that building these entries imports, for a fork server to preload."""
    packages = {"monai.networks.nets": MONAI, "segmentation_models_pytorch": SMP}
    return tuple(m for m, entries in packages.items() if not entries.keys().isdisjoint(names))


def count_params(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def multiply_adds(model: nn.Module, image_size: int) -> int:
    """Count the multiply-accumulate operations of a forward pass over one image.

    As usual, convolutions, matrix products and attention are counted; sums, norms and activations
    are not.

    Args:
        model: a network from images [1, 3, S, S], on any device; its mode is restored.
        image_size: side S of the image in pixels.
    """
    training = model.training
    # On the meta device only shapes are computed, up to twenty times as fast as on a CPU.
    tensors = (*model.named_parameters(), *model.named_buffers())
    state = {name: tensor.to("meta") for name, tensor in tensors}
    dtype = next(model.parameters()).dtype
    image = torch.zeros(1, 3, image_size, image_size, device="meta", dtype=dtype)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        functional_call(model.eval(), state, (image,))
    model.train(training)
    return int(counter.get_total_flops()) // 2  # torch counts a multiplication and an addition
