"""nnU-Net's planning of a 2-D network from the size of its images alone."""

from __future__ import annotations

from dataclasses import dataclass

from lesionseg.errors import InputError

#: Side in pixels below which no feature map is pooled; nnU-Net's ``min_feature_map_size``.
LEAST_SIDE = 4

#: Channels of the first stage and the most of any; nnU-Net's ``UNet_base_num_features`` and
#: ``UNet_max_features_2d``.
FIRST_FEATURES, MOST_FEATURES = 32, 512


@dataclass(frozen=True)
class Plan:
    """The stages of a U-Net, the finest first.

    kernels: side of each stage's square kernels.
    strides: by how much each stage shrinks what the one before gives; 1 for the first.
    features: channels of each stage.
    """

    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    features: tuple[int, ...]


def plan(image_size: int, width: int = FIRST_FEATURES) -> Plan:
    """The stages that nnU-Net plans for square images of isotropic pixels.

    A stage is added while the feature map stays at least 4 pixels wide. Its channels are
    ``min(width * 2**i, 512)``. Where the size is no multiple of the product of the strides,
    nnU-Net pads the image; see `divisor`.

    Args:
        image_size: side of the images in pixels, at least 8, so that there are two stages.
        width: channels of the first stage; 32 as published.

    Source: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z; ``get_pool_and_conv_props`` of
    nnU-Net v2. Raises InputError for a smaller image.
    """
    if image_size < 2 * LEAST_SIDE:
        raise InputError(f"image_size: must be at least {2 * LEAST_SIDE}, got {image_size}")
    pools, side = 0, image_size
    while side >= 2 * LEAST_SIDE:
        # nnU-Net pads to a multiple of the strides after each pooling, hence the side is rounded.
        pools, side = pools + 1, -(-side // 2)
    stages = pools + 1
    return Plan(
        kernels=(3,) * stages,
        strides=(1, *(2,) * pools),
        features=tuple(min(width * 2**i, MOST_FEATURES) for i in range(stages)),
    )


def divisor(planned: Plan) -> int:
    """What the sides of the images must be a multiple of: the product of the strides."""
    product = 1
    for stride in planned.strides:
        product *= stride
    return product
