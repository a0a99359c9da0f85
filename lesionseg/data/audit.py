"""audit(): every pair of a data set read, and what is wrong with it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lesionseg.data.cache import check_pair
from lesionseg.data.index import DatasetIndex, Record
from lesionseg.data.pictures import read_image, read_mask
from lesionseg.errors import InputError, some


@dataclass(frozen=True)
class Pair:
    """What was seen of one pair. area: the lesion's share of the picture, in [0, 1]."""

    name: str
    shape: tuple[int, int] = (0, 0)
    area: float = 0.0
    on_border: bool = False
    thresholded: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class Audit:
    """A data set and what was seen of each of its pairs, in the order of its records."""

    index: DatasetIndex
    pairs: tuple[Pair, ...]

    @property
    def problems(self) -> list[str]:
        """What keeps pairs from being used, one line each."""
        return [p.problem for p in self.pairs if p.problem]

    def facts(self) -> dict[str, str]:
        """What there is, by what it is called."""
        whole = [p for p in self.pairs if not p.problem]
        splits = Counter(r.split for r in self.index.records if r.split)
        facts = {
            "layout": self.index.layout,
            "pairs": str(len(self.pairs)),
            "groups": str(len({r.group for r in self.index.records})),
            "official split": ", ".join(f"{k} {n}" for k, n in splits.items()) or "none",
            "not usable": str(len(self.problems)),
        }
        if whole:
            facts |= _seen(whole)
        return facts

    def refuse_broken(self) -> None:
        """InputError where a pair cannot be used."""
        if self.problems:
            raise InputError(
                f"data: {len(self.problems)} of {len(self.pairs)} pairs cannot be used: "
                f"{some(self.problems, limit=1)}"
            )


def audit(
    root: Path, layout: str = "auto", on_progress: Callable[[int, int], None] | None = None
) -> Audit:
    """Reads every pair at its own size. InputError where the layout itself is wrong."""
    index = DatasetIndex.read(root, layout)
    pairs = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for i, pair in enumerate(pool.map(_look, index.records)):
            pairs.append(pair)
            if on_progress:
                on_progress(i + 1, len(index.records))
    return Audit(index, tuple(pairs))


def _look(record: Record) -> Pair:
    try:
        shape = check_pair(record)
        read_image(record.image)
        mask, thresholded = read_mask(record.mask)
    except InputError as error:
        return Pair(record.name, problem=str(error))
    border = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
    return Pair(record.name, shape, float(mask.mean()), bool(border), thresholded)


def _seen(pairs: list[Pair]) -> dict[str, str]:
    areas = np.array([p.area for p in pairs])
    shapes = Counter(p.shape for p in pairs)
    (height, width), most = shapes.most_common(1)[0]
    low, middle, high = np.percentile(areas, [5, 50, 95])
    odd = [p.name for p in pairs if p.thresholded]
    return {
        "sizes": f"{len(shapes)}, most often {width}x{height} ({most})",
        "lesion area": f"median {middle:.1%}, 5 to 95%: {low:.1%} to {high:.1%}",
        "empty masks": str(int((areas == 0).sum())),
        "full masks": str(int((areas == 1).sum())),
        "lesions on the border": f"{np.mean([p.on_border for p in pairs]):.1%}",
        "masks not binary": f"{len(odd)}, cut at 128: {some(odd)}" if odd else "0",
    }
