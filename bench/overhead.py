"""Overhead of the search per trial: suggest, report, prune, tell, start of the child process.

Runs trials by the worker (SQLite, TPE, 40 epochs each) on tiny networks and measures the time
outside of epochs. The share is relative to a trial of 60 seconds, without the first trial, which
starts the fork server.

    python -m bench.overhead [--trials 20] [--stored 200]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from optuna.trial import FrozenTrial
from PIL import Image

from lesionseg.config import TrialConfig
from lesionseg.training.types import EpochRecord
from search.spec.loading import parse_spec
from search.storage.lease_types import Claim
from search.study.creation import create_or_resume
from search.study.opening import OpenStudy
from search.study.samplers import prepare_sampling
from search.trial_process.resources import default_slot
from search.workers.trial_context import TrialContext
from search.workers.worker import Worker

EPOCHS = 40
TRIAL_SECONDS = 60.0


class Stopwatch:
    """A listener that sums the seconds within the epochs of the current trial."""

    def __init__(self) -> None:
        self.training = 0.0
        self.epochs = 0

    def trial_started(self, number: int, config: TrialConfig) -> None:
        """Reset the sums."""
        self.training, self.epochs = 0.0, 0

    def epoch_ended(self, number: int, record: EpochRecord) -> None:
        """Add the seconds of the epoch."""
        self.training += record.seconds
        self.epochs += 1

    def trial_ended(self, trial: FrozenTrial, best: FrozenTrial | None) -> None:
        """Keep the sums."""


def make_data(folder: Path, n: int = 12) -> Path:
    """Write pairs of 16 x 16 pixels with a square lesion."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i in range(n):
        mask = np.zeros((16, 16), np.uint8)
        mask[4 : 8 + i % 4, 4:12] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
        noise = np.random.default_rng(i).integers(0, 200, (16, 16, 3), np.uint8)  # no duplicates
        Image.fromarray(noise).save(folder / "images" / f"{i}.png")
    return folder


def open_bench_study(folder: Path) -> OpenStudy:
    """Create a study with a conditional search space."""
    spec = parse_spec(
        {
            "name": "bench",
            "data": {"image_size": 16},
            "budget": {"trials": 100_000, "epochs": EPOCHS},
            "pruner": {"name": "none"},
            "search": {
                "model": {"unet": {"width": [4, 8], "depth": [1, 2]}},
                "loss": ["bce", "dice", "focal", "bce_dice"],
                "augment": ["none", "flips"],
                "optimizer": ["adam", "adamw", "sgd"],
                "schedule": ["constant", "cosine", "onecycle", "plateau"],
            },
        },
        "bench",
    )
    return create_or_resume(spec, make_data(folder / "data"), folder / "bench")


def store_trials(opened: OpenStudy, n: int) -> None:
    """Store finished trials with random values for the sampler."""
    from search.study.suggest import suggest

    rng = np.random.default_rng(0)
    for _ in range(n):
        trial = opened.study.ask()
        suggest(trial, opened.spec.space)
        opened.study.tell(trial, float(rng.uniform(0.5, 0.9)))


def measure(opened: OpenStudy, n: int) -> list[float]:
    """Run n trials and return the seconds outside of epochs for each."""
    watch = Stopwatch()
    context = TrialContext(opened, default_slot("cpu", 1), listener=watch)
    worker = Worker(context)
    seconds = []
    for _ in range(n):
        start = time.perf_counter()
        claim = worker.claim(bounded=False)
        assert isinstance(claim, Claim)
        done = worker.run(claim)
        if done.state.name == "COMPLETE":
            seconds.append(time.perf_counter() - start - watch.training)
    return seconds


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--stored", type=int, default=200)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        opened = open_bench_study(Path(folder))
        prepare_sampling(opened)
        store_trials(opened, args.stored)
        first, *rest = measure(opened, args.trials + 1)
    median = statistics.median(rest)
    share = median / TRIAL_SECONDS
    print(f"trials measured            {len(rest)} of {EPOCHS} epochs, {args.stored} stored before")
    print(f"first trial of a process   {first:.2f} s outside of epochs")
    print(f"later trials               median {median:.3f} s, maximum {max(rest):.3f} s")
    print(f"share of a 60 s trial      {share:.2%} (at most 2%)")


if __name__ == "__main__":
    main()
