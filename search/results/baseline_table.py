"""The table of the published systems: a row each, with intervals and what it lacks to the best."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from lesionseg import metrics
from search.spec import baselines
from search.storage import trial_records

#: What a row gives of each image, in the columns' order.
SCORES = (
    *metrics.METRICS,
    *(f"{name}{unit}" for name in metrics.SURFACE for unit in ("", "_percent")),
)


@dataclass(frozen=True)
class Row:
    """One system. Numbers of several trainings are means over them.

    trials: the numbers of its tested trials. message: why there is none, else "".
    dice: each training's mean test Dice. means, ci95: test scores by name, the interval over
    groups of images. behind: mean of (its Dice less the best system's) per image, with its paired
    interval; None for the best itself. val_dice: of the kept epoch. seconds: of training.
    epoch: the epoch that was kept, and of how many.
    """

    baseline: str
    trials: tuple[int, ...] = ()
    message: str = ""
    params: int | None = None
    macs: int | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    speed: Mapping[str, float] = field(default_factory=dict)
    epoch: tuple[int, int] | None = None
    val_dice: float | None = None
    dice: tuple[float, ...] = ()
    means: Mapping[str, float] = field(default_factory=dict)
    ci95: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    behind: metrics.Paired | None = None

    @property
    def tested(self) -> bool:
        """Whether it was trained to its end and tested."""
        return bool(self.trials)


def rows(results: Mapping[int, Mapping[str, Any]], known: Sequence[FrozenTrial]) -> list[Row]:
    """The rows, best mean test Dice first; systems that could not be trained last, with the reason.

    results: by trial number, what its test gave: ``speed`` and ``images``, the per-image rows.
    known: every trial of the study.
    """
    per_baseline: dict[str, list[FrozenTrial]] = {}
    for trial in known:
        if trial_records.TrialAttr.BASELINE in trial.user_attrs:
            per_baseline.setdefault(trial.user_attrs[trial_records.TrialAttr.BASELINE], []).append(
                trial
            )
    scores, groups = {}, {}
    for name, members in per_baseline.items():
        found = [results[t.number]["images"] for t in members if t.number in results]
        if found:
            scores[name] = _scores(found)
            groups[name] = [row["group"] for row in found[0]]
    made = [
        _row(name, members, results, scores.get(name), groups.get(name, []))
        for name, members in per_baseline.items()
    ]
    made.sort(key=lambda row: -row.means.get("dice", -1.0))
    return [_with_gap(row, made[0], scores, groups) for row in made]


def headline(row: Row) -> list[str]:
    """The cells of a row for people, in the order of HEADINGS."""
    if not row.tested:
        return [row.baseline, row.message, *[""] * (len(HEADINGS) - 2)]
    low, high = row.ci95["dice"]
    gap = row.behind
    return [
        row.baseline,
        f"{row.means['dice']:.4f} ({low:.4f} .. {high:.4f})" + _spread(row.dice),
        "best" if gap is None else f"{gap.difference:+.4f} ({gap.low:+.4f} .. {gap.high:+.4f})",
        *(f"{row.means[name]:.4f}" for name in ("jaccard", "precision", "recall")),
        f"{row.means['volume_similarity']:.4f}",
        *(f"{row.means[name]:.1f}" for name in metrics.SURFACE),
        f"{row.val_dice:.4f}",
        f"{(row.params or 0) / 1e6:.2f}",
        f"{(row.macs or 0) / 1e9:.2f}",
        f"{row.seconds:.0f}",
        f"{row.speed['batch']:.0f} / {row.speed['single']:.0f}",
    ]


HEADINGS = (
    "baseline",
    "test Dice (95%)",
    "less the best's (95%)",
    "Jaccard",
    "precision",
    "recall",
    "VS",
    "ASSD px",
    "HD px",
    "HD95 px",
    "val Dice",
    "params M",
    "GMACs",
    "train s",
    "images/s batch / single",
)


def table_markdown(found: Sequence[Row]) -> str:
    """A Markdown table with a line on what its columns mean."""
    lines = [_line(HEADINGS), _line(["---"] * len(HEADINGS))]
    lines += [_line(headline(row)) for row in found]
    return "\n".join([*lines, "", _LEGEND, ""])


def table_csv(found: Sequence[Row]) -> str:
    """Every number of every row, fit for machines."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(_flat(Row("")).keys()), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_flat(row) for row in found)
    return stream.getvalue()


_LEGEND = (
    "Means over the test images at their masks' own sizes; 95% intervals by drawing whole patients "
    "or lesions with replacement, paired where two systems are compared. The best is the one of "
    "the highest test Dice, so that its own number is a little too good. VS: volume similarity; "
    "ASSD, HD, HD95: surface distances in pixels of the mask's own size. Seconds are of training; "
    "images a second of the network alone."
)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _spread(dice: Sequence[float]) -> str:
    if len(dice) < 2:
        return ""
    return f", {len(dice)} seeds {min(dice):.4f} .. {max(dice):.4f}"


def _scores(found: Sequence[Sequence[Mapping[str, str]]]) -> dict[str, metrics.Floats]:
    """Per image, the mean over trainings; float64 [N] by name."""
    return {
        name: np.mean([[float(row[name]) for row in images] for images in found], axis=0)
        for name in SCORES
    }


def _row(
    name: str,
    members: Sequence[FrozenTrial],
    results: Mapping[int, Mapping[str, Any]],
    scores: dict[str, metrics.Floats] | None,
    groups: list[str],
) -> Row:
    done = [t for t in members if t.number in results]
    if scores is None:
        return Row(name, message=_why_not(members[-1]))
    attrs = [t.user_attrs for t in done]
    speeds = [results[t.number]["speed"] for t in done]
    return Row(
        name,
        tuple(t.number for t in done),
        params=attrs[0]["params"],
        macs=attrs[0]["macs"],
        seconds=float(np.mean([a["seconds"] for a in attrs])),
        peak_memory=max(a["peak_memory"] for a in attrs),
        speed={kind: float(np.mean([s[kind] for s in speeds])) for kind in speeds[0]},
        epoch=(attrs[0]["best_epoch"], attrs[0]["epochs"]),
        val_dice=float(np.mean([a["val"]["dice"] for a in attrs])),
        dice=tuple(results[t.number]["test"]["dice"] for t in done),
        means={key: float(values.mean()) for key, values in scores.items()},
        ci95=metrics.bootstrap(scores, groups),
    )


def _why_not(trial: FrozenTrial) -> str:
    state = trial_records.state_of(trial)
    if state == "complete":
        return "trained on another host"
    message: str = trial.user_attrs.get("message") or state
    return message


def _with_gap(
    row: Row,
    best: Row,
    scores: Mapping[str, Mapping[str, metrics.Floats]],
    groups: Mapping[str, list[str]],
) -> Row:
    if row is best or not row.tested:
        return row
    gap = metrics.paired(
        scores[row.baseline]["dice"], scores[best.baseline]["dice"], groups[best.baseline]
    )
    return Row(**{**row.__dict__, "behind": gap})


def _flat(row: Row) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "baseline": row.baseline,
        "source": baselines.baseline(row.baseline).source if row.baseline else "",
        "trainings": len(row.dice),
        "message": row.message,
    }
    for name in SCORES:
        low, high = row.ci95.get(name, (None, None))
        plain |= {name: row.means.get(name), f"{name}_low": low, f"{name}_high": high}
    gap = row.behind
    return plain | {
        "behind": gap and gap.difference,
        "behind_low": gap and gap.low,
        "behind_high": gap and gap.high,
        "dice_of_each": " ".join(f"{d:.6f}" for d in row.dice),
        "val_dice": row.val_dice,
        "best_epoch": row.epoch and row.epoch[0],
        "epochs": row.epoch and row.epoch[1],
        "params": row.params,
        "macs": row.macs,
        "train_seconds": row.seconds,
        "peak_memory": row.peak_memory,
        "images_per_second": row.speed.get("batch"),
        "images_per_second_single": row.speed.get("single"),
    }
