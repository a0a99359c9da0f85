"""What the bookkeeping costs as studies and crews grow, beside a bare Optuna script's.

Two tables, on SQLite and on PostgreSQL. Overhead: one worker in a study of so many stored trials;
seconds from the wish for a trial to the start of its training, and from its end to the end being
told, with TPE. Throughput: so many workers at one study with random draws, trials a second; that
they join is left out. A trial reports five epochs and asks the pruner after each; nothing is
trained, so that nothing but the bookkeeping takes time. The bare script does the same with
``study.ask``, ``suggest_*``, ``report``, ``should_prune``, ``set_user_attr`` of what we keep, and
``tell``.

    python -m bench.scale [--stored 10 1000 5000] [--workers 1 8 32 64] [--trials 192]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import optuna
import sqlalchemy

from bench.overhead import make_data
from lesionseg.metrics.overlap import METRICS, Metrics
from lesionseg.training.types import EpochRecord, TrainingEnd, TrainResult
from search.spec.loading import parse_spec
from search.spec.search_space import SearchSpace
from search.storage.lease_types import Claim
from search.study.creation import create_or_resume
from search.study.opening import OpenStudy, open_study
from search.study.samplers import prepare_sampling
from search.study.suggest import suggest
from search.trial_process.protocol import JobOutcome, ModelBuilt, Trained, TrainJob
from search.trial_process.slot import Slot
from search.trial_process.supervisor import StopConditions
from search.workers.trial_context import TrialContext
from search.workers.worker import Worker

EPOCHS = 5
TRIAL_SECONDS = 60.0
SERVER = os.environ.get(
    "LESIONSEARCH_TEST_POSTGRES", "postgresql+psycopg://postgres@127.0.0.1:5432/test"
)
SEARCH = {
    "model": {"unet": {"width": [4, 64], "depth": [1, 3]}},
    "loss": ["bce", "dice", "focal", "bce_dice"],
    "augment": ["none", "flips", "full"],
    "optimizer": ["adam", "adamw", "sgd"],
    "schedule": ["constant", "cosine", "onecycle", "plateau"],
}


@dataclass(frozen=True)
class Marks:
    """When a trial was wished for, its training began and ended, and its end was told."""

    wished: float
    began: float
    ended: float
    told: float


def instead_of_training(
    job: TrainJob,
    on_message: Callable[..., bool],
    conditions: StopConditions,
    on_out_of_memory: Callable[[int, str], None],
) -> JobOutcome:
    """Send the messages of a training without training."""
    MARKS["began"] = time.perf_counter()
    on_message(ModelBuilt(1000, 1000))
    history = []
    for epoch in range(1, EPOCHS + 1):
        dice = 0.5 + 0.3 * (hash(repr(job.config)) % 997) / 997 + 0.01 * epoch
        metrics = Metrics(**dict.fromkeys(METRICS, dice))
        history.append(EpochRecord(epoch, 0.1, 0.1, metrics, 0.001, 0.0))
        if on_message(history[-1]):
            break
    assert job.weights_path is not None
    job.weights_path.write_bytes(b"weights")
    MARKS["ended"] = time.perf_counter()
    return Trained(
        TrainResult(history[-1], tuple(history), TrainingEnd.FINISHED, 0.0, 0, job.weights_path)
    )


MARKS: dict[str, float] = {}


@contextmanager
def storages(folder: Path) -> Iterator[dict[str, str]]:
    """The URL of an empty database of each kind; PostgreSQL's where there is a server."""
    urls = {"SQLite": f"sqlite:///{folder}/study.db"}
    name = f"lesionsearch_{uuid.uuid4().hex[:12]}"
    base = sqlalchemy.make_url(SERVER)
    server = sqlalchemy.create_engine(base, isolation_level="AUTOCOMMIT")
    try:
        with server.connect() as connection:
            connection.exec_driver_sql(f'CREATE DATABASE "{name}"')
        urls["PostgreSQL"] = base.set(database=name).render_as_string(hide_password=False)
    except sqlalchemy.exc.OperationalError:
        print("no PostgreSQL here; LESIONSEARCH_TEST_POSTGRES is its URL")
    try:
        yield urls
    finally:
        if "PostgreSQL" in urls:
            with server.connect() as connection:
                connection.exec_driver_sql(f'DROP DATABASE "{name}" WITH (FORCE)')
        server.dispose()


