"""What ImageNet weights are worth: one network, one split, with and without, several seeds.

    python -m bench.weights DATA [--seeds 3] [--size 64] [--epochs 6]

Trains an FPN with EfficientNet-Lite0 on the training images of a study's split, keeps the epoch
with the best validation Dice, and scores the test images at the image size of the network.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch

from bench.finalists import test_dice
from lesionseg.config import TrialConfig
from lesionseg.data.cache import Cache
from lesionseg.metrics.compare import paired_difference
from lesionseg.metrics.overlap import Floats
from lesionseg.space import ComponentConfig, Scalar
from lesionseg.training.train import train
from lesionseg.training.types import TrainData, TrainOptions
from search.spec.loading import parse_spec
from search.study.creation import create_or_resume
from search.study.opening import OpenStudy


def open_split(options: argparse.Namespace, folder: Path) -> OpenStudy:
    """Return a study without trials, for its split and its cache."""
    spec = {
        "name": "weights",
        "data": {"image_size": options.size},
        "budget": {"trials": 1, "epochs": options.epochs},
        "search": {"model": {"unet": {}}},
    }
    return create_or_resume(parse_spec(spec, "bench.weights"), options.data, folder / "study")


def train_and_test(opened: OpenStudy, weights: str, epochs: int, seed: int) -> Floats:
    """Return the Dice of each test image after a training."""
    data = opened.trial_data
    model: dict[str, Scalar] = {
        "encoder": "tu-tf_efficientnet_lite0",
        "decoder_width": 0.5,
        "weights": weights,
    }
    config = TrialConfig(
        model=ComponentConfig("smp_fpn", model),
        augment=ComponentConfig("geometric"),
        optimizer=ComponentConfig("adamw", {"lr": 1e-3, "weight_decay": 0.01}),
        schedule=ComponentConfig("onecycle"),
        image_size=opened.cache.image_size,
        epochs=epochs,
        seed=seed,
    )
    out = opened.folder / f"{weights}-{seed}.safetensors"
    images = TrainData(Cache(data.cache), data.train, data.val)
    train(config, images, options=TrainOptions(weights_path=out))
    return test_dice(opened, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    scores: dict[str, list[Floats]] = {"bundled": [], "none": []}
    with tempfile.TemporaryDirectory() as folder:
        opened = open_split(options, Path(folder))
        for seed in range(options.seeds):
            for weights, dice in scores.items():
                dice.append(train_and_test(opened, weights, options.epochs, seed))
                print(f"seed {seed}, weights {weights}: {dice[-1].mean():.4f}", flush=True)
        means = {weights: np.mean(dice, axis=0) for weights, dice in scores.items()}
        gain = paired_difference(means["bundled"], means["none"], opened.split.test)
    print(f"gain, mean over seeds: {gain.difference:+.4f}, 95% {gain.low:+.4f} to {gain.high:+.4f}")


if __name__ == "__main__":
    main()
