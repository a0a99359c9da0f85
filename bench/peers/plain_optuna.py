"""Peer d: Optuna over the settings of (c), with Optuna's default sampler and median pruner.

Half of the time is for the search. A trial is three epochs over so many training images that about
ten trials fit without pruning; it is judged by the Dice of validation images. The best settings are
then trained as (c) is, in the time that is left.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import optuna
import torch

from bench.peers.job import Job, Trained, read_pairs
from bench.peers.pretrained import (
    SIZE,
    Pixels,
    Settings,
    build,
    finish,
    predict,
    seconds_per_step,
    train_steps,
)

TRIALS, EPOCHS, VAL_IMAGES = 10, 3, 150


@dataclass(frozen=True)
class Objective:
    """The validation Dice of settings after a short training."""

    images: Pixels
    masks: Pixels
    val_images: Pixels
    val_masks: Pixels
    seed: int

    def __call__(self, trial: optuna.Trial) -> float:
        settings = Settings(
            lr=trial.suggest_float("lr", 1e-4, 1e-2, log=True),
            encoder_factor=trial.suggest_float("encoder_factor", 0.03, 1.0, log=True),
            dice_weight=trial.suggest_float("dice_weight", 0.0, 1.0),
            strength=trial.suggest_float("strength", 0.0, 1.5),
            batch_size=trial.suggest_categorical("batch_size", [8, 16, 32]),
        )
        torch.manual_seed(self.seed)
        model, dice = build(), 0.0
        steps = max(8, EPOCHS * len(self.images) // settings.batch_size)
        ends = [steps * epoch // EPOCHS for epoch in range(1, EPOCHS + 1)]
        for step in train_steps(model, self.images, self.masks, settings, steps, self.seed):
            if step in ends:
                dice = mean_dice(predict(model, self.val_images) > 0.5, self.val_masks > 0)
                trial.report(dice, ends.index(step))
                if trial.should_prune():
                    raise optuna.TrialPruned
        return dice


def mean_dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean Dice of masks, bool [N, H, W]."""
    overlap = (predicted & truth).sum((1, 2))
    areas = predicted.sum((1, 2)) + truth.sum((1, 2))
    return float(np.mean(np.where(areas > 0, 2 * overlap / np.maximum(areas, 1), 1.0)))


def train(job: Job) -> Trained:
    """Search for half of the time, then train the best settings."""
    torch.set_num_threads(job.threads)
    images, masks = read_pairs(job.train, SIZE)
    val_images, val_masks = read_pairs(job.val[:VAL_IMAGES], SIZE)
    pace = seconds_per_step(build(), images, masks, Settings()) / Settings().batch_size
    seconds = job.seconds_left - 60 * job.minutes / 2
    per_epoch = seconds / TRIALS / EPOCHS
    began = time.perf_counter()
    predict(build(), val_images)
    count = int((per_epoch - (time.perf_counter() - began)) / pace)
    count = min(max(count, 32), len(images))
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=job.seed),
        pruner=optuna.pruners.MedianPruner(),
    )
    objective = Objective(images[:count], masks[:count], val_images, val_masks, job.seed)
    study.optimize(objective, timeout=seconds)
    states = [trial.state.name for trial in study.trials]
    best = study.best_trial if "COMPLETE" in states else None
    trained = finish(job, Settings(**best.params) if best else Settings())
    search = {"trials": len(states), "pruned": states.count("PRUNED"), "images": count}
    return Trained(trained.segment, {**trained.notes, **search, "val": best and best.value})
