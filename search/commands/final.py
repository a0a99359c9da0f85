"""``lesionsearch final`` and ``report``: the final test of a study, and its report."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from search.commands.common import Device, MovedData, Storage, StudyName, Threads
from search.output import tolerant_output


@tolerant_output()
def final(
    name: StudyName,
    data: MovedData = None,
    storage: Storage = None,
    again: Annotated[
        bool, typer.Option(help="Repeat the test evaluation; it is added to the recorded number.")
    ] = False,
    device: Device = "auto",
    threads: Threads = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Parallel trainings on the CPU.", show_default="1"),
    ] = None,
    gpus: Annotated[str | None, typer.Option(help="GPUs to train on, such as 0,1.")] = None,
) -> None:
    """Retrain a study's best configurations and evaluate the result once on the test images.

    The limit `budget.total_hours` applies to `lesionsearch run` only.
    """
    from search.monitoring.console import make_console, progress_bars
    from search.results.final_test import run_final_test
    from search.results.report import write_report
    from search.results.tables import print_final_report
    from search.signals import SignalHandler
    from search.storage.study_dir import lock_study
    from search.study.location import find_run
    from search.study.opening import open_study
    from search.trial_process.resources import local_slots

    folder, console = find_run(name), make_console()
    slots = local_slots(device, threads, workers=workers, gpus=gpus)
    with lock_study(folder), SignalHandler().installed():
        opened = open_study(folder, storage=storage, data=tuple(data or ()) or None)
        with progress_bars(console) as on_progress:
            report = run_final_test(
                opened,
                *slots,
                again=again,
                limit_time=False,
                on_progress=partial(on_progress, "retraining, epochs"),
                on_cache=partial(on_progress, "reading images"),
                on_event=partial(console.print, markup=False),
            )
    print_final_report(console, report)
    console.print(f"report: {write_report(folder, storage=storage)}", markup=False)


def report(
    name: StudyName,
    storage: Storage = None,
    formats: Annotated[
        str, typer.Option("--format", help="html, md and json; several separated by commas.")
    ] = "html",
    against: Annotated[
        Path | None,
        typer.Option(help="Folder of a `baselines run` on the same test images, to compare with."),
    ] = None,
) -> None:
    """Write a study's report: an HTML page, Markdown tables, or JSON with every number."""
    from search.results.report import parse_formats, write_reports
    from search.study.location import find_run

    parsed = parse_formats(formats)
    for path in write_reports(find_run(name), parsed, storage=storage, against=against):
        print(path)