SPEC = {
    "data": {"image_size": 16},
    "budget": {"trials": 1_000_000, "epochs": EPOCHS},
    "pruner": {"name": "median", "min_epochs": 1},
    "search": SEARCH,
}


def open_ours(folder: Path, url: str, name: str, sampler: str) -> OpenStudy:
    spec = parse_spec(SPEC | {"name": name, "sampler": {"name": sampler}}, "bench")
    data = folder / "data"
    if not data.exists():
        make_data(data)
    return create_or_resume(spec, data, folder / name, url)


def store(opened: OpenStudy, n: int) -> None:
    """Finished trials, as far as ``n``, for the sampler to model and the leases to count."""
    rng, study = np.random.default_rng(0), opened.study
    sampler, study.sampler = study.sampler, optuna.samplers.RandomSampler(seed=1)
    scratch = optuna.create_study(direction="maximize", sampler=study.sampler)
    there = len(study.get_trials(deepcopy=False))
    for number in range(there, n):
        trial = scratch.ask()
        config = suggest(trial, opened.spec.space)
        for epoch in range(1, EPOCHS + 1):
            trial.report(float(rng.uniform(0.5, 0.9)), epoch)
        trial.set_user_attr("config", config.to_dict())
        trial.set_user_attr("digest", f"{number:012x}")
        scratch.tell(trial, float(rng.uniform(0.5, 0.9)))
    study.add_trials(scratch.get_trials(deepcopy=False))
    study.sampler = sampler


@contextmanager
def worker_of(opened: OpenStudy, ordinal: int = 0) -> Iterator[Worker]:
    """A real worker that trains nothing."""
    prepare_sampling(opened, ordinal)
    worker = Worker(TrialContext(opened, Slot("cpu"), Mock()))
    with patch("search.workers.trial_runner.supervise_in_parts", instead_of_training), worker:
        yield worker


def ours(worker: Worker, n: int) -> list[Marks]:
    """So many trials through it."""
    done: list[Marks] = []
    while len(done) < n:
        wished = time.perf_counter()
        claim = worker.claim()
        assert isinstance(claim, Claim)
        MARKS["began"] = MARKS["ended"] = 0.0
        worker.run(claim)
        if MARKS["began"]:  # not a duplicate
            done.append(Marks(wished, MARKS["began"], MARKS["ended"], time.perf_counter()))
    return done


def bare(study: optuna.Study, space: SearchSpace, n: int) -> list[Marks]:
    """The same by a script that knows Optuna alone."""
    done = []
    for _ in range(n):
        wished = time.perf_counter()
        trial = study.ask()
        config = suggest(trial, space)
        trial.set_user_attr("config", config.to_dict())
        trial.set_user_attr("digest", config.digest())
        began = time.perf_counter()
        trial.set_user_attr("params", 1000)
        dice, pruned = 0.0, False
        for epoch in range(1, EPOCHS + 1):
            dice = 0.5 + 0.3 * (hash(repr(config)) % 997) / 997 + 0.01 * epoch
            trial.report(dice, epoch)
            pruned = trial.should_prune() and epoch < EPOCHS
            if pruned:
                break
        ended = time.perf_counter()
        trial.set_user_attr("val", {"dice": dice})
        trial.set_user_attr("seconds", 0.0)
        if pruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, dice)
        done.append(Marks(wished, began, ended, time.perf_counter()))
    return done


def bare_study(url: str, name: str, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    kwargs = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    return optuna.create_study(
        study_name=name,
        storage=optuna.storages.RDBStorage(url, engine_kwargs=kwargs),
        direction="maximize",
        sampler=sampler,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1),
        load_if_exists=True,
    )


