"""Studies and final tests that nobody ran, as their files would be."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import optuna
import yaml
from optuna.trial import TrialState
from PIL import Image

from lesionseg import metrics
from lesionseg.metrics import METRICS
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
#: Markup that must be seen as text wherever it comes from.
EVIL = "<script>alert('x')</script>"


def make_study(folder: Path, name: str = "melanoma", changes: dict | None = None) -> optuna.Study:
    """A study without a trial, and the folder of it; changes: to the spec."""
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=name,
        storage=open_storage(storage_url(None, folder)),
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    plain = SPEC.model_dump(mode="json") | (changes or {})
    split = {part: [f"{part}_{i}" for i in range(n)] for part, n in (("train", 70), ("val", 15))}
    split["test"] = names_of_test(12)
    about = {"study": name, "storage": None, "data": "gone", "layout": "pairs", "version": "0.1.0"}
    for key, value in (("spec", plain), ("split", split), ("data", "0123456789abcdef")):
        study.set_user_attr(key, value)
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "split.json").write_text(json.dumps(split))
    (folder / "data.json").write_text(json.dumps(invented_card()))
    (folder / "study.yaml").write_text(yaml.safe_dump(plain))
    return study


def add(
    study: optuna.Study,
    end: str,
    curve: list[float],
    reason: str | None = None,
    message: str | None = None,
    **attrs,
) -> int:
    """One trial as a worker leaves it: config, digest, reported values, end."""
    trial = study.ask()
    config = suggest(trial, SPEC.space)
    trial.set_user_attr("config", config.to_dict())
    trial.set_user_attr("digest", config.digest())
    trial.set_user_attr("params", 123_456 + trial.number)
    for key, value in attrs.items():
        trial.set_user_attr(key, value)
    trial.set_user_attr("owner", {"device": "cpu", "threads": 2, "share": 1.0, "host": "here"})
    trial.set_user_attr("started_at", 1000.0 * trial.number)
    trial.set_user_attr("ended_at", 1000.0 * trial.number + 2.0 * len(curve) + 1)
    for epoch, value in enumerate(curve, 1):
        trial.report(value, epoch)
    if end in {"complete", "pruned"} and curve:
        trial.set_user_attr("best_epoch", int(np.argmax(curve)) + 1)
        trial.set_user_attr("epochs", len(curve))
        trial.set_user_attr("seconds", 1.5 * len(curve))
    if reason:
        trial.set_user_attr("reason", reason)
        trial.set_user_attr("message", message or "")
    state = {"pruned": TrialState.PRUNED, "failed": TrialState.FAIL}.get(end)
    study.tell(trial, max(curve) if end == "complete" else None, state=state)
    return trial.number


def curve_to(value: float, epochs: int = 6) -> list[float]:
    return [value * (1 - 0.5**e) / (1 - 0.5**epochs) for e in range(1, epochs + 1)]


def fill(study: optuna.Study, n: int = 16, seed: int = 0, **first) -> None:
    """n trials: a quarter pruned, one failed, one skipped, the rest complete; first: its attrs."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        value = float(0.7 + 0.2 * rng.random())
        if i == 3:
            add(study, "failed", [0.2], "oom", "OutOfMemoryError: 3 GiB wanted")
        elif i == 5:
            add(
                study,
                "failed",
                [],
                trial_records.EndReason.DUPLICATE,
                "the same configuration as trial 1",
            )
        elif i % 4 == 2:
            add(study, "pruned", curve_to(value)[:2])
        else:
            add(study, "complete", curve_to(value), **(first if i == 0 else {}))


def names_of_test(n: int) -> list[str]:
    return [f"ISIC_{i:07d}" for i in range(n)]


