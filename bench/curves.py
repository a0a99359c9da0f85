"""Records the whole learning curve of every configuration of a grid, trained on real images.

    python -m bench.curves DATA [--grid tuning] [--to FILE] [--workers 2] [--size 64] [--device cpu]
    python -m bench.curves DATA --grid tuning --again FILE [--best 6] [--seeds 4] [--to OTHER]

The grid ``tuning`` is what the defaults of a search are chosen from, ``check`` has other networks,
losses, augmentations, optimizer, images and length, to see what they are worth where nobody looked.
``--again`` trains the best configurations of a file with other seeds: what luck is worth.
``bench.search`` replays searches on such a file in seconds. A line holds one training: its
configuration, the validation Dice of each epoch, the seconds of each epoch, and the Dice of each
validation image at the best epoch; a training that diverged ends with an epoch without Dice. On a
CPU each training has one thread and its seconds are those of the process on its core, which others
that compute beside it do not lengthen. A file that is there is gone on with.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing as mp
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from lesionseg.config import TrialConfig
from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.data.loader import iterate_batches, to_device
from lesionseg.data.split import find_positions, make_split
from lesionseg.metrics import overlap
from lesionseg.training import checkpoint
from lesionseg.training.train import train
from lesionseg.training.types import Diverged, EpochRecord, TrainData, TrainOptions


@dataclass(frozen=True)
class Grid:
    """What is trained: every combination of ``axes``.

    A search draws the learning rate ``lr`` from the whole range and is given the curve of the
    nearest that was recorded. seed: of the split; limits: images for training and validation.
    """

    axes: Mapping[str, Sequence[Any]]
    optimizer: str
    epochs: int
    limits: tuple[int, int]
    seed: int = 0


GRIDS: Mapping[str, Grid] = {
    "tuning": Grid(
        {
            "model": (
                {"unet": {"width": 8, "depth": 3}},
                {"segnet": {"width": 8}},
                {"dynunet": {"width": 8}},
                {"smp_linknet": {"encoder": "mobilenet_v2", "encoder_depth": 5}},
            ),
            "loss": ("bce_dice", "dice", "focal"),
            "augment": ("none", {"full": {}}),
            "lr": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        },
        optimizer="adamw",
        epochs=15,
        limits=(320, 150),
    ),
    "check": Grid(
        {
            "model": (
                {"unet": {"width": 6, "depth": 4, "residual": True}},
                {"attention_unet": {"width": 8, "depth": 3}},
                {"smp_fpn": {"encoder": "mobilenet_v2"}},
            ),
            "loss": ("bce", "tversky", "lovasz"),
            "augment": ("flips", {"geometric": {}}),
            "lr": (1e-3, 4e-3, 1.6e-2, 6.4e-2, 0.256),
        },
        optimizer="sgd",
        epochs=16,
        limits=(240, 150),
        seed=1,
    ),
}
SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}


def configurations(grid: Grid, size: int) -> Iterator[tuple[dict[str, Any], TrialConfig]]:
    """Every point of the grid, as its coordinates and as a configuration."""
    for values in itertools.product(*grid.axes.values()):
        point = dict(zip(grid.axes, values, strict=True))
        plain = {key: value for key, value in point.items() if key != "lr"}
        plain |= {"optimizer": {grid.optimizer: {"lr": point["lr"]}}}
        plain |= {"image_size": size, "epochs": grid.epochs, "batch_size": 16}
        yield point, TrialConfig.from_dict(plain)


@lru_cache
def material(data: Path, size: int, limit: tuple[int, int], seed: int) -> TrainData:
    """What all of them train on and are judged by; the test part is not touched."""
    index = DatasetIndex.read(data)
    cache = build_cache(index, size)
    limits = {"train": limit[0], "val": limit[1]}
    split = make_split(index.records, cache.areas, SHARES, seed=seed, limits=limits)
    return TrainData(
        cache, find_positions(split.train, cache.names), find_positions(split.val, cache.names)
    )


def record(job: tuple[Path, dict[str, Any], TrialConfig, Grid, str]) -> dict[str, Any]:
    """One training, from fresh weights to the last epoch."""
    path, point, config, grid, device = job
    data = material(path, config.image_size, grid.limits, grid.seed)
    where = torch.device(device)
    clock = time.perf_counter
    if where.type == "cpu":
        torch.set_num_threads(1)
        clock = time.process_time
    began = clock()
    seconds: list[float] = []
    dice: list[float | None] = []

    def note(epoch: EpochRecord) -> bool:
        nonlocal began
        now = clock()
        seconds.append(round(now - began, 4))
        dice.append(round(epoch.metrics.dice, 5))
        began = now
        return False

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "w.safetensors"
        try:
            train(config, data, note, TrainOptions(device=where, weights_path=weights))
            images = per_image(weights, data, where)
        except Diverged:
            images = []
            dice.append(None)
            seconds.append(round(clock() - began, 4))
    return {
        "point": point,
        "digest": config.digest(),
        "dice": dice,
        "seconds": seconds,
        "images": images,
    }


@torch.inference_mode()
def per_image(weights: Path, data: TrainData, device: torch.device) -> list[float]:
    """The Dice of each validation image with the weights kept."""
    network = checkpoint.load(weights)[0].to(device)
    counts = []
    for batch in iterate_batches(data.cache, data.val, 64):
        images, masks = to_device(batch, device)
        counts.append(overlap.count_pixels(network(images) > 0, masks > 0.5))
    scores = overlap.score_images(torch.cat(counts).cpu().numpy())
    return [round(float(d), 3) for d in scores["dice"]]


def of_other_seeds(
    jobs: Sequence[tuple[dict[str, Any], TrialConfig]], path: Path, best: int, seeds: int
) -> Iterator[tuple[dict[str, Any], TrialConfig]]:
    """The best configurations of a file of curves, with each of the seeds 1, 2, ..."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines.sort(key=lambda line: max(dice or 0 for dice in line["dice"]), reverse=True)
    of = {config.digest(): (point, config) for point, config in jobs}
    for line in lines[:best]:
        point, config = of[line["digest"]]
        for seed in range(1, seeds + 1):
            yield point, replace(config, seed=seed)


def known(path: Path) -> set[str]:
    """The digests of what a file holds already."""
    if not path.is_file():
        return set()
    return {json.loads(line)["digest"] for line in path.read_text().splitlines()}


def main(argv: Sequence[str] | None = None) -> None:
    """Records what is not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--grid", choices=GRIDS, default="tuning")
    parser.add_argument("--to", type=Path, default=Path("bench/results/curves-cpu.jsonl"))
    parser.add_argument("--again", type=Path, metavar="FILE")
    parser.add_argument("--best", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args(argv)
    grid = GRIDS[asked.grid]
    # Once, before several ask for it.
    material(asked.data, asked.size, grid.limits, grid.seed)
    there = known(asked.to)
    wanted = list(configurations(grid, asked.size))
    if asked.again:
        wanted = list(of_other_seeds(wanted, asked.again, asked.best, asked.seeds))
    jobs = [
        (asked.data, point, config, grid, asked.device)
        for point, config in wanted
        if config.digest() not in there
    ]
    context = mp.get_context("spawn")
    with context.Pool(asked.workers) as pool, asked.to.open("a") as file:
        for i, line in enumerate(pool.imap_unordered(record, jobs), 1):
            file.write(json.dumps(line) + "\n")
            file.flush()
            best = max(dice or 0 for dice in line["dice"])
            print(f"{i}/{len(jobs)} {line['point']} {best}", flush=True)


if __name__ == "__main__":
    main()
