"""Records the whole learning curve of every configuration of a grid, trained on real images.

    python -m bench.curves DATA [--to FILE] [--workers 2] [--size 64] [--epochs 15] [--device cpu]

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
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from lesionseg import checkpoint, metrics
from lesionseg.config import TrialConfig
from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.data.loader import in_order, to_device
from lesionseg.data.split import make_split, positions
from lesionseg.records import Diverged, EpochRecord, TrainData
from lesionseg.train import train

#: What the grid is made of. A search draws the learning rate from the whole range and is given
#: the curve of the nearest that was recorded.
GRID: Mapping[str, Sequence[Any]] = {
    "model": (
        {"unet": {"width": 8, "depth": 3}},
        {"segnet": {"width": 8}},
        {"dynunet": {"width": 8}},
        {"smp_linknet": {"encoder": "mobilenet_v2", "encoder_depth": 5}},
    ),
    "loss": ("bce_dice", "dice", "focal"),
    "augment": ("none", {"full": {}}),
    "lr": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
}
SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}


def configurations(size: int, epochs: int) -> Iterator[tuple[dict[str, Any], TrialConfig]]:
    """Every point of the grid, as its coordinates and as a configuration."""
    for values in itertools.product(*GRID.values()):
        point = dict(zip(GRID, values, strict=True))
        plain = {key: value for key, value in point.items() if key != "lr"}
        plain |= {"optimizer": {"adamw": {"lr": point["lr"]}}}
        plain |= {"image_size": size, "epochs": epochs, "batch_size": 16}
        yield point, TrialConfig.from_dict(plain)


@lru_cache
def material(data: Path, size: int, limit: tuple[int, int]) -> TrainData:
    """What all of them train on and are judged by; the test part is not touched."""
    index = DatasetIndex.read(data)
    cache = build_cache(index, size)
    limits = {"train": limit[0], "val": limit[1]}
    split = make_split(index.records, cache.areas, SHARES, limits=limits)
    return TrainData(cache, positions(split.train, cache.names), positions(split.val, cache.names))


def record(job: tuple[Path, dict[str, Any], TrialConfig, tuple[int, int], str]) -> dict[str, Any]:
    """One training, from fresh weights to the last epoch."""
    path, point, config, limit, device = job
    data = material(path, config.image_size, limit)
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
            train(config, data, note, device=where, save_to=weights)
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
    for batch in in_order(data.cache, data.val, 64):
        images, masks = to_device(batch, device)
        counts.append(metrics.count(network(images) > 0, masks > 0.5))
    scores = metrics.score(torch.cat(counts).cpu().numpy())
    return [round(float(d), 3) for d in scores["dice"]]


def known(path: Path) -> set[str]:
    """The digests of what a file holds already."""
    if not path.is_file():
        return set()
    return {json.loads(line)["digest"] for line in path.read_text().splitlines()}


def main(argv: Sequence[str] | None = None) -> None:
    """Records what is not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--to", type=Path, default=Path("bench/results/curves-cpu.jsonl"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--train", type=int, default=320)
    parser.add_argument("--val", type=int, default=150)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args(argv)
    limit = (asked.train, asked.val)
    material(asked.data, asked.size, limit)  # once, before several ask for it
    there = known(asked.to)
    jobs = [
        (asked.data, point, config, limit, asked.device)
        for point, config in configurations(asked.size, asked.epochs)
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