def make_final(
    folder: Path, study: optuna.Study, names: list[str] | None = None, size=(120, 90), **changes
) -> dict:
    """``final/`` as finalize() leaves it, of invented counts; its metrics."""
    names = names or names_of_test(12)
    (folder / "final" / "overlays").mkdir(parents=True)
    counts = invented_counts(len(names))
    scores = metrics.score_images(counts)
    groups = [f"patient_{i // 2}" for i in range(len(names))]
    best = trial_records.rank_trials(trial_records.all_trials(study))[0]
    told = {
        "study": study.study_name,
        "trial": best.number,
        "test": {k: float(v.mean()) for k, v in scores.items()}
        | {"average_precision": 0.9517, "calibration_error": 0.0213}
        | {"n": len(names), "groups": len(set(groups))},
        "ci95": {k: list(v) for k, v in metrics.bootstrap_intervals(scores, groups, resamples=200).items()},
        "confusion": dict(
            zip(("tp", "fp", "fn", "tn"), (counts / 10_000).mean(0).tolist(), strict=True)
        ),
        "curves": invented_curves(),
        "val": {
            "search": best.value,
            "retrained": best.value - 0.0012,
            "gap": -0.0012,
            "reproduced": True,
            "seeds": {"0": best.value - 0.0012},
        },
        "test_evaluations": 1,
        "overlays": draw_overlays(folder / "final" / "overlays", names, scores["dice"], size),
        "seconds": 12.34,
        "images_per_second": 56.78,
        "params": 123_456,
        "seed": 0,
        "config": trial_records.config_of(best),
        "versions": {"python": "3.12.1", "lesionsearch": "0.1.0", "torch": "2.11.0"},
    } | changes
    (folder / "final" / "metrics.json").write_text(json.dumps(told))
    rows = [
        [n, g, 100, 100, *counts[i].tolist(), *(scores[m][i] for m in METRICS)]
        for i, (n, g) in enumerate(zip(names, groups, strict=True))
    ]
    columns = ["name", "group", "height", "width", "tp", "fp", "fn", "tn", *METRICS]
    write_csv(folder / "final" / "per_image.csv", columns, rows)
    rows = [
        [e, 1 / e, 1.1 / e, 1e-3, 2.0, *[d] * len(METRICS)] for e, d in enumerate(curve_to(0.9), 1)
    ]
    header = ["epoch", "train_loss", "val_loss", "lr", "seconds", *METRICS]
    write_csv(folder / "final" / "history.csv", header, rows)
    return told


def invented_counts(n: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    tp, fp, fn = (rng.integers(*ends, n) for ends in ((2000, 3000), (1, 900), (1, 900)))
    return np.stack([tp, fp, fn, 10_000 - tp - fp - fn], axis=1)


def invented_curves() -> dict:
    """As final.judged keeps them; a bin of the calibration is empty."""
    thresholds = np.linspace(0, 0.999, 101)
    return {
        "thresholds": thresholds.tolist(),
        "precision": np.linspace(0.3, 1, 101).tolist(),
        "recall": np.linspace(1, 0, 101).tolist(),
        "confidence": [0.05, 0.5, 0.95],
        "frequency": [0.02, None, 0.97],
        "share": [0.7, 0.0, 0.3],
    }


def invented_card() -> dict:
    """As summarize_data makes it."""

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


def make_systems(folder: Path, names: list[str], dice: dict[str, list[list[float]]]) -> Path:
    """The folder of a ``baselines run`` whose systems reached this Dice per image, by training."""
    study = make_study(folder, folder.name)
    groups = [f"patient_{i // 2}" for i in range(len(names))]
    for baseline, trainings in dice.items():
        for values in trainings:
            attrs = {"baseline": baseline, "macs": 1e9, "peak_memory": 1, "val": {"dice": 0.5}}
            number = add(study, "complete", [0.5], **attrs)
            place = folder / "results" / str(number)
            place.mkdir(parents=True)
            told = {"test": {"dice": float(np.mean(values))}, "speed": {"batch": 1, "single": 1}}
            (place / "result.json").write_text(json.dumps(told))
            rows = [
                [n, g, *[d] * len(SCORES)] for n, g, d in zip(names, groups, values, strict=True)
            ]
            write_csv(place / "per_image.csv", ["name", "group", *SCORES], rows)
    return folder


def draw_overlays(folder: Path, names: list[str], dice: np.ndarray, size) -> list[list[str]]:
    listed = []
    for kind, members in zip(
        ("best", "median", "worst"), np.array_split(np.argsort(-dice)[:9], 3), strict=True
    ):
        for k, i in enumerate(members, 1):
            listed.append([kind, f"{kind}_{k}_{names[i]}.png"])
            noise = np.random.default_rng(i).integers(120, 200, (size[1], size[0], 3), np.uint8)
            Image.fromarray(noise).save(folder / listed[-1][1])
    return listed


def write_csv(path: Path, header: list[str], rows: list[list]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
