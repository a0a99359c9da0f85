"""The main job: create or resume a study, work until its budget is spent."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from optuna.samplers import BaseSampler

from lesionseg.device import pick_device
from lesionseg.models.weights import ensure_weights
from search import trials
from search.samplers import SAMPLERS
from search.space import SearchSpace, values
from search.study import OpenStudy, prepare_sampling, read_about
from search.worker import Listener, Slot, Worker, reap

#: After so many skipped trials in a row the sampler gives way to draws that are new ...
GIVE_WAY = 10
#: ... and after so many the space counts as exhausted, if it is too large to be counted.
EXHAUSTED = 100


class Failed(RuntimeError):
    """The work was done as asked and came to nothing; the command line exits with code 1."""


@dataclass(frozen=True)
class Outcome:
    """How the search ended; exhausted: before its budget, for want of new configurations."""

    exhausted: bool
    out_of_time: bool


def default_slot(device: str = "auto", threads: int | None = None) -> Slot:
    """This machine's device, with all the cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Slot(str(pick_device(device)), threads or usable or 1)


def need_weights(space: SearchSpace) -> None:
    """Makes sure of the pretrained weights that a space may ask for, before anything is begun.

    InputError names what is lacking and how to put it in place.
    """
    for params in space.picks["model"].values():
        if "weights" in params:
            for weights in values(params["weights"]):
                for encoder in values(params["encoder"]):
                    ensure_weights(str(encoder), str(weights))


def search(opened: OpenStudy, slot: Slot, listener: Listener) -> Outcome:
    """Runs trials until the study's budget is spent, whoever ran the earlier ones.

    The folder is to be ``locked``.

    KeyboardInterrupt leaves the study fit to be resumed.
    """
    # A database in the folder itself has no other users: its lock is ours.
    reap(opened.study, opened.folder, alone=read_about(opened.folder)["storage"] is None)
    prepare_sampling(opened)
    clock = _Clock(opened)
    worker = Worker(
        opened.study, opened.spec, opened.material, opened.folder, slot, listener, clock.is_over
    )
    skipped, own, size = 0, opened.study.sampler, opened.spec.space.size()
    while trials.spent(known := trials.all_trials(opened.study)) < opened.spec.budget.trials:
        if clock.is_over():
            return Outcome(exhausted=False, out_of_time=True)
        if len(trials.tried(known)) >= size or skipped >= EXHAUSTED:
            return Outcome(exhausted=True, out_of_time=False)
        opened.study.sampler = _fresh(opened) if skipped >= GIVE_WAY else own
        done = worker.run_one()
        skipped = skipped + 1 if trials.state_of(done) == "skipped" else 0
    return Outcome(exhausted=False, out_of_time=False)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Within it, SIGTERM does what Ctrl-C does, and a second of either changes nothing more."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {s: signal.signal(s, interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fresh(opened: OpenStudy) -> BaseSampler:
    name = "grid" if opened.spec.space.is_finite() else "random"
    return SAMPLERS[name](opened.spec.seed + len(trials.all_trials(opened.study)), 0)


class _Clock:
    """Hours of training, those of earlier sessions included."""

    def __init__(self, opened: OpenStudy) -> None:
        self.limit = opened.spec.budget.hours
        self.before = trials.hours_spent(trials.all_trials(opened.study))
        self.began = time.monotonic()

    def is_over(self) -> bool:
        spent = self.before + (time.monotonic() - self.began) / 3600
        return self.limit is not None and spent >= self.limit
