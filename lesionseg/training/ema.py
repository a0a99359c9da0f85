"""ModelEma: an exponential moving average of a network's weights, evaluated in its place.

Averaged weights give better and more stable results than those of the last step; Polyak and
Juditsky, SIAM J. Control Optim. 30(4), 1992; Tarvainen and Valpola, arXiv:1703.01780.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class ModelEma:
    """The moving average of a network's weights over the optimizer steps.

    After step t = 0, 1, ..., average = d * average + (1 - d) * weights, with
    d = min(decay, (1 + t) / (10 + t)): with a fixed decay of 0.999 the random initial weights
    would dominate the average for 700 steps.

    Floating-point buffers are averaged too, because batch-norm statistics of the last step do not
    fit averaged weights. Integer buffers (counters) are copied. So are buffers that are not part
    of the state dict: they are constants such as masks and may contain infinities.

    Args:
        model: the network on its training device; it is copied.
        decay: in [0, 1); the average covers about 1 / (1 - decay) steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        #: The network with the averaged weights, in evaluation mode, without gradients.
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._state_names = frozenset(self.model.state_dict())
        self._decay, self._steps = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Add the weights of ``model`` after an optimizer step; its device must be the same."""
        averaged, copied = self._split_tensors(self.model)
        new_averaged, new_copied = self._split_tensors(model)
        # Lists and a Python number as weight avoid synchronisation; torch refuses empty lists.
        if averaged:
            decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
            torch._foreach_lerp_(averaged, new_averaged, 1.0 - decay)
        if copied:
            torch._foreach_copy_(copied, new_copied)
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "model": self.model.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self._steps = int(state["steps"])

    def _split_tensors(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tensors to average and those to copy."""
        # parameters() and buffers() yield a tied weight once; a state dict contains it under each
        # of its names, and it would be averaged repeatedly.
        averaged: list[Tensor] = list(model.parameters())
        copied: list[Tensor] = []
        for name, buffer in model.named_buffers():
            is_averaged = name in self._state_names and buffer.is_floating_point()
            (averaged if is_averaged else copied).append(buffer)
        return averaged, copied
