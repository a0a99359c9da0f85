"""Who trains, who chooses, who is only tested."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.data.index import SPLITS, Record
from lesionseg.errors import InputError

#: Into how many sizes of lesion the groups are sorted before they are dealt, at most.
RUNS = 20


@dataclass(frozen=True)
class Fold:
    """Names of the records that one training of a cross-validation learns from and is judged on."""

    train: tuple[str, ...]
    val: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """Names of the records of each part; no group lies in two of them.

    folds: of a cross-validation, else none; train and val are then those of the first one.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    folds: tuple[Fold, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data; ``from_dict`` gives the same split back.

        ``folds``: the validation names of each. Each is trained on all other names of train and
        val, unless ``fold_trains`` says on which.
        """
        plain: dict[str, Any] = {part: list(getattr(self, part)) for part in SPLITS}
        if self.folds:
            plain["folds"] = [list(fold.val) for fold in self.folds]
            if any(fold.train != self._rest(fold.val) for fold in self.folds):
                plain["fold_trains"] = [list(fold.train) for fold in self.folds]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Split:
        """The split of ``to_dict``."""
        split = cls(*(tuple(plain[part]) for part in SPLITS))
        vals = [tuple(names) for names in plain.get("folds", ())]
        trains = [tuple(names) for names in plain.get("fold_trains", ())]
        trains = trains or [split._rest(val) for val in vals]
        return replace(split, folds=tuple(map(Fold, trains, vals)))

    def _rest(self, val: Sequence[str]) -> tuple[str, ...]:
        taken = set(val)
        return tuple(sorted(n for n in (*self.train, *self.val) if n not in taken))


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
    kfold: int | None = None,
) -> Split:
    """Parts of the given shares, whole groups, alike in the distribution of lesion area.

    areas: [N], the lesion's share of each record's picture. shares: of train, val and test.
    official: take the data set's own parts; where it has no val, that is cut from its train. Of
        several data sets, those without parts of their own are dealt by the shares.
    limits: the most records of a part; what is left over is used nowhere.
    kfold: deal all that is not for testing into so many folds, each of them val of one training;
        limits count for each. Of the shares only that of test says anything then.
    Each data set of several is dealt by itself, so that every part has its share of each.
    The same arguments give the same split on every machine. InputError where a part would be
    left empty.
    """
    rng = np.random.default_rng(seed)
    shares = {part: shares[part] for part in SPLITS if part in shares}
    if kfold:
        shares = {"train": 1 - shares["test"], "val": 0.0, "test": shares["test"]}
    if official:
        if not has_official(records):
            raise InputError("data.split: official: the data set's folders name no test images")
        parts = _official(records, areas, shares, rng)
    else:
        decks = _decks(records, _groups(records, range(len(records))))
        parts = _deal(decks, areas, shares, rng)
    thin = _Thinning(areas, limits or {})
    test = thin.names(records, parts["test"], "test")
    if not kfold:
        train, val = (thin.names(records, parts[part], part) for part in ("train", "val"))
        _refuse_empty(Split(train, val, test), records)
        return Split(train, val, test)
    pool = sorted(parts["train"] + parts["val"])
    dealt = _fold(records, pool, areas, kfold, rng)
    folds = tuple(
        Fold(
            thin.names(records, [i for i in pool if i not in chosen], "train"),
            thin.names(records, sorted(chosen), "val"),
        )
        for chosen in map(set, dealt)
    )
    split = Split(folds[0].train, folds[0].val, test, folds)
    _refuse_empty(split, records)
    return split


def positions(names: Sequence[str], order: Sequence[str]) -> NDArray[np.int64]:
    """Where each of ``names`` stands in ``order``."""
    where = {name: i for i, name in enumerate(order)}
    return np.array([where[name] for name in names], dtype=np.int64)


def _official(
    records: Sequence[Record],
    areas: NDArray[np.float64],
    shares: Mapping[str, float],
    rng: np.random.Generator,
) -> dict[str, list[int]]:
    """Parts as each data set has them; the rest is dealt.

    A group that lies in several sets goes where one of them has it, whole; where they disagree,
    it is held out: for testing before validation, and for either before training.
    """
    own, cut, dealt = _own_parts(records)
    parts: dict[str, list[int]] = {part: [] for part in SPLITS}
    to_cut, to_deal = [], []
    for group in _groups(records, sorted({*own, *cut, *dealt})):
        told = {own[i] for i in group if i in own}
        if told:
            parts[max(told, key=SPLITS.index)] += group
        elif cut.intersection(group):
            to_cut.append(group)
        else:
            to_deal.append(group)
    from_train = {"train": 1 - shares["val"], "val": shares["val"], "test": 0.0}
    for groups, how in ((to_cut, from_train), (to_deal, shares)):
        for part, members in _deal(_decks(records, groups), areas, how, rng).items():
            parts[part] += members
    return parts


def _own_parts(records: Sequence[Record]) -> tuple[dict[int, str], set[int], set[int]]:
    """Whose part is settled, with that; who is of a train that val is cut from; who is dealt.

    Of a set that has parts, records without one are of its train.
    """
    own: dict[int, str] = {}
    cut: set[int] = set()
    dealt: set[int] = set()
    there: dict[tuple[str, str], set[str | None]] = {}
    for r in records:
        there.setdefault((r.home, r.set), set()).add(r.split)
    for i, r in enumerate(records):
        known = there[r.home, r.set]
        split = r.split or "train"
        if known == {None}:
            dealt.add(i)
        elif split == "train" and "val" not in known:
            cut.add(i)
        else:
            own[i] = split
    return own, cut, dealt


def _fold(
    records: Sequence[Record],
    pool: Sequence[int],
    areas: NDArray[np.float64],
    kfold: int,
    rng: np.random.Generator,
) -> list[list[int]]:
    groups = _groups(records, pool)
    if len(groups) < kfold:
        raise InputError(
            f"data.split.kfold: must be at most the number of groups that are not for testing "
            f"({len(groups)}), got {kfold}"
        )
    even = {str(fold): 1 / kfold for fold in range(kfold)}
    return list(_deal(_decks(records, groups), areas, even, rng).values())


def _groups(records: Sequence[Record], members: Iterable[int]) -> list[list[int]]:
    by_group: dict[str, list[int]] = {}
    for i in members:
        by_group.setdefault(records[i].group, []).append(i)
    return list(by_group.values())


def _decks(records: Sequence[Record], groups: Iterable[list[int]]) -> list[list[list[int]]]:
    """The groups by data set; one that lies in several goes with its first record."""
    by_set: dict[str, list[list[int]]] = {}
    for group in groups:
        by_set.setdefault(records[group[0]].set, []).append(group)
    return [by_set[name] for name in sorted(by_set)]


def _deal(
    decks: Sequence[list[list[int]]],
    areas: NDArray[np.float64],
    shares: Mapping[str, float],
    rng: np.random.Generator,
) -> dict[str, list[int]]:
    """Deals groups, deck by deck, each to the part that lacks most of what was dealt.

    A deck is sorted by lesion area. Neighbours in area are shuffled in at most RUNS runs, each
    long enough for every part to get one of it: any group may come to any part, and each part
    gets every size of lesion.
    """
    wanted = {part: share for part, share in shares.items() if share > 0}
    dealt: dict[str, list[int]] = {part: [] for part in shares}
    total = 0
    for deck in decks:
        groups = sorted(deck, key=lambda g: (float(areas[g].mean()), g[0]))
        runs = int(len(groups) * min(wanted.values()))
        ranks = np.array_split(np.arange(len(groups)), min(max(runs, 1), RUNS))
        # What a large group of an earlier deck has upset is made up for by one group of this one,
        # and not by half the deck, whose share each part should get too.
        most = max(map(len, groups), default=0)
        owed = {p: share * total - len(dealt[p]) for p, share in wanted.items()}
        lack = {p: max(-most, min(most, lacks)) for p, lacks in owed.items()}
        for group in (groups[k] for run in ranks for k in rng.permutation(run)):
            total += len(group)
            lack = {p: lack[p] + share * len(group) for p, share in wanted.items()}
            part = max(lack, key=lambda p: lack[p])
            dealt[part] += group
            lack[part] -= len(group)
    return dealt


@dataclass(frozen=True)
class _Thinning:
    """What is left of a part by its limit, spread evenly over lesion area."""

    areas: NDArray[np.float64]
    limits: Mapping[str, int | None]

    def names(self, records: Sequence[Record], members: list[int], part: str) -> tuple[str, ...]:
        limit = self.limits.get(part)
        if limit is not None and limit < len(members):
            ranked = sorted(members, key=lambda i: (float(self.areas[i]), i))
            picked = np.linspace(0, len(ranked) - 1, limit).round().astype(int)
            members = [ranked[k] for k in picked]
        return tuple(sorted(records[i].name for i in members))


def _refuse_empty(split: Split, records: Sequence[Record]) -> None:
    sizes = {part: len(getattr(split, part)) for part in SPLITS}
    empty = [part for part in SPLITS if not sizes[part]]
    if empty:
        told = ", ".join(f"{part} {size}" for part, size in sizes.items())
        groups = len({r.group for r in records})
        # Copies are one group, which is not to be seen from the pictures' names.
        whole = f"in {groups} groups that stay whole, " if groups < len(records) else ""
        raise InputError(
            f"data.split: {len(records)} images are too few for it: {' and '.join(empty)} would be "
            f"empty ({whole}{told}); add images or change data.split"
        )
