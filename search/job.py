"""The main job from end to end, shown on a console: search, final test, report."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from lesionseg.errors import some
from search import console as show
from search import trials
from search.final import finalize
from search.run import Outcome, default_slot, need_weights, search, sigterm_as_interrupt
from search.spec import StudySpec
from search.study import OpenStudy, create_or_resume, is_study, locked
from search.worker import Slot


def run_study(
    console: Console,
    spec: StudySpec,
    data: Path,
    folder: Path,
    *,
    storage: str | None,
    device: str,
    threads: int | None,
    final: bool,
) -> None:
    """Creates or resumes the study and works until it is done.

    Raises InputError, Failed and KeyboardInterrupt; the study can be resumed after each.
    """
    slot = default_slot(device, threads)
    need_weights(spec.space)
    with ExitStack() as held:
        held.enter_context(sigterm_as_interrupt())
        there = is_study(folder)
        if there:  # another process that is at work on it must not find its spec changed
            held.enter_context(locked(folder))
        with show.counting(console, "reading pictures") as tick:
            opened = create_or_resume(spec, data, folder, storage, on_progress=tick)
        if not there:
            held.enter_context(locked(folder))
        _introduce(console, opened, slot)
        _search(console, opened, slot)
        if not final:
            return
        from search.report import write_report  # matplotlib waits until it is needed

        console.print("retraining the best configuration, then the test images")
        show.print_final(console, finalize(opened, slot))
        console.print(f"report: {write_report(folder, storage=storage)}", markup=False)


def _introduce(console: Console, opened: OpenStudy, slot: Slot) -> None:
    split = opened.split
    console.print(
        f"{opened.index.layout}: {len(opened.index.records)} pairs; train {len(split.train)}, "
        f"val {len(split.val)}, test {len(split.test)}"
    )
    odd = opened.cache.thresholded
    if odd:
        told = f"{len(odd)} masks were not binary and were cut at 128: {some(odd)}"
        console.print(told, markup=False)
    console.print(f"study {opened.name} in {opened.folder}, on {slot.device}", markup=False)


def _search(console: Console, opened: OpenStudy, slot: Slot) -> None:
    budget = opened.spec.budget
    spent = trials.spent(trials.all_trials(opened.study))
    if spent:
        console.print(f"going on after {spent} of {budget.trials} trials")
    lines = show.TrialLines(console, budget.trials, spent, budget.epochs)
    with lines.bars:
        outcome = search(opened, slot, lines)
    console.print(_how_it_ended(opened, outcome))


def _how_it_ended(opened: OpenStudy, outcome: Outcome) -> str:
    known = trials.all_trials(opened.study)
    counted = trials.counts(known)
    told = ", ".join(f"{n} {state}" for state, n in counted.items() if n)
    if outcome.exhausted:
        return f"no new configuration is left to try: {told}"
    if outcome.out_of_time:
        return f"the time is over: {told}"
    return f"the budget of {opened.spec.budget.trials} trials is spent: {told}"
