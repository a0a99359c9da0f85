"""U-Net (Ronneberger, Fischer, Brox, arXiv:1505.04597), with padded convolutions and a norm.

What can be switched on: residual blocks (He et al., arXiv:1512.03385), additive attention gates
on the skips (Oktay et al., arXiv:1804.03999), deep supervision and dropout. Weights start as
torch does by itself. What is switched on is built last, so that the other weights of a seed
are the same with and without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lesionseg.space import Categorical, Float, Int, RegistryEntry

#: The most groups of a group norm (Wu, He, arXiv:1803.08494, take 32 for wider networks).
GROUPS = 8
#: The most decoder levels below full size that deep supervision reads.
EXTRA_HEADS = 3


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with 8 groups, or with the largest divisor of ``channels`` up to 8."""
    groups = max(g for g in range(1, GROUPS + 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def instance_norm(channels: int) -> nn.InstanceNorm2d:
    """Instance norm with a learnt scale and shift, as the other norms have."""
    return nn.InstanceNorm2d(channels, affine=True)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": group_norm,
    "instance": instance_norm,
}


def conv_block(inputs: int, outputs: int, norm: str = "batch") -> nn.Sequential:
    """Two 3x3 convolutions, each with a norm and ReLU; keeps height and width."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        # The norm subtracts the mean, so that a bias before it would do little or nothing.
        layers.append(nn.Conv2d(channels, outputs, 3, padding=1, bias=False))
        layers += [NORMS[norm](outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, added before the last ReLU; arXiv:1512.03385.

    The shortcut is a 1x1 convolution with a norm where the channels change, as they do in every
    block of a U-Net, and the input itself elsewhere.
    """

    def __init__(self, inputs: int, outputs: int, norm: str = "batch") -> None:
        super().__init__()
        self.body = conv_block(inputs, outputs, norm)[:-1]
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, bias=False)
            self.shortcut = nn.Sequential(projection, NORMS[norm](outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Features [N, inputs, H, W] to [N, outputs, H, W]."""
        return F.relu(self.body(features) + self.shortcut(features), inplace=True)


def _resize(x: Tensor, to: Tensor) -> Tensor:
    """Interpolated to the height and width of the other."""
    return F.interpolate(x, to.shape[2:], mode="bilinear", align_corners=False)


class AttentionGate(nn.Module):
    """Weighs each pixel of a skip by what the level below it saw; arXiv:1804.03999, eq. 1 to 3.

    A pixel of the coarser grid gets ``sigmoid(psi(relu(of_skip + of_gate)))``, one number for
    all channels, and the pixels in between are interpolated. Half of the skip's channels are
    compared. A strided convolution brings the skip to the coarser grid.
    """

    def __init__(self, skip: int, gate: int) -> None:
        super().__init__()
        compared = skip // 2
        self.of_skip = nn.Conv2d(skip, compared, 2, stride=2, bias=False)
        self.of_gate = nn.Conv2d(gate, compared, 1)
        self.psi = nn.Conv2d(compared, 1, 1)

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        """Skip [N, skip, H, W] and gate [N, gate, H/2, W/2] to the skip, weighed."""
        compared = F.relu(self.of_skip(skip) + self.of_gate(gate), inplace=True)
        weights = torch.sigmoid(self.psi(compared))
        return skip * _resize(weights, skip)


class UNet(nn.Module):
    """Encoder and decoder of ``depth`` levels; level i has ``width * 2**i`` channels.

    norm, residual, attention: see the module.
    dropout: the probability with which Dropout2d drops a channel of the two deepest levels of
        the encoder (the bottom, and the level above it unless that is at full size), in training.
    deep_supervision: in training, logits of up to three further levels of the decoder (half,
        quarter, eighth of the size) are given too, interpolated to full size.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        *,
        norm: str = "batch",
        residual: bool = False,
        attention: bool = False,
        deep_supervision: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        block = ResidualBlock if residual else conv_block
        channels = [width * 2**level for level in range(depth + 1)]
        self.stem = block(3, width, norm)
        self.down = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), block(a, b, norm))
            for a, b in zip(channels, channels[1:], strict=False)
        )
        # Behind the blocks, so that the names of their weights stay as they are.
        for down in self.down[-2:]:
            cast(nn.Sequential, down).append(nn.Dropout2d(dropout))
        upward = list(reversed(channels))
        pairs = list(zip(upward, upward[1:], strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.merge = nn.ModuleList(block(2 * c, c, norm) for c in upward[1:])
        self.head = nn.Conv2d(width, 1, 1)
        self.gates = nn.ModuleList(AttentionGate(b, a) for a, b in pairs if attention)
        supervised = channels[1 : min(depth, EXTRA_HEADS + 1)] if deep_supervision else []
        self.extra_heads = nn.ModuleList(nn.Conv2d(c, 1, 1) for c in supervised)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Images [N, 3, H, W] to logits [N, 1, H, W]; H and W are multiples of 2**depth.

        In training with deep supervision, a tuple of such logits: those of full size, then
        those of ever coarser levels. With a depth of 1 no coarser level is decoded, and it is
        the logits alone.
        """
        supervised = self.training and len(self.extra_heads) > 0
        skips = [self.stem(images)]
        for down in self.down:
            skips.append(down(skips[-1]))
        x, decoded = skips.pop(), []
        for level, (up, merge) in enumerate(zip(self.up, self.merge, strict=True)):
            skip = skips.pop()
            skip = self.gates[level](skip, x) if self.gates else skip
            x = merge(torch.cat([skip, up(x)], dim=1))
            if supervised:
                decoded.append(x)
        logits: Tensor = self.head(x)
        if not supervised:
            return logits
        coarser = zip(self.extra_heads, decoded[-2::-1], strict=False)
        return (logits, *(_resize(head(x), images) for head, x in coarser))


def build_unet(width: int, depth: int, **others: Any) -> UNet:
    """A U-Net with ``width`` channels at full size and ``depth`` halvings; arXiv:1505.04597.

    others: the keywords of UNet.
    """
    return UNet(width, depth, **others)


def _stride(depth: int, norm: str = "batch", **_: object) -> int:
    """2**depth; twice that for instance norm, which cannot centre a single pixel."""
    return int(2 ** (depth + (norm == "instance")))


UNET = RegistryEntry(
    build_unet,
    {
        "width": Int(4, 128, default=32, log=True),
        "depth": Int(1, 6, default=4),
        "norm": Categorical(tuple(NORMS), default="batch"),
        "residual": Categorical((False, True), default=False),
        "attention": Categorical((False, True), default=False),
        "deep_supervision": Categorical((False, True), default=False),
        "dropout": Float(0.0, 0.5, default=0.0),
    },
    "U-Net: its norm, residual blocks, attention gates, deep supervision; arXiv:1505.04597",
    stride=_stride,
    # At 2 pixels a network of 4 channels and depth 1 would have groups of one value each.
    min_image_size=4,
    fixed_by_default=frozenset({"norm", "residual", "attention", "deep_supervision", "dropout"}),
)
