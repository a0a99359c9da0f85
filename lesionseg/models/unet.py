"""U-Net (Ronneberger, Fischer, Brox, arXiv:1505.04597) with padded convolutions and a norm.

Options: residual blocks (He et al., arXiv:1512.03385), additive attention gates on the skips
(Oktay et al., arXiv:1804.03999), deep supervision and dropout. Weights are initialised by torch's
defaults. Options are built last, so that they do not change the other weights of a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lesionseg.space import Categorical, Float, Int, RegistryEntry

#: Maximum number of groups of a group norm (Wu, He, arXiv:1803.08494, use 32 for wider networks).
MAX_GROUPS = 8
#: Maximum number of decoder levels below full size for deep supervision.
MAX_EXTRA_HEADS = 3


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a group norm whose number of groups is the largest divisor of ``channels`` up to 8."""
    groups = max(g for g in range(1, MAX_GROUPS + 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


#: With learnt scale and shift, like the other norms.
instance_norm = partial(nn.InstanceNorm2d, affine=True)
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": group_norm,
    "instance": instance_norm,
}


def conv_stack(channels: Sequence[int], norm: str = "batch") -> nn.Sequential:
    """Return 3x3 convolutions, each with a norm and ReLU; keeps height and width."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        # No bias: the norm subtracts the mean.
        layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
        layers += [NORMS[norm](outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def conv_block(inputs: int, outputs: int, norm: str = "batch") -> nn.Sequential:
    """Return the two convolutions of a U-Net's level."""
    return conv_stack((inputs, outputs, outputs), norm)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, added before the last ReLU; arXiv:1512.03385.

    The shortcut is a 1x1 convolution with a norm if the number of channels changes, as in every
    block of a U-Net, else the identity.
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
    """Interpolate to the height and width of another tensor."""
    return F.interpolate(x, to.shape[2:], mode="bilinear", align_corners=False)


class AttentionGate(nn.Module):
    """Weights each pixel of a skip by the features of the level below; arXiv:1804.03999, eq. 1-3.

    The weight ``sigmoid(psi(relu(of_skip + of_gate)))`` is computed on the coarser grid, one for
    all channels, and interpolated. A strided convolution maps the skip to the coarser grid, with
    half of its channels.
    """

    def __init__(self, skip: int, gate: int) -> None:
        super().__init__()
        channels = skip // 2
        self.of_skip = nn.Conv2d(skip, channels, 2, stride=2, bias=False)
        self.of_gate = nn.Conv2d(gate, channels, 1)
        self.psi = nn.Conv2d(channels, 1, 1)

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        """Skip [N, skip, H, W] and gate [N, gate, H/2, W/2] to the weighted skip."""
        features = F.relu(self.of_skip(skip) + self.of_gate(gate), inplace=True)
        weights = torch.sigmoid(self.psi(features))
        return skip * _resize(weights, skip)


class UNet(nn.Module):
    """Encoder and decoder of ``depth`` levels; level i has ``width * 2**i`` channels.

    norm: a key of NORMS.
    residual: residual blocks instead of plain convolutions.
    attention: attention gates on the skips.
    deep_supervision: in training, logits of up to three further decoder levels (half, quarter,
        eighth of the size), interpolated to full size, are returned too.
    dropout: probability of Dropout2d in the two deepest levels of the encoder below full size.
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
            nn.Sequential(nn.MaxPool2d(2), block(a, b, norm)) for a, b in pairwise(channels)
        )
        # Appended, so that the names of the blocks' weights do not depend on it.
        for down in self.down[-2:]:
            cast(nn.Sequential, down).append(nn.Dropout2d(dropout))
        pairs = list(pairwise(reversed(channels)))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.merge = nn.ModuleList(block(2 * b, b, norm) for _, b in pairs)
        self.head = nn.Conv2d(width, 1, 1)
        self.gates = nn.ModuleList(AttentionGate(b, a) for a, b in pairs if attention)
        supervised = channels[1 : min(depth, MAX_EXTRA_HEADS + 1)] if deep_supervision else []
        self.extra_heads = nn.ModuleList(nn.Conv2d(c, 1, 1) for c in supervised)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Images [N, 3, H, W] to logits [N, 1, H, W]; H and W are multiples of 2**depth.

        In training with deep supervision, a tuple of such logits, from fine to coarse levels.
        With a depth of 1 there is no coarser level, and the result is a tensor.
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


UNET = RegistryEntry(
    UNet,
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
    # Doubled for instance norm, which cannot normalise a single pixel.
    stride=lambda depth, norm="batch", **_: int(2 ** (depth + (norm == "instance"))),
    # At 2 px a network of 4 channels and depth 1 has groups with a single value.
    min_image_size=4,
    fixed_by_default=frozenset({"norm", "residual", "attention", "deep_supervision", "dropout"}),
)
