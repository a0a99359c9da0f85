"""The command line: assemble the commands, turn errors into one line and an exit code."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from search.commands import (
    baselines,
    control,
    dashboard,
    data,
    final,
    options,
    plan,
    predict,
    run,
    trials,
    worker,
)
from search.output import OutputFailed, guarded_output


class _OneLineErrors(TyperGroup):
    """Print an error as one line on stderr and exit with its code, unless --debug is given."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with guarded_output():
            return super().main(*args, **kwargs)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _one_line_errors(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _one_line_errors(ctx):
            return super().invoke(ctx)


@contextmanager
def _one_line_errors(ctx: Any) -> Iterator[None]:
    try:
        yield
        sys.stdout.flush()  # raises here if the disk is full or the pipe is closed
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except Exception as error:
        if isinstance(error.__cause__, BrokenPipeError) and isinstance(error, OutputFailed):
            raise typer.Exit(1) from None  # as in `lesionsearch status | head -1`
        code, text = _exit_code(error), str(error)
        if code is None and (message := _storage_message(error)):
            code, text = 1, message
        if code is None or ctx.params.get("debug"):
            raise
        if hasattr(error, "format_message"):
            text = error.format_message()
        print(f"lesionsearch: {' '.join(text.split())}", file=sys.stderr)
        raise typer.Exit(code) from None


def _exit_code(error: Exception) -> int | None:
    """Return 2 for bad input, 1 for failed work, None for a defect of the program."""
    if hasattr(error, "format_message") and type(error).__name__ != "NoArgsIsHelpError":
        return 2  # typer's own: an unknown option, a missing argument
    from lesionseg.errors import InputError
    from search.errors import JobFailed

    if isinstance(error, InputError):
        return 2
    return 1 if isinstance(error, JobFailed | OutputFailed) else None


def _storage_message(error: Exception) -> str | None:
    """Return the message of a database error; None for other errors."""
    if "sqlalchemy" not in sys.modules:  # it is slow to import
        return None
    from search.storage.transient_errors import STORAGE_ERRORS, describe_error

    return f"storage: {describe_error(error)}" if isinstance(error, STORAGE_ERRORS) else None


def _group(help_text: str) -> typer.Typer:
    return typer.Typer(help=help_text, no_args_is_help=True)


def _print_version(value: bool) -> None:
    if value:
        print(f"lesionsearch {importlib.metadata.version('lesionsearch')}")
        raise typer.Exit


app = typer.Typer(
    cls=_OneLineErrors,
    help="Hyperparameter search and AutoML for skin-lesion segmentation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Hyperparameter search and AutoML for skin-lesion segmentation."""


for _function in (
    run.demo,
    run.run,
    plan.plan,
    worker.worker,
    control.status,
    control.pause,
    control.resume,
    control.stop,
    final.final,
    final.report,
    predict.predict,
    predict.export,
    dashboard.dashboard,
    options.options,
):
    app.command()(_function)

data_app = _group("Audit, download or generate data sets.")
data_app.command("check")(data.check)
data_app.command("fetch")(data.fetch)
data_app.command("synth")(data.synth)
app.add_typer(data_app, name="data")

trials_app = _group("Queue, export and import the trials of a study.")
trials_app.command("retry")(trials.retry)
trials_app.command("enqueue")(trials.enqueue)
trials_app.command("export")(trials.export_trials)
trials_app.command("import")(trials.import_trials)
app.add_typer(trials_app, name="trials")

baselines_app = _group("Train and compare the published systems.")
baselines_app.command("list")(baselines.list_baselines)
baselines_app.command("run")(baselines.run)
app.add_typer(baselines_app, name="baselines")


if __name__ == "__main__":
    app()
