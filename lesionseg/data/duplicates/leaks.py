"""check(): what audited data sets share that they must not, and what to do about it.

A leak is one picture in two official splits, or in two sets that are to be apart, be it the same
file, or one resized, recompressed, turned, mirrored or cropped; and a patient or lesion in two
official splits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionseg.data.duplicates.audit import Audit, Pair, audit, full_digests
from lesionseg.data.duplicates.matching import Look, Twin, clusters, find_twins
from lesionseg.data.index import SPLITS, Record
from lesionseg.data.pairs import looking_into, printable
from lesionseg.errors import InputError, some

#: Raised when a key of the JSON changes its meaning or goes away.
FORMAT = 1

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Member:
    """A picture of an audited set. set: what the set is called; "" for the only one."""

    set: str
    record: Record
    pair: Pair

    def __str__(self) -> str:
        where = " ".join(part for part in (self.set, self.record.split) if part)
        return printable(f"{self.record.name} ({where})" if where else self.record.name)


@dataclass(frozen=True)
class Copies:
    """Pictures that are copies of one another, directly or through others.

    likeness: of the two least alike that were compared, 1 for equal pixels; of many copies not
    every two are (``find_twins``). exact: whether all were found equal pixel by pixel.
    """

    members: tuple[Member, ...]
    likeness: float
    exact: bool

    @property
    def is_leak(self) -> bool:
        """Whether they lie in two official splits or two sets."""
        splits = {m.record.split for m in self.members} - {None}
        return len(splits) > 1 or self.is_in_two_sets

    @property
    def is_in_two_sets(self) -> bool:
        """Whether they lie in two sets."""
        return len({m.set for m in self.members}) > 1

    def __str__(self) -> str:
        how = "the same" if self.exact else f"alike by {self.likeness:.2f}"
        return f"{some(self.apart(), limit=4)}: {how}"

    def apart(self) -> list[Member]:
        """The members, one of each set and split first."""
        seen: dict[tuple[str, str | None], Member] = {}
        for m in self.members:
            seen.setdefault((m.set, m.record.split), m)
        first = list(seen.values())
        return first + [m for m in self.members if m not in first]


@dataclass(frozen=True)
class Torn:
    """A group that lies in several official splits of one set."""

    set: str
    group: str
    splits: tuple[str, ...]

    def __str__(self) -> str:
        where = " and ".join(self.splits)
        return printable(f"{self.group} in {where}" + (f" of {self.set}" if self.set else ""))


@dataclass(frozen=True)
class Check:
    """Audited sets by what they are called ("" for the only one), their copies, torn groups."""

    audits: Mapping[str, Audit]
    copies: tuple[Copies, ...]
    torn: tuple[Torn, ...]

    @property
    def leaks(self) -> list[Copies]:
        """The copies that lie in two splits or two sets."""
        return [c for c in self.copies if c.is_leak]

    def told(self) -> str | None:
        """All leaks in one line, the first few by name; None where there are none."""
        said = []
        across = [c for c in self.leaks if c.is_in_two_sets]
        within = [c for c in self.leaks if not c.is_in_two_sets]
        for found, where in ((across, "sets"), (within, "official splits")):
            if found:
                many = "pictures lie" if len(found) > 1 else "picture lies"
                said.append(f"{len(found)} {many} in two {where}: {_listed(found)}")
        if self.torn:
            many = "groups lie" if len(self.torn) > 1 else "group lies"
            said.append(f"{len(self.torn)} {many} in two official splits: {_listed(self.torn)}")
        return "; ".join(said) or None

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON; its keys are told in docs/data.md."""
        return {
            "format": FORMAT,
            "leaks": len(self.leaks) + len(self.torn),
            "sets": [_set(name, each) for name, each in self.audits.items()],
            "copies": [
                {
                    "exact": c.exact,
                    "likeness": c.likeness,
                    "leak": c.is_leak,
                    "pictures": [
                        {
                            "set": m.set,
                            "name": m.record.name,
                            "split": m.record.split,
                            "group": m.record.group,
                        }
                        for m in c.members
                    ],
                }
                for c in self.copies
            ],
            "torn_groups": [
                {"set": t.set, "group": t.group, "splits": list(t.splits)} for t in self.torn
            ],
        }


