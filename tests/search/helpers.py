"""Small studies that train in seconds on one core."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState

from lesionseg.errors import InputError
from search.spec.loading import load_spec, parse_spec
from search.spec.study_spec import StudySpec
from search.storage.lease_types import Claim
from search.storage.leases import TrialLeases
from search.study.creation import create_or_resume
from search.study.opening import OpenStudy
from search.study.samplers import prepare_sampling
from search.trial_process.slot import Slot
from search.workers.loop import run_trials
from search.workers.trial_context import TrialContext
from search.workers.worker import Worker
from search.workers.worker_result import WorkerResult

#: One thread: tests run in parallel, and results depend on the number of threads.
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


def refusal(call: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    """Return the message of the InputError that a call raises."""
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def tree(folder: Path) -> list[str]:
    """Return the relative paths of all files and folders in a folder."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def tiny_plain(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return TINY with changed values by dotted key."""
    plain = copy.deepcopy(TINY)
    for key, value in (changes or {}).items():
        *parents, last = key.split(".")
        section = plain
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return plain


def tiny_spec(changes: dict[str, Any] | None = None) -> StudySpec:
    return parse_spec(tiny_plain(changes), "tiny")


def write_study(path: Path, changes: dict[str, Any] | None = None) -> Path:
    """Write a study file."""
    path.write_text(yaml.safe_dump(tiny_plain(changes)))
    return path


def open_tiny(data: Path, folder: Path, changes: dict[str, Any] | None = None) -> OpenStudy:
    opened = create_or_resume(tiny_spec(changes), data, folder)
    prepare_sampling(opened)
    return opened


class OneTrialWorker(Worker):
    def run_one(self) -> FrozenTrial:
        """Claim and run one trial regardless of the budget; return its record."""
        claim = self.claim(bounded=False)
        assert isinstance(claim, Claim)
        return self.run(claim)


def make_worker(opened: OpenStudy, listener: Any = None, **options: Any) -> OneTrialWorker:
    """Return a worker without a running heartbeat. options: fields of ``TrialContext``."""
    options = {"slot": SLOT, "listener": listener or RecordingListener(), **options}
    return OneTrialWorker(TrialContext(opened, **options))


def queue(opened: OpenStudy, width: int = 4, lr: float = 0.01) -> int:
    """Queue a trial of TINY's space; return its number."""
    return TrialLeases(opened.study).enqueue(
        [({"model.unet.width": width, "optimizer.adam.lr": lr}, {})]
    )[0]


def search(
    opened: OpenStudy, listener: Any = None, slot: Slot = SLOT, **options: Any
) -> WorkerResult:
    """Run trials in this process. options: further arguments of ``run_trials``."""
    options = {"stop_event": threading.Event(), **options}
    return run_trials(opened, slot, listener or RecordingListener(), **options)


def is_gone(pid: int) -> bool:
    """Return whether the process has ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


#: Seconds in which something happens that needs no time, even on a busy host.
LONG_WAIT_S = 120.0


def wait_until(condition: Callable[[], Any], seconds: float) -> bool:
    """Wait until the condition is true; return whether it became true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


def read_spec(path: Path, text: str, overrides: tuple[str, ...] = ()) -> StudySpec:
    """Load a study file with this text."""
    path.write_text(text)
    return load_spec(str(path), overrides)


class RecordingListener:
    """Records all notifications."""

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


def find_pruned(
    pruner: Any, curves: Sequence[Mapping[int, float]], name: str = "curves"
) -> list[tuple[int, int]]:
    """Return trial and step of each trial that a pruner stops, for trials that run in sequence.

    curves: the values of each trial by step. name: of the study; Hyperband's brackets depend on it.
    """
    study, pruned = in_memory(pruner=pruner, name=name), []
    for curve in curves:
        trial = study.ask()
        for step, value in curve.items():
            trial.report(value, step)
            if trial.should_prune():
                pruned.append((trial.number, step))
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, max(curve.values()))
    return pruned