def overhead(stored: Sequence[int], repeats: int) -> list[str]:
    """Rows: storage, stored trials, start, end, share of a minute; the bare script's sum."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, storages(Path(folder)) as urls:
        for kind, url in urls.items():
            opened = open_ours(Path(folder), url, f"o{kind}", "tpe")
            plain = bare_study(url, f"b{kind}", optuna.samplers.TPESampler(seed=0))
            for n in stored:
                store(opened, n)
                fill(plain, opened)
                with worker_of(opened) as worker:
                    mine = ours(worker, repeats)[1:]
                theirs = bare(plain, opened.spec.space, repeats)[1:]
                start = statistics.median(m.began - m.wished for m in mine)
                end = statistics.median(m.told - m.ended for m in mine)
                whole = statistics.median(m.told - m.wished for m in mine)
                other = statistics.median(m.told - m.wished for m in theirs)
                rows.append(
                    f"| {kind} | {n:,} | {start:.3f} s | {end:.3f} s | {whole:.3f} s | "
                    f"{whole / TRIAL_SECONDS:.2%} | {other:.3f} s | {whole / other:.2f} |"
                )
                print(rows[-1], flush=True)
    return rows


def fill(plain: optuna.Study, opened: OpenStudy) -> None:
    """The same stored trials for the bare script."""
    there = len(plain.get_trials(deepcopy=False))
    plain.add_trials(opened.study.get_trials(deepcopy=False)[there:])


def crew_member(kind: str, folder: Path, url: str, n: int, gate: Any, told: Any) -> None:
    """One process of the throughput's crew; the first trial, before the gate, is not counted."""
    if kind == "ours":
        opened = open_study(folder / "ours", storage=url)
        with worker_of(opened, ordinal=os.getpid()) as worker:
            told.put(worked(lambda k: ours(worker, k), n, gate))
    else:
        study = bare_study(url, "bare", optuna.samplers.RandomSampler())
        space = parse_spec(SPEC | {"name": "bare"}, "bench").space
        told.put(worked(lambda k: bare(study, space, k), n, gate))


def worked(do: Callable[[int], object], n: int, gate: Any) -> tuple[int, int]:
    """Trials done and errors met on the way."""
    errors = done = 0
    while done <= n and errors <= 5 * n:
        try:
            do(1)
        except Exception:
            errors += 1
            continue
        if done == 0:
            gate.wait(300)
        done += 1
    return done - 1, errors


def throughput(crews: Sequence[int], trials: int) -> list[str]:
    """Rows: storage, workers, trials a second of ours and of the bare script, their ratio."""
    rows = []
    context = multiprocessing.get_context("fork")  # what is imported here is imported once
    for size in crews:
        with tempfile.TemporaryDirectory() as folder, storages(Path(folder)) as urls:
            for kind, url in urls.items():
                place = Path(folder) / kind
                open_ours(place, url, "ours", "random")
                rates, lost = {}, {}
                for who in ("ours", "bare"):
                    if who == "bare":
                        bare_study(url, "bare", optuna.samplers.RandomSampler())
                    gate, told = context.Barrier(size + 1), context.Queue()
                    each = max(2, trials // size)
                    crew = [
                        context.Process(
                            target=crew_member, args=(who, place, url, each, gate, told)
                        )
                        for _ in range(size)
                    ]
                    for member in crew:
                        member.start()
                    gate.wait(300)
                    began = time.perf_counter()
                    answers = [told.get(timeout=600) for _ in crew]
                    rates[who] = sum(n for n, _ in answers) / (time.perf_counter() - began)
                    lost[who] = sum(e for _, e in answers)
                    for member in crew:
                        member.join(60)
                rows.append(
                    f"| {kind} | {size} | {rates['ours']:.1f} | {rates['bare']:.1f} | "
                    f"{rates['ours'] / rates['bare']:.2f} | {lost['ours']} | {lost['bare']} |"
                )
                print(rows[-1], flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stored", type=int, nargs="*", default=[10, 1000, 5000])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 8, 32, 64])
    parser.add_argument("--trials", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--to", type=Path, help="a Markdown file for both tables")
    given = parser.parse_args(argv)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    head = "| storage | stored | to the start | from the end | in all | of 60 s | bare | ratio |"
    print(head)
    first = overhead(given.stored, given.repeats) if given.stored else []
    second_head = (
        "| storage | workers | ours, trials/s | bare, trials/s | ratio | errors | theirs |"
    )
    print(second_head)
    second = throughput(given.workers, given.trials) if given.workers else []
    if given.to:
        line = "|---" * 8 + "|"
        about = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        text = [f"# What the bookkeeping costs\n\n{about}.\n", head, line, *first, ""]
        text += [second_head, "|---" * 7 + "|", *second, ""]
        given.to.write_text("\n".join(text))


if __name__ == "__main__":
    main()