def audit_sets(
    roots: Sequence[Path],
    layout: str = "auto",
    on_progress: Progress = lambda done, total: None,
) -> Check:
    """Reads each set and looks for copies within and across them.

    layout: of the first set; those of the others are found out. InputError where a set is not
    there or is given twice, or its layout is wrong.
    """
    for root in roots:
        with looking_into(root):
            there = root.exists()
        if not there:
            raise InputError(
                f"data check: no such folder: {root}; DIR and --against take the folder of a data "
                f"set or a CSV manifest"
            )
    places = [root.resolve() for root in roots]
    twice = [str(p) for p, n in Counter(places).items() if n > 1]
    if twice:
        raise InputError(f"data check: {twice[0]} is given twice; --against takes another data set")
    audits = {}
    for name, root in zip(_names(roots), roots, strict=True):
        kind = layout if root is roots[0] else "auto"
        audits[name] = audit(root, kind, on_progress)
    return check(audits, on_progress)


def check(audits: Mapping[str, Audit], on_progress: Progress = lambda done, total: None) -> Check:
    """What the sets share that they must not. Pairs that cannot be used are left out."""
    members = [
        Member(name, record, pair)
        for name, each in audits.items()
        for record, pair in zip(each.index.records, each.pairs, strict=True)
        if pair.look is not None
    ]
    copies = _copies(members, find_twins(_looks(members), on_progress))
    copies.sort(key=lambda c: (not c.is_leak, not c.exact, -c.likeness))
    torn = [t for name, each in audits.items() for t in _torn(name, each.index.records)]
    return Check(audits, tuple(copies), tuple(torn))


def _looks(members: Sequence[Member]) -> list[Look]:
    """What the members are known by, of equal digests only where all pixels are equal.

    Pictures that are equal when they are small need not be so in full: these few are read again.
    """
    looks = [m.pair.look for m in members if m.pair.look is not None]
    counted = Counter(look.digest for look in looks)
    again = [k for k, look in enumerate(looks) if counted[look.digest] > 1 and not look.is_flat]
    digests = full_digests([members[k].record for k in again])
    for k, digest in zip(again, digests, strict=True):
        looks[k] = looks[k]._replace(digest=digest)
    return looks


def _copies(members: Sequence[Member], twins: Sequence[Twin]) -> list[Copies]:
    found = clusters(len(members), twins)
    home = {i: k for k, each in enumerate(found) for i in each}
    links: list[list[Twin]] = [[] for _ in found]
    for twin in twins:
        links[home[twin.first]].append(twin)
    return [
        Copies(
            tuple(members[i] for i in each),
            min(t.likeness for t in linked),
            all(t.exact for t in linked),
        )
        for each, linked in zip(found, links, strict=True)
    ]


def _torn(name: str, records: Sequence[Record]) -> list[Torn]:
    homes: dict[str, set[str]] = {}
    names: dict[str, set[str]] = {}
    for r in records:
        if r.split:
            homes.setdefault(r.group, set()).add(r.split)
            names.setdefault(r.group, set()).add(r.name)
    # Pictures without a group are called by their names, which says nothing of what they show.
    return [
        Torn(name, group, tuple(sorted(splits, key=SPLITS.index)))
        for group, splits in sorted(homes.items())
        if len(splits) > 1 and names[group] != {group}
    ]


def _names(roots: Sequence[Path]) -> list[str]:
    """What sets are called: the names of their folders, whole paths where these are one."""
    if len(roots) == 1:
        return [""]
    short = [root.resolve().name for root in roots]
    alone = {name for name, n in Counter(short).items() if n == 1}
    names = [s if s in alone else str(root) for s, root in zip(short, roots, strict=True)]
    return list(map(printable, names))


def _listed(found: Sequence[object]) -> str:
    rest = len(found) - 3
    return "; ".join(map(str, found[:3])) + (f"; and {rest} more" if rest > 0 else "")


def _set(name: str, each: Audit) -> dict[str, Any]:
    splits = Counter(r.split for r in each.index.records if r.split)
    sizes = Counter(p.shape for p in each.whole)
    odd = each.odd()
    return {
        "set": name,
        "root": str(each.index.root),
        "layout": each.index.layout,
        "pairs": len(each.pairs),
        "groups": len({r.group for r in each.index.records}),
        "official_splits": dict(splits),
        "sizes": [{"height": h, "width": w, "images": n} for (h, w), n in sizes.most_common()],
        "masks_without_image": list(each.index.masks_without_image),
        "broken": [{"name": p.name, "problem": p.problem} for p in each.pairs if p.problem],
        "empty": [p.name for p in odd["empty"]],
        "full": [p.name for p in odd["full"]],
        "not_binary": [p.name for p in odd["not binary"]],
        "on_border": [p.name for p in each.whole if p.on_border],
        "components": {p.name: p.components for p in odd["several components"]},
        "areas": {p.name: p.area for p in each.whole},
    }
