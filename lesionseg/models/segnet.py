"""SegNet (Badrinarayanan, Kendall, Cipolla, arXiv:1511.00561): VGG16-like, index unpooling.

As published, but for one class and without a bias before batch norm, which would undo it.
Weights start as torch does by itself: from the paper's start they differ in scale alone, and
batch norm takes that out.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lesionseg.space import Int, RegistryEntry

#: Convolutions in each of the five stages, as in VGG16.
STAGES = (2, 2, 3, 3, 3)


def _stage(channels: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip(channels, channels[1:], strict=False):
        layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class SegNet(nn.Module):
    """Five stages of ``width`` x (1, 2, 4, 8, 8) channels, mirrored by the decoder.

    The encoder's max-pooling indices place the decoder's values; no feature map is passed on.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width * m for m in (1, 2, 4, 8, 8)]
        into = [3, *widths]  # what each encoder stage takes
        # The first decoder stage ends before the classifier at full width, not at 3 channels.
        out = [width, *widths[:-1]]  # what each decoder stage gives
        self.encoder = nn.ModuleList(
            _stage([into[i]] + [w] * n) for i, (w, n) in enumerate(zip(widths, STAGES, strict=True))
        )
        self.decoder = nn.ModuleList(
            _stage([w] * n + [out[i]]) for i, (w, n) in enumerate(zip(widths, STAGES, strict=True))
        )
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] to logits [N, 1, H, W]; H and W are multiples of 32."""
        x, indices = images, []
        for stage in self.encoder:
            x, where = F.max_pool2d(stage(x), 2, return_indices=True)
            indices.append(where)
        for stage in reversed(self.decoder):
            x = stage(F.max_unpool2d(x, indices.pop(), [2, 2]))
        logits: Tensor = self.head(x)
        return logits


def build_segnet(width: int) -> SegNet:
    """SegNet with ``width`` channels in its first stage (64 as published); arXiv:1511.00561."""
    return SegNet(width)


SEGNET = RegistryEntry(
    build_segnet,
    {"width": Int(4, 64, default=64, log=True)},
    "SegNet, VGG16-like, unpooling by the encoder's indices; arXiv:1511.00561",
    stride=lambda width: int(2 ** len(STAGES)),
)
