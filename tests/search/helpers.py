"""Small studies for the tests of the search: seconds on one core, real in every other respect."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import psutil
import yaml
from optuna.trial import TrialState

from search.spec.loading import load_spec, parse_spec
from search.spec.study_spec import StudySpec
from search.storage.leases import TrialLeases
from search.study.creation import create_or_resume
from search.study.opening import OpenStudy
from search.study.sampling import prepare_sampling
from search.trial_process.slot import Slot, WorkerResult
from search.workers.loop import work
from search.workers.worker import Worker

#: One core: tests run beside one another, and equal threads give equal digits.
SLOT = Slot("cpu", 1)

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"image_size": 16},
    "budget": {"trials": 3, "epochs": 2},
    "sampler": {"name": "random"},
    "pruner": {"name": "none"},
    "fixed": {"batch_size": 8},
    "search": {
        "model": {"unet": {"width": [4, 8], "depth": 1}},
        "loss": "bce",
        "augment": "none",
        "optimizer": {"adam": {"lr": [0.001, 0.1]}},
        "schedule": "constant",
    },
}


def tiny_plain(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """TINY with dotted keys changed, as plain data."""
    plain = copy.deepcopy(TINY)
    for key, value in (changes or {}).items():
        *parents, last = key.split(".")
        home = plain
        for parent in parents:
            home = home.setdefault(parent, {})
        home[last] = value
    return plain


def tiny_spec(changes: dict[str, Any] | None = None) -> StudySpec:
    return parse_spec(tiny_plain(changes), "tiny")


def write_study(path: Path, changes: dict[str, Any] | None = None) -> Path:
    """The same as a file."""
    path.write_text(yaml.safe_dump(tiny_plain(changes)))
    return path


def open_tiny(data: Path, folder: Path, changes: dict[str, Any] | None = None) -> OpenStudy:
    opened = create_or_resume(tiny_spec(changes), data, folder)
    prepare_sampling(opened)
    return opened


def worker_of(opened: OpenStudy, listener: Any = None, **settings: Any) -> Worker:
    """A worker of the study, not entered yet; settings: of Worker."""
    slot = settings.pop("slot", SLOT)
    listener = listener or RecordingListener()
    return Worker(
        opened.study,
        opened.spec,
        opened.trial_data,
        opened.artifact_store,
        slot,
        listener,
        **settings,
    )


def queue(opened: OpenStudy, width: int = 4, lr: float = 0.01) -> int:
    """Queues a trial of TINY's space; its number."""
    return TrialLeases(opened.study).enqueue(
        [({"model.unet.width": width, "optimizer.adam.lr": lr}, {})]
    )[0]


def search(
    opened: OpenStudy, listener: Any = None, slot: Slot = SLOT, **terms: Any
) -> WorkerResult:
    """Has the study worked on by this process; terms: as ``search.workers.loop.work`` takes them."""
    return work(opened, slot, listener or RecordingListener(), **terms)


def is_gone(pid: int) -> bool:
    """Whether the process has ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


#: Seconds in which something happens that needs no time: long, for hosts that do much besides.
PATIENCE = 120.0


def wait_until(what: Callable[[], Any], seconds: float) -> bool:
    """Waits for it to become true; whether it did."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.02)
    return bool(what())


def read_spec(path: Path, text: str, overrides: tuple[str, ...] = ()) -> StudySpec:
    """What load_spec makes of a file of this text."""
    path.write_text(text)
    return load_spec(str(path), overrides)


class RecordingListener:
    """A listener that keeps what it was told."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.epochs: list[tuple[int, int]] = []
        self.ended: list[tuple[int, str, int | None]] = []

    def trial_started(self, number, config) -> None:
        self.started.append(number)

    def epoch_ended(self, number, record) -> None:
        self.epochs.append((number, record.epoch))

    def trial_ended(self, trial, best) -> None:
        self.ended.append((trial.number, trial.state.name, best and best.number))


def in_memory(sampler=None, pruner=None, name: str | None = None) -> optuna.Study:
    return optuna.create_study(
        study_name=name, direction="maximize", sampler=sampler, pruner=pruner
    )


def stopped(
    pruner: Any, curves: Sequence[Mapping[int, float]], name: str = "curves"
) -> list[tuple[int, int]]:
    """(trial, step) of each that a pruner stopped, when trials report one after another.

    curves: what each trial reports, by step. name: the study's; Hyperband deals trials by it.
    """
    study, found = in_memory(pruner=pruner, name=name), []
    for curve in curves:
        trial = study.ask()
        for step, value in curve.items():
            trial.report(value, step)
            if trial.should_prune():
                found.append((trial.number, step))
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, max(curve.values()))
    return found
