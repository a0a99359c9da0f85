"""What the bookkeeping of one trial costs as a study grows: ours beside Optuna's own.

Fills SQLite files with finished trials of a study file's space, each with up to 40 epochs, and
times whole trials on them: sample (ask and suggest), 40 x (report and should_prune), tell. The
model that trials would train is left out. ``--quality`` instead compares what is found: TPE with
a low bound beside Optuna's own, on a made-up objective over the same space.

Seconds are those of the process on its core; the clock's stand beside them, with what the disk
and other programs added.

    python -m bench.sampling [--stored 10 1000 5000] [--trials 5] [--quality]
"""

from __future__ import annotations

import argparse
import binascii
import math
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, HyperbandPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.orm import Session

from search.spec.loading import load_spec
from search.spec.study_spec import StudySpec
from search.storage.database import open_storage, sqlite_url
from search.storage.optuna_internals import study_id
from search.storage.queries import insert_trials
from search.study.pruners import PRUNERS
from search.study.samplers import SAMPLERS, BoundedTPE
from search.study.suggest import suggest

STUDIES = Path(__file__).resolve().parent.parent / "studies"
EPOCHS = 40
TRIAL_SECONDS = 60.0
NAME = "bench"
FILES = ("everything", "isic2018")
SEEDS, FOUND_TRIALS, LOW_BOUND, NOISE = 10, 300, 100, 0.01


def tpe_of_optuna(seed: int, startup: int) -> BaseSampler:
    """As in SAMPLERS before its set of trials was bounded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=True)


def hyperband_of_optuna(epochs: int, min_epochs: int, startup: int) -> BasePruner:
    """Optuna's own, of the same rungs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return HyperbandPruner(min_resource=min_epochs, max_resource=epochs, reduction_factor=3)


def made_up_dice(trial: Trial) -> float:
    """Smooth in every number, another for every choice; in [0.4, 0.9], without noise."""
    away = 0.0
    for name, space in trial.distributions.items():
        value = trial.params[name]
        if isinstance(space, CategoricalDistribution):
            away += 0.3 * hash_of(f"{name}={value}") ** 2
        elif isinstance(space, FloatDistribution | IntDistribution):
            scale = math.log if space.log else float
            place = (scale(value) - scale(space.low)) / (scale(space.high) - scale(space.low))
            away += (place - hash_of(name)) ** 2
    return 0.4 + 0.5 * math.exp(-away)


def hash_of(text: str) -> float:
    """A number in [0, 1] that is the same on every machine."""
    return binascii.crc32(text.encode()) / 2**32


def finished_trials(spec: StudySpec, n: int) -> list[FrozenTrial]:
    """n trials drawn at random and pruned as the study's pruner would."""
    pruner = PRUNERS[spec.pruner.name](spec.budget.epochs, spec.pruner.min_epochs, 5)
    study = optuna.create_study(
        study_name=NAME, direction="maximize", sampler=RandomSampler(seed=0), pruner=pruner
    )
    rng = np.random.default_rng(0)
    for _ in range(n):
        trial = study.ask()
        suggest(trial, spec.space)
        end = made_up_dice(trial) + float(rng.normal(0, 0.02))
        for epoch in range(1, EPOCHS + 1):
            trial.report(end * (1 - math.exp(-epoch / 8)), epoch)
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, end)
    return study.get_trials(deepcopy=False)


def fill(folder: Path, known: Sequence[FrozenTrial]) -> None:
    """Writes the trials into the folder's study.db."""
    storage = open_storage(sqlite_url(folder))
    study = optuna.create_study(study_name=NAME, storage=storage, direction="maximize")
    with Session(storage.engine) as session, session.begin():
        insert_trials(session, study_id(study), known)
    storage.engine.dispose()


def time_trials(spec: StudySpec, folder: Path, ours: bool, n: int) -> NDArray[np.float64]:
    """Medians over n trials; [2, 3]: processor and clock seconds of sample, reports and tell.

    One trial goes before: the first of a process reads the whole study.
    """
    startup, min_epochs = 10, spec.pruner.min_epochs
    sampler = (SAMPLERS["tpe"] if ours else tpe_of_optuna)(0, startup)
    build = PRUNERS["hyperband"] if ours else hyperband_of_optuna
    pruner = build(spec.budget.epochs, min_epochs, startup)
    storage = open_storage(sqlite_url(folder))
    study = optuna.load_study(study_name=NAME, storage=storage, sampler=sampler, pruner=pruner)
    rows = [time_one(study, spec) for _ in range(n + 1)][1:]
    storage.engine.dispose()
    return np.median(rows, axis=0)


