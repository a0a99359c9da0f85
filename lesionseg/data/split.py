"""Splits into training, validation and test images, and into cross-validation folds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.data.pairs import SPLITS, Record
from lesionseg.errors import InputError

#: Maximum number of strata of lesion area.
MAX_STRATA = 20

#: Marks official training images of a data set that has no validation images.
_TRAIN_OR_VAL = "train or val"

Parts = dict[str, list[int]]


@dataclass(frozen=True)
class Fold:
    """Names of the training and validation records of one fold."""

    train: tuple[str, ...]
    val: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """Names of the records of each part. No group lies in two parts.

    ``folds`` is empty without cross-validation; else train and val are those of the first fold.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    folds: tuple[Fold, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible data for ``from_dict``.

        ``folds`` holds the validation names of each fold. A fold is trained on all other names of
        train and val, unless ``fold_trains`` lists its training names.
        """
        data: dict[str, Any] = {part: list(getattr(self, part)) for part in SPLITS}
        if self.folds:
            data["folds"] = [list(fold.val) for fold in self.folds]
            if any(fold.train != self._complement(fold.val) for fold in self.folds):
                data["fold_trains"] = [list(fold.train) for fold in self.folds]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Split:
        """Create a split from the data of ``to_dict``."""
        split = cls(*(tuple(data[part]) for part in SPLITS))
        vals = [tuple(names) for names in data.get("folds", ())]
        trains = [tuple(names) for names in data.get("fold_trains", ())]
        trains = trains or [split._complement(val) for val in vals]
        return replace(split, folds=tuple(map(Fold, trains, vals)))

    def _complement(self, val: Sequence[str]) -> tuple[str, ...]:
        return tuple(sorted({*self.train, *self.val} - set(val)))


def has_official_split(records: Sequence[Record]) -> bool:
    """Whether the data set defines its test images."""
    return any(r.split == "test" for r in records)


def find_positions(names: Sequence[str], order: Sequence[str]) -> NDArray[np.int64]:
    """Return the index in ``order`` of each name, int64 [len(names)]."""
    where = {name: i for i, name in enumerate(order)}
    return np.array([where[name] for name in names], dtype=np.int64)


def make_split(
    records: Sequence[Record],
    areas: NDArray[np.float64],
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    official: bool = False,
    limits: Mapping[str, int | None] | None = None,
    kfold: int | None = None,
) -> Split:
    """Split records by group, stratified by data set and lesion area.

    The same arguments give the same split on every machine.

    Args:
        records: the pairs to split.
        areas: [N], the lesion's share of each image.
        shares: the shares of train, val and test.
        seed: seed of the random generator.
        official: use the official parts of the data sets. Validation images are taken from the
            training images of data sets that have none; data sets without official parts are
            split by the shares.
        limits: maximum number of records of a part; the others are not used.
        kfold: number of folds of the records that are not for testing. The limits apply to each
            fold, and of the shares only that of test is used.

    Raises:
        InputError: a part would be empty, there are fewer groups than folds, or ``official`` is
            set and no data set has official test images.
    """
    splitter = _Splitter(records, areas, np.random.default_rng(seed), limits or {})
    shares = {part: shares[part] for part in SPLITS if part in shares}
    if kfold:
        shares = {"train": 1 - shares["test"], "val": 0.0, "test": shares["test"]}
    if not official:
        parts = splitter.distribute(splitter.group(range(len(records))), shares)
    elif has_official_split(records):
        parts = splitter.official_parts(shares)
    else:
        raise InputError("data.split: official: the data set's folders name no test images")
    test = splitter.limited_names(parts["test"], "test")
    if kfold:
        folds = splitter.folds(sorted(parts["train"] + parts["val"]), kfold)
        split = Split(folds[0].train, folds[0].val, test, folds)
    else:
        train, val = (splitter.limited_names(parts[part], part) for part in ("train", "val"))
        split = Split(train, val, test)
    _check_not_empty(split, records)
    return split


@dataclass(frozen=True)
class _Splitter:
    """Assigns groups of record indices to parts."""

    records: Sequence[Record]
    areas: NDArray[np.float64]
    rng: np.random.Generator
    limits: Mapping[str, int | None]

    def group(self, members: Iterable[int]) -> list[list[int]]:
        by_group: dict[str, list[int]] = {}
        for i in members:
            by_group.setdefault(self.records[i].group, []).append(i)
        return list(by_group.values())

    def distribute(self, groups: Iterable[list[int]], shares: Mapping[str, float]) -> Parts:
        """Assign each group to the part that lacks most records of its share.

        Each data set is distributed by itself, so that every part has its share of each. A group
        of several data sets counts for that of its first record.
        """
        by_dataset: dict[str, list[list[int]]] = {}
        for group in groups:
            by_dataset.setdefault(self.records[group[0]].dataset, []).append(group)
        positive = {part: share for part, share in shares.items() if share > 0}
        parts: Parts = {part: [] for part in shares}
        total = 0
        for name in sorted(by_dataset):
            # A large group of an earlier data set is compensated by at most one group of this one:
            # each part should get its share of this data set too.
            bound = max(map(len, by_dataset[name]))
            deficits = {
                part: max(-bound, min(bound, share * total - len(parts[part])))
                for part, share in positive.items()
            }
            for group in self._stratified_order(by_dataset[name], min(positive.values())):
                total += len(group)
                for part, share in positive.items():
                    deficits[part] += share * len(group)
                part = max(deficits, key=lambda p: deficits[p])
                parts[part] += group
                deficits[part] -= len(group)
        return parts

    def _stratified_order(
        self, groups: Iterable[list[int]], min_share: float
    ) -> Iterable[list[int]]:
        """Yield the groups in strata of increasing lesion area, shuffled within each stratum.

        There are at most MAX_STRATA, each large enough for every part to get a group of it.
        """
        ordered = sorted(groups, key=lambda g: (float(self.areas[g].mean()), g[0]))
        count = min(max(int(len(ordered) * min_share), 1), MAX_STRATA)
        for stratum in np.array_split(np.arange(len(ordered)), count):
            for k in self.rng.permutation(stratum):
                yield ordered[k]

    def official_parts(self, shares: Mapping[str, float]) -> Parts:
        """Return the official parts, with the undecided groups distributed.

        A group whose records are in different official parts goes to test rather than to val, and
        to val rather than to train.
        """
        official = self._official_assignments()
        parts: Parts = {part: [] for part in SPLITS}
        train_or_val, undecided = [], []
        for group in self.group(range(len(self.records))):
            assigned = {official[i] for i in group}
            fixed = [part for part in SPLITS if part in assigned]
            if fixed:
                parts[fixed[-1]] += group
            elif _TRAIN_OR_VAL in assigned:
                train_or_val.append(group)
            else:
                undecided.append(group)
        without_test = {"train": 1 - shares["val"], "val": shares["val"], "test": 0.0}
        for groups, group_shares in ((train_or_val, without_test), (undecided, shares)):
            for part, members in self.distribute(groups, group_shares).items():
                parts[part] += members
        return parts

    def _official_assignments(self) -> list[str | None]:
        """Return the official part of each record, _TRAIN_OR_VAL, or None.

        Records without a part belong to train if others of their data set have parts.
        """
        splits_of: dict[tuple[str, str], set[str | None]] = {}
        for r in self.records:
            splits_of.setdefault((r.source, r.dataset), set()).add(r.split)
        assignments: list[str | None] = []
        for r in self.records:
            splits, part = splits_of[r.source, r.dataset], r.split or "train"
            if splits == {None}:
                assignments.append(None)
            elif part == "train" and "val" not in splits:
                assignments.append(_TRAIN_OR_VAL)
            else:
                assignments.append(part)
        return assignments

    def folds(self, members: Sequence[int], kfold: int) -> tuple[Fold, ...]:
        groups = self.group(members)
        if len(groups) < kfold:
            raise InputError(
                f"data.split.kfold: must be at most the number of groups that are not for testing "
                f"({len(groups)}), got {kfold}"
            )
        vals = self.distribute(groups, {str(fold): 1 / kfold for fold in range(kfold)})
        return tuple(
            Fold(
                self.limited_names(sorted(set(members) - set(val)), "train"),
                self.limited_names(sorted(val), "val"),
            )
            for val in vals.values()
        )

    def limited_names(self, members: Sequence[int], part: str) -> tuple[str, ...]:
        """Return names up to the part's limit, spread evenly over lesion area."""
        limit = self.limits.get(part)
        if limit is not None and limit < len(members):
            ordered = sorted(members, key=lambda i: (float(self.areas[i]), i))
            chosen = np.linspace(0, len(ordered) - 1, limit).round().astype(int)
            members = [ordered[k] for k in chosen]
        return tuple(sorted(self.records[i].name for i in members))


def _check_not_empty(split: Split, records: Sequence[Record]) -> None:
    sizes = {part: len(getattr(split, part)) for part in SPLITS}
    empty = [part for part in SPLITS if not sizes[part]]
    if empty:
        counts = ", ".join(f"{part} {size}" for part, size in sizes.items())
        groups = len({r.group for r in records})
        # Near-duplicates form one group, which the file names do not show.
        undivided = f"in {groups} undivided groups, " if groups < len(records) else ""
        raise InputError(
            f"data.split: {len(records)} images are too few: {' and '.join(empty)} would be "
            f"empty ({undivided}{counts}); add images or change data.split"
        )
