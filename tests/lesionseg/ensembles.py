"""Small checkpoints of two architectures, and an ensemble of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lesionseg.config import TrialConfig
from lesionseg.data.loader import normalise
from lesionseg.data.synthetic import render
from lesionseg.models import build_model
from lesionseg.space import ComponentConfig
from lesionseg.training import checkpoint

SIZE = 32
UNET = TrialConfig(model=ComponentConfig("unet", {"width": 4, "depth": 2}), image_size=SIZE, seed=1)
SEGNET = TrialConfig(model=ComponentConfig("segnet", {"width": 4}), image_size=SIZE, seed=2)
CONFIGS, WEIGHTS = (UNET, SEGNET), (0.75, 0.25)


def tensors_of(config: TrialConfig) -> dict[str, torch.Tensor]:
    """Weights of an untrained network whose outputs differ from pixel to pixel."""
    torch.manual_seed(config.seed)
    model = build_model(config.model, image_size=SIZE)
    pixels = np.stack([render(seed, SIZE, SIZE).image for seed in range(4)])
    images = normalise(torch.from_numpy(pixels))
    with torch.no_grad():
        model.train()(images)  # statistics of the batch norms
        logits, (*_, weight, bias) = model.eval()(images), model.parameters()
        # Of the last layer, so that logits have the median 0 and the deviation 2.
        factor = 2 / logits.std()
        weight.mul_(factor)
        bias.sub_(logits.median()).mul_(factor)
    return model.state_dict()


def write_ensemble(folder: Path) -> tuple[Path, tuple[Path, Path]]:
    """Write an ensemble and each of its members alone; return the paths."""
    tensors = list(map(tensors_of, CONFIGS))
    singles = (folder / "unet.safetensors", folder / "segnet.safetensors")
    for path, values, config in zip(singles, tensors, CONFIGS, strict=True):
        checkpoint.save(path, values, config)
    whole = folder / "ensemble.safetensors"
    members = map(checkpoint.MemberWeights, tensors, CONFIGS, WEIGHTS)
    checkpoint.save_ensemble(whole, list(members))
    return whole, singles
