"""Modifiers of any loss: label smoothing, several outputs, flooding, in that order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lesionseg.losses.overlap import Loss

#: Logits [N, 1, H, W], or several with deep supervision: the main ones first, all of full size.
Outputs = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Criterion:
    """A loss of one or several outputs with its modifiers; for validation it has none.

    loss: from logits and targets [N, 1, H, W] to a scalar.
    label_smoothing: s in [0, 1); a target t becomes t (1 - s) + s / 2.
    flooding: b >= 0; the loss L of a batch becomes |L - b| + b (Ishida et al.,
        arXiv:2002.08709). 0 changes nothing.
    """

    loss: Loss
    label_smoothing: float = 0.0
    flooding: float = 0.0

    def __call__(self, outputs: Outputs, masks: Tensor) -> Tensor:
        """Return the modified loss, a float32 scalar, of logits and masks [N, 1, H, W]."""
        s, b = self.label_smoothing, self.flooding
        targets = masks.float() * (1 - s) + s / 2 if s else masks
        value = over_outputs(self.loss, outputs, targets)
        # Rounding may make a loss negative; b = 0 must not change its sign.
        return (value - b).abs() + b if b else value


def over_outputs(loss: Loss, outputs: Outputs, masks: Tensor) -> Tensor:
    """Return the loss of one output, or the weighted mean over several.

    The weights are 1, 1/2, 1/4, ..., divided by their sum, as in nnU-Net (Isensee et al.,
    arXiv:1809.10486).
    """
    if isinstance(outputs, Tensor):
        return loss(outputs, masks)
    weights = [0.5**depth for depth in range(len(outputs))]
    values = [w * loss(output, masks) for w, output in zip(weights, outputs, strict=True)]
    return torch.stack(values).sum() / sum(weights)
