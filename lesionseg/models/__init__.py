"""MODELS: networks from an RGB image to one logit per pixel.

Every row builds an ``nn.Module`` that maps float images [N, 3, H, W], normalised, to logits
[N, 1, H, W], where H and W are multiples of the row's ``stride``.
"""

from __future__ import annotations

from torch import nn

from lesionseg.models.segnet import build_segnet
from lesionseg.models.smp import smp_options
from lesionseg.models.unet import build_unet
from lesionseg.space import Int, Option, Pick, build

MODELS: dict[str, Option] = {
    "unet": Option(
        build_unet,
        {"width": Int(4, 128, default=32, log=True), "depth": Int(1, 6, default=4)},
        "U-Net with batch norm; arXiv:1505.04597",
        stride=lambda width, depth: 2**depth,
    ),
    "segnet": Option(
        build_segnet,
        {"width": Int(4, 64, default=64, log=True)},
        "SegNet, VGG16-like, unpooling by the encoder's indices; arXiv:1511.00561",
        stride=lambda width: 32,
    ),
    **smp_options(),
}


def build_model(pick: Pick) -> nn.Module:
    """The picked network with fresh weights; InputError if the pick is not in the table."""
    model: nn.Module = build("model", MODELS, pick)
    return model


def count_params(model: nn.Module) -> int:
    """Trainable parameters of a network."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
