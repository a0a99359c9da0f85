"""Images a second of a network."""

import time

import pytest
import torch
from torch import nn

from lesionseg.runtime import throughput

CPU = torch.device("cpu")


class Waiting(nn.Module):
    """A network with a given duration per image."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.passes, self.shapes = seconds, 0, set()

    def forward(self, images):
        self.passes += 1
        self.shapes.add(tuple(images.shape))
        time.sleep(self.seconds * len(images))
        return images[:, :1]


@pytest.mark.parametrize("batch", [1, 4])
def test_throughput_of_a_slow_network(batch, monkeypatch):
    monkeypatch.setattr(throughput, "MIN_SECONDS", 0.2)
    model = Waiting(0.02)
    found = throughput.images_per_second(model, 32, CPU, batch)
    # Sleeping never takes less than it is calls; on a busy machine it may take much more.
    assert 1 < found <= 50
    assert model.shapes == {(batch, 3, 32, 32)}
    assert model.passes >= throughput.WARM_UP_PASSES + throughput.MIN_PASSES


def test_batch_that_does_not_fit_is_halved(monkeypatch):
    monkeypatch.setattr(throughput, "MIN_SECONDS", 0.0)
    shapes = []

    class Limited(nn.Module):
        def forward(self, images):
            shapes.append(len(images))
            if len(images) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            assert images.std() > 0.5  # not zeros, with which processors are faster
            return images[:, :1]

    assert throughput.images_per_second(Limited(), 16, CPU, 10) > 0
    assert list(dict.fromkeys(shapes)) == [10, 5, 3]


def test_measurement_runs_in_inference_mode(monkeypatch):
    monkeypatch.setattr(throughput, "MIN_SECONDS", 0.0)
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1)).train()
    before = model[1].running_mean.clone()
    assert throughput.images_per_second(model, 16, CPU, 2) > 0
    assert not model.training
    assert torch.equal(model[1].running_mean, before)
