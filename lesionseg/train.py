"""train(): one configuration, one training, from fresh weights to the best epoch's.

Notable choices: the loss is summed on the device and read once an epoch, so that no step waits
for the host; validation counts pixels per image on the device and scores once; what is told to
``on_epoch`` and what is returned is the same statistic, the mean Dice per validation image at
the configuration's image size. What is there to train better (flooding, label smoothing, mixing,
the heads of deep supervision) is left out of the validation loss, so that it can be compared
between configurations of one loss.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lesionseg import checkpoint, metrics
from lesionseg.augment import build_augment
from lesionseg.averaging import Average
from lesionseg.config import TrialConfig
from lesionseg.data.cache import Cache
from lesionseg.data.loader import in_order, to_device, train_loader
from lesionseg.device import amp_dtype, autocast, loader_workers, peak_memory, prepare
from lesionseg.losses import Loss, build_loss
from lesionseg.metrics import Metrics
from lesionseg.mix import build_mix
from lesionseg.models import build_model
from lesionseg.optim import build_optimizer, build_schedule

Stopped = Literal["finished", "early", "asked"]
Weights = dict[str, Tensor]


class Diverged(RuntimeError):
    """The training loss or the network's output became NaN or infinite."""


@dataclass(frozen=True)
class TrainData:
    """A cache at the configuration's image size and the positions in it to train and judge on."""

    cache: Cache
    train: NDArray[np.int64]
    val: NDArray[np.int64]


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch gave. Epochs count from 1; lr is that of its last step; seconds its own."""

    epoch: int
    train_loss: float
    val_loss: float
    metrics: Metrics
    lr: float
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """best: the record of the epoch whose weights were kept. peak_memory: bytes, of the device
    for CUDA and else of the process. checkpoint: where the weights lie, if a path was given."""

    best: EpochRecord
    history: tuple[EpochRecord, ...]
    stopped: Stopped
    seconds: float
    peak_memory: int
    checkpoint: Path | None


def train(
    config: TrialConfig,
    data: TrainData,
    on_epoch: Callable[[EpochRecord], bool] = lambda record: False,
    *,
    device: torch.device | None = None,
    save_to: Path | None = None,
    keep: Literal["best", "last"] = "best",
    model: nn.Module | None = None,
) -> TrainResult:
    """Trains the configuration's network.

    on_epoch: called after each epoch; True ends the training with what it has.
    save_to: a .safetensors file for the weights kept: those of the epoch of the best validation
        Dice, or of the last one.
    model: a network built beforehand from the same configuration, else one is built here.
    On a CPU, equal arguments and threads give equal results to the last digit.
    Raises InputError for a pick that cannot be built, and Diverged.
    """
    device = device or torch.device("cpu")
    began = time.perf_counter()
    prepare(device, config.seed)
    network = model or build_model(config.model, image_size=config.image_size)
    loop = _Loop(config, data, device, network)
    history: list[EpochRecord] = []
    best, kept, stopped = None, None, "finished"
    for epoch in range(1, config.epochs + 1):
        record = loop.epoch(epoch)
        history.append(record)
        if keep == "last" or best is None or record.metrics.dice > best.metrics.dice:
            best, kept = record, _clone(loop.judged)
        if on_epoch(record):
            stopped = "asked"
            break
        if config.patience and epoch - best.epoch >= config.patience:
            stopped = "early"
            break
    assert best is not None and kept is not None
    if save_to is not None:
        checkpoint.save(save_to, kept, config)
    return TrainResult(
        best=best,
        history=tuple(history),
        stopped=stopped,  # type: ignore[arg-type]
        seconds=time.perf_counter() - began,
        peak_memory=peak_memory(device),
        checkpoint=save_to,
    )


class _Loop:
    """The state of one training and what is done with it each epoch."""

    def __init__(
        self, config: TrialConfig, data: TrainData, device: torch.device, model: nn.Module
    ) -> None:
        self.config, self.data, self.device = config, data, device
        # Convolutions are fastest over channels last, on the CPU as on tensor cores.
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss: Loss = build_loss(
            config.loss,
            overlap=config.overlap,
            label_smoothing=config.label_smoothing,
            flooding=config.flooding,
        )
        self.val_loss: Loss = build_loss(config.loss, overlap=config.overlap)
        self.mix = build_mix(config.mix)
        self.average = Average(self.model, config.ema) if config.ema else None
        self.loader, self.plan = train_loader(
            data.cache,
            data.train,
            config.batch_size,
            build_augment(config.augment),
            seed=config.seed,
            workers=loader_workers(device),
            pin=device.type == "cuda",
        )
        self.optimizer = build_optimizer(config.optimizer, self.model.parameters())
        steps = len(self.plan)
        self.schedule = build_schedule(config.schedule, self.optimizer, config.epochs, steps)
        self.dtype = amp_dtype(device, config.amp)
        # bfloat16 has float32's range: only float16 needs its gradients scaled.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and kept: the averaged one, if there is one."""
        return self.average.model if self.average else self.model

    def epoch(self, number: int) -> EpochRecord:
        began = time.perf_counter()
        self.plan.epoch = number
        train_loss = self._train()
        if not math.isfinite(train_loss):
            raise Diverged(f"the training loss became {train_loss} in epoch {number}")
        val_loss, scores = self._validate()
        if not math.isfinite(val_loss):
            raise Diverged(f"the validation loss became {val_loss} in epoch {number}")
        self.schedule.after_epoch(scores.dice)
        seconds = time.perf_counter() - began
        return EpochRecord(number, train_loss, val_loss, scores, self.lr, seconds)

    def _train(self) -> float:
        self.model.train()
        total = torch.zeros((), device=self.device)
        # Its own stream: the order and the augmentation of a configuration stay as they are.
        rng = np.random.default_rng([self.config.seed, self.plan.epoch, 1])
        for batch in self.loader:
            images, masks = to_device(batch, self.device)
            if self.mix is not None:
                images, masks = self.mix(images, masks, rng)
            total += self._step(images, masks)
        return float(total) / len(self.plan)

    def _step(self, images: Tensor, masks: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(images, masks)
        if self.config.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update(self.model)
        self.lr = float(self.optimizer.param_groups[0]["lr"])  # before the schedule moves it on
        self.schedule.after_step()
        return loss

    def _backward(self, images: Tensor, masks: Tensor) -> Tensor:
        """Gradients of the batch's mean loss, summed over its parts; that loss, detached."""
        total = torch.zeros((), device=self.device)
        parts = min(self.config.accumulate, len(images))
        for x, y in zip(images.tensor_split(parts), masks.tensor_split(parts), strict=True):
            with autocast(self.device, self.dtype):
                outputs = self.model(x)
            loss = self.loss(outputs, y) * (len(x) / len(images))
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    @torch.inference_mode()
    def _validate(self) -> tuple[float, Metrics]:
        network = self.judged.eval()
        total, counts = torch.zeros((), device=self.device), []
        for batch in in_order(self.data.cache, self.data.val, self.config.batch_size):
            images, masks = to_device(batch, self.device)
            with autocast(self.device, self.dtype):
                logits = network(images)
            total += self.val_loss(logits, masks) * len(images)
            counts.append(metrics.count(logits > 0, masks > 0.5))
        scores = metrics.mean(metrics.score(torch.cat(counts).cpu().numpy()))
        return float(total) / len(self.data.val), scores


def _clone(model: nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
