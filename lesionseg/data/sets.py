"""Several data sets as one: whose names clash, which groups are one, what lies in two of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lesionseg.data.pairs import Record
from lesionseg.errors import InputError, some

#: Where a data set is; of several together, where each of them is.
Roots = Path | tuple[Path, ...]

#: A group of one set: the set's label and the group's own name there.
_Node = tuple[str, str]


def each_root(roots: Roots) -> tuple[Path, ...]:
    """The sets, one by one."""
    return (roots,) if isinstance(roots, Path) else tuple(roots)


def some_roots(paths: Sequence[Path]) -> Roots:
    """What an option gave that may be repeated."""
    return paths[0] if len(paths) == 1 else tuple(paths)


def as_roots(paths: Sequence[Path] | None) -> Roots | None:
    """The same; None where it was not given."""
    return some_roots(paths) if paths else None


def placed(roots: Roots, by: Callable[[Path], Path] = Path.resolve) -> Roots:
    """The same places, also for a process that works in another folder."""
    found = tuple(map(by, each_root(roots)))
    return found[0] if isinstance(roots, Path) else found


def labels(roots: Sequence[Path]) -> list[str]:
    """What each set is called: its folder, with as many folders above as tell it from the others.

    InputError where a folder is given twice.
    """
    paths = [root.resolve() for root in roots]
    double = next((p for p, n in Counter(paths).items() if n > 1), None)
    if double is not None:
        raise InputError(f"--data: {double} is given twice; give each data set once")
    found = []
    for path in paths:
        others = [other for other in paths if other != path]
        depth = 1
        while any(other.parts[-depth:] == path.parts[-depth:] for other in others):
            depth += 1
        found.append("-".join(part for part in path.parts[-depth:] if part != path.anchor))
    return found


def merge(sets: dict[str, Sequence[Record]]) -> list[Record]:
    """The records of several sets, by label, as those of one set.

    A name that stands in two sets gets the set's label before it, in each of them. Groups of two
    sets are two groups, be they called the same, unless a name says that they show the same: a
    picture called ISIC_0024306 in two sets is one picture, so all that shows its lesion in either
    set is one group. Neither depends on the order of the sets.
    InputError where one file is part of two sets.
    """
    _refuse_overlap(sets)
    counted = Counter(r.name.lower() for records in sets.values() for r in records)
    groups = _groups(sets)
    return [
        replace(
            r,
            name=f"{label}-{r.name}" if counted[r.name.lower()] > 1 else r.name,
            group=groups[label, r.group],
            set=r.set or label,
            home=label,
        )
        for label, records in sets.items()
        for r in records
    ]


def _refuse_overlap(sets: dict[str, Sequence[Record]]) -> None:
    seen: dict[Path, str] = {}
    for label, records in sets.items():
        mine = {r.image.resolve() for r in records}
        shared = sorted(mine & seen.keys())
        if shared:
            raise InputError(
                f"--data: {len(shared)} pictures of {label} are also part of {seen[shared[0]]}: "
                f"{some(p.name for p in shared)}; give folders that do not overlap"
            )
        seen |= dict.fromkeys(mine, label)


def _groups(sets: dict[str, Sequence[Record]]) -> dict[_Node, str]:
    """What each group of each set is called in all of them together."""
    names: dict[frozenset[_Node], list[str]] = {}
    wholes = list(_joined(sets))
    plain = Counter(min(group for _, group in whole) for whole in wholes)
    for whole in wholes:
        label, _ = min(whole)
        name = min(group for _, group in whole)
        names.setdefault(whole, []).append(name if plain[name] == 1 else f"{label}-{name}")
    return {node: called for whole, (called, *_) in names.items() for node in whole}


def _joined(sets: dict[str, Sequence[Record]]) -> Iterator[frozenset[_Node]]:
    """Groups that share a picture's name, directly or through others, each lot once."""
    home: dict[_Node, set[_Node]] = {}
    first: dict[str, _Node] = {}
    for label, records in sets.items():
        for r in records:
            node = (label, r.group)
            mine = home.setdefault(node, {node})
            theirs = home[first.setdefault(r.name.lower(), node)]
            if mine is not theirs:
                mine |= theirs
                for each in theirs:
                    home[each] = mine
    seen: set[_Node] = set()
    for node, whole in home.items():
        if node not in seen:
            seen |= whole
            yield frozenset(whole)
