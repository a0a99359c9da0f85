"""How long a search takes to find a good configuration: our default beside what else one would run.

    python -m bench.search [CURVES] [--repeats 300] [--workers 1] [--top 3] [--to FILE] [--variants]
                           [--noise 0.009] [--interpolate] [--only AXIS=WORD ...]
                           [--without AXIS=WORD ...]

Replays whole searches on learning curves that ``bench.curves`` recorded of real trainings: a trial
costs the seconds that its epochs cost then, and reports the Dice that they gave. A search is over
when a trial reports the target: what only the best ``--top`` configurations of the grid ever reach.
Every arm draws from one space (model, loss, augmentation, learning rate on a log scale, which is
given the nearest recorded curve), with the same seeds, and runs the samplers and pruners that a
study runs. ``--variants`` compares other defaults too. ``--interpolate`` gives a rate between two
recorded ones what lies between their curves, so that rates that are near each other are not the
same training. ``--only model=unet`` and ``--without model=dynunet`` search parts of the grid. The
time that a sampler takes itself is left out: see sampling-cpu.md.

A training that is done again with another seed, or at a rate that differs a little, gives another
Dice. A replay without that luck would give a search the very same curve again and again: if the one
it likes best lies a hair below the target, it never ends, as no real search would. So each trial's
curve is shifted by a draw of standard deviation ``--noise``: what seeds alone were worth when the
best configurations were trained again (0.006 in one grid, 0.009 in the other: search-cpu.md).
"""

from __future__ import annotations

import argparse
import binascii
import heapq
import itertools
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import Trial, TrialState

from search.spec.study_spec import PrunerSpec, SamplerSpec
from search.study.pruners import PRUNERS, Halving
from search.study.samplers import SAMPLERS

CURVES = Path(__file__).parent / "results" / "curves-cpu.jsonl"
NOISE = 0.009  # of validation Dice
DRAWS = 2000  # of the bootstrap
LONGEST = 400  # trials; a search that has not found it by then is given the time that it took


@dataclass(frozen=True)
class Curve:
    """One training: the validation Dice and the seconds of each epoch; None where it diverged."""

    dice: tuple[float | None, ...]
    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        """The best epoch's Dice."""
        return max(dice or 0.0 for dice in self.dice)

    def shifted(self, by: float) -> Curve:
        """The curve with every Dice so much higher, within [0, 1]."""
        dice = (None if d is None else min(max(d + by, 0.0), 1.0) for d in self.dice)
        return replace(self, dice=tuple(dice))

    def towards(self, other: Curve, share: float) -> Curve:
        """The curve that lies this share of the way to another, of as many epochs."""
        between = [
            tuple((1 - share) * (x or 0.0) + share * (y or 0.0) for x, y in zip(a, b, strict=True))
            for a, b in ((self.dice, other.dice), (self.seconds, other.seconds))
        ]
        return Curve(*between)


@dataclass(frozen=True)
class Table:
    """All that was recorded: a curve for each point of a grid."""

    curves: Mapping[tuple[str, ...], Curve]
    rates: tuple[float, ...]
    choices: Mapping[str, tuple[str, ...]]
    interpolated: bool = False
    noise: float = 0.0

    @classmethod
    def read(cls, path: Path) -> Table:
        """ValueError where a point of the grid is lacking."""
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        points = [line["point"] for line in lines]
        rates = tuple(sorted({p["lr"] for p in points}))
        keys = [key for key in points[0] if key != "lr"]
        choices = {key: tuple(sorted({_name(p[key]) for p in points})) for key in keys}
        curves = {
            (*(_name(p[key]) for key in keys), str(p["lr"])): Curve(
                tuple(line["dice"]), tuple(line["seconds"])
            )
            for p, line in zip(points, lines, strict=True)
        }
        whole = len(rates) * math.prod(len(values) for values in choices.values())
        if len(curves) != whole:
            raise ValueError(f"{path}: {len(curves)} curves of a grid of {whole}")
        return cls(curves, rates, choices)

    @property
    def epochs(self) -> int:
        """Of the longest training."""
        return max(len(c.dice) for c in self.curves.values())

    def train(self, trial: Trial, seed: int) -> Curve:
        """What a trial gets, with the luck that is its own in the search of this seed."""
        luck = np.random.default_rng([seed, trial.number]).normal(0.0, self.noise)
        return self.draw(trial).shifted(float(luck)) if self.noise else self.draw(trial)

    def draw(self, trial: Trial) -> Curve:
        """What a trial's configuration gave when it was recorded, or what lies between two."""
        chosen = [
            str(trial.suggest_categorical(name, values)) for name, values in self.choices.items()
        ]
        wide = (self.rates[1] / self.rates[0]) ** 0.5  # each recorded rate has an equal share
        lr = trial.suggest_float("lr", self.rates[0] / wide, self.rates[-1] * wide, log=True)
        low = max((r for r in self.rates if r <= lr), default=self.rates[0])
        high = min((r for r in self.rates if r >= lr), default=self.rates[-1])
        share = math.log(lr / low) / math.log(high / low) if low < lr < high else float(lr >= high)
        a, b = (self.curves[(*chosen, str(rate))] for rate in (low, high))
        # What diverges does so from some rate on, and not in part.
        if self.interpolated and None not in (*a.dice, *b.dice):
            return a.towards(b, share)
        return b if share > 0.5 else a

    def part(self, only: Mapping[str, str], without: Mapping[str, str]) -> Table:
        """The table with the values alone, or but for those, in which a word occurs, by axis."""
        choices = {
            axis: tuple(
                v
                for v in values
                if only.get(axis, "") in v and not (axis in without and without[axis] in v)
            )
            for axis, values in self.choices.items()
        }
        kept = set(itertools.product(*choices.values()))
        curves = {key: curve for key, curve in self.curves.items() if key[:-1] in kept}
        return replace(self, curves=curves, choices=choices)

    def target(self, top: int) -> float:
        """The Dice that ``top`` configurations reach."""
        return sorted((curve.best for curve in self.curves.values()), reverse=True)[top - 1]


