"""``lesionsearch plan``: print the study that fits the images, this machine and the time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.commands.common import Data, Device, Threads
from search.output import tolerant_output

Quality = Annotated[
    str,
    typer.Option(
        help="fast: one network, which predicts fastest; balanced; best: more trainings and a "
        "larger ensemble."
    ),
]


@tolerant_output()
def plan(
    data: Data,
    hours: Annotated[
        float,
        typer.Option(help="Time of the whole job, search and final test.", show_default=False),
    ],
    quality: Quality = "balanced",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write the study to.", show_default="stdout"),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Parallel CPU workers.", show_default="up to 4")
    ] = None,
    gpus: Annotated[str | None, typer.Option(help="GPUs to train on, such as 0,1.")] = None,
    workers_per_gpu: Annotated[int, typer.Option(min=1, help="Workers that share a GPU.")] = 1,
) -> None:
    """Plan a study for a time: measure this machine and print a study file to edit and run."""
    import sys

    from search.planning.planner import plan_study
    from search.trial_process.resources import local_slots, planned_workers

    if workers is None:
        workers = planned_workers(device, threads, gpus=gpus, workers_per_gpu=workers_per_gpu)
    slots = local_slots(
        device, threads, workers=workers, gpus=gpus, workers_per_gpu=workers_per_gpu
    )

    def show(name: str) -> None:
        print(f"measuring {name} on {slots[0].device}", file=sys.stderr)

    text = plan_study(tuple(data), hours, quality, slots, on_anchor=show).render()
    if output is None:
        print(text, end="")
        return
    write_text(output, text)
    options = {
        "device": None if device == "auto" else device,
        "threads": threads,
        "workers": workers,
        "gpus": gpus,
        "workers-per-gpu": None if workers_per_gpu == 1 else workers_per_gpu,
    }
    given = "".join(f" --{name} {value}" for name, value in options.items() if value is not None)
    print(f"{output}: run it with `lesionsearch run {output} --data ...{given}`")


def write_text(path: Path, text: str) -> None:
    """Write a file; InputError if that fails."""
    from lesionseg.errors import InputError
    from lesionseg.runtime.files import atomic_write

    try:
        atomic_write(path, text)
    except OSError as error:
        raise InputError(
            f"--output: {path} cannot be written: {error.strerror or error}; give another path"
        ) from None
