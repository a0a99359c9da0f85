"""Trainings with a frozen encoder, and with learning rates by depth."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lesionseg.config import TrialConfig
from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.models import build_model
from lesionseg.models.fine_tuning import FineTuning
from lesionseg.space import ComponentConfig
from lesionseg.training.train_step import TrainStep
from lesionseg.training.types import Suspended, TrainData
from tests.lesionseg.small import run_training, without_seconds

# Two steps per epoch, two batches of validation.
STEPS = 2
FROZEN = {"encoder": "resnet18", "encoder_depth": 3, "weights": "none", "frozen_epochs": 2}
CONFIG = TrialConfig(
    model=ComponentConfig("smp_linknet", FROZEN),
    optimizer=ComponentConfig("adamw", {"lr": 1e-2}),
    image_size=32,
    batch_size=4,
    epochs=4,
    ema=0.9,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tiny_data, tmp_path_factory):
    cache = build_cache(DatasetIndex.read(tiny_data), 32, tmp_path_factory.mktemp("cache"))
    return TrainData(cache, np.arange(8), np.arange(20, 28))


def weights_at(config, data, path, epoch):
    """Return the network's weights after so many epochs."""
    run_training(config, data, lambda r: r.epoch == epoch, weights_path=path, keep="last")
    return load_file(path)


def encoder_of(weights):
    return {n: w for n, w in weights.items() if n.startswith("encoder.")}


def test_the_encoder_is_the_same_until_it_is_trained(data, tmp_path):
    config = dataclasses.replace(CONFIG, ema=0.0)
    torch.manual_seed(config.seed)
    initial = build_model(config.model, image_size=32).state_dict()
    frozen = weights_at(config, data, tmp_path / "2.safetensors", 2)
    # Batch-norm statistics and their counters too.
    assert all(torch.equal(w, initial[n]) for n, w in encoder_of(frozen).items())
    assert not torch.equal(
        frozen["segmentation_head.0.weight"], initial["segmentation_head.0.weight"]
    )
    trained = weights_at(config, data, tmp_path / "3.safetensors", 3)
    for name in ("encoder.conv1.weight", "encoder.bn1.running_mean", "encoder.layer2.0.bn1.bias"):
        assert not torch.equal(trained[name], initial[name])
    assert int(trained["encoder.bn1.num_batches_tracked"]) == STEPS


def test_a_frozen_encoder_has_no_gradient(data):
    torch.manual_seed(0)
    model = build_model(CONFIG.model, image_size=32)
    step = TrainStep(CONFIG, model, CPU, STEPS)
    images, masks = torch.randn(4, 3, 32, 32), torch.ones(4, 1, 32, 32)
    for epoch, has_gradient in ((2, False), (3, True)):
        step.start_epoch(epoch)
        step(images, masks)
        assert (model.encoder.conv1.weight.grad is not None) == has_gradient
        assert model.segmentation_head[0].weight.grad is not None


class Encoder(nn.ModuleList):
    def __init__(self):
        blocks = [
            nn.Sequential(nn.Conv2d(i, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3))
            for i in (3, 6)
        ]
        super().__init__(blocks)

    def forward(self, x):
        features = []
        for block in self:
            features.append(x := block(x))
        return features


class Tiny(nn.Module):
    """A network whose training takes a moment; ``most``: the most images that fit into memory."""

    def __init__(self, tuning, most=99):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder, self.most = Encoder(), nn.Conv2d(6, 16, 1), most
        self.fine_tuning = tuning

    def forward(self, images):
        logits = nn.functional.pixel_shuffle(self.decoder(self.encoder(images)[-1]), 4)
        if self.training and len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits


class SuspendAt:
    """``should_suspend`` that returns True at the n-th call."""

    def __init__(self, n):
        self.left = n

    def __call__(self):
        self.left -= 1
        return self.left == 0


TUNINGS = (FineTuning(frozen_epochs=2), FineTuning(0.1, 2, 0.7), FineTuning(0.1, 0, 0.7))


def outcome(config, data, path, model, **options):
    result = run_training(config, data, weights_path=path, keep="last", model=model, **options)
    weights = {n: w.numpy().tobytes() for n, w in load_file(path).items()}
    return without_seconds(result.history), weights


@pytest.mark.parametrize("tuning", TUNINGS, ids=str)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_suspended_trainings_are_equal(data, tmp_path, tuning, optimizer):
    """Asked after each of two steps, once within the validation, and after it, in each epoch."""
    config = dataclasses.replace(CONFIG, optimizer=ComponentConfig(optimizer), accumulate=2)
    expected = outcome(config, data, tmp_path / "once.safetensors", Tiny(tuning))
    for asks in ([1], [5], [7], [8], [9], [11], [4, 4, 1], [6, 5, 3]):
        state = tmp_path / f"{asks}.pt"
        for ask in asks:
            with pytest.raises(Suspended):
                run_training(
                    config, data, model=Tiny(tuning), state_path=state, keep="last",
                    should_suspend=SuspendAt(ask),
                )  # fmt: skip
        path = tmp_path / "again.safetensors"
        assert outcome(config, data, path, Tiny(tuning), state_path=state) == expected


@pytest.mark.parametrize("tuning", TUNINGS, ids=str)
def test_a_step_that_does_not_fit_is_repeated(data, tmp_path, tuning):
    path = tmp_path / "w.safetensors"
    expected = outcome(CONFIG, data, path, Tiny(tuning), accumulation_factor=2)
    assert outcome(CONFIG, data, path, Tiny(tuning, most=2)) == expected
    assert outcome(CONFIG, data, path, Tiny(tuning)) != expected
    assert outcome(CONFIG, data, path, Tiny(FineTuning()), accumulation_factor=2) != expected


def test_an_encoder_that_is_never_trained(data, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=2)
    torch.manual_seed(config.seed)
    initial = build_model(config.model, image_size=32).state_dict()
    weights = weights_at(config, data, tmp_path / "w.safetensors", 2)
    assert all(torch.equal(w, initial[n]) for n, w in encoder_of(weights).items())
