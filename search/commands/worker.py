"""``lesionsearch worker``: join a study from any machine."""

from __future__ import annotations

from typing import Annotated

import typer

from search.commands.common import (
    Device,
    KeepGoing,
    MovedData,
    OptionalFolder,
    Storage,
    Threads,
    print_error,
)
from search.output import tolerant_output


@tolerant_output()
def worker(
    name: Annotated[str, typer.Argument(help="Name of the study in the storage.")],
    storage: Storage = None,
    data: MovedData = None,
    out: OptionalFolder = None,
    study: Annotated[
        str | None,
        typer.Option(help="Study file that the stored study must equal; otherwise exit."),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    share: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=1.0,
            help="Fraction of the GPU's memory, such as 0.5 for two workers.",
        ),
    ] = 1.0,
    memory_gb: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="Host memory limit in GB.", show_default="90% of the host's memory"
        ),
    ] = None,
    max_trials: Annotated[
        int | None, typer.Option(min=1, help="Exit after this number of trials.")
    ] = None,
    forever: Annotated[
        bool, typer.Option(help="Wait for more trials when the study is done.")
    ] = False,
    keep_going: KeepGoing = False,
) -> None:
    """Join a study and train its trials until it is done; SIGTERM requeues the current trial."""
    from search.errors import WORKER_BLOCKED, WorkerBlocked
    from search.storage.study_dir import default_folder
    from search.study.location import StudyLocation
    from search.trial_process.resources import default_slot
    from search.workers.loop import WorkerOptions, run_worker

    folder = out or default_folder(name)
    location = StudyLocation(name, folder, storage, tuple(data or ()) or None)
    slot = default_slot(device, threads, share=share, memory_gb=memory_gb)
    options = WorkerOptions(max_trials, forever, keep_going)
    try:
        run_worker(location, slot, study=study, options=options)
    except WorkerBlocked as error:
        print_error(error)
        raise typer.Exit(WORKER_BLOCKED) from None
