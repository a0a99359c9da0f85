"""Seconds of a trial outside of its epochs, by part.

Runs trainings through the training process, as a worker does: complete ones of two epochs, and
ones that are stopped after the first epoch as if pruned. An epoch contains training steps and
validation. "build" is the time until the network is built, "begin" that from there to the first
step, "save" the saves between epochs, "end" that from the last epoch to the result: kept weights
and picture. The first training of a process starts the fork server and is not reported.

    python -m bench.timeline [--size 96] [--networks ...] [--device cuda] [--rounds 3] [--to FILE]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lesionseg.config import TrialConfig
from lesionseg.data.cache import Cache, build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.data.synthetic import write_dataset
from lesionseg.runtime.device import describe_device
from lesionseg.space import ComponentConfig
from lesionseg.training.types import EpochRecord
from search.trial_process.process import TrialProcess
from search.trial_process.protocol import JobError, ModelBuilt, Trained, TrainJob
from search.trial_process.resources import default_slot

#: Networks by their names in the table.
NETWORKS = {
    "U-Net 32, depth 4": ComponentConfig("unet"),
    "U-Net, ResNet-34": ComponentConfig("smp_unet", {"encoder": "resnet34", "weights": "none"}),
    "dynunet": ComponentConfig("dynunet"),
}
TRAIN, VAL, BATCH, EPOCHS = 16, 8, 8, 2
PARTS = ("build", "begin", "save", "end")


class Timeline(NamedTuple):
    """Seconds of each part outside of the epochs."""

    build: float
    begin: float
    save: float
    end: float

    @property
    def total(self) -> float:
        return sum(self)


def make_job(cache: Cache, network: str, size: int, device: str, folder: Path) -> TrainJob:
    """Return the job of a trial."""
    config = TrialConfig(
        model=NETWORKS[network], image_size=size, batch_size=BATCH, epochs=EPOCHS
    ).to_dict()
    return TrainJob(
        config,
        cache.path,
        np.arange(TRAIN),
        np.arange(TRAIN, TRAIN + VAL),
        default_slot(device),
        weights_path=folder / "model.safetensors",
        state_path=folder / "state.pt",
        picture_path=folder / "validation.jpg",
        imports=("segmentation_models_pytorch", "monai"),
    )


def run(job: TrainJob, *, prune: bool) -> Timeline:
    """Run one training; stop it after its first epoch if ``prune``."""
    start = time.perf_counter()
    built, ends, seconds = start, [], []
    with TrialProcess(job) as process:
        for message in process.messages():
            now = time.perf_counter()
            match message:
                case ModelBuilt():
                    built = now
                    process.reply(stop=False)
                case EpochRecord():
                    ends.append(now)
                    seconds.append(message.seconds)
                    process.reply(stop=prune)
                case JobError():
                    raise RuntimeError(message.message)
                case Trained():
                    return Timeline(
                        build=built - start,
                        begin=ends[0] - seconds[0] - built,
                        save=ends[-1] - ends[0] - sum(seconds[1:]),
                        end=now - ends[-1],
                    )
    raise AssertionError("a process ends with an outcome")


def measure(args: argparse.Namespace, scratch: Path) -> Iterator[str]:
    """Yield the table line by line."""
    write_dataset(scratch / "lesions", TRAIN + VAL)
    cache = build_cache(DatasetIndex.read(scratch / "lesions"), args.size, scratch / "cache")
    yield "| network | trial | " + " | ".join(f"{part}, s" for part in PARTS) + " | sum, s |"
    yield "|---" * (len(PARTS) + 3) + "|"
    is_first = True
    for network in args.networks:
        job = make_job(cache, network, args.size, args.device, scratch)
        for prune in (False, True):
            if is_first:
                run(job, prune=True)
                is_first = False
            times = [_run_new(job, prune=prune) for _ in range(args.rounds)]
            medians = [statistics.median(values) for values in zip(*times, strict=True)]
            total = statistics.median(timeline.total for timeline in times)
            cells = " | ".join(f"{value:.2f}" for value in medians)
            yield f"| {network} | {'pruned' if prune else 'complete'} | {cells} | {total:.2f} |"


def _run_new(job: TrainJob, *, prune: bool) -> Timeline:
    for path in (job.state_path, job.weights_path, job.picture_path):
        assert path is not None
        path.unlink(missing_ok=True)
    return run(job, prune=prune)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--to", type=Path, help="a Markdown file for the table")
    args = parser.parse_args(argv)
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        for line in measure(args, Path(scratch)):
            print(line, flush=True)
            lines.append(line)
    if args.to:
        device = describe_device(default_slot(args.device).device)
        title = (
            f"# Seconds of a trial outside of its epochs\n\n`python -m bench.timeline`: {device}, "
            f"Python {platform.python_version()}, torch {torch.__version__}, {args.size} px.\n\n"
        )
        args.to.write_text(title + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
