"""SegNet (Badrinarayanan, Kendall, Cipolla, arXiv:1511.00561): VGG16-like, index unpooling.

As published, but for one class and without a bias before batch norm, which cancels it. Weights
are initialised by torch's defaults: the paper's differ in scale only, which batch norm removes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lesionseg.models.unet import conv_stack
from lesionseg.space import Int, RegistryEntry

#: Convolutions in each of the five stages, as in VGG16.
STAGES = (2, 2, 3, 3, 3)


class SegNet(nn.Module):
    """Five stages of ``width`` x (1, 2, 4, 8, 8) channels, mirrored by the decoder.

    ``width`` is 64 as published. The decoder unpools with the encoder's max-pooling indices;
    there are no skip connections.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width * m for m in (1, 2, 4, 8, 8)]
        inputs = [3, *widths[:-1]]  # channels into each encoder stage
        # The last decoder stage keeps its width; the head follows.
        outputs = [width, *widths[:-1]]  # channels out of each decoder stage
        stages = [[w] * n for w, n in zip(widths, STAGES, strict=True)]
        self.encoder = nn.ModuleList(
            conv_stack([i, *stage]) for i, stage in zip(inputs, stages, strict=True)
        )
        self.decoder = nn.ModuleList(
            conv_stack([*stage, o]) for o, stage in zip(outputs, stages, strict=True)
        )
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] to logits [N, 1, H, W]; H and W are multiples of 32."""
        x, indices = images, []
        for stage in self.encoder:
            x, stage_indices = F.max_pool2d(stage(x), 2, return_indices=True)
            indices.append(stage_indices)
        for stage in reversed(self.decoder):
            x = stage(F.max_unpool2d(x, indices.pop(), [2, 2]))
        logits: Tensor = self.head(x)
        return logits


SEGNET = RegistryEntry(
    SegNet,
    {"width": Int(4, 64, default=64, log=True)},
    "SegNet, VGG16-like, unpooling by the encoder's indices; arXiv:1511.00561",
    stride=lambda width: int(2 ** len(STAGES)),
)
