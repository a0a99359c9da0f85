"""nnU-Net's planning of a 2-D network from the image size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lesionseg.errors import InputError

#: Minimum side of a feature map in pixels; nnU-Net's ``min_feature_map_size``.
MIN_SIDE_PX = 4

#: Channels of the first stage and maximum of any; nnU-Net's ``UNet_base_num_features`` and
#: ``UNet_max_features_2d``.
FIRST_FEATURES, MAX_FEATURES = 32, 512


@dataclass(frozen=True)
class Plan:
    """The stages of a U-Net, the finest first.

    kernels: side of each stage's square kernels.
    strides: downsampling factor of each stage; 1 for the first.
    features: channels of each stage.
    """

    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    features: tuple[int, ...]


def plan(image_size: int, width: int = FIRST_FEATURES) -> Plan:
    """Return the stages that nnU-Net plans for square images of isotropic pixels.

    Stages are added while the feature map is at least 4 pixels wide. Stage i has
    ``min(width * 2**i, 512)`` channels. Images whose size is not a multiple of ``divisor`` are
    padded. Source: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z;
    ``get_pool_and_conv_props`` of nnU-Net v2.

    Args:
        image_size: side of the images in pixels, at least 8, which gives two stages.
        width: channels of the first stage; 32 as published.

    Raises:
        InputError: the image is too small.
    """
    if image_size < 2 * MIN_SIDE_PX:
        raise InputError(f"image_size: must be at least {2 * MIN_SIDE_PX}, got {image_size}")
    pools, side = 0, image_size
    while side >= 2 * MIN_SIDE_PX:
        # nnU-Net pads to a multiple of the strides after each pooling: the side is rounded up.
        pools, side = pools + 1, -(-side // 2)
    stages = pools + 1
    return Plan(
        kernels=(3,) * stages,
        strides=(1, *(2,) * pools),
        features=tuple(min(width * 2**i, MAX_FEATURES) for i in range(stages)),
    )


def divisor(planned: Plan) -> int:
    """Return the number that image sides must be a multiple of: the product of the strides."""
    return math.prod(planned.strides)
