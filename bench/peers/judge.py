"""Score the masks of all peers alike, and put them into one table."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.peers.job import MASKS
from lesionseg.data.pair_io import read_true_mask
from lesionseg.data.pairs import Record
from lesionseg.metrics.compare import bootstrap_intervals, paired_difference
from lesionseg.metrics.overlap import Floats, count_pixels, score_images

PER_IMAGE, RESULT = "per_image.csv", "result.json"
SCORES = ("dice", "jaccard", "thresholded_jaccard")
#: The data set of the split, and the peer that the others are compared with.
TEST, OURS = "test", "f"


@dataclass(frozen=True)
class Scores:
    """Scores of one peer on one data set: names and groups of N images, float64 [N] by score."""

    names: tuple[str, ...]
    groups: tuple[str, ...]
    values: Mapping[str, Floats]

    def summary(self) -> dict[str, Any]:
        """Return mean and 95% interval of each score."""
        intervals = bootstrap_intervals(self.values, self.groups)
        means = {name: float(values.mean()) for name, values in self.values.items()}
        return {"images": len(self.names)} | {
            name: {"mean": mean, "interval": intervals[name]} for name, mean in means.items()
        }


def score_masks(folder: Path, judged: Mapping[str, Sequence[Record]]) -> None:
    """Score a peer's masks against the true ones, at their size, and write a row per image."""
    rows = []
    for dataset, records in judged.items():
        for record in records:
            truth = read_true_mask(record)
            with Image.open(folder / MASKS / dataset / f"{record.name}.png") as image:
                mask = np.array(image.convert("1"))
            counts = count_pixels(torch.from_numpy(mask[None]), torch.from_numpy(truth[None]))
            scores = score_images(counts.numpy())
            rows.append(
                [dataset, record.name, record.group, *(f"{scores[s][0]:.6f}" for s in SCORES)]
            )
    with (folder / PER_IMAGE).open("w", newline="") as file:
        csv.writer(file).writerows([["dataset", "name", "group", *SCORES], *rows])


def read_scores(folder: Path) -> dict[str, Scores]:
    """Read the scores of a peer by data set."""
    with (folder / PER_IMAGE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    scores = {}
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        own = [row for row in rows if row["dataset"] == dataset]
        values = {s: np.array([float(row[s]) for row in own]) for s in SCORES}
        names, groups = (tuple(row[key] for row in own) for key in ("name", "group"))
        scores[dataset] = Scores(names, groups, values)
    return scores


def merge(out: Path, peers: Mapping[str, str]) -> str:
    """Compare all peers that have results in a folder.

    Writes results.json and table.md, and returns the table.

    Args:
        out: the folder with a folder for each peer.
        peers: a description by letter.

    Raises:
        SystemExit: no peer has results, or two peers were judged on different images.
    """
    found = {p: read_scores(out / p) for p in peers if (out / p / PER_IMAGE).is_file()}
    if not found:
        raise SystemExit(f"{out}: no peer has results")
    first = next(iter(found))
    results = {}
    for letter, scores in found.items():
        for dataset in scores.keys() | found[first].keys():
            if _names(scores, dataset) != _names(found[first], dataset):
                raise SystemExit(
                    f"{out}: {first} and {letter} were judged on other images of {dataset}"
                )
        results[letter] = {
            "peer": peers[letter],
            **json.loads((out / letter / RESULT).read_text()),
            "scores": {dataset: each.summary() for dataset, each in scores.items()},
            "ours_less_it": _ours_less(found, letter),
        }
    (out / "results.json").write_text(json.dumps(results, indent=1))
    table = _table(results)
    (out / "table.md").write_text(table)
    return table


def _names(scores: Mapping[str, Scores], dataset: str) -> tuple[str, ...]:
    return scores[dataset].names if dataset in scores else ()


def _ours_less(found: Mapping[str, Mapping[str, Scores]], letter: str) -> dict[str, Any]:
    """Return the paired differences of Dice between OURS and a peer, by data set."""
    if OURS not in found or letter == OURS:
        return {}
    differences = {}
    for dataset, ours in found[OURS].items():
        its = found[letter][dataset].values["dice"]
        each = paired_difference(ours.values["dice"], its, ours.groups)
        differences[dataset] = {"mean": each.difference, "interval": (each.low, each.high)}
    return differences


def _table(results: Mapping[str, Any]) -> str:
    """Return a Markdown table of all peers, the best test Dice first."""
    datasets = next(iter(results.values()))["scores"]
    head = ["peer", "minutes", "processor minutes"]
    head += [f"Dice, {d} ({each['images']})" for d, each in datasets.items()]
    head += [f"({OURS}) less it, {TEST}", f"Jaccard, {TEST}", f"thresholded Jaccard, {TEST}"]
    rows = [head, ["---"] * len(head)]
    for letter, each in sorted(results.items(), key=_test_dice, reverse=True):
        scores = each["scores"]
        row = [f"({letter}) {each['peer']}", *(f"{t:.1f}" for t in each["minutes"].values())]
        row += [_format(scores[dataset]["dice"]) for dataset in datasets]
        difference = each["ours_less_it"].get(TEST)
        row += [_format(difference, sign="+") if difference else ""]
        row += [_format(scores[TEST][name]) for name in SCORES[1:]]
        rows.append(row)
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _test_dice(result: tuple[str, Any]) -> float:
    return float(result[1]["scores"][TEST]["dice"]["mean"])


def _format(each: Mapping[str, Any], sign: str = "") -> str:
    low, high = each["interval"]
    return f"{each['mean']:{sign}.4f} ({low:{sign}.4f} to {high:{sign}.4f})"
