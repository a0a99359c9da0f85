"""Images a second of a network."""

import time

import pytest
import torch
from torch import nn

from lesionseg.runtime import throughput

CPU = torch.device("cpu")


class Waiting(nn.Module):
    """Takes as long for each image as it is told."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.passes, self.shapes = seconds, 0, set()

    def forward(self, images):
        self.passes += 1
        self.shapes.add(tuple(images.shape))
        time.sleep(self.seconds * len(images))
        return images[:, :1]


@pytest.mark.parametrize("batch", [1, 4])
def test_a_network_that_needs_twenty_milliseconds_an_image_manages_less_than_fifty(
    batch, monkeypatch
):
    monkeypatch.setattr(throughput, "SECONDS", 0.2)
    model = Waiting(0.02)
    found = throughput.images_per_second(model, 32, CPU, batch)
    # Sleeping never takes less than it is told; on a busy machine it may take much more.
    assert 1 < found <= 50
    assert model.shapes == {(batch, 3, 32, 32)}
    assert model.passes >= throughput.WARM_UP_PASSES + throughput.MIN_PASSES


def test_what_is_measured_is_inference(monkeypatch):
    monkeypatch.setattr(throughput, "SECONDS", 0.0)
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1)).train()
    before = model[1].running_mean.clone()
    assert throughput.images_per_second(model, 16, CPU, 2) > 0
    assert not model.training
    assert torch.equal(model[1].running_mean, before)