def time_one(study: optuna.Study, spec: StudySpec) -> NDArray[np.float64]:
    """[2, 3]: seconds of one trial whose training takes no time."""
    times = [now()]
    trial = study.ask()
    suggest(trial, spec.space)
    times.append(now())
    for epoch in range(1, EPOCHS + 1):
        trial.report(0.5 * (1 - math.exp(-epoch / 8)), epoch)
        trial.should_prune()  # asked to the end, whatever it says
    times.append(now())
    study.tell(trial, 0.5)
    return np.diff([*times, now()], axis=0).T


def now() -> tuple[float, float]:
    """Seconds of this process on its core, and of the clock."""
    return time.process_time(), time.perf_counter()


def compare_costs(spec: StudySpec, counts: Sequence[int], n: int) -> Iterator[str]:
    """Rows of a table: ours, Optuna's own, and the ratio."""
    yield "| stored | who | sample | 40 reports | tell | whole | of a 60 s trial | by the clock |"
    yield "|---:|---|---:|---:|---:|---:|---:|---:|"
    known = finished_trials(spec, max(counts))
    for count in counts:
        wholes = []
        for who in ("Optuna", "ours"):
            with tempfile.TemporaryDirectory() as place:
                fill(Path(place), known[:count])
                parts, clock = time_trials(spec, Path(place), who == "ours", n)
            wholes.append(whole := float(parts.sum()))
            cells = " | ".join(f"{part:.3f}" for part in (*parts, whole))
            share = f"{whole / TRIAL_SECONDS:.2%} | {clock.sum():.3f}"
            yield f"| {count} | {who} | {cells} | {share} |"
        yield f"| {count} | Optuna / ours | | | | {wholes[0] / wholes[1]:.1f} x | | |"


def found_by(sampler: BaseSampler, spec: StudySpec, seed: int) -> float:
    """The true value, without noise, of what looks best after FOUND_TRIALS trials."""
    study = optuna.create_study(direction="maximize", sampler=sampler)
    rng = np.random.default_rng(seed)
    true = []
    for _ in range(FOUND_TRIALS):
        trial = study.ask()
        suggest(trial, spec.space)
        true.append(made_up_dice(trial))
        study.tell(trial, true[-1] + float(rng.normal(0, NOISE)))
    return true[study.best_trial.number]


def compare_finds(spec: StudySpec) -> Iterator[str]:
    """Rows of a table: median and quartiles over SEEDS of what each sampler finds."""
    startup = spec.sampler.startup
    builders: dict[str, Callable[[int], BaseSampler]] = {
        "random": lambda seed: RandomSampler(seed=seed),
        "TPE, Optuna's own": lambda seed: tpe_of_optuna(seed, startup),
        f"TPE, bound {LOW_BOUND}": lambda seed: BoundedTPE(seed, startup, LOW_BOUND),
    }
    yield "| sampler | median | quartiles | each seed |"
    yield "|---|---:|---|---|"
    for name, build in builders.items():
        found = [found_by(build(seed), spec, seed) for seed in range(SEEDS)]
        low, middle, high = np.quantile(found, (0.25, 0.5, 0.75))
        each = " ".join(f"{value:.3f}" for value in found)
        yield f"| {name} | {middle:.3f} | {low:.3f} to {high:.3f} | {each} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stored", type=int, nargs="+", default=[10, 1000, 5000])
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--studies", nargs="+", default=list(FILES))
    parser.add_argument("--quality", action="store_true")
    given = parser.parse_args(argv)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(f"{processor()}, one of {os.cpu_count()} cores; Optuna {optuna.__version__}, SQLite")
    for name in given.studies:
        spec = load_spec(str(STUDIES / f"{name}.yaml"))
        print(f"\n{name}.yaml\n")
        rows = (
            compare_finds(spec)
            if given.quality
            else compare_costs(spec, given.stored, given.trials)
        )
        for row in rows:
            print(row, flush=True)


def processor() -> str:
    """The processor's name where the system tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
