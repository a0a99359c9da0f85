"""The main job: search, final test and report, with output on a console."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from rich.console import Console

from lesionseg.data.mask_checks import describe_readings, warn_of_inverted
from lesionseg.data.merge import Roots
from lesionseg.errors import format_some
from search.monitoring import notes
from search.monitoring.console import progress_bar, progress_bars
from search.monitoring.live import TrialLog, live_view
from search.monitoring.status import StatusReader
from search.results.final_test import run_final_test
from search.signals import SignalHandler
from search.spec.study_spec import StudySpec
from search.storage import trial_records
from search.storage.lease_types import Command
from search.storage.leases import TrialLeases
from search.study import data_audit
from search.study.creation import lock_and_open
from search.study.deadline import JobClock
from search.study.encoder_weights import describe_weights
from search.study.location import StudyLocation
from search.study.opening import OpenStudy
from search.study.suggest import ensure_space_weights
from search.workers.loop import WorkerOptions, run_trials
from search.workers.pool import WorkerPool, run_worker_pool
from search.workers.worker_result import StopReason


def run_study(
    console: Console, spec: StudySpec, data: Roots, folder: Path, pool: WorkerPool,
    *, storage: str | None = None, artifacts: str | None = None, final: bool = True,
    started_at: float | None = None,
) -> None:  # fmt: skip
    """Create or resume a study, run its trials, and test the best configuration.

    storage, artifacts: as in ``create_or_resume``. final: whether to retrain and test the best
    configuration, and to write the report. started_at: monotonic seconds at which the job began,
    for ``budget.total_hours``; now by default.

    Raises InputError, JobFailed or KeyboardInterrupt; the study can be resumed after each.
    """
    started_at = time.monotonic() if started_at is None else started_at
    ensure_space_weights(spec.space)
    signals = SignalHandler()
    with ExitStack() as stack:
        stack.enter_context(signals.installed())
        with progress_bar(console, "reading images") as on_progress:
            opened = stack.enter_context(
                lock_and_open(
                    spec, data, folder, storage=storage, artifacts=artifacts,
                    on_progress=on_progress,
                )
            )  # fmt: skip
        stack.enter_context(JobClock(opened, started_at, pool.final_slots))
        TrialLeases(opened.study).command = Command.RUN
        _print_study(console, opened, pool)
        location = StudyLocation(opened.name, folder, storage, data)
        reason = _search(console, opened, pool, location, signals)
        with suppress(Exception):  # only the dashboard shows them
            notes.refresh(opened.study)
        if final and reason != StopReason.STOPPED:
            _test_and_report(console, opened, pool, storage)


def _test_and_report(
    console: Console, opened: OpenStudy, pool: WorkerPool, storage: str | None
) -> None:
    from search.results.report import write_report  # matplotlib is slow to import
    from search.results.tables import print_final_report

    what = _describe_finalists(opened.spec.final.finalists)
    console.print(f"retraining {what}, then evaluating the test images")
    with progress_bars(console) as on_progress:
        final = run_final_test(
            opened,
            *pool.final_slots,
            on_progress=partial(on_progress, "retraining, epochs"),
            on_cache=partial(on_progress, "reading images"),
            on_event=partial(console.print, markup=False),
        )
    print_final_report(console, final)
    console.print(f"report: {write_report(opened.folder, storage=storage)}", markup=False)


def _describe_finalists(number: int) -> str:
    return "the best configuration" if number == 1 else f"the best {number} configurations"


def _print_study(console: Console, opened: OpenStudy, pool: WorkerPool) -> None:
    split, records = opened.split, opened.index.records
    line = (
        f"{opened.index.layout}: {len(records)} pairs; train {len(split.train)}, "
        f"val {len(split.val)}, test {len(split.test)}"
    )
    lines = [line + (f" in the first of {len(split.folds)} folds" if split.folds else "")]
    data_sets = Counter(record.dataset for record in records)
    if len(data_sets) > 1:
        lines.append(", ".join(f"{name} {n}" for name, n in sorted(data_sets.items())))
    if names := opened.cache.thresholded:
        lines.append(
            f"{len(names)} masks were not binary and were thresholded at 128: {format_some(names)}"
        )
    masks = opened.cache.list_masks(records)
    lines += [*describe_readings(masks), *warn_of_inverted(masks)]
    audit = data_audit.summarize_audit(opened.folder, split.to_dict())
    if duplicates := data_audit.describe_audit(audit):
        lines.append(duplicates)
    if weights := describe_weights(opened.spec.encoder_weights):
        lines.append(weights)
    lines.append(f"study {opened.name} in {opened.folder}, {_describe_pool(pool)}")
    for line in lines:
        console.print(line, markup=False)


def _describe_pool(pool: WorkerPool) -> str:
    if pool.alone:
        return f"on {pool.slots[0].device}"
    if pool.engine != "local":
        return f"workers on {pool.engine}"
    if not pool.slots:
        return "without a worker of its own"
    return f"{len(pool.slots)} workers on {', '.join(dict.fromkeys(s.device for s in pool.slots))}"


def _search(
    console: Console,
    opened: OpenStudy,
    pool: WorkerPool,
    location: StudyLocation,
    signals: SignalHandler,
) -> StopReason:
    """Run trials until the study is done or stopped; print and return why it ended."""
    budget = opened.spec.budget.trials
    finished = trial_records.count_finished(trial_records.all_trials(opened.study))
    if finished:
        console.print(f"resuming after {finished} of {budget} trials")
    log, on_event = TrialLog(console), partial(console.print, markup=False)
    view = live_view(console, lambda: StatusReader(location.folder, location.storage))
    with view, signals.deferred():
        if pool.alone:
            options = WorkerOptions(keep_going=pool.keep_going)
            reason = run_trials(
                opened, pool.slots[0], log, signals.stop_event, options, on_event
            ).reason
        else:
            reason = run_worker_pool(opened, pool, location, log, signals.stop_event, on_event)
    counts = trial_records.count_by_state(trial_records.all_trials(opened.study))
    descriptions = {
        StopReason.EXHAUSTED: "no new configuration is left to try",
        StopReason.TIME: "the time budget is spent",
        StopReason.STOPPED: "stopped by `lesionsearch stop`",
    }
    description = descriptions.get(reason, f"the budget of {budget} trials is spent")
    trials = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    console.print(f"{description}: {trials}")
    return reason
