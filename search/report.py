"""report.html: what a study found and how, on one page that needs nothing beside itself.

The numbers of the test are those of ``final/metrics.json``; everything else comes from the
study's records. The same records give the same bytes. Names and messages come from files and
from libraries, so the templates escape them all.
"""

from __future__ import annotations

import base64
import csv
import io
import math
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from optuna.trial import FrozenTrial
from PIL import Image

from lesionseg.config import DEFAULTS
from lesionseg.errors import some
from lesionseg.metrics import JACCARD_THRESHOLD
from search import charts, trials
from search.console import named
from search.final import REPRODUCED, read_metrics
from search.importance import importances
from search.study import open_records, test_looks

#: Rows of the leaderboard.
LEADERS = 10
#: The longest side of an overlay within the page, in pixels.
OVERLAY_SIDE = 480

#: Stands where there is no number.
NOTHING = "\N{EN DASH}"

#: For each metric its name for people and its definition for one image.
DEFINITIONS: Mapping[str, tuple[str, str]] = {
    "dice": ("Dice", "2 TP / (2 TP + FP + FN)"),
    "jaccard": ("Jaccard", "TP / (TP + FP + FN)"),
    "thresholded_jaccard": (
        "Thresholded Jaccard",
        f"Jaccard, counted 0 where it is below {JACCARD_THRESHOLD}",
    ),
    "precision": ("Precision", "TP / (TP + FP)"),
    "recall": ("Recall", "TP / (TP + FN), also called sensitivity"),
    "specificity": ("Specificity", "TN / (TN + FP)"),
    "accuracy": ("Accuracy", "(TP + TN) / (TP + FP + FN + TN)"),
    "volume_similarity": ("Volume similarity", "1 - |FN - FP| / (2 TP + FP + FN)"),
    "assd": ("Average symmetric surface distance", "pixels at the mask's own size"),
    "assd_percent": ("Average symmetric surface distance", "percent of the image's diagonal"),
    "hd": ("Hausdorff distance", "pixels at the mask's own size"),
    "hd_percent": ("Hausdorff distance", "percent of the image's diagonal"),
    "hd95": ("95% Hausdorff distance", "pixels at the mask's own size"),
    "hd95_percent": ("95% Hausdorff distance", "percent of the image's diagonal"),
    "average_precision": ("Average precision", "area under the precision-recall curve of pixels"),
    "calibration_error": (
        "Calibration error",
        "how far predicted probabilities lie from observed frequencies; less is better",
    ),
}


@dataclass(frozen=True)
class Score:
    """A metric's row. interval: its 95% interval, if there is one."""

    key: str
    name: str
    definition: str
    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Picture:
    """An overlay. data: the picture as a data URI; None where its file cannot be read."""

    name: str
    dice: float | None
    data: str | None


@dataclass(frozen=True)
class Leader:
    """A row of the leaderboard. picks: for each family the option and its parameters."""

    number: int
    value: float
    picks: tuple[tuple[str, str], ...]
    params: int | None
    epochs: int | None
    seconds: float | None


@dataclass(frozen=True)
class Reason:
    """How often trials of a state ended for a reason; message: the first there is."""

    state: str
    reason: str
    count: int
    numbers: str
    message: str


def write_report(folder: Path, *, storage: str | None = None) -> Path:
    """Writes ``report.html`` of a study's folder, whole or not at all; its path.

    Needs no picture of the data. A study that is not finished, or without a complete trial,
    gets a report that says so. Raises InputError where the folder holds no study or its storage
    cannot be opened.
    """
    study, about = open_records(folder, storage=storage)
    page = _render(_contents(folder, study, about))
    path, partial = folder / "report.html", folder / "report.html.partial"
    try:
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _contents(folder: Path, study: optuna.Study, about: Mapping[str, Any]) -> dict[str, Any]:
    known, stored = trials.all_trials(study), study.user_attrs
    ranking = trials.ranked(known)
    final = read_metrics(folder)
    best = ranking[0] if ranking else None
    winner = final["trial"] if final else best.number if best else None
    config = final["config"] if final else trials.config_of(best) if best else None
    shares, note = importances(known)
    return {
        "study": study.study_name,
        "about": about,
        "spec": stored["spec"],
        "split": {part: len(names) for part, names in stored["split"].items()},
        "fingerprint": stored["data"],
        "final": final,
        "best": best,
        "winner": winner,
        "spent": trials.spent(known),
        "counts": trials.counts(known),
        "span": _span(trials.hours_spent(known)),
        "looks": _looks(final, test_looks(study)),
        "tolerance": REPRODUCED,
        "families": list(DEFAULTS),
        "leaders": [_leader(t) for t in ranking[:LEADERS]],
        "complete": len(ranking),
        "reasons": _reasons(known),
        "history": charts.history_chart(known, winner),
        "curves": charts.curves_chart(known, winner),
        "importance": charts.importance_chart(shares) if shares else None,
        "importance_note": note,
        "config_yaml": _yaml(config) if config else None,
        "spec_yaml": _yaml(stored["spec"]),
        "command": f"lesionsearch run {shlex.quote(str(folder / 'study.yaml'))} "
        f"--data DIR --out NEW",
        "after": _after(final),
        **_test(folder, final, stored["spec"]),
    }


