"""What finalists and ensembles are worth, on test images that chose nothing.

Runs several small searches on a folder of images, each with another split. Of each, the best trials
are trained again with several seeds, an ensemble is selected on the validation images, and all
networks are scored on the test images, at the image size of the networks. The optimism of a choice
is its validation Dice minus its test Dice:

- search: the best trial of the search, by the value that chose it;
- best training: the single training with the best value, of all finalists and seeds;
- finalists: the chosen finalist, by the mean over its seeds (``search/results/finalists.py``).

    python -m bench.finalists DATA [--studies 5] [--trials 10] [--finalists 3] [--seeds 2]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch

from lesionseg.data.split import find_positions
from lesionseg.inference.evaluate import predict_probabilities
from lesionseg.inference.selection import paired_gain
from lesionseg.metrics.overlap import Floats, dice_score
from lesionseg.training import checkpoint
from search.results.final_check import prepare_final
from search.results.final_network import build_network
from search.results.final_time import Schedule, planned
from search.results.final_training import FinalSetup, train_finalists
from search.results.finalists import best_trials
from search.spec.loading import parse_spec
from search.spec.study_spec import StudySpec
from search.study.creation import create_or_resume
from search.study.opening import OpenStudy
from search.trial_process.slot import Slot
from search.workers.loop import LogListener, run_trials


@dataclass(frozen=True)
class Outcome:
    """Figures of one study. A gain is that of the ensemble over its best member, on test images."""

    search: float
    best_training: float
    finalists: float
    test_of_search: float
    test_of_finalists: float
    test_of_ensemble: float
    members: int
    gain: float
    gain_error: float


def study_spec(options: argparse.Namespace, seed: int) -> StudySpec:
    """Return a small study: few images and short trainings make the values noisy."""
    encoder = {"encoder": "tu-tf_efficientnet_lite0", "encoder_lr_factor": [0.1, 1.0]}
    spec = {
        "name": f"finalists-{seed}",
        "seed": seed,
        "data": {
            "image_size": options.size,
            "split": {"seed": seed},
            "limit": {"train": options.train, "val": options.val},
        },
        "budget": {"trials": options.trials, "epochs": options.epochs},
        "sampler": {"name": "random"},
        "pruner": {"name": "none"},
        "fixed": {"batch_size": 16},
        "search": {
            "model": {"smp_fpn": {**encoder, "decoder_width": 0.5}},
            "loss": {"bce_dice": {}, "dice": {}, "focal_dice": {}},
            "augment": {"geometric": {}, "flips": {}},
            "optimizer": {"adamw": {"lr": [5e-4, 4e-3]}},
            "schedule": ["onecycle", "cosine"],
        },
        "final": {
            "finalists": options.finalists, "seeds": options.seeds, "ensemble": options.ensemble,
            "tta": False, "postprocess": False,
        },
    }  # fmt: skip
    return parse_spec(spec, "bench.finalists")


def test_dice(opened: OpenStudy, weights: Path) -> Floats:
    """Return the Dice of each test image at the network's size and a threshold of one half."""
    model, _ = checkpoint.load(weights)
    positions = find_positions(opened.split.test, opened.cache.names)
    predicted = predict_probabilities(model, opened.cache, positions, device=torch.device("cpu"))
    pairs = zip(predicted, opened.cache.masks[positions], strict=True)
    return np.array([dice_score(p > 0.5, truth > 0) for p, truth in pairs])


def run_study(options: argparse.Namespace, seed: int, folder: Path) -> Outcome:
    """Search, train the finalists, select an ensemble, and score all networks."""
    opened = create_or_resume(study_spec(options, seed), options.data, folder)
    slot = Slot("cpu", 1)
    run_trials(opened, slot, LogListener(), threading.Event())
    trials = best_trials(opened.study, options.finalists)
    prepared = prepare_final(opened, trials)
    schedule = Schedule(planned(opened.spec, len(trials)))
    setup = FinalSetup(opened, prepared, trials, [slot], schedule, print)
    retrained = train_finalists(setup, folder / "retrained", lambda done, total: None)
    scores = {model.weights: test_dice(opened, model.weights) for model in retrained.models}
    best = max(retrained.models, key=lambda model: model.val_dice)
    # On a CPU the retraining with the trial's own seed repeats the trial.
    winner = next(each for each in retrained.finalists if each.trial == trials[0]).models[0]
    chosen = retrained.chosen
    test_of_finalists = statistics.fmean(scores[model.weights].mean() for model in chosen.models)
    network = build_network(setup, retrained, folder / "ensemble.safetensors")
    ensemble = test_dice(opened, network.weights)
    strongest = network.members[network.best_member].candidate.weights
    gain, error = paired_gain(ensemble, test_dice(opened, strongest))
    return Outcome(
        search=winner.val_dice - scores[winner.weights].mean(),
        best_training=best.val_dice - scores[best.weights].mean(),
        finalists=chosen.mean - test_of_finalists,
        test_of_search=scores[winner.weights].mean(),
        test_of_finalists=test_of_finalists,
        test_of_ensemble=ensemble.mean(),
        members=len(network.members),
        gain=gain,
        gain_error=error or 0.0,
    )


def table(outcomes: Mapping[str, Outcome]) -> str:
    """Return a row per study and one of the means."""
    names = [field.name for field in fields(Outcome)]
    rows = [("study", *(name.replace("_", " ") for name in names)), ("---",) * (len(names) + 1)]
    columns: list[Sequence[float]] = [[getattr(o, n) for o in outcomes.values()] for n in names]
    values = dict(zip(outcomes, zip(*columns, strict=True), strict=True))
    values["mean"] = tuple(map(statistics.fmean, columns))
    for study, row in values.items():
        rows.append((study, *(str(v) if isinstance(v, int) else f"{v:.4f}" for v in row)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--studies", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="seed of the first study")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--val", type=int, default=60)
    parser.add_argument("--finalists", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--ensemble", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    outcomes = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.first, options.first + options.studies):
            outcomes[str(seed)] = run_study(options, seed, Path(folder) / f"study-{seed}")
    print(table(outcomes))


if __name__ == "__main__":
    main()
