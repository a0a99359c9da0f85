"""``lesionsearch trials retry`` and ``trials enqueue``: add trials to a study's queue."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.commands.common import Storage, StudyName, load_study


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
