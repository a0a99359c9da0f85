"""``lesionsearch run`` and ``demo``: create or resume a study, then retrain, test and report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search.commands.common import (
    Data,
    Device,
    KeepGoing,
    OutputFolder,
    Overrides,
    Storage,
    Threads,
    resume_hint,
)
from search.output import tolerant_output

if TYPE_CHECKING:
    from rich.console import Console

    from search.spec.study_spec import StudySpec
    from search.workers.pool import WorkerPool

#: What differs from the study ``quick`` in the demo.
DEMO_OVERRIDES = ["name=demo", "budget.trials=10", "budget.epochs=12", "fixed.batch_size=8"]
DEMO_IMAGES = 160


@tolerant_output()
def run(
    study: Annotated[
        str,
        typer.Argument(
            help="A study file, the name of a shipped study, or auto for one that is planned for "
            "the images, this machine and --hours."
        ),
    ],
    data: Data,
    out: OutputFolder = None,
    storage: Storage = None,
    artifacts: Annotated[
        str | None,
        typer.Option(
            help="Where checkpoints and weights are kept: a folder that all hosts share, or "
            "s3://bucket/prefix.",
            show_default="the study's folder",
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Budget: total number of trials.")] = None,
    hours: Annotated[
        float | None,
        typer.Option(help="Budget: total hours; for auto, of the search and the final test."),
    ] = None,
    quality: Annotated[
        str | None,
        typer.Option(help="For auto: fast, balanced or best.", show_default="balanced"),
    ] = None,
    gpu_hours: Annotated[
        float | None, typer.Option(help="Budget: total GPU hours of all workers.")
    ] = None,
    set_: Overrides = None,
    device: Device = "auto",
    threads: Threads = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Parallel CPU workers; 0: only workers started elsewhere.",
            show_default="1; for auto, up to 4",
        ),
    ] = None,
    gpus: Annotated[str | None, typer.Option(help="GPUs to train on, such as 0,1.")] = None,
    workers_per_gpu: Annotated[int, typer.Option(min=1, help="Workers that share a GPU.")] = 1,
    engine: Annotated[str, typer.Option(help="local, ray or slurm.")] = "local",
    engine_set: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Setting of the engine, such as partition=gpu."),
    ] = None,
    final: Annotated[
        bool, typer.Option(help="Retrain the best configuration, test it and write the report.")
    ] = True,
    keep_going: KeepGoing = False,
) -> None:
    """Create or resume a study; at the end retrain the best configuration, test it and report."""
    started_at = time.monotonic()
    from lesionseg.errors import InputError
    from search.monitoring.console import make_console
    from search.run_study import run_study
    from search.spec.loading import load_spec
    from search.trial_process.resources import planned_workers
    from search.workers.pool import make_worker_pool

    is_auto = study == "auto"
    if quality is not None and not is_auto:
        raise InputError("--quality: only `run auto` plans a study; leave it out")
    limit = "total_hours" if is_auto else "hours"
    budget = {"trials": trials, limit: hours, "gpu_hours": gpu_hours}
    overrides = list(set_ or [])
    overrides += [f"budget.{key}={value}" for key, value in budget.items() if value is not None]
    if is_auto and workers is None and engine == "local":
        workers = planned_workers(device, threads, gpus=gpus, workers_per_gpu=workers_per_gpu)
    pool = make_worker_pool(
        engine,
        device=device,
        threads=threads,
        workers=workers,
        gpus=gpus,
        workers_per_gpu=workers_per_gpu,
        settings=engine_set or [],
        keep_going=keep_going,
    )
    console = make_console()
    with resume_hint(console):
        if is_auto:
            spec, folder = _plan(
                console, data, hours, quality or "balanced", overrides, out, storage, pool,
                started_at,
            )  # fmt: skip
        else:
            spec = load_spec(study, overrides)
            folder = out or Path("runs") / spec.name
        run_study(
            console, spec, tuple(data), folder, pool,
            storage=storage, artifacts=artifacts, final=final, started_at=started_at,
        )  # fmt: skip


def _plan(
    console: Console,
    data: list[Path],
    hours: float | None,
    quality: str,
    overrides: list[str],
    out: Path | None,
    storage: str | None,
    pool: WorkerPool,
    started_at: float,
) -> tuple[StudySpec, Path]:
    """Return the study of ``run auto`` and its folder."""
    from lesionseg.errors import InputError
    from search.planning.planner import Planned, plan_study
    from search.planning.resuming import auto_folder, load_or_plan
    from search.spec.loading import apply_overrides, parse_spec

    if pool.engine != "local" or not pool.slots:
        raise InputError(
            "run auto: plans for workers of this machine; for others, write a study with "
            "`lesionsearch plan -o FILE` on one of them and run that file"
        )
    folder = auto_folder(out, overrides)

    def plan() -> Planned:
        if hours is None:
            raise InputError("--hours: `run auto` needs the time of the whole job, such as 0.5")
        data_overrides = [each for each in overrides if each.startswith("data.")]
        plain = {"name": "auto", **apply_overrides({}, data_overrides)}
        return plan_study(
            tuple(data), hours, quality, pool.slots,
            data_spec=parse_spec(plain, "the plan").data, started_at=started_at,
            on_anchor=lambda name: console.print(f"measuring {name} on {pool.slots[0].device}"),
        )  # fmt: skip

    def show(line: str) -> None:
        console.print(line, markup=False)

    return load_or_plan(folder, storage, overrides, plan, show), folder


@tolerant_output()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("runs/demo"),
    images: Annotated[
        int | None, typer.Option(min=20, help="Number of synthetic images.", show_default="160")
    ] = None,
) -> None:
    """Run a search on synthetic lesions: study, test evaluation and report, in minutes on a CPU."""
    from lesionseg.data.index import DatasetIndex
    from lesionseg.data.synthetic import write_dataset
    from lesionseg.errors import InputError
    from search.monitoring.console import make_console, progress_bar

    console = make_console()
    data = out.with_name(f"{out.name}-data")
    if not data.exists():
        n = images or DEMO_IMAGES
        with progress_bar(console, "drawing lesions") as tick:
            write_dataset(data, n, on_progress=lambda done: tick(done, n))
    n = len(DatasetIndex.read(data).records)
    if images not in {None, n}:
        raise InputError(
            f"--images: {data} has {n} images already, got {images}; omit it to use them, or give "
            f"another --out"
        )
    console.print(f"{n} synthetic dermoscopic images in {data}", markup=False)
    run("quick", [data], out, set_=DEMO_OVERRIDES)
