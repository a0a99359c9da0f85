"""U-Net (Ronneberger, Fischer, Brox, arXiv:1505.04597), with batch norm and padded convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with batch norm and ReLU; keeps height and width."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        # Batch norm subtracts the mean, so that a bias before it would do nothing.
        layers.append(nn.Conv2d(channels, outputs, 3, padding=1, bias=False))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Encoder and decoder of ``depth`` levels; level i has ``width * 2**i`` channels."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        channels = [width * 2**level for level in range(depth + 1)]
        self.stem = conv_block(3, width)
        self.down = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), conv_block(a, b))
            for a, b in zip(channels, channels[1:], strict=False)
        )
        upward = list(reversed(channels))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in zip(upward, upward[1:], strict=False)
        )
        self.merge = nn.ModuleList(conv_block(2 * c, c) for c in upward[1:])
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] to logits [N, 1, H, W]."""
        features = [self.stem(images)]
        for down in self.down:
            features.append(down(features[-1]))
        x = features.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([features.pop(), up(x)], dim=1))
        logits: Tensor = self.head(x)
        return logits


def build_unet(width: int, depth: int) -> UNet:
    """A U-Net with ``width`` channels at full size and ``depth`` halvings; arXiv:1505.04597."""
    return UNet(width, depth)
