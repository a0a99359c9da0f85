"""Networks of MONAI: nnU-Net's planned U-Net, SegResNet and the attention U-Net.

MONAI is imported when a network is built, because the import takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from lesionseg.errors import InputError
from lesionseg.models.plan import divisor, plan
from lesionseg.space import Categorical, Float, Int, RegistryEntry

if TYPE_CHECKING:
    from monai.networks.nets.dynunet import DynUNet

#: Modules that are imported when a network is built.
REQUIRED_IMPORTS = ("monai.networks.nets",)
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
        decoded = self._decode(x)
        outputs = [self.head(decoded[0])]
        if self.training and self.coarse_heads is not None:
            for head, features in zip(self.coarse_heads, decoded[1:], strict=False):
                outputs.append(F.interpolate(head(features), x.shape[-2:]))
        cropped = tuple(logits[..., :height, :width] for logits in outputs)
        return cropped if self.training and self.coarse_heads is not None else cropped[0]

    def _decode(self, x: Tensor) -> list[Tensor]:
        """Return the decoder's feature maps, the finest first."""
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        x = self.bottleneck(x)
        decoded = []
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = block(x, skip)
            decoded.append(x)
        return decoded[::-1]


def build_dynunet(
    width: int, deep_supervision: bool, residual: bool, image_size: int | None = None
) -> PlannedUNet:
    """Build the U-Net that nnU-Net plans for this image size, with instance norm and leaky ReLU.

    Source: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z.

    Args:
        width: channels of the first stage; 32 as published. They double per stage, up to 512.
        deep_supervision: losses at all resolutions but the two lowest.
        residual: residual blocks instead of two plain convolutions.
        image_size: side of the images in pixels, at least 16.

    Raises:
        InputError: the size is missing or gives fewer than the three stages that MONAI requires.
    """
    from monai.networks.nets.dynunet import DynUNet

    if image_size is None or image_size < 16:
        raise InputError(f"model.dynunet: image_size must be at least 16, got {image_size}")
    planned = plan(image_size, width)
    stages = len(planned.strides)
    blocks = DynUNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=1,
        kernel_size=planned.kernels,
        strides=planned.strides,
        upsample_kernel_size=planned.strides[1:],
        filters=planned.features,
        deep_supervision=deep_supervision,
        deep_supr_num=max(stages - 3, 1),
        res_block=residual,
        trans_bias=True,
    )
    return PlannedUNet(blocks, divisor(planned))


def build_segresnet(init_filters: int, dropout: float) -> nn.Module:
    """Build SegResNet without its variational branch (Myronenko 2018, arXiv:1810.11654).

    Args:
        init_filters: channels of the first stage, a multiple of the 8 groups of its norm.
        dropout: probability of dropping a channel of the first features, in [0, 1).
    """
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
    """Build a U-Net with attention gates on the skips (Oktay et al., arXiv:1804.03999).

    Args:
        width: channels of the first stage; they double per stage.
        depth: number of halvings; image sizes are multiples of ``2**depth``.
    """
    from monai.networks.nets.attentionunet import AttentionUnet

    model: nn.Module = AttentionUnet(
        spatial_dims=2,
        in_channels=3,
        out_channels=1,
        channels=[width * 2**level for level in range(depth + 1)],
        strides=[2] * depth,
    )
    return model


def monai_options() -> dict[str, RegistryEntry]:
    """Return the entries ``dynunet``, ``segresnet`` and ``attention_unet`` of MODELS."""
    return {
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
