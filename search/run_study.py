"""The main job from end to end, shown on a console: search, final test, report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from lesionseg.data.sets import Roots
from lesionseg.errors import some
from search.monitoring import tables as show
from search.monitoring.dashboard import study_note
from search.monitoring.live import Following
from search.monitoring.status import StudyStatus
from search.results.final_test import run_final_test
from search.signals import SignalHandler
from search.spec.study_spec import StudySpec
from search.storage import trial_records
from search.storage.lease_types import Command
from search.storage.leases import TrialLeases
from search.storage.study_dir import is_study, lock_study
from search.storage.trial_records import TimeBudget
from search.study import data_audit
from search.study.creation import create_or_resume
from search.study.opening import OpenStudy
from search.study.location import StudyLocation
from search.study.weights import ensure_space_weights
from search.trial_process.resources import default_slot
from search.workers.loop import work
from search.workers.pool import WorkerPool, run_worker_pool


@dataclass(frozen=True)
class Place:
    """Where a study is kept. artifacts: a shared folder or s3://bucket/prefix; None: the folder."""

    folder: Path
    storage: str | None = field(default=None, repr=False)
    artifacts: str | None = None


def run_study(
    console: Console, spec: StudySpec, data: Roots, place: Place, crew: WorkerPool, *, final: bool
) -> None:
    """Creates or resumes the study and has it worked on until it is done.

    Raises InputError, Failed and KeyboardInterrupt; the study can be resumed after each.
    """
    ensure_space_weights(spec.space)
    signals = SignalHandler()
    with ExitStack() as held:
        held.enter_context(signals.installed())
        there = is_study(place.folder)
        if there:  # another process that is at work on it must not find its spec changed
            held.enter_context(lock_study(place.folder))
        with show.counting(console, "reading pictures") as tick:
            opened = create_or_resume(
                spec, data, place.folder, place.storage, place.artifacts, on_progress=tick
            )
        if not there:
            held.enter_context(lock_study(place.folder))
        TrialLeases(opened.study).command = Command.RUN
        _introduce(console, opened, crew)
        join = StudyLocation(opened.name, place.folder, place.storage, data)
        how = _search(console, opened, crew, join, signals)
        console.print(_how_it_ended(opened, how))
        with suppress(Exception):  # what people look at: the search is as good without it
            study_note.refresh(opened.study)
        if not final or how == "asked":
            return
        from search.results.report import write_report  # matplotlib waits until it is needed
        from search.results.tables import print_final_report

        console.print("retraining the best configuration, then the test images")
        slot = crew.slots[0] if crew.alone else default_slot()
        print_final_report(console, run_final_test(opened, slot))
        report = write_report(place.folder, storage=place.storage)
        console.print(f"report: {report}", markup=False)


def _introduce(console: Console, opened: OpenStudy, crew: WorkerPool) -> None:
    split = opened.split
    console.print(
        f"{opened.index.layout}: {len(opened.index.records)} pairs; train {len(split.train)}, "
        f"val {len(split.val)}, test {len(split.test)}"
        + (f" in the first of {len(split.folds)} folds" if split.folds else "")
    )
    sets = Counter(r.set for r in opened.index.records)
    if len(sets) > 1:
        console.print(", ".join(f"{name} {n}" for name, n in sorted(sets.items())), markup=False)
    odd = opened.cache.thresholded
    if odd:
        told = f"{len(odd)} masks were not binary and were cut at 128: {some(odd)}"
        console.print(told, markup=False)
    copies = data_audit.describe_audit(data_audit.summarize_audit(opened.folder, opened.split.to_dict()))
    if copies:
        console.print(copies, markup=False)
    console.print(f"study {opened.name} in {opened.folder}, {_who(crew)}", markup=False)


def _who(crew: WorkerPool) -> str:
    if crew.alone:
        return f"on {crew.slots[0].device}"
    if crew.engine != "local":
        return f"workers by {crew.engine}"
    if not crew.slots:
        return "worked on by others"
    return f"{len(crew.slots)} workers on {', '.join(dict.fromkeys(s.device for s in crew.slots))}"


def _search(
    console: Console,
    opened: OpenStudy,
    crew: WorkerPool,
    join: StudyLocation,
    signals: SignalHandler,
) -> str:
    """Has the budget spent; how that ended, as ``serve.work`` says it."""
    budget = opened.spec.budget
    spent = trial_records.count_finished(trial_records.all_trials(opened.study))
    if spent:
        console.print(f"going on after {spent} of {budget.trials} trials")
    lines = show.TrialLines(console, budget.trials, spent, budget.epochs, bars=False)

    def event(told: str) -> None:
        console.print(told, markup=False)

    with _followed(console, join), signals.deferred():
        if crew.alone:
            return work(opened, crew.slots[0], lines, signals.stop_event, on_event=event).why
        run_worker_pool(opened, crew, join, lines, signals.stop_event, event)
    return _why(opened)


def _followed(console: Console, join: StudyLocation) -> Following:
    def look() -> Callable[[], dict[str, Any]]:
        standing = StudyStatus(join.folder, join.storage)
        return lambda: standing.look(disk=False)

    return Following(console, look)


def _why(opened: OpenStudy) -> str:
    known, budget = trial_records.all_trials(opened.study), opened.spec.budget
    if trial_records.count_finished(known) >= budget.trials:
        return "done"
    if TimeBudget(budget.hours, budget.gpu_hours).is_over(known):
        return "time"
    return "asked" if TrialLeases(opened.study).command == Command.STOP else "exhausted"


def _how_it_ended(opened: OpenStudy, why: str) -> str:
    known = trial_records.all_trials(opened.study)
    counted = trial_records.count_by_state(known)
    told = ", ".join(f"{n} {state}" for state, n in counted.items() if n)
    words = {
        "exhausted": "no new configuration is left to try",
        "time": "the time is over",
        "asked": "stopped, as `lesionsearch stop` asked",
    }
    return f"{words.get(why, f'the budget of {opened.spec.budget.trials} trials is spent')}: {told}"
