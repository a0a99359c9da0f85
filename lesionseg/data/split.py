"""Who trains, who chooses, who is only tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from lesionseg.data.index import SPLITS, Record
from lesionseg.errors import InputError

#: Into how many sizes of lesion the groups are sorted before they are dealt, at most.
RUNS = 20


@dataclass(frozen=True)
class Split:
    """Names of the records of each part; no group lies in two of them."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def to_dict(self) -> dict[str, list[str]]:
        """Plain data; ``from_dict`` gives the same split back."""
        return {part: list(names) for part, names in asdict(self).items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Sequence[str]]) -> Split:
        """The split of ``to_dict``."""
        return cls(*(tuple(plain[part]) for part in SPLITS))


def has_official(records: Sequence[Record]) -> bool:
    """Whether the data set itself says what is for testing."""
    return any(r.split == "test" for r in records)


def make_split(
    records: Sequence[Record],
    areas: NDArray[np.float64],
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    official: bool = False,
    limits: Mapping[str, int | None] | None = None,
) -> Split:
    """Parts of the given shares, whole groups, alike in the distribution of lesion area.

    areas: [N], the lesion's share of each record's picture. shares: of train, val and test.
    official: take the data set's own parts; where it has no val, that is cut from its train.
    limits: the most records of a part; what is left over is used nowhere.
    The same arguments give the same split on every machine. InputError where a part would be
    left empty.
    """
    parts: dict[str, list[int]] = {part: [] for part in SPLITS}
    free = list(range(len(records)))
    if official:
        if not has_official(records):
            raise InputError("data.split: official: the data set's folders name no test images")
        parts = {part: [i for i in free if records[i].split == part] for part in SPLITS}
        free = [] if parts["val"] else parts["train"]
        shares = {"train": 1 - shares["val"], "val": shares["val"], "test": 0.0}
    if free:
        dealt = _deal(_groups(records, free), areas, shares, np.random.default_rng(seed))
        parts |= {part: dealt[part] for part in SPLITS if shares[part] > 0}
    for part, limit in (limits or {}).items():
        if limit is not None and limit < len(parts[part]):
            parts[part] = _thin(parts[part], areas, limit)
    _refuse_empty(parts, len(records))
    names = {part: tuple(sorted(records[i].name for i in parts[part])) for part in SPLITS}
    return Split(**names)


def positions(names: Sequence[str], order: Sequence[str]) -> NDArray[np.int64]:
    """Where each of ``names`` stands in ``order``."""
    where = {name: i for i, name in enumerate(order)}
    return np.array([where[name] for name in names], dtype=np.int64)


def _groups(records: Sequence[Record], members: Sequence[int]) -> list[list[int]]:
    by_group: dict[str, list[int]] = {}
    for i in members:
        by_group.setdefault(records[i].group, []).append(i)
    return list(by_group.values())


def _deal(
    groups: list[list[int]],
    areas: NDArray[np.float64],
    shares: Mapping[str, float],
    rng: np.random.Generator,
) -> dict[str, list[int]]:
    """Deals groups, sorted by lesion area, each to the part that lacks most.

    Neighbours in area are shuffled in at most RUNS runs, each long enough for every part to
    get one of it: any group may come to any part, and each part gets every size of lesion.
    """
    groups = sorted(groups, key=lambda g: (float(areas[g].mean()), g[0]))
    runs = int(len(groups) * min(share for share in shares.values() if share > 0))
    ranks = np.array_split(np.arange(len(groups)), min(max(runs, 1), RUNS))
    order = [groups[k] for run in ranks for k in rng.permutation(run)]
    dealt: dict[str, list[int]] = {part: [] for part in SPLITS}
    total = 0
    for group in order:
        total += len(group)
        lack = {p: shares[p] * total - len(dealt[p]) for p in SPLITS if shares[p] > 0}
        dealt[max(lack, key=lambda p: lack[p])] += group
    return dealt


def _thin(members: list[int], areas: NDArray[np.float64], limit: int) -> list[int]:
    """``limit`` members spread evenly over lesion area."""
    ranked = sorted(members, key=lambda i: (float(areas[i]), i))
    picked = np.linspace(0, len(ranked) - 1, limit).round().astype(int)
    return [ranked[k] for k in picked]


def _refuse_empty(parts: Mapping[str, list[int]], n: int) -> None:
    empty = [part for part in SPLITS if not parts[part]]
    if empty:
        sizes = ", ".join(f"{part} {len(parts[part])}" for part in SPLITS)
        raise InputError(
            f"data.split: {n} images are too few for it: {' and '.join(empty)} would be empty "
            f"({sizes}); add images or change data.split"
        )
