"""What the search costs beside the training: suggest, report, prune, tell, the child's start.

Runs real trials through the real worker (SQLite, TPE, hyperband, 40 epochs each) on networks so
small that nothing but the bookkeeping takes time, and takes what is not spent inside an epoch.
The share is of a trial of 60 seconds, the first trial apart: it pays for starting the server
that has torch imported.

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
from search.study.creation import create_or_resume
from search.study.opening import OpenStudy
from search.study.sampling import prepare_sampling
from search.trial_process.resources import default_slot
from search.workers.trial_context import TrialContext
from search.workers.worker import Worker

EPOCHS = 40
TRIAL_SECONDS = 60.0


class Stopwatch:
    """A listener that adds up the seconds inside the epochs of the trial at work."""

    def __init__(self) -> None:
        self.training = 0.0
        self.epochs = 0

    def trial_started(self, number: int, config: TrialConfig) -> None:
        """Begins at nothing."""
        self.training, self.epochs = 0.0, 0

    def epoch_ended(self, number: int, record: EpochRecord) -> None:
        """Adds the epoch's own seconds."""
        self.training += record.seconds
        self.epochs += 1

    def trial_ended(self, trial: FrozenTrial, best: FrozenTrial | None) -> None:
        """Keeps the sum for whoever asks."""


def make_data(folder: Path, n: int = 12) -> Path:
    """Pairs of 16 pixels with a square lesion."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i in range(n):
        mask = np.zeros((16, 16), np.uint8)
        mask[4 : 8 + i % 4, 4:12] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
        Image.fromarray(np.stack([255 - mask] * 3, axis=2)).save(folder / "images" / f"{i}.png")
    return folder


def open_bench_study(folder: Path) -> OpenStudy:
    """A study of tiny trials over a space with conditional parameters."""
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
    """Finished trials for the sampler to model, without training them."""
    from search.study.suggest import suggest

    rng = np.random.default_rng(0)
    for _ in range(n):
        trial = opened.study.ask()
        suggest(trial, opened.spec.space)
        opened.study.tell(trial, float(rng.uniform(0.5, 0.9)))


def measure(opened: OpenStudy, n: int) -> list[float]:
    """Seconds beside the training of each trial, scaled to EPOCHS epochs' reports."""
    watch = Stopwatch()
    context = TrialContext.for_study(opened, default_slot("cpu", 1), listener=watch)
    worker = Worker(context)
    seconds = []
    for _ in range(n):
        began = time.perf_counter()
        done = worker.run_one()
        if done.state.name == "COMPLETE":
            seconds.append(time.perf_counter() - began - watch.training)
    return seconds


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--stored", type=int, default=200)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        opened = open_bench_study(Path(folder))
        prepare_sampling(opened)
        store_trials(opened, given.stored)
        first, *rest = measure(opened, given.trials + 1)
    middle = statistics.median(rest)
    share = middle / TRIAL_SECONDS
    print(
        f"trials measured            {len(rest)} of {EPOCHS} epochs, {given.stored} stored before"
    )
    print(f"first trial of a process   {first:.2f} s beside its training")
    print(f"later trials               median {middle:.3f} s, most {max(rest):.3f} s")
    print(f"share of a 60 s trial      {share:.2%} (at most 2%)")


if __name__ == "__main__":
    main()
