"""HarDNet-MSEG (Huang, Wu, Lin, arXiv:2101.07172): HarDNet-68, receptive fields, dense decoder.

The backbone is HarDNet-68 (Chao et al., arXiv:1909.00948); the receptive-field blocks and the
cascaded partial decoder are those of Wu, Su, Huang (arXiv:1904.08739). Details that the papers
do not specify follow the authors' code: ReLU6 in the backbone, no activation between the
decoder's convolutions, upsampling with aligned corners in the decoder and without at the end.
The authors' code has 33,343,244 parameters with layers that are never called; only the used
17,423,837 are built here. Weights are initialised by torch's defaults.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lesionseg.space import RegistryEntry


class Block(NamedTuple):
    """One harmonic dense block of the backbone and what follows it."""

    layers: int
    growth: int
    outputs: int  # channels after the 1x1 transition
    pooled: bool  # 2x2 max-pooling follows


#: HarDNet-68, table 2 of arXiv:1909.00948.
HARDNET68 = (
    Block(8, 14, 128, pooled=True),
    Block(16, 16, 256, pooled=False),
    Block(16, 20, 320, pooled=True),
    Block(16, 40, 640, pooled=True),
    Block(4, 160, 1024, pooled=False),
)
MULTIPLIER = 1.7
#: Channels of the stem's two convolutions, of which the first is strided.
STEM = (32, 64)
#: Channels of the decoder.
WIDTH = 32


def links(layer: int) -> list[int]:
    """Return a layer's input layers, ``layer - 2**i`` for each ``2**i`` that divides it (>= 1)."""
    return [layer - 2**i for i in range(layer.bit_length()) if layer % 2**i == 0]


def layer_width(layer: int, growth: int) -> int:
    """Return a layer's channels: the growth rate times 1.7 per link but the first, made even."""
    width = growth * MULTIPLIER ** (len(links(layer)) - 1)
    return int(width + 1) // 2 * 2


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    """Return the backbone's convolution with batch norm and ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )


class HarDBlock(nn.Module):
    """Harmonic dense block: layers with links at powers of two; keeps height and width.

    The output concatenates the odd layers and the last; ``outputs`` is its number of channels.
    """

    def __init__(self, inputs: int, layers: int, growth: int) -> None:
        super().__init__()
        widths = [inputs] + [layer_width(n, growth) for n in range(1, layers + 1)]
        self.layers = nn.ModuleList(
            _conv(sum(widths[k] for k in links(n)), widths[n], 3) for n in range(1, layers + 1)
        )
        self.output_layers = [n for n in range(1, layers + 1) if n % 2 or n == layers]
        self.outputs = sum(widths[n] for n in self.output_layers)

    def forward(self, features: Tensor) -> Tensor:
        """Features [N, inputs, H, W] to [N, outputs, H, W]."""
        outputs = [features]
        for n, layer in enumerate(self.layers, start=1):
            inputs = [outputs[k] for k in links(n)]
            outputs.append(layer(torch.cat(inputs, dim=1) if len(inputs) > 1 else inputs[0]))
        return torch.cat([outputs[n] for n in self.output_layers], dim=1)


class HarDNet(nn.Module):
    """HarDNet-68 without its ImageNet classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _conv(3, STEM[0], 3, stride=2),
            _conv(STEM[0], STEM[1], 3),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.stages = nn.ModuleList()
        channels = STEM[1]
        for block in HARDNET68:
            dense = HarDBlock(channels, block.layers, block.growth)
            self.stages.append(nn.Sequential(dense, _conv(dense.outputs, block.outputs, 1)))
            channels = block.outputs

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [N, 3, H, W] to the features of each stage, at strides 4, 8, 8, 16 and 32."""
        x, features = self.stem(images), []
        for stage, block in zip(self.stages, HARDNET68, strict=True):
            features.append(stage(x))
            x = F.max_pool2d(features[-1], 2) if block.pooled else features[-1]
        return features


def _linear(
    inputs: int, outputs: int, size: int | tuple[int, int], dilation: int = 1
) -> nn.Sequential:
    """Return the decoder's convolution with batch norm, without activation."""
    size = (size, size) if isinstance(size, int) else size
    padding = (dilation * (size[0] // 2), dilation * (size[1] // 2))
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
    )


class ReceptiveField(nn.Module):
    """Receptive-field block: branches of sizes 1, 3, 5 and 7, and a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([_linear(inputs, outputs, 1)])
        for reach in (3, 5, 7):
            branch = _linear(inputs, outputs, 1)
            for size, dilation in (((1, reach), 1), ((reach, 1), 1), ((3, 3), reach)):
                branch.extend(_linear(outputs, outputs, size, dilation))
            self.branches.append(branch)
        self.join = _linear(4 * outputs, outputs, 3)
        self.shortcut = _linear(inputs, outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Features [N, inputs, H, W] to non-negative [N, outputs, H, W]."""
        joined = self.join(torch.cat([branch(features) for branch in self.branches], dim=1))
        return F.relu(joined + self.shortcut(features), inplace=True)


def _double(features: Tensor) -> Tensor:
    return F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=True)


class DenseAggregation(nn.Module):
    """Cascaded partial decoder: deep features weight shallow ones, then both are joined."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.deep_to_middle = _linear(width, width, 3)
        self.deep_to_shallow = _linear(width, width, 3)
        self.middle_to_shallow = _linear(width, width, 3)
        self.deep_beside = _linear(width, width, 3)
        self.middle_beside = _linear(2 * width, 2 * width, 3)
        self.join_middle = _linear(2 * width, 2 * width, 3)
        self.join_shallow = _linear(3 * width, 3 * width, 3)
        self.last = _linear(3 * width, 3 * width, 3)
        self.head = nn.Conv2d(3 * width, 1, 1)

    def forward(self, shallow: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        """Features [N, width, ...] of H x W, H/2 x W/2 and H/4 x W/4 to logits [N, 1, H, W]."""
        doubled = _double(deep)
        weighted = self.deep_to_middle(doubled) * middle
        joined = self.join_middle(torch.cat([weighted, self.deep_beside(doubled)], dim=1))
        # Upsampled twice: with aligned corners this differs from upsampling by four.
        weighted = self.deep_to_shallow(_double(doubled)) * self.middle_to_shallow(_double(middle))
        beside = self.middle_beside(_double(joined))
        joined = self.join_shallow(torch.cat([weighted * shallow, beside], dim=1))
        logits: Tensor = self.head(self.last(joined))
        return logits


class HarDNetMSEG(nn.Module):
    """HarDNet-68 with a decoder of its features at strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = HarDNet()
        self.fields = nn.ModuleList(ReceptiveField(block.outputs, WIDTH) for block in HARDNET68[2:])
        self.decoder = DenseAggregation(WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] to logits [N, 1, H, W]; H and W are multiples of 32."""
        features = self.backbone(images)[2:]
        logits = self.decoder(*(f(x) for f, x in zip(self.fields, features, strict=True)))
        return F.interpolate(logits, scale_factor=8, mode="bilinear", align_corners=False)


HARDNET_MSEG = RegistryEntry(
    HarDNetMSEG,
    description="HarDNet-68, receptive-field blocks, cascaded partial decoder; arXiv:2101.07172",
    stride=lambda: 32,
    # At 32 pixels the deepest map has one pixel: batch norm fails for a batch of one in training.
    min_image_size=64,
)
