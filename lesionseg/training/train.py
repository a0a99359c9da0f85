"""train(): one configuration, one training, from fresh weights to the best epoch's.

What is told to ``on_epoch`` and what is returned is the same statistic, the mean Dice per
validation image at the configuration's image size. A training can be suspended after any step,
and goes on from its state as if it had not been; lesionseg.training.training_state says how it is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from lesionseg.config import TrialConfig
from lesionseg.models import build_model
from lesionseg.runtime.device import configure_torch
from lesionseg.training import checkpoint
from lesionseg.training.trainer import Hooks, Trainer, clone
from lesionseg.training.training_state import CheckpointManager, identity
from lesionseg.training.types import (
    Diverged,
    EpochRecord,
    Stopped,
    Suspended,
    TrainData,
    TrainResult,
)

__all__ = ["Diverged", "EpochRecord", "Suspended", "TrainData", "TrainResult", "train"]


def train(
    config: TrialConfig,
    data: TrainData,
    on_epoch: Callable[[EpochRecord], bool] = lambda record: False,
    *,
    device: torch.device | None = None,
    save_to: Path | None = None,
    keep: Literal["best", "last"] = "best",
    model: nn.Module | None = None,
    state: Path | None = None,
    suspend: Callable[[], bool] = lambda: False,
    parts: int = 1,
    on_resume: Callable[[tuple[EpochRecord, ...]], None] = lambda records: None,
    on_step: Callable[[int, int, int], None] = lambda epoch, step, steps: None,
    on_saved: Callable[[int], None] = lambda epochs: None,
) -> TrainResult:
    """Trains the configuration's network.

    on_epoch: called after each epoch; True ends the training with what it has.
    save_to: a .safetensors file for the weights kept: those of the epoch of the best validation
        Dice, or of the last one.
    model: a network built beforehand from the same configuration, else one is built here.
    state: a file for the state of the training under way. If that of this very training is
        there, it is gone on from; else, or if it is damaged, the training begins. It is saved
        when an epoch ends and now and then within one, unless that costs more than 1 / SHARE of
        the time, and stays when the training has ended: whoever asked for it deletes it once
        the result is safe.
    suspend: asked between steps and between batches of the validation; True saves the state and
        raises Suspended. Within a validation, that validation is made again from its beginning.
    parts: how many times the parts of ``config.accumulate`` each batch is computed in, for less
        memory; at least 1. A state may be gone on from with another number, not to the digit.
    on_resume: called if a state was taken up, before all else, with the epochs completed. Of
        epochs after the last save ``on_epoch`` is told again.
    on_step: called after each step: epoch and step from 1, and the steps of an epoch.
    on_saved: called after each save with the number of epochs completed.
    On a CPU, equal arguments and threads give equal results to the last digit, suspended or not.
    Raises InputError for a component that cannot be built, Diverged, and Suspended.
    """
    device = device or torch.device("cpu")
    configure_torch(device, config.seed)
    network = model or build_model(config.model, image_size=config.image_size)
    belongs = {"train": data.train, "val": data.val, "keep": keep}
    keeper = CheckpointManager(
        state, identity(config, data.cache, **belongs) if state else {}, on_saved
    )
    loop = Trainer(config, data, device, network, Hooks(suspend, on_step, keeper, parts))
    if keeper.take_up(loop):
        on_resume(tuple(loop.history))
    stopped: Stopped = "finished"
    for epoch in range(len(loop.history) + 1, config.epochs + 1):
        record = loop.epoch(epoch)
        if keep == "last" or loop.best is None or record.metrics.dice > loop.best.metrics.dice:
            loop.best, loop.kept = record, clone(loop.judged)
        if on_epoch(record):
            stopped = "asked"
            break
        if config.patience and epoch - loop.best.epoch >= config.patience:
            stopped = "early"
            break
        if epoch < config.epochs:
            loop.pause(middle=False)
    assert loop.best is not None and loop.kept is not None
    if save_to is not None:
        checkpoint.save(save_to, loop.kept, config)
    return TrainResult(
        best=loop.best,
        history=tuple(loop.history),
        stopped=stopped,
        seconds=loop.clock(),
        peak_memory=loop.peak_memory,
        checkpoint=save_to,
    )
