"""Measure the speed and the memory of a training with a few real steps."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from torch import nn

from lesionseg.config import TrialConfig
from lesionseg.data.loader import Batch
from lesionseg.runtime.device import configure_torch, peak_memory
from lesionseg.training.batches import TrainBatches
from lesionseg.training.train_step import TrainStep
from lesionseg.training.types import TrainData
from lesionseg.training.validation import Validator

#: Steps before the measurement: memory is allocated, and a GPU chooses its kernels.
WARM_UP_STEPS = 2
#: Batches of validation images that are measured, after as many that are not.
VAL_BATCHES = 1


@dataclass(frozen=True)
class TrainingSpeed:
    """Mean durations in seconds, and the peak memory in bytes; see ``TrainResult``."""

    seconds_per_step: float
    seconds_per_val_image: float
    peak_memory: int


def measure_training(
    config: TrialConfig, data: TrainData, model: nn.Module, device: torch.device, steps: int
) -> TrainingSpeed:
    """Train a few steps and validate a batch; the network is changed.

    Args:
        config: the training; the number of its epochs has no effect.
        data: the images; they are repeated as often as needed.
        model: the network of the configuration.
        device: the device to measure on, with its index.
        steps: number of measured steps.
    """
    configure_torch(device, config.seed)
    config = replace(config, epochs=WARM_UP_STEPS + steps)  # a schedule ends with its epochs
    batches = TrainBatches(config, data, device)
    step = TrainStep(config, model, device, len(batches))
    step.model.train()
    source = _repeat(batches)
    for _ in range(WARM_UP_STEPS):
        step(*next(source))
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        step(*next(source))
    _synchronize(device)
    seconds_per_step = (time.perf_counter() - start) / steps
    source.close()
    seconds_per_val_image = _measure_validation(config, data, step.eval_model, device)
    return TrainingSpeed(seconds_per_step, seconds_per_val_image, peak_memory(device))


def _measure_validation(
    config: TrialConfig, data: TrainData, model: nn.Module, device: torch.device
) -> float:
    val = data.val[: VAL_BATCHES * config.batch_size]
    validator = Validator(config, replace(data, val=val), device)
    start = 0.0
    for _ in range(2):  # the first one is for warm-up
        start = time.perf_counter()
        validator.evaluate(model, lambda: None)  # reads the scores, and so waits for the device
    return (time.perf_counter() - start) / len(val)


def _repeat(batches: TrainBatches) -> Generator[Batch, None, None]:
    """Yield batches of epoch after epoch."""
    epoch = 1
    while True:
        batches.start(epoch, 0)
        yield from batches
        epoch += 1


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
