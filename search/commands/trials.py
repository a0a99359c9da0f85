"""``lesionsearch trials``: queue, export and import the trials of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.commands.common import OutputFolder, Storage, StudyName, load_study


def retry(
    name: StudyName,
    numbers: Annotated[list[int], typer.Argument(help="Numbers of finished trials.")],
    storage: Storage = None,
) -> None:
    """Queue finished trials again, with the same configurations."""
    from search.study import queue

    study = load_study(name, storage)
    _print_queued(queue.retry_trials(study, numbers), queue.count_free_trials(study))


def enqueue(
    name: StudyName,
    file: Annotated[Path, typer.Argument(help="YAML: a configuration, or a list of them.")],
    storage: Storage = None,
) -> None:
    """Queue your own configurations: parameters, whole configurations, or `baseline: NAME`."""
    from search.spec.loading import parse_spec
    from search.study import queue

    study = load_study(name, storage)
    spec = parse_spec(study.user_attrs["spec"], f"study {study.study_name!r}")
    _print_queued(queue.enqueue_file(study, spec, file), queue.count_free_trials(study))


def _print_queued(numbers: list[int], room: int) -> None:
    print(f"queued as trial{'s' if len(numbers) != 1 else ''} {', '.join(map(str, numbers))}")
    if room < len(numbers):
        print(f"the budget has room for {max(0, room)} of them; `run` with a larger --trials")


def export_trials(
    name: StudyName,
    file: Annotated[
        Path | None, typer.Argument(help="File to write.", show_default="standard output")
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Write one CSV row per trial.")] = False,
    storage: Storage = None,
) -> None:
    """Write a study with all its trials as JSON lines."""
    from search.study.transfer import export_study, export_to_file, write_csv

    export_to_file(load_study(name, storage), file, write_csv if csv else export_study)


def import_trials(
    file: Annotated[Path, typer.Argument(help="A file written by `trials export`.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Location of each data set.", show_default="given at the next run"),
    ] = None,
    out: OutputFolder = None,
    storage: Storage = None,
) -> None:
    """Create a study from JSON lines; `run` resumes it."""
    from search.study.transfer import import_from_file

    print(import_from_file(file, out, storage, tuple(data or ()) or None))
