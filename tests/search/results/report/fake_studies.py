"""Studies, final tests and baseline runs as files, without training."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import optuna
import yaml
from optuna.trial import TrialState
from PIL import Image

from lesionseg.metrics import compare, overlap
from lesionseg.metrics.overlap import METRICS
from lesionseg.runtime.files import file_stem
from search.results.baseline_table import SCORES
from search.spec.loading import parse_spec
from search.storage import trial_records
from search.storage.database import open_storage, storage_url
from search.study.data_summary import EDGES
from search.study.suggest import suggest

SPEC = parse_spec(
    {
        "name": "small",
        "data": {"image_size": 64},
        "budget": {"trials": 40, "epochs": 6},
        "search": {
            "model": {"unet": {"width": [8, 24], "depth": [3, 4]}, "segnet": {"width": [8, 16]}},
            "loss": ["bce", "focal"],
            "optimizer": {"adamw": {"lr": [5.0e-4, 1.0e-2]}},
        },
    },
    "test",
)
#: Markup that a report must show as text.
EVIL = "<script>alert('x')</script>"


def make_study(folder: Path, name: str = "melanoma", changes: dict | None = None) -> optuna.Study:
    """Create a study without trials, with its folder. changes: to the spec."""
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=name,
        storage=open_storage(storage_url(None, folder)),
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    spec = SPEC.model_dump(mode="json") | (changes or {})
    split = {part: [f"{part}_{i}" for i in range(n)] for part, n in (("train", 70), ("val", 15))}
    split["test"] = image_names(12)
    about = {"study": name, "storage": None, "data": "gone", "layout": "pairs", "version": "0.1.0"}
    for key, value in (("spec", spec), ("split", split), ("data", "0123456789abcdef")):
        study.set_user_attr(key, value)
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "split.json").write_text(json.dumps(split))
    (folder / "data.json").write_text(json.dumps(data_card()))
    (folder / "study.yaml").write_text(yaml.safe_dump(spec))
    return study


def add_trial(
    study: optuna.Study,
    end: str,
    curve: list[float],
    reason: str | None = None,
    message: str | None = None,
    **attrs,
) -> int:
    """Add a trial with the attributes that a worker writes; return its number."""
    trial = study.ask()
    config = suggest(trial, SPEC.space)
    attrs |= {
        "config": config.to_dict(),
        "digest": config.digest(),
        "params": 123_456 + trial.number,
        "owner": {"device": "cpu", "threads": 2, "share": 1.0, "host": "here"},
        "started_at": 1000.0 * trial.number,
        "ended_at": 1000.0 * trial.number + 2.0 * len(curve) + 1,
    }
    for epoch, value in enumerate(curve, 1):
        trial.report(value, epoch)
    if end in {"complete", "pruned"} and curve:
        attrs["best_epoch"] = int(np.argmax(curve)) + 1
        attrs |= {"epochs": len(curve), "seconds": 1.5 * len(curve)}
    if reason:
        attrs |= {"reason": reason, "message": message or ""}
    for key, value in attrs.items():
        trial.set_user_attr(key, value)
    state = {"pruned": TrialState.PRUNED, "failed": TrialState.FAIL}.get(end)
    study.tell(trial, max(curve) if end == "complete" else None, state=state)
    return trial.number


def curve_to(value: float, epochs: int = 6) -> list[float]:
    """Return a learning curve that ends at a value."""
    return [value * (1 - 0.5**e) / (1 - 0.5**epochs) for e in range(1, epochs + 1)]


def add_trials(study: optuna.Study, n: int = 16, **first) -> None:
    """Add trials: a quarter pruned, one failed, one closed. first: attributes of trial 0."""
    rng = np.random.default_rng(0)
    for i in range(n):
        curve = curve_to(float(0.7 + 0.2 * rng.random()))
        if i == 3:
            add_trial(study, "failed", [0.2], "oom", "OutOfMemoryError: 3 GiB wanted")
        elif i == 5:
            reason = trial_records.EndReason.DUPLICATE
            add_trial(study, "failed", [], reason, "the same configuration as trial 1")
        elif i % 4 == 2:
            add_trial(study, "pruned", curve[:2])
        else:
            add_trial(study, "complete", curve, **(first if i == 0 else {}))


def image_names(n: int) -> list[str]:
    return [f"ISIC_{i:07d}" for i in range(n)]


def make_final(
    folder: Path, study: optuna.Study, names: list[str] | None = None, size=(120, 90), **changes
) -> dict:
    """Write ``final/`` with random counts and return its metrics. changes: to the metrics."""
    names = names or image_names(12)
    (folder / "final" / "overlays").mkdir(parents=True)
    counts = random_counts(len(names))
    scores = overlap.score_images(counts)
    groups = [f"patient_{i // 2}" for i in range(len(names))]
    best = trial_records.rank_trials(trial_records.all_trials(study))[0]
    shares = (counts / 10_000).mean(0).tolist()
    retrained = best.value - 0.0012
    report = {
        "study": study.study_name,
        "trial": best.number,
        "baseline": None,
        "final": study.user_attrs["spec"]["final"],
        "test": {k: float(v.mean()) for k, v in scores.items()}
        | {"average_precision": 0.9517, "calibration_error": 0.0213}
        | {"n": len(names), "groups": len(set(groups))},
        "ci95": {
            k: list(v)
            for k, v in compare.bootstrap_intervals(scores, groups, resamples=200).items()
        },
        "confusion": dict(zip(("tp", "fp", "fn", "tn"), shares, strict=True)),
        "curves": make_curves(),
        "val": validation_dice(best.value, retrained, -0.0012, True, {"0": retrained}),
        "inference": {"tta": "none", "chain": []},
        "inference_choice": None,
        "test_evaluations": 1,
        "overlays": write_overlays(folder / "final" / "overlays", names, scores["dice"], size),
        "seconds": 12.34,
        "images_per_second": 56.78,
        "images_per_second_single": 20.0,
        "peak_memory": 1,
        "params": 123_456,
        "macs": 1000,
        "seed": 0,
        "config": trial_records.config_of(best),
        "versions": {"python": "3.12.1", "lesionsearch": "0.1.0", "torch": "2.11.0"},
        "device": "cpu",
        "threads": 2,
    } | changes
    (folder / "final" / "metrics.json").write_text(json.dumps(report))
    rows = [
        [n, g, 100, 100, *counts[i].tolist(), *(scores[m][i] for m in METRICS)]
        for i, (n, g) in enumerate(zip(names, groups, strict=True))
    ]
    columns = ["name", "group", "height", "width", "tp", "fp", "fn", "tn", *METRICS]
    if report.get("ensemble"):
        columns.append("disagreement")
        values = disagreements(scores["dice"])
        rows = [[*row, value] for row, value in zip(rows, values, strict=True)]
    write_table(folder / "final" / "per_image.csv", columns, rows)
    rows = [
        [e, 1 / e, 1.1 / e, 1e-3, 2.0, *[d] * len(METRICS)] for e, d in enumerate(curve_to(0.9), 1)
    ]
    header = ["epoch", "train_loss", "val_loss", "lr", "seconds", *METRICS]
    write_table(folder / "final" / "history.csv", header, rows)
    return report


def ensemble_final(study: optuna.Study) -> dict:
    """Return the keys of metrics.json about three finalists and an ensemble of three networks.

    The second of the search is the chosen finalist.
    """
    best = trial_records.rank_trials(trial_records.all_trials(study))[:3]
    configs = [trial_records.config_of(trial) for trial in best]
    members = [(1, 0.5, 0.9012), (0, 0.3, 0.8934), (2, 0.2, 0.8876)]
    finalists = [([0.8901, 0.8967], 0.0047), ([0.9012, 0.9002], 0.0007), ([0.8876], None)]
    mean = float(np.mean([trial.value for trial in best[1:]]))
    return {
        "trial": best[1].number,
        "candidates": [trial.number for trial in best],
        "config": configs[1],
        "seed": 1,
        "encoder_weights": "bundled",
        "fidelity": {
            "search": {"image_size": 64, "epochs": 6},
            "final": {"image_size": 128, "epochs": 18},
        },
        "val": validation_dice(best[1].value, 0.9012),
        "finalists": [
            {
                "trial": trial.number,
                "search": trial.value,
                "dice": dice,
                "mean": float(np.mean(dice)),
                "deviation": deviation,
                "seconds": 61.5 * len(dice),
                "chosen": rank == 1,
            }
            for rank, (trial, (dice, deviation)) in enumerate(zip(best, finalists, strict=True))
        ],
        "ensemble": {
            "members": [
                {
                    "kind": "trial" if rank == 2 else "final",
                    "trial": best[rank].number,
                    "seed": rank,
                    "weight": weight,
                    "dice": dice,
                    "config": configs[rank],
                }
                for rank, weight, dice in members
            ],
            "dice": 0.9071,
            "best_dice": 0.9012,
            "gain": 0.0059,
            "standard_error": 0.0013,
            "images_per_second": 56.78,
            "best_images_per_second": 171.5,
            "mb": 51.9,
            "best_mb": 17.3,
        },
        "optimism": {"search_lead": best[0].value - mean, "final_lead": -0.0008, "gap": None},
        "disagreement": {"spearman": -0.6789},
        "time": {"left_s": 900.0, "forecast_s": 640.0, "used_s": 655.0},
    }


def disagreements(dice: np.ndarray) -> np.ndarray:
    """Return a disagreement for each image, larger for a low Dice."""
    noise = np.random.default_rng(2).uniform(0.5, 1.5, len(dice))
    return 0.4 * (1 - dice) * noise


def validation_dice(search, retrained=None, gap=None, reproduced=None, seeds=None) -> dict:
    """Return ``val`` of metrics.json."""
    values = {"retrained": retrained, "gap": gap, "reproduced": reproduced, "seeds": seeds}
    return {"search": search, **values, "folds": None}


def random_counts(n: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    tp, fp, fn = (rng.integers(*ends, n) for ends in ((2000, 3000), (1, 900), (1, 900)))
    return np.stack([tp, fp, fn, 10_000 - tp - fp - fn], axis=1)


def make_curves() -> dict:
    """Return curves as in metrics.json; one bin of the calibration is empty."""
    return {
        "thresholds": np.linspace(0, 0.999, 101).tolist(),
        "precision": np.linspace(0.3, 1, 101).tolist(),
        "recall": np.linspace(1, 0, 101).tolist(),
        "confidence": [0.05, 0.5, 0.95],
        "frequency": [0.02, None, 0.97],
        "share": [0.7, 0.0, 0.3],
    }


def data_card() -> dict:
    """Return a summary of the data as in data.json."""

    def part(images: int) -> dict:
        area = {"p5": 0.02, "median": 0.2, "p95": 0.6, "counts": [0, 1, 2, 3, 4, 0, 0, 0, 0]}
        return {"images": images, "groups": images - 1, "area": area, "empty": 1, "full": 0}

    return {
        "layout": "pairs",
        "pairs": 100,
        "used": 97,
        "parts": {"train": part(70), "val": part(15), "test": part(12)},
        "edges": list(EDGES),
        "sizes": {"kinds": 2, "most": [{"height": 90, "width": 120, "images": 96}]},
        "duplicates": {"sets": 2, "leaks": 1, "names": [["a", "b"]]},
        "groups_in_several_parts": 0,
        "thresholded": 3,
    }


def make_baseline_run(folder: Path, names: list[str], dice: dict[str, list[list[float]]]) -> Path:
    """Write the folder of a ``baselines run``. dice: by baseline and training, of each image."""
    study = make_study(folder, folder.name)
    groups = [f"patient_{i // 2}" for i in range(len(names))]
    for baseline, trainings in dice.items():
        for values in trainings:
            attrs = {"baseline": baseline, "macs": 1e9, "peak_memory": 1, "val": {"dice": 0.5}}
            number = add_trial(study, "complete", [0.5], **attrs)
            result_folder = folder / "results" / str(number)
            result_folder.mkdir(parents=True)
            result = {"test": {"dice": float(np.mean(values))}, "speed": {"batch": 1, "single": 1}}
            (result_folder / "result.json").write_text(json.dumps(result))
            rows = [
                [n, g, *[d] * len(SCORES)] for n, g, d in zip(names, groups, values, strict=True)
            ]
            write_table(result_folder / "per_image.csv", ["name", "group", *SCORES], rows)
    return folder


def write_overlays(folder: Path, names: list[str], dice: np.ndarray, size) -> list[list[str]]:
    written = []
    for kind, members in zip(
        ("best", "median", "worst"), np.array_split(np.argsort(-dice)[:9], 3), strict=True
    ):
        for k, i in enumerate(members, 1):
            written.append([kind, f"{kind}_{k}_{file_stem(names[i])}.png"])
            noise = np.random.default_rng(i).integers(120, 200, (size[1], size[0], 3), np.uint8)
            Image.fromarray(noise).save(folder / written[-1][1])
    return written


def write_table(path: Path, header: list[str], rows: list[list]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
