"""TrainStep: one optimizer step with mixed precision, gradient accumulation and OOM recovery."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lesionseg.config import TrialConfig
from lesionseg.losses import build_loss
from lesionseg.models.fine_tuning import EncoderFreezing, lr_factors
from lesionseg.optim import build_optimizer, build_schedule
from lesionseg.runtime.device import amp_dtype, autocast
from lesionseg.runtime.oom import run_unless_oom
from lesionseg.training.ema import ModelEma
from lesionseg.training.training_state import State, StepSnapshot, load_optimizer_state


class TrainStep:
    """A network with its optimizer, schedule and moving average.

    A step that does not fit into memory is repeated in twice as many parts, from the same buffers
    and random states; later steps use the larger number of parts at once.

    accumulation_steps: parts that a batch is computed in.
    lr: learning rate of the last step, that of the decoder.
    """

    def __init__(
        self,
        config: TrialConfig,
        model: nn.Module,
        device: torch.device,
        steps_per_epoch: int,
        accumulation_factor: int = 1,
    ) -> None:
        self._config, self._device = config, device
        self.accumulation_steps, self.lr = config.accumulate * accumulation_factor, 0.0
        # Convolutions are fastest with channels last, on CPUs and on tensor cores.
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        modifiers = {"label_smoothing": config.label_smoothing, "flooding": config.flooding}
        self._loss = build_loss(config.loss, overlap=config.overlap, **modifiers)
        self.ema = ModelEma(self.model, config.ema) if config.ema else None
        self._snapshot = StepSnapshot(self.model, device)
        self._freezing = EncoderFreezing(self.model)
        self._optimizer = build_optimizer(
            config.optimizer, self.model.parameters(), lr_factors(self.model, config.image_size)
        )
        self.schedule = build_schedule(
            config.schedule, self._optimizer, config.epochs, steps_per_epoch
        )
        self._dtype = amp_dtype(device, config.amp)
        # bfloat16 has the range of float32: only float16 needs scaled gradients.
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._dtype == torch.float16)

    @property
    def eval_model(self) -> nn.Module:
        """The network to validate and to keep: the averaged one, if there is one."""
        return self.ema.model if self.ema else self.model

    def start_epoch(self, epoch: int) -> None:
        """Set the network's mode for the training of an epoch, counted from 1."""
        self._freezing.start_epoch(epoch)

    def __call__(self, images: Tensor, masks: Tensor) -> Tensor:
        """Update the weights and return the mean loss, detached, without synchronisation.

        Args:
            images: [N, 3, S, S], normalised.
            masks: [N, 1, S, S] in [0, 1].
        """
        loss = self._compute_gradients(images, masks)
        if self._config.clip_norm:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self.ema:
            self.ema.update(self.model)
        self.lr = float(self._optimizer.param_groups[0]["lr"])  # before the schedule changes it
        self.schedule.after_step()
        return loss

    def state_dict(self) -> State:
        return {
            "lr": self.lr,
            "accumulation_steps": self.accumulation_steps,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else {},
            "optimizer": self._optimizer.state_dict(),
            "schedule": self.schedule.scheduler.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.lr = state["lr"]
        self.accumulation_steps = max(self.accumulation_steps, state["accumulation_steps"])
        self.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        load_optimizer_state(self._optimizer, state["optimizer"])
        self.schedule.scheduler.load_state_dict(state["schedule"])
        if state["scaler"] and self._scaler.is_enabled():  # empty from a device without scaling
            self._scaler.load_state_dict(state["scaler"])

    def _compute_gradients(self, images: Tensor, masks: Tensor) -> Tensor:
        """Compute the gradients in as many parts as needed to fit into memory."""
        self._snapshot.capture()
        while True:
            parts = min(self.accumulation_steps, len(images))
            attempt = partial(self._backward, images, masks, parts)
            if parts == len(images):  # cannot be divided further: let the error pass
                return attempt()
            loss = run_unless_oom(attempt, self._device)
            if loss is not None:
                return loss
            self._optimizer.zero_grad(set_to_none=True)
            self._snapshot.restore()
            self.accumulation_steps = 2 * parts

    def _backward(self, images: Tensor, masks: Tensor, parts: int) -> Tensor:
        """Accumulate the gradients of the batch's mean loss; return that loss, detached."""
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        for x, y in zip(images.tensor_split(parts), masks.tensor_split(parts), strict=True):
            with autocast(self._device, self._dtype):
                outputs = self.model(x)
            loss = self._loss(outputs, y) * (len(x) / len(images))
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total
