"""Networks of MONAI: nnU-Net's planned U-Net, SegResNet and the attention U-Net.

MONAI is imported when a network is built, because the import takes seconds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from lesionseg.space import Categorical, Float, Int, RegistryEntry

if TYPE_CHECKING:
    from monai.networks.nets.dynunet import DynUNet

#: nnU-Net's minimum side of a feature map in pixels and maximum number of channels,
#: ``min_feature_map_size`` and ``UNet_max_features_2d``.
MIN_SIDE_PX, MAX_FEATURES = 4, 512
#: Blocks per encoder stage of SegResNet, as published; each stage but the first halves the size.
BLOCKS_DOWN = (1, 2, 2, 4)


class PlannedUNet(nn.Module):
    """The blocks of MONAI's DynUNet in a plain loop.

    MONAI registers the blocks a second time in nested modules, so that a checkpoint contains each
    tensor twice, and stacks the outputs of deep supervision. Here each block is registered once
    and the outputs are a tuple. As in nnU-Net, images are zero-padded to a multiple of the strides
    and the logits are cropped, so that every size is valid.
    """

    def __init__(self, blocks: DynUNet, multiple: int) -> None:
        super().__init__()
        self.multiple = multiple
        self.down = nn.ModuleList([blocks.input_block, *blocks.downsamples])
        self.bottleneck = blocks.bottleneck
        self.up = blocks.upsamples
        self.coarse_heads = blocks.deep_supervision_heads if blocks.deep_supervision else None
        self.head = blocks.output_block

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Images [N, 3, H, W] to logits [N, 1, H, W].

        In training with deep supervision, a tuple of such logits: the main ones, then those of
        the coarser stages, upsampled by nearest neighbour.
        """
        height, width = images.shape[-2:]
        x = F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        padded_shape, skips, decoded = x.shape[-2:], [], []
        for block in self.down:
            x = block(x)
            skips.append(x)
        x = self.bottleneck(x)
        for block in self.up:
            x = block(x, skips.pop())
            decoded.append(x)
        logits: Tensor = self.head(decoded.pop())[..., :height, :width]
        if not (self.training and self.coarse_heads):
            return logits
        coarse = zip(self.coarse_heads, reversed(decoded), strict=False)
        maps = (F.interpolate(head(features), padded_shape) for head, features in coarse)
        return (logits, *(coarse_logits[..., :height, :width] for coarse_logits in maps))


def plan_widths(image_size: int, width: int) -> tuple[int, ...]:
    """Return the channels of the stages that nnU-Net plans for square images, the finest first.

    Stages of half the size are added while the feature map is at least 4 pixels wide. Source:
    Isensee et al. 2021, doi:10.1038/s41592-020-01008-z; ``get_pool_and_conv_props`` of nnU-Net v2.
    The channels double per stage, up to MAX_FEATURES.
    """
    widths, side = [width], image_size
    while side >= 2 * MIN_SIDE_PX:
        # nnU-Net pads to a multiple of the strides after each pooling: the side is rounded up.
        side = -(-side // 2)
        widths.append(min(2 * widths[-1], MAX_FEATURES))
    return tuple(widths)


def build_dynunet(
    width: int, deep_supervision: bool, residual: bool, image_size: int
) -> PlannedUNet:
    """Build the U-Net that nnU-Net plans for this image size, with instance norm and leaky ReLU.

    Args:
        width: channels of the first stage; 32 as published.
        deep_supervision: losses at all resolutions but the two lowest.
        residual: residual blocks instead of two plain convolutions.
        image_size: side of the images in pixels, at least 16, for the three stages that MONAI
            requires.
    """
    from monai.networks.nets.dynunet import DynUNet

    widths = plan_widths(image_size, width)
    strides = [1] + [2] * (len(widths) - 1)
    blocks = DynUNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=1,
        kernel_size=[3] * len(widths),
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=widths,
        deep_supervision=deep_supervision,
        deep_supr_num=max(len(widths) - 3, 1),
        res_block=residual,
        trans_bias=True,
    )
    return PlannedUNet(blocks, math.prod(strides))


def build_segresnet(init_filters: int, dropout: float) -> nn.Module:
    """Build SegResNet without its variational branch (Myronenko 2018, arXiv:1810.11654)."""
    from monai.networks.nets.segresnet import SegResNet

    model: nn.Module = SegResNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=1,
        init_filters=init_filters,
        dropout_prob=dropout,
        blocks_down=BLOCKS_DOWN,
    )
    return model


def build_attention_unet(width: int, depth: int) -> nn.Module:
    """Build a U-Net with attention gates on the skips (Oktay et al., arXiv:1804.03999)."""
    from monai.networks.nets.attentionunet import AttentionUnet

    channels = [width * 2**level for level in range(depth + 1)]
    model: nn.Module = AttentionUnet(2, 3, 1, channels, strides=[2] * depth)
    return model


MONAI: dict[str, RegistryEntry] = {
    "dynunet": RegistryEntry(
        build_dynunet,
        {
            "width": Int(8, 64, default=32, log=True),
            "deep_supervision": Categorical((False, True), default=False),
            "residual": Categorical((False, True), default=False),
        },
        "U-Net as nnU-Net plans it from the image size; doi:10.1038/s41592-020-01008-z",
        min_image_size=16,
        needs_image_size=True,
    ),
    "segresnet": RegistryEntry(
        build_segresnet,
        # Widths are multiples of the norm's 8 groups.
        {"init_filters": Int(8, 32, default=16, step=8), "dropout": Float(0.0, 0.5, 0.2)},
        "SegResNet, residual blocks with group norm; arXiv:1810.11654",
        stride=lambda **_: 2 ** (len(BLOCKS_DOWN) - 1),
        min_image_size=16,
    ),
    "attention_unet": RegistryEntry(
        build_attention_unet,
        {"width": Int(8, 64, default=32, log=True), "depth": Int(2, 5, default=4)},
        "attention U-Net, gated skips; arXiv:1804.03999",
        stride=lambda width, depth: 2**depth,
    ),
}
