"""What is done to any loss: label smoothing, several outputs, flooding, in that order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lesionseg.losses.base import Loss

#: One output, or those of a network with deep supervision: the main one first, all of full size.
Outputs = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Criterion:
    """A loss of one output or several, with its modifiers.

    Smoothing and flooding are for training: the loss that is reported for validation is built
    without them.

    loss: from logits and targets [N, 1, H, W] to a scalar.
    label_smoothing: s in [0, 1); a target t becomes t (1 - s) + s / 2.
    flooding: b, at least 0; the loss L of a batch, all outputs together, becomes |L - b| + b, so
        that it is climbed again below b: Ishida et al., arXiv:2002.08709. 0 changes nothing.
    """

    loss: Loss
    label_smoothing: float = 0.0
    flooding: float = 0.0

    def __call__(self, outputs: Outputs, masks: Tensor) -> Tensor:
        """The modified loss, a float32 scalar, of logits against masks, all [N, 1, H, W]."""
        s, b = self.label_smoothing, self.flooding
        targets = masks.float() * (1 - s) + s / 2 if s else masks
        value = over_outputs(self.loss, outputs, targets)
        # Some losses dip below 0 by rounding, and |L| would turn that round: b = 0 is no flood.
        return (value - b).abs() + b if b else value


def over_outputs(loss: Loss, outputs: Outputs, masks: Tensor) -> Tensor:
    """The loss of one output, or the weighted mean over several.

    Their weights are 1, 1/2, 1/4, ..., divided by their sum, as in nnU-Net: Isensee et al.,
    arXiv:1809.10486.
    """
    if isinstance(outputs, Tensor):
        return loss(outputs, masks)
    weights = [0.5**depth for depth in range(len(outputs))]
    values = [w * loss(output, masks) for w, output in zip(weights, outputs, strict=True)]
    return torch.stack(values).sum() / sum(weights)
