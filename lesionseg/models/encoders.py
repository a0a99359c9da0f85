"""The encoders of segmentation-models-pytorch (smp) that networks can be built with."""

from __future__ import annotations

from lesionseg.errors import InputError

#: Hierarchical encoders, for every architecture except dpt; ``tu-`` ones are timm's.
ENCODERS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnext50_32x4d",
    "se_resnet50",
    "efficientnet-b0",
    "efficientnet-b2",
    "efficientnet-b4",
    "tu-tf_efficientnet_lite0",
    "tu-tf_efficientnet_lite1",
    "tu-tf_efficientnet_lite2",
    "mobilenet_v2",
    "tu-mobilenetv3_large_100",
    "tu-mobilenetv4_conv_small",
    "tu-mobilenetv4_conv_medium",
    "mit_b0",
    "mit_b1",
    "mit_b2",
    "mit_b3",
    "tu-convnext_atto",
    "tu-convnext_tiny",
    "tu-convnextv2_atto",
    "tu-convnextv2_nano",
    "tu-convnextv2_tiny",
    "tu-pvt_v2_b0",
    "tu-pvt_v2_b1",
    "tu-pvt_v2_b2",
)

#: Plain vision transformers with patches of 16 px, for dpt only. DINOv3's position embedding is
#: rotary, so that its weights fit every image size; the others' is interpolated.
TRANSFORMERS = (
    "tu-vit_tiny_patch16_224",
    "tu-vit_small_patch16_224",
    "tu-deit_tiny_patch16_224",
    "tu-vit_small_patch16_dinov3",
    "tu-vit_base_patch16_dinov3",
)

_MIT = frozenset({"mit_b0", "mit_b1", "mit_b2", "mit_b3"})
_PVT = frozenset({"tu-pvt_v2_b0", "tu-pvt_v2_b1", "tu-pvt_v2_b2"})

#: Encoders that an architecture cannot be combined with; a test compares this with smp.
UNSUPPORTED: dict[str, frozenset[str]] = {
    # Their half-resolution features have no channels.
    "unetplusplus": _MIT,
    "linknet": _MIT,
    # The stages cannot be dilated.
    "deeplabv3": _PVT,
    "deeplabv3plus": _PVT,
    "pan": _PVT,
}


def check_drop_path(encoder: str, drop_path: float) -> None:
    """Raise InputError if the encoder's drop path cannot be set.

    timm's encoders have the parameter. smp's own ignore it; some have a fixed drop path.

    Args:
        encoder: smp's name of the encoder.
        drop_path: rate of the deepest block; 0 is valid for every encoder.
    """
    if drop_path > 0 and not encoder.startswith("tu-"):
        raise InputError(
            f"drop_path: only encoders of timm (tu-...) have it, got {drop_path:g} for {encoder!r};"
            " use 0 or another encoder"
        )
