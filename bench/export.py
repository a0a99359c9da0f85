"""Export every model family as ONNX; compare probabilities and Dice with torch.

Each network is trained for a few steps on real or synthetic images, so that probabilities are not
all near one half, then exported and run on other images.

    python -m bench.export [--data DIR] [--steps 30] [--only unet,segnet]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch
from torch.nn import functional as F

from lesionseg.config import TrialConfig
from lesionseg.data.cache import read_pair
from lesionseg.data.image_io import Pixels
from lesionseg.data.index import DatasetIndex
from lesionseg.data.loader import normalise
from lesionseg.data.synthetic import write_dataset
from lesionseg.errors import InputError
from lesionseg.inference.onnx_export import OnnxModel, export_onnx
from lesionseg.inference.predictor import Segmenter
from lesionseg.metrics import overlap
from lesionseg.models import MODELS, build_model, count_params
from lesionseg.space import ComponentConfig, Scalar

#: Images to train on and to compare on.
TRAIN, TEST = 32, 32
#: Parameters of small networks.
SMALL: dict[str, Scalar] = {"width": 8, "init_filters": 8, "encoder": "efficientnet-b0"}


def read_pairs(root: Path, size: int) -> tuple[Pixels, Pixels]:
    """Return TRAIN + TEST images [N, S, S, 3] and masks [N, S, S], evenly spaced."""
    records = DatasetIndex.read(root).records
    indices = np.linspace(0, len(records) - 1, TRAIN + TEST).astype(int)
    images, masks = zip(*(read_pair(records[i], size) for i in indices), strict=True)
    return np.stack(images), np.stack(masks)


def train_briefly(name: str, images: Pixels, masks: Pixels, size: int, steps: int) -> Segmenter:
    """Train a small network of a family for a few steps."""
    space = MODELS[name].space
    params = {k: v for k, v in SMALL.items() if k in space and _is_in(space[k], v)}
    config = TrialConfig(model=ComponentConfig(name, params), image_size=size)
    torch.manual_seed(0)
    model = build_model(config.model, image_size=size).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        batch = rng.choice(TRAIN, 8, replace=False)
        outputs = model(normalise(torch.from_numpy(images[batch])))
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        target = torch.from_numpy(masks[batch]).float()[:, None]
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits, target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    # After few steps the running statistics of batch norm lag behind: recompute them.
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    with torch.no_grad():
        model(normalise(torch.from_numpy(images[:TRAIN])))
    return Segmenter(model, config)


def _is_in(domain: object, value: Scalar) -> bool:
    try:
        domain.check(value)  # type: ignore[attr-defined]
    except InputError:
        return False
    return True


def dice(probability: Pixels | np.ndarray, masks: Pixels) -> float:
    """Return the mean Dice over images at a threshold of one half."""
    return float(np.mean(list(map(overlap.dice_score, probability > 0.5, masks > 0))))


def measure(name: str, root: Path, size: int, steps: int, folder: Path) -> str:
    """Measure one family and return its table row."""
    size = max(size, MODELS[name].min_image_size)
    images, masks = read_pairs(root, size)
    segmenter = train_briefly(name, images, masks, size, steps)
    path = folder / f"{name}.onnx"
    start = time.perf_counter()
    try:
        export_onnx(segmenter, path)
    except InputError as error:
        return f"| `{name}` | {size} | | cannot: {error} | | | | |"
    seconds = time.perf_counter() - start
    model = OnnxModel(path)
    ours = np.concatenate(
        [segmenter.predict_probabilities(images[i : i + 8]) for i in range(TRAIN, 64, 8)]
    )
    theirs = np.concatenate(
        [model.predict_probabilities(images[i : i + 8]) for i in range(TRAIN, 64, 8)]
    )
    difference = float(np.abs(ours - theirs).max())
    return (
        f"| `{name}` | {size} | {count_params(segmenter.model) / 1e6:.2f} M | {difference:.1e} | "
        f"{dice(ours, masks[TRAIN:]):.6f} | {dice(theirs, masks[TRAIN:]):.6f} | "
        f"{path.stat().st_size / 1e6:.1f} MB | {seconds:.0f} s |"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--only", default=",".join(MODELS))
    args = parser.parse_args(argv)
    print("| model | side | parameters | difference | Dice, torch | Dice, ONNX | file | took |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        root = args.data or Path(name) / "data"
        if args.data is None:
            write_dataset(root, TRAIN + TEST)
        for family in args.only.split(","):
            print(measure(family, root, args.size, args.steps, Path(name)), flush=True)


if __name__ == "__main__":
    main()
