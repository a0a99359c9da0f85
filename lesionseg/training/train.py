"""train(): train one configuration and return its history and the kept weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from lesionseg.config import TrialConfig
from lesionseg.metrics.overlap import Metrics
from lesionseg.models import build_model
from lesionseg.runtime.device import configure_torch, peak_memory, with_index
from lesionseg.training import checkpoint
from lesionseg.training.batches import TrainBatches
from lesionseg.training.train_step import TrainStep
from lesionseg.training.training_state import (
    CheckpointManager,
    State,
    estimate_state_bytes,
    random_state,
    set_random_state,
    state_identity,
)
from lesionseg.training.types import (
    Diverged,
    EpochRecord,
    Suspended,
    TrainData,
    TrainingEnd,
    TrainOptions,
    TrainResult,
)
from lesionseg.training.validation import Validator

Weights = dict[str, Tensor]


class Trainer:
    """One training.

    history: records of the completed epochs.
    best, best_weights: record and weights of the epoch to keep.
    step: completed steps of the current epoch.
    loss_sum: sum of their losses, on the device; it is read once per epoch, so that no step waits
        for the device.
    """

    def __init__(
        self,
        config: TrialConfig,
        data: TrainData,
        model: nn.Module,
        options: TrainOptions,
        checkpoints: CheckpointManager,
    ) -> None:
        self.config, self._options, self._checkpoints = config, options, checkpoints
        self._device = options.device
        # Starting times, earlier by the seconds that the training took in other processes.
        self._start = self._epoch_start = time.perf_counter()
        self._earlier_peak_memory = 0
        self.history: list[EpochRecord] = []
        self.best: EpochRecord | None = None
        self.best_weights: Weights | None = None
        self.step, self.loss_sum = 0, torch.zeros((), device=self._device)
        self.batches = TrainBatches(config, data, self._device)
        self.train_step = TrainStep(
            config, model, self._device, len(self.batches), options.accumulation_factor
        )
        self._validator = Validator(config, data, self._device)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    @property
    def peak_memory(self) -> int:
        """Peak memory in bytes over all processes of this training."""
        return max(self._earlier_peak_memory, peak_memory(self._device))

    def run(self, on_epoch: Callable[[EpochRecord], bool]) -> TrainingEnd:
        """Train the remaining epochs; ``on_epoch`` returns True to stop."""
        for epoch in range(len(self.history) + 1, self.config.epochs + 1):
            record = self._run_epoch(epoch)
            keeps_last, dice = self._options.keep == "last", record.metrics.dice
            if keeps_last or self.best is None or dice > self.best.metrics.dice:
                self.best, self.best_weights = record, copy_weights(self.train_step.eval_model)
            if on_epoch(record):
                return TrainingEnd.CALLBACK
            if self.config.patience and epoch - self.best.epoch >= self.config.patience:
                return TrainingEnd.EARLY
            if epoch < self.config.epochs:
                self._save_or_suspend(mid_epoch=False)
        return TrainingEnd.FINISHED

    def run_steps(self, epoch: int) -> float:
        """Train the remaining steps of an epoch and return the mean loss of all its steps."""
        self.train_step.start_epoch(epoch)
        self.batches.start(epoch, self.step)
        for images, masks in self.batches:
            self.loss_sum += self.train_step(images, masks)
            self.step += 1
            self._options.on_step(epoch, self.step, len(self.batches))
            self._save_or_suspend()
        return float(self.loss_sum) / len(self.batches)

    def state_dict(self) -> State:
        """Return everything that the rest of the training depends on, with the live tensors."""
        best = self.best.epoch if self.best else 0
        return {
            "history": [asdict(record) for record in self.history],
            "best": best,
            "best_weights": None
            if best == len(self.history) and not self.step
            else self.best_weights,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "mix": self.batches.rng.bit_generator.state,
            "random": random_state(self._device),
            "seconds": self.seconds,
            "epoch_seconds": time.perf_counter() - self._epoch_start if self.step else 0.0,
            "peak_memory": self.peak_memory,
            **self.train_step.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.history = [
            EpochRecord(**record | {"metrics": Metrics(**record["metrics"])})
            for record in state["history"]
        ]
        self.best = self.history[state["best"] - 1] if state["best"] else None
        self.step, self.loss_sum = state["step"], state["loss_sum"].to(self._device)
        self.batches.rng.bit_generator.state = state["mix"]
        self.train_step.load_state_dict(state)
        self.best_weights = state["best_weights"] or (
            copy_weights(self.train_step.eval_model) if self.best else None
        )
        set_random_state(self._device, state["random"])
        self._start = time.perf_counter() - state["seconds"]
        self._epoch_start = time.perf_counter() - state["epoch_seconds"]
        self._earlier_peak_memory = state["peak_memory"]

    def _run_epoch(self, epoch: int) -> EpochRecord:
        """Train and validate one epoch, or the rest of it, and append its record."""
        if not self.step:
            self._epoch_start = time.perf_counter()
        train_loss = self.run_steps(epoch)
        if not math.isfinite(train_loss):
            raise Diverged(f"the training loss became {train_loss} in epoch {epoch}")
        val_loss, metrics = self._validator.evaluate(
            self.train_step.eval_model, self._save_or_suspend
        )
        if not math.isfinite(val_loss):
            raise Diverged(f"the validation loss became {val_loss} in epoch {epoch}")
        self.train_step.schedule.after_epoch(metrics.dice)
        seconds = time.perf_counter() - self._epoch_start
        record = EpochRecord(epoch, train_loss, val_loss, metrics, self.train_step.lr, seconds)
        self.history.append(record)
        self.step, self.loss_sum = 0, torch.zeros_like(self.loss_sum)
        return record

    def _save_or_suspend(self, *, mid_epoch: bool = True) -> None:
        """Save the state if that is due, and raise Suspended if requested."""
        suspend, epochs = self._options.should_suspend(), len(self.history)
        if suspend or self._checkpoints.is_due(mid_epoch=mid_epoch):
            self._checkpoints.save(self, epochs)
        if suspend:
            raise Suspended(epochs)


def train(
    config: TrialConfig,
    data: TrainData,
    on_epoch: Callable[[EpochRecord], bool] = lambda record: False,
    options: TrainOptions | None = None,
) -> TrainResult:
    """Train the configuration's network.

    The value that is passed to ``on_epoch`` and the returned one are the same statistic: the mean
    Dice per validation image at the configuration's image size. On a CPU, equal arguments and
    thread counts give bit-identical results, with or without suspensions.

    Args:
        config: what to train.
        data: training and validation images.
        on_epoch: called after each epoch; True stops the training.
        options: device, files, callbacks; the defaults of TrainOptions if None.

    Raises:
        InputError: the configuration cannot be built.
        Diverged: a loss became NaN or infinite.
        Suspended: ``options.should_suspend`` returned True.
    """
    options = options or TrainOptions()
    options = replace(options, device=with_index(options.device))
    configure_torch(options.device, config.seed)
    model = options.model or build_model(config.model, image_size=config.image_size)
    identity = state_identity(config, data, options.keep)
    checkpoints = CheckpointManager(options.state_path, identity, options.on_saved)
    trainer = Trainer(config, data, model, options, checkpoints)
    checkpoints.expect_bytes(estimate_state_bytes(model, config))
    if checkpoints.load(trainer):
        options.on_resume(tuple(trainer.history))
    stopped = trainer.run(on_epoch)
    assert trainer.best is not None and trainer.best_weights is not None
    model.load_state_dict(trainer.best_weights)
    weights_path = options.weights_path if options.should_write() else None
    if weights_path is not None:
        checkpoint.save(weights_path, trainer.best_weights, config)
    return TrainResult(
        best=trainer.best,
        history=tuple(trainer.history),
        stopped=stopped,
        seconds=trainer.seconds,
        peak_memory=trainer.peak_memory,
        checkpoint=weights_path,
    )


def copy_weights(model: nn.Module) -> Weights:
    """Return a copy of the network's state on its device."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
