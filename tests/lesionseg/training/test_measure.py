"""Measurement of a training's speed."""

import time

import numpy as np
import pytest
import torch

from lesionseg.config import TrialConfig
from lesionseg.models import build_model
from lesionseg.space import ComponentConfig
from lesionseg.training import measure
from lesionseg.training.measure import measure_training
from lesionseg.training.types import TrainData


class SlowStep(torch.nn.Module):
    """A network whose passes take a known time in training and in validation."""

    def __init__(self, model, train_s, val_s):
        super().__init__()
        self.model, self.train_s, self.val_s, self.passes = model, train_s, val_s, 0

    def forward(self, images):
        self.passes += 1
        time.sleep(self.train_s if self.training else self.val_s)
        return self.model(images)


@pytest.mark.parametrize("schedule", ["onecycle", "cosine"])
def test_times_are_those_of_a_step_and_of_a_validation_image(data, schedule):
    config = TrialConfig(
        model=ComponentConfig("unet", {"width": 4, "depth": 1}),
        schedule=ComponentConfig(schedule),
        image_size=data.cache.image_size,
        batch_size=4,
        epochs=1,
    )
    model = SlowStep(build_model(config.model, image_size=config.image_size), 0.1, 0.04)
    members = np.arange(6)  # one step an epoch: they are repeated
    few = TrainData(data.cache, members, members)
    speed = measure_training(config, few, model, torch.device("cpu"), 3)
    assert 0.1 <= speed.seconds_per_step < 1
    assert 0.04 / 4 <= speed.seconds_per_val_image < 0.25  # one pass for four images
    assert model.passes == measure.WARM_UP_STEPS + 3 + 2
    assert speed.peak_memory > 0
