"""Loop: one training and what is done with it each epoch; lesionseg.training.train drives it.

Notable choices: the loss is summed on the device and read once an epoch, so that no step waits
for the host; validation counts pixels per image on the device and scores once. What is there to
train better (flooding, label smoothing, mixing, the heads of deep supervision) is left out of
the validation loss, so that it can be compared between configurations of one loss. A step that
does not fit into memory is computed again in twice as many parts, from what it began with.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from lesionseg import metrics
from lesionseg.augment import build_augment
from lesionseg.augment.mix import build_mix
from lesionseg.config import TrialConfig
from lesionseg.data.loader import (
    Batch,
    BatchDataset,
    brought,
    in_order,
    to_device,
    train_loader,
)
from lesionseg.data.resident import PlanDataset, Resident, executor
from lesionseg.losses import Loss, build_loss
from lesionseg.metrics import Metrics
from lesionseg.optim import build_optimizer, build_schedule
from lesionseg.runtime import compilation
from lesionseg.runtime.device import amp_dtype, autocast, loader_workers, peak_memory
from lesionseg.runtime.oom import AdaptiveBatcher, is_out_of_memory, run_unless_oom
from lesionseg.training.ema import ModelEma
from lesionseg.training.training_state import (
    CheckpointManager,
    State,
    StepSnapshot,
    load_optimizer,
    random_state,
    set_random_state,
)
from lesionseg.training.types import Diverged, EpochRecord, Suspended, TrainData

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Hooks:
    """The arguments of ``train`` that a loop needs between its steps."""

    suspend: Callable[[], bool]
    on_step: Callable[[int, int, int], None]
    keeper: CheckpointManager
    parts: int


class Trainer:
    """One training and what is done with it each epoch.

    history, best, kept: what it has given so far. step: how many steps of the epoch under way
    are done; total: the sum of their losses.
    """

    def __init__(
        self,
        config: TrialConfig,
        data: TrainData,
        device: torch.device,
        model: nn.Module,
        hooks: Hooks,
    ) -> None:
        self.config, self.data, self.device, self.hooks = config, data, device, hooks
        self.began = self.epoch_began = time.perf_counter()
        self.earlier = self.epoch_earlier = 0.0
        self.peak, self.lr = 0, 0.0
        self.parts = config.accumulate * hooks.parts
        self.history: list[EpochRecord] = []
        self.best: EpochRecord | None = None
        self.kept: Weights | None = None
        self.step, self.total = 0, torch.zeros((), device=device)
        self.rng = np.random.default_rng()  # of the mix; seeded by each epoch
        # Convolutions are fastest over channels last, on the CPU as on tensor cores.
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.forward: compilation.Forward = self.model
        self.compiled, self.warm = False, False
        self._compile_if_it_pays()
        self.loss: Loss = build_loss(
            config.loss,
            overlap=config.overlap,
            label_smoothing=config.label_smoothing,
            flooding=config.flooding,
        )
        self.val_loss: Loss = build_loss(config.loss, overlap=config.overlap)
        self.mix = build_mix(config.mix)
        self.average = ModelEma(self.model, config.ema) if config.ema else None
        self.before = StepSnapshot(self.model, device)
        # Without gradients several times as many fit; a CPU gains nothing by them.
        together = 4 if device.type == "cuda" else 1
        self.portions = AdaptiveBatcher(together * config.batch_size, device)
        self.resident, dataset = _feed(config, data, device)
        self.loader, self.plan = train_loader(
            dataset,
            data.train,
            config.batch_size,
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

    @property
    def peak_memory(self) -> int:
        """Bytes, over all processes that this training had."""
        return max(self.peak, peak_memory(self.device))

    def clock(self) -> float:
        """Seconds trained, in this process and before."""
        return self.earlier + time.perf_counter() - self.began

    def epoch_clock(self) -> float:
        """Those of the epoch under way."""
        return self.epoch_earlier + time.perf_counter() - self.epoch_began

    def state_dict(self) -> State:
        """All that the rest of the training follows from; its tensors are the live ones."""
        at_best = self.best is not None and self.best.epoch == len(self.history) and not self.step
        return {
            "history": [asdict(record) for record in self.history],
            "best": self.best.epoch if self.best else 0,
            "kept": None if at_best else self.kept,
            "step": self.step,
            "total": self.total,
            "lr": self.lr,
            "mix": self.rng.bit_generator.state,
            "parts": self.parts,
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else {},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random_state(self.device),
            "seconds": self.clock(),
            "epoch_seconds": self.epoch_clock() if self.step else 0.0,
            "peak_memory": self.peak_memory,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave, to the same digits."""
        self.history = [
            EpochRecord(**record | {"metrics": Metrics(**record["metrics"])})
            for record in state["history"]
        ]
        self.best = self.history[state["best"] - 1] if state["best"] else None
        self.step, self.total = state["step"], state["total"].to(self.device)
        self.lr, self.rng.bit_generator.state = state["lr"], state["mix"]
        self.parts = max(self.parts, state["parts"])
        self.model.load_state_dict(state["model"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.kept = state["kept"] or (clone(self.judged) if self.best else None)
        load_optimizer(self.optimizer, state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if state["scaler"] and self.scaler.is_enabled():  # empty from a device that needs none
            self.scaler.load_state_dict(state["scaler"])
        set_random_state(self.device, state["random"])
        self.earlier, self.epoch_earlier = state["seconds"], state["epoch_seconds"]
        self.peak = state["peak_memory"]

    def pause(self, *, middle: bool = True) -> None:
        """Between two steps or epochs: saves what is due, and raises Suspended if asked to."""
        asked, epochs = self.hooks.suspend(), len(self.history)
        saved = (asked or self.hooks.keeper.due(middle=middle)) and self.hooks.keeper.save(
            self, epochs
        )
        if asked:
            raise Suspended(epochs, saved)

    def epoch(self, number: int) -> EpochRecord:
        """Trains and validates once more, or what is left of it; the record is in ``history``."""
        self.plan.epoch, self.epoch_began = number, time.perf_counter()
        train_loss = self.steps()
        if not math.isfinite(train_loss):
            raise Diverged(f"the training loss became {train_loss} in epoch {number}")
        val_loss, scores = self._validate()
        if not math.isfinite(val_loss):
            raise Diverged(f"the validation loss became {val_loss} in epoch {number}")
        self.schedule.after_epoch(scores.dice)
        seconds = self.epoch_clock()
        self.history.append(EpochRecord(number, train_loss, val_loss, scores, self.lr, seconds))
        self.step, self.total, self.epoch_earlier = 0, torch.zeros_like(self.total), 0.0
        if self.warm:  # the first epoch of a process tells little of those to come
            self._compile_if_it_pays((self.config.epochs - number) * seconds)
        self.warm = True
        return self.history[-1]

    def _compile_if_it_pays(self, seconds_left: float = 0.0) -> None:
        if not self.compiled and compilation.pays(self.device, seconds_left):
            self.forward, self.compiled = compilation.compiled(self.model), True

    def steps(self) -> float:
        """Trains one epoch, or what is left of it; the mean loss of all its steps."""
        self.model.train()
        if not self.step:
            # Its own stream: the order and the augmentation of a configuration stay as they are.
            self.rng = np.random.default_rng([self.config.seed, self.plan.epoch, 1])
        self.plan.start = self.step
        bring = self.resident.batch if self.resident else partial(to_device, device=self.device)
        for images, masks in brought(self.loader, bring, self.device):
            if self.mix is not None:
                images, masks = self.mix(images, masks, self.rng)
            self.total += self._step(images, masks)
            self.step += 1
            self.hooks.on_step(self.plan.epoch, self.step, len(self.plan))
            self.pause()
        return float(self.total) / len(self.plan)

    def _step(self, images: Tensor, masks: Tensor) -> Tensor:
        loss = self._compiled_or_not(images, masks)
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

    def _compiled_or_not(self, images: Tensor, masks: Tensor) -> Tensor:
        if not self.compiled:
            return self._gradients(images, masks)
        try:
            return self._gradients(images, masks)
        except Exception as error:  # whatever a compiler raises, at a first step or a later one
            if is_out_of_memory(error) or self.forward is self.model:
                raise
            compilation.failed(error)
        self._as_before()
        self.forward = self.model
        return self._gradients(images, masks)

    def _gradients(self, images: Tensor, masks: Tensor) -> Tensor:
        """``_backward`` in as many parts as it takes to fit; they stay for the steps to come."""
        self.before.note()
        while True:
            parts = min(self.parts, len(images))
            attempt = partial(self._backward, images, masks, parts)
            if parts == len(images):  # cannot be parted further: the error is the caller's
                return attempt()
            loss = run_unless_oom(attempt, self.device)
            if loss is not None:
                return loss
            self._as_before()
            self.parts = 2 * parts

    def _as_before(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.before.restore()

    def _backward(self, images: Tensor, masks: Tensor, parts: int) -> Tensor:
        """Gradients of the batch's mean loss, summed over its parts; that loss, detached."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for x, y in zip(images.tensor_split(parts), masks.tensor_split(parts), strict=True):
            with autocast(self.device, self.dtype):
                outputs = self.forward(x)
            loss = self.loss(outputs, y) * (len(x) / len(images))
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    @torch.inference_mode()
    def _validate(self) -> tuple[float, Metrics]:
        network, members = self.judged.eval(), self.data.val
        total = torch.zeros((), device=self.device)
        counts: list[Tensor] = []
        for loss, counted in self.portions(
            len(members), lambda part: self._judge(network, members[part])
        ):
            total += loss
            counts.append(counted)
            if sum(map(len, counts)) < len(members):
                self.pause()
        scores = metrics.mean_scores(metrics.score_images(torch.cat(counts).cpu().numpy()))
        return float(total) / len(members), scores

    def _judge(self, network: nn.Module, members: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The sum of the losses of some validation images, and the counts of each."""
        images, masks = to_device(self._unchanged(members), self.device)
        with autocast(self.device, self.dtype):
            logits = network(images)
        loss = self.val_loss(logits, masks) * len(images)
        return loss, metrics.count_pixels(logits > 0, masks > 0.5)

    def _unchanged(self, members: NDArray[np.int64]) -> Batch:
        if self.resident is None:
            return next(in_order(self.data.cache, members, len(members)))
        rows = self.resident.rows(members).to(self.device)
        return self.resident.images[rows], self.resident.masks[rows]


def _feed(
    config: TrialConfig, data: TrainData, device: torch.device
) -> tuple[Resident | None, Dataset[Any]]:
    """Where the images lie, if on the device, and what is made of them for each step."""
    pipeline = build_augment(config.augment)
    members, resident = np.union1d(data.train, data.val), None
    if executor(pipeline, config.image_size, len(members), device) == "device":
        # Others compute there too: what was free a moment ago may not be any more.
        resident = run_unless_oom(lambda: Resident(data.cache, members, device), device)
    if resident is None:
        return None, BatchDataset(data.cache, pipeline, config.seed)
    return resident, PlanDataset(resident, pipeline, config.seed)


def clone(model: nn.Module) -> Weights:
    """The network's weights as they are now."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