def _test(folder: Path, final: Mapping[str, Any] | None, spec: Mapping[str, Any]) -> dict[str, Any]:
    if final is None:
        return {"scores": [], "overlays": {}, "confusion": None, "spread": None, "retraining": None}
    images = {row["name"]: float(row["dice"]) for row in _rows(folder / "final" / "per_image.csv")}
    epochs = [
        {key: float(value) for key, value in row.items()}
        for row in _rows(folder / "final" / "history.csv")
    ]
    last = spec["final"]["fit_on"] == "train_val"
    return {
        "scores": list(_scores(final)),
        "overlays": _overlays(folder / "final" / "overlays", final["overlays"], images),
        "confusion": charts.confusion_chart(final["confusion"]),
        "spread": charts.dice_chart(list(images.values())) if images else None,
        "retraining": charts.retraining_chart(epochs, _kept(epochs, last)) if epochs else None,
    }


def _after(final: Mapping[str, Any] | None) -> str | None:
    """What is done to the network's output, in words; None where that is not known."""
    chosen = final and final.get("inference")
    if not chosen:
        return None
    views = {"none": [], "flips": ["the mean over flips"], "d4": ["the mean over flips and turns"]}
    steps = views.get(chosen["tta"], [chosen["tta"]])
    return ", ".join([*steps, *map(named, chosen["chain"])]) or "nothing"


def _scores(final: Mapping[str, Any]) -> Iterator[Score]:
    for key, value in final["test"].items():
        if key in {"n", "groups"}:
            continue
        name, definition = DEFINITIONS.get(key, (key, ""))
        interval = final["ci95"].get(key)
        yield Score(key, name, definition, value, tuple(interval) if interval else None)


def _overlays(
    folder: Path, listed: Iterable[Sequence[str]], dice: Mapping[str, float]
) -> dict[str, list[Picture]]:
    """The pictures of each kind, in the order of metrics.json."""
    kinds: dict[str, list[Picture]] = {}
    for kind, file in listed:
        # best_1_NAME.png
        name = file.removeprefix(f"{kind}_").partition("_")[2].removesuffix(".png")
        picture = Picture(name, dice.get(name), _embedded(folder / file))
        kinds.setdefault(kind, []).append(picture)
    return kinds


def _embedded(path: Path) -> str | None:
    """A picture as a data URI, as JPEG: a photograph as PNG would be five times as large."""
    stream = io.BytesIO()
    try:
        with Image.open(path) as picture:
            picture.thumbnail((OVERLAY_SIDE, OVERLAY_SIDE))
            # Without subsampling the colours of thin outlines stay where they are.
            picture.convert("RGB").save(stream, "JPEG", quality=88, subsampling=0)
    except OSError:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _leader(trial: FrozenTrial) -> Leader:
    config, attrs = trials.config_of(trial), trial.user_attrs
    picks = tuple(_pick(config[family], family) for family in DEFAULTS)
    assert trial.value is not None
    return Leader(
        trial.number, trial.value, picks, attrs.get("params"), attrs.get("epochs"),
        attrs.get("seconds"),
    )  # fmt: skip


def _pick(plain: Mapping[str, Mapping[str, Any]], family: str) -> tuple[str, str]:
    (name, params), *_ = plain.items()
    shown = {k: v for k, v in params.items() if family != "optimizer" or k == "lr"}
    return name, ", ".join(f"{key} {_short(value)}" for key, value in shown.items())


def _short(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _reasons(known: Iterable[FrozenTrial]) -> list[Reason]:
    """By state in the order of STATES, the most frequent first."""
    found: dict[tuple[str, str], list[FrozenTrial]] = {}
    for trial in known:
        if reason := trials.reason_of(trial):
            found.setdefault((trials.state_of(trial), reason), []).append(trial)
    ordered = sorted(found.items(), key=lambda f: (trials.STATES.index(f[0][0]), -len(f[1])))
    return [
        Reason(
            state, reason, len(members), some(t.number for t in members),
            next((m for t in members if (m := t.user_attrs.get("message"))), ""),
        )
        for (state, reason), members in ordered
    ]  # fmt: skip


def _looks(final: Mapping[str, Any] | None, noted: Sequence[str]) -> int:
    """How often the test images were looked at: a test that broke off is one more look."""
    return max(final["test_looks"] if final else 0, len(noted))


def _kept(epochs: Sequence[Mapping[str, float]], last: bool) -> int:
    """The epoch whose weights were kept: the first of the best Dice, or the last one."""
    best = epochs[-1] if last else max(epochs, key=lambda row: row["dice"])
    return int(best["epoch"])


def _span(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} hours"
    minutes = hours * 60
    return f"{minutes:.0f} minutes" if minutes >= 2 else f"{minutes * 60:.0f} seconds"


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _yaml(plain: Mapping[str, Any]) -> str:
    """With the innermost lists and mappings in one line each, as people write them."""
    dumped: str = yaml.safe_dump(dict(plain), sort_keys=False, default_flow_style=None, width=60)
    return dumped


def _render(contents: Mapping[str, Any]) -> str:
    page = Environment(
        loader=PackageLoader("search"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters |= {"score": _score, "millions": _millions, "gap": _gap}
    return page.get_template("report.html.j2").render(contents)


def _score(value: float | None) -> str:
    return NOTHING if value is None or math.isnan(value) else f"{value:.4f}"


def _millions(count: int | None) -> str:
    return NOTHING if count is None else f"{count / 1e6:.2f} M"


def _gap(difference: float) -> str:
    return f"{difference:+.4f}".replace("-", "\N{MINUS SIGN}")
