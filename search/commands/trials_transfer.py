"""``lesionsearch trials export`` and ``trials import``: a study as JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.commands.common import OutputFolder, Storage, StudyName, load_study


def export_trials(
    name: StudyName,
    file: Annotated[Path | None, typer.Argument(help="File to write. [standard output]")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Write one CSV row per trial.")] = False,
    storage: Storage = None,
) -> None:
    """Write a study with all its trials as JSON lines."""
    from search.study.transfer import export_study, export_to_file
    from search.study.trial_table import write_csv

    export_to_file(load_study(name, storage), file, write_csv if csv else export_study)


def import_trials(
    file: Annotated[Path, typer.Argument(help="A file written by `trials export`.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Location of each data set. [given at the next `run`]"),
    ] = None,
    out: OutputFolder = None,
    storage: Storage = None,
) -> None:
    """Create a study from JSON lines; `run` resumes it."""
    from lesionseg.data.merge import to_optional_roots
    from search.study.transfer import import_from_file

    print(import_from_file(file, out, storage, to_optional_roots(data)))
