"""Draw the faults of a study and their times from a seed."""

from __future__ import annotations

import random
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace

from bench.faults.kinds import KINDS, Kind, Storage


@dataclass(frozen=True)
class Fault:
    """One fault.

    at_s: seconds after the first epoch. seconds: how long it lasts. seed: of the choice of its
    target, so that it does not depend on other faults.
    """

    at_s: float
    kind: str
    seconds: float
    seed: int

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.kind} after {self.at_s:.1f} s{lasting}"


@dataclass(frozen=True)
class Shape:
    """The size of a study and of its fault schedule.

    faults: the smallest and the largest number of faults. window_s: they begin within these
    seconds. most_losses: the largest number of faults that can cost each trial an attempt; a trial
    fails after the fourth. most_crashes: the largest number of those that end trainings.
    """

    workers: int = 3
    trials: int = 12
    epochs: int = 5
    grace_s: float = 2.5
    epoch_s: str = "0.05 0.25"
    faults: tuple[int, int] = (3, 7)
    window_s: float = 4.0
    most_losses: int = 3
    most_crashes: int = 2


#: A long study with many faults.
LONG = Shape(
    workers=8,
    trials=200,
    epochs=6,
    grace_s=5.0,
    epoch_s="0.005 0.3",
    faults=(60, 60),
    window_s=45,
    most_losses=40,
    most_crashes=20,
)


@dataclass(frozen=True)
class Schedule:
    """The faults of one run, by time."""

    seed: int
    storage: Storage
    shape: Shape
    faults: tuple[Fault, ...]

    def without(self, kinds: Container[str]) -> Schedule:
        """Return the schedule without the faults of some kinds."""
        return replace(self, faults=tuple(f for f in self.faults if f.kind not in kinds))


def draw(seed: int, shape: Shape = Shape(), storage: Storage | None = None) -> Schedule:
    """Return the schedule of a seed; even seeds are on SQLite unless a storage is given."""
    storage = storage or (Storage.POSTGRESQL if seed % 2 else Storage.SQLITE)
    rng = random.Random(f"{seed} {storage}")
    names = [name for name, kind in KINDS.items() if storage in kind.storages]
    chosen: list[str] = []
    for _ in range(rng.randint(*shape.faults)):
        may_be_added = [name for name in names if _may_be_added(KINDS[name], chosen, shape)]
        chosen.append(rng.choice(may_be_added))
    faults = [
        Fault(
            round(rng.uniform(0, shape.window_s), 2),
            name,
            round(rng.uniform(*KINDS[name].seconds(shape.grace_s)), 2),
            rng.randrange(2**32),
        )
        for name in chosen
    ]
    return Schedule(seed, storage, shape, tuple(sorted(faults, key=lambda fault: fault.at_s)))


def _may_be_added(kind: Kind, chosen: Iterable[str], shape: Shape) -> bool:
    rows = [KINDS[name] for name in chosen]
    loses, crashes = sum(row.loses for row in rows), sum(row.crashes for row in rows)
    is_full = kind.loses and loses >= shape.most_losses
    return not (is_full or (kind.crashes and crashes >= shape.most_crashes))
