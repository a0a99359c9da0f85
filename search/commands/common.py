"""Arguments and options that several commands share, and their common behaviour."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import optuna
    from rich.console import Console

#: Seconds that a command waits for an unavailable storage.
COMMAND_TIMEOUT_S = 60.0

StudyName = Annotated[str, typer.Argument(help="A study's folder, or its name under runs/.")]
ModelSource = Annotated[
    str, typer.Argument(help="A study's folder or name, its final/ folder, or a model file.")
]
Data = Annotated[
    list[Path],
    typer.Option(
        help="Folder of images and masks, or a CSV manifest. Repeat it to use several data sets.",
        show_default=False,
    ),
]
OutputFolder = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the study; its name becomes the name of the study.",
        show_default="runs/STUDY",
    ),
]
MovedData = Annotated[
    list[Path] | None,
    typer.Option(
        "--data", help="Location of each data set on this host.", show_default="as in the study"
    ),
]
OptionalFolder = Annotated[
    Path | None, typer.Option(help="Folder of the study.", show_default="runs/NAME")
]
Storage = Annotated[
    str | None,
    typer.Option(
        help="Database URL, such as postgresql+psycopg://user@host/db, or @FILE with the URL. "
        "Also read from LESIONSEARCH_STORAGE or LESIONSEARCH_STORAGE_FILE.",
        show_default="study.db in the study's folder",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the study. Repeatable."),
]
KeepGoing = Annotated[
    bool,
    typer.Option("--keep-going", help="Continue when consecutive trials fail for the same reason."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="all cores")]


def load_study(name: str, storage: str | None) -> optuna.Study:
    """Open the trials of a study, without its images.

    An unavailable storage is reported and retried for COMMAND_TIMEOUT_S only.
    """
    from search.storage.retrying_storage import backend_of
    from search.study.location import find_run
    from search.study.opening import load_study

    study = load_study(find_run(name), storage=storage)
    backend = backend_of(study)
    backend.timeout_s = COMMAND_TIMEOUT_S
    backend.on_wait = lambda line: print(f"lesionsearch: {line}", file=sys.stderr)
    return study


def print_error(error: Exception) -> None:
    """Print an error's message as one line on standard error."""
    print(f"lesionsearch: {' '.join(str(error).split())}", file=sys.stderr)


@contextmanager
def resume_hint(console: Console) -> Iterator[None]:
    """Print the command that resumes the work when it is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        console.print(
            f"interrupted; all finished work is saved. Resume with:\n  {command}",
            markup=False,
            soft_wrap=True,
        )
        raise