def _name(component: Any) -> str:
    if isinstance(component, str):
        return component
    [(name, params)] = component.items()
    return " ".join([name, *(f"{k}={v}" for k, v in params.items())])


@dataclass(frozen=True)
class Arm:
    """A way to search: how to make its sampler, by seed, and its pruner, by number of epochs."""

    sampler: Callable[[int], BaseSampler]
    pruner: Callable[[int], BasePruner]


def ours(sampler: SamplerSpec | None = None, pruner: PrunerSpec | None = None) -> Arm:
    """What a study file that says nothing of it runs, or with another part."""
    s, p = sampler or SamplerSpec(), pruner or PrunerSpec()
    return Arm(
        lambda seed: SAMPLERS[s.name](seed, s.startup),
        lambda epochs: PRUNERS[p.name](epochs, p.min_epochs, p.startup),
    )


OURS, RANDOM, BARE = "lesionsearch's default", "random, no pruning", "Optuna's defaults"

#: What is compared always.
ARMS: Mapping[str, Arm] = {
    RANDOM: Arm(lambda seed: RandomSampler(seed), lambda epochs: NopPruner()),
    BARE: Arm(
        lambda seed: optuna.samplers.TPESampler(seed=seed),
        lambda epochs: optuna.pruners.MedianPruner(),
    ),
    OURS: ours(),
}


class _Patience(Halving):
    """With another share of patient trials: one in so many, by lot; none of 0."""

    def __init__(self, min_epochs: int, epochs: int, one_in: int) -> None:
        super().__init__(min_epochs, epochs)
        self.one_in = one_in

    def is_deferred(self, study_name: str, number: int) -> bool:  # type: ignore[override]
        lot = binascii.crc32(f"{study_name}_{number}".encode())
        return bool(self.one_in) and lot % self.one_in == 0


def patient(one_in: int) -> Arm:
    """Our default with another share of patient trials."""
    return replace(ours(), pruner=lambda epochs: _Patience(1, epochs, one_in))


#: What the default could be instead.
VARIANTS: Mapping[str, Arm] = {
    "default, none patient": patient(0),
    "default, a third patient": patient(3),
    "default, begins after 3": ours(SamplerSpec(startup=3)),
    "default, begins after 10": ours(SamplerSpec(startup=10)),
    "default, from epoch 2": ours(pruner=PrunerSpec(min_epochs=2)),
    "tpe, no pruning": ours(pruner=PrunerSpec(name="none")),
    "tpe, median": ours(pruner=PrunerSpec(name="median")),
    "tpe, hyperband": ours(pruner=PrunerSpec(name="hyperband")),
    "random, hyperband": ours(SamplerSpec(name="random"), PrunerSpec(name="hyperband")),
    "random, median": ours(SamplerSpec(name="random"), PrunerSpec(name="median")),
}


@dataclass(frozen=True)
class Found:
    """A search: seconds by the clock until the target, and what was trained for it."""

    seconds: float
    trials: int
    epochs: int
    reached: bool


