"""Peer a: the best published baseline, trained by this project's own training.

All twenty do not fit the time. The three with the best validation Dice in the recorded table
(bench/results/baselines-cpu.md) are screened: a tenth of the time each on a quarter of the training
images. The one with the best validation Dice is trained on all of them in the time that is left;
its best epoch is kept. 64 pixels as in that table; neither test-time augmentation nor
post-processing, as in ``lesionsearch baselines run``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

# As in the command line; must be set before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch

from bench.peers.job import Job, Trained
from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.data.split import find_positions
from lesionseg.inference.predictor import load
from lesionseg.training.train import train as train_config
from lesionseg.training.types import EpochRecord, TrainData, TrainOptions, TrainResult
from search.spec.baselines import build_config

SIZE, ENOUGH_EPOCHS = 64, 10_000
CANDIDATES = ("d-unet-isic2018", "unet-bce", "unet-bcedice-plateau")
SCREENED, SUBSET = 0.1, 4


def stop_in(seconds: float) -> Callable[[EpochRecord], bool]:
    """Return a callback that stops before an epoch that would end later than this."""
    end = time.perf_counter() + seconds
    return lambda epoch: time.perf_counter() + epoch.seconds > end


def train(job: Job) -> Trained:
    """Screen, then train the best."""
    torch.set_num_threads(job.threads)
    cache = build_cache(DatasetIndex.read((Path(job.data),)), SIZE)
    parts = [
        find_positions([pair.name for pair in part], cache.names) for part in (job.train, job.val)
    ]
    data = TrainData(cache, *parts)
    subset = TrainData(cache, *(part[::SUBSET] for part in parts))

    def fit(name: str, data: TrainData, seconds: float, weights: Path | None = None) -> TrainResult:
        config = build_config(name, SIZE, ENOUGH_EPOCHS, job.seed)
        return train_config(config, data, stop_in(seconds), TrainOptions(weights_path=weights))

    share = SCREENED * 60 * job.minutes
    screening = {name: fit(name, subset, share).best.metrics.dice for name in CANDIDATES}
    chosen = max(screening, key=lambda name: screening[name])
    weights = job.folder / "model.safetensors"
    result = fit(chosen, data, job.seconds_left, weights)
    segmenter = load(weights, "cpu")
    return Trained(
        lambda path: segmenter.predict(path).mask,
        {
            "screening": screening,
            "chosen": chosen,
            "epochs": len(result.history),
            "val": result.best.metrics.dice,
        },
    )
