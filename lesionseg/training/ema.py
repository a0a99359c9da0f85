"""An exponential moving average of a network's weights, to be evaluated in its stead.

Averages over the last steps are better, and steadier from epoch to epoch, than the last step
itself; Polyak and Juditsky, SIAM J. Control Optim. 30(4), 1992, and Tarvainen and Valpola,
arXiv:1703.01780.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lesionseg.errors import InputError


class ModelEma:
    """The moving average of a network's weights over the optimizer's steps.

    After step t = 0, 1, ..., average = d * average + (1 - d) * weights, where
    d = min(decay, (1 + t) / (10 + t)): at a fixed decay of 0.999 the random start would make up
    most of the average for 700 steps.

    Floating buffers are averaged too. The statistics of batch normalisation belong to the
    weights that made them: the last step's do not fit averaged weights. Integer buffers, which
    count, are copied; so are buffers that are no part of the network's state, which are
    constants such as masks, and may hold infinities that an average would turn into NaN.

    model: the network, on the device that it is trained on. It is copied, and never changed.
    decay: in [0, 1); the average reaches back about 1 / (1 - decay) steps.
    warm_up: False leaves the decay as given from the first step on.
    Raises InputError: the decay lies outside its range.
    """

    def __init__(self, model: nn.Module, decay: float, warm_up: bool = True) -> None:
        if not 0.0 <= decay < 1.0:
            raise InputError(f"the decay of averaged weights must lie in [0, 1), got {decay:g}")
        self._model = copy.deepcopy(model).eval().requires_grad_(False)
        self._state_names = frozenset(self._model.state_dict())
        self._decay = decay
        self._warm_up = warm_up
        self._steps = 0

    @property
    def model(self) -> nn.Module:
        """The network with the averaged weights: in evaluation mode, without gradients."""
        return self._model

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of ``model``; to be called after each optimizer step.

        model: the network that this average was made from, on the same device.
        """
        averaged, copied = self._split(self._model)
        new, counted = self._split(model)
        # Whole lists at once and a Python number as the weight: the host never waits for the
        # device. An empty list is refused by torch.
        if averaged:
            torch._foreach_lerp_(averaged, new, 1.0 - self._next_decay())
        if copied:
            torch._foreach_copy_(copied, counted)
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed average needs; its tensors are this average's own, not copies."""
        return {"steps": self._steps, "model": self._model.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave, to the same digits."""
        self._model.load_state_dict(state["model"])
        self._steps = int(state["steps"])

    def _next_decay(self) -> float:
        if not self._warm_up:
            return self._decay
        return min(self._decay, (1 + self._steps) / (10 + self._steps))

    def _split(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        # By parameters() and buffers(), which give a tied weight once; a state_dict has it
        # under each of its names, and it would be averaged as often.
        averaged: list[Tensor] = list(model.parameters())
        copied: list[Tensor] = []
        for name, buffer in model.named_buffers():
            is_state = name in self._state_names
            (averaged if is_state and buffer.is_floating_point() else copied).append(buffer)
        return averaged, copied