def replay(table: Table, arm: Arm, target: float, seed: int, workers: int = 1) -> Found:
    """One search by ``workers`` that each go on as soon as a trial of theirs has ended.

    Each has a sampler of its own seed, as in a study, and sees what the others have told.
    """
    study = optuna.create_study(
        direction="maximize",
        storage=optuna.storages.InMemoryStorage(),
        study_name=f"replay-{seed}",
        pruner=arm.pruner(table.epochs),
    )
    samplers = [arm.sampler(seed + 7_368_787 * i) for i in range(workers)]
    at_work: list[tuple[Trial, Curve, int] | None] = [None] * workers
    queue = [(0.0, worker) for worker in range(workers)]
    trials = epochs = 0
    while True:
        now, worker = heapq.heappop(queue)
        task = at_work[worker]
        if task is not None:  # the epoch that it was at has ended
            trial, curve, epoch = task
            epochs += 1
            dice = curve.dice[epoch - 1]
            if dice is not None and dice >= target:
                return Found(now, trials, epochs, True)
            task = (trial, curve, epoch + 1) if _goes_on(study, trial, curve, epoch) else None
        if task is None:
            if trials == LONGEST:
                return Found(now, trials, epochs, False)
            study.sampler = samplers[worker]
            trial = study.ask()
            trials += 1
            task = trial, table.train(trial, seed), 1
        at_work[worker] = task
        heapq.heappush(queue, (now + task[1].seconds[task[2] - 1], worker))


def _goes_on(study: optuna.Study, trial: Trial, curve: Curve, epoch: int) -> bool:
    """Whether a trial has another epoch to train; if not, how it ended is told."""
    dice = curve.dice[epoch - 1]
    if dice is None:
        study.tell(trial, state=TrialState.FAIL)
        return False
    trial.report(dice, epoch)
    if epoch == len(curve.dice):
        study.tell(trial, curve.best)
        return False
    if trial.should_prune():
        study.tell(trial, state=TrialState.PRUNED)
        return False
    return True


def search(
    table: Table, arms: Mapping[str, Arm], target: float, repeats: int, workers: int
) -> dict[str, list[Found]]:
    """All arms, each over the same seeds."""
    return {
        name: [replay(table, arm, target, seed, workers) for seed in range(repeats)]
        for name, arm in arms.items()
    }


def told(results: Mapping[str, Sequence[Found]]) -> list[str]:
    """A table: seconds, trials and epochs, and the ratio to the baselines, of medians.

    In brackets the 95% interval of a ratio, by bootstrap over searches.
    """
    seconds = {k: np.array([f.seconds for f in v]) for k, v in results.items()}
    lines = [
        "| search | median seconds to the target | quartiles | mean | trials | epochs | not found "
        "| / random | / Optuna |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        low, high = np.percentile(seconds[name], [25, 75])
        lines.append(
            f"| {name} | {np.median(seconds[name]):.0f} | {low:.0f} .. {high:.0f} "
            f"| {seconds[name].mean():.0f} "
            f"| {statistics.median(f.trials for f in found):.0f} "
            f"| {statistics.median(f.epochs for f in found):.0f} "
            f"| {sum(not f.reached for f in found)} of {len(found)} "
            f"| {_ratio(seconds[name], seconds[RANDOM])} | {_ratio(seconds[name], seconds[BARE])} |"
        )
    return lines


def _ratio(seconds: NDArray[np.float64], baseline: NDArray[np.float64]) -> str:
    """Of medians, with its interval where it is no comparison with itself."""
    ratio = np.median(seconds) / np.median(baseline)
    if seconds is baseline:
        return f"{ratio:.2f}"
    rng = np.random.default_rng(0)
    draws = [
        np.median(rng.choice(each, (DRAWS, len(each))), axis=1) for each in (seconds, baseline)
    ]
    low, high = np.percentile(draws[0] / draws[1], [2.5, 97.5])
    return f"{ratio:.2f} ({low:.2f} .. {high:.2f})"


def main(argv: Sequence[str] | None = None) -> None:
    """Replays, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("curves", type=Path, nargs="?", default=CURVES)
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    parser.add_argument("--top", type=int, nargs="+", default=[3])
    parser.add_argument("--variants", action="store_true")
    parser.add_argument("--noise", type=float, default=NOISE)
    parser.add_argument("--interpolate", action="store_true")
    parser.add_argument("--only", nargs="*", default=[], metavar="AXIS=WORD")
    parser.add_argument("--without", nargs="*", default=[], metavar="AXIS=WORD")
    parser.add_argument("--to", type=Path)
    asked = parser.parse_args(argv)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    only, without = (
        dict(pair.split("=", 1) for pair in given) for given in (asked.only, asked.without)
    )
    table = Table.read(asked.curves).part(only, without)
    table = replace(table, interpolated=asked.interpolate, noise=asked.noise)
    arms = {**ARMS, **(VARIANTS if asked.variants else {})}
    lines = []
    for workers in asked.workers:
        for top in asked.top:
            target = table.target(top)
            lines += [
                f"Target: validation Dice {target:.4f}, which {top} of {len(table.curves)} "
                f"configurations reach; {workers} worker{'s' * (workers > 1)}; {asked.repeats} "
                "searches each.",
                "",
                *told(search(table, arms, target, asked.repeats, workers)),
                "",
            ]
            print("\n".join(lines[-len(arms) - 5 :]), flush=True)
    if asked.to:
        asked.to.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
