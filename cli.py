"""The command line: parse, call, print. Heavy imports wait until a command needs them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class _OneLineErrors(TyperGroup):
    """Turns what the user can mend into one line on stderr: 2 bad input, 1 failed, 130 Ctrl-C."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _one_line(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _one_line(ctx):
            return super().invoke(ctx)


@contextmanager
def _one_line(ctx: Any) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except Exception as error:
        code = _exit_code(error)
        if code is None or ctx.params.get("debug"):
            raise
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        print(f"lesionsearch: {' '.join(text.split())}", file=sys.stderr)
        raise typer.Exit(code) from None


def _exit_code(error: Exception) -> int | None:
    if hasattr(error, "format_message") and type(error).__name__ != "NoArgsIsHelpError":
        return 2  # typer's own: an unknown option, a missing argument
    if "lesionseg.errors" not in sys.modules:
        return None
    from lesionseg.errors import InputError

    if isinstance(error, InputError):
        return 2
    failed = getattr(sys.modules.get("search.errors"), "JobFailed", None)
    return 1 if failed and isinstance(error, failed) else None


app = typer.Typer(
    cls=_OneLineErrors,
    help="Hyperparameter search and AutoML for skin-lesion segmentation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Look at data, or make some.", no_args_is_help=True)
app.add_typer(data_app, name="data")
trials_app = typer.Typer(
    help="A study's trials: queue them, take them along.", no_args_is_help=True
)
app.add_typer(trials_app, name="trials")
baselines_app = typer.Typer(help="The published systems, side by side.", no_args_is_help=True)
app.add_typer(baselines_app, name="baselines")

Name = Annotated[str, typer.Argument(help="A study's folder, or its name under runs/.")]
Data = Annotated[
    list[Path],
    typer.Option(
        help="Folder of images and masks, or a CSV manifest; repeat it for several sets together.",
        show_default=False,
    ),
]
DataNow = Annotated[
    list[Path] | None,
    typer.Option("--data", help="Where the images are now, each set. [as run]"),
]
Out = Annotated[
    Path | None, typer.Option(help="The study's folder; its name names the study. [runs/STUDY]")
]
Storage = Annotated[
    str | None,
    typer.Option(
        help="Database URL, such as postgresql+psycopg://user@host/db, or @FILE that holds it; "
        "also from LESIONSEARCH_STORAGE or LESIONSEARCH_STORAGE_FILE. [study.db in the study's "
        "folder]"
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the study; may be repeated."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. [all cores]")]


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Hyperparameter search and AutoML for skin-lesion segmentation."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The study's folder.")] = Path("runs/demo"),
    images: Annotated[int, typer.Option(min=20, help="Synthetic images to make.")] = 160,
) -> None:
    """Search on synthetic lesions: study, final test and report in minutes, without a GPU."""
    from lesionseg.data.synthetic import write_dataset
    from search.monitoring import tables as show

    console = show.make_console()
    data = out.with_name(f"{out.name}-data")
    if not data.exists():
        with show.counting(console, "drawing lesions") as tick:
            write_dataset(data, images, on_progress=lambda done: tick(done, images))
    console.print(f"{images} synthetic dermoscopic images in {data}", markup=False)
    overrides = ["name=demo", "budget.trials=10", "budget.epochs=12", "fixed.batch_size=8"]
    _run("quick", [data], out, overrides, final=True)


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="A study file, or the name of a shipped study.")],
    data: Data,
    out: Out = None,
    storage: Storage = None,
    artifacts: Annotated[
        str | None,
        typer.Option(
            help="Where checkpoints and weights are kept: a folder that all hosts share, or "
            "s3://bucket/prefix. [the study's folder]"
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Budget: trials in all.")] = None,
    hours: Annotated[float | None, typer.Option(help="Budget: hours in all.")] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="Budget: hours of all GPUs.")] = None,
    set_: Set = None,
    device: Device = "auto",
    threads: Threads = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that train side by side; 0: others work. [1]"),
    ] = None,
    gpus: Annotated[str | None, typer.Option(help="GPUs to train on, such as 0,1.")] = None,
    workers_per_gpu: Annotated[int, typer.Option(min=1, help="Workers that share a GPU.")] = 1,
    engine: Annotated[str, typer.Option(help="local, ray or slurm.")] = "local",
    engine_set: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="For the engine, such as partition=gpu."),
    ] = None,
    final: Annotated[bool, typer.Option(help="Retrain, test and report at the end.")] = True,
) -> None:
    """Create a study or go on with it; at the end retrain the best, test it, write the report."""
    from search.workers.pool import make_crew

    overrides = list(set_ or [])
    for key, value in (("trials", trials), ("hours", hours), ("gpu_hours", gpu_hours)):
        overrides += [f"budget.{key}={value}"] if value is not None else []
    crew = make_crew(
        engine,
        device=device,
        threads=threads,
        workers=workers,
        gpus=gpus,
        workers_per_gpu=workers_per_gpu,
        settings=engine_set or [],
    )
    _run(study, data, out, overrides, storage=storage, artifacts=artifacts, crew=crew, final=final)


@app.command()
def worker(
    name: Annotated[str, typer.Argument(help="The study's name in the storage.")],
    storage: Storage = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Where the images are on this host; repeated for several sets. [as the study has "
            "them]"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The study's folder. [runs/NAME]")] = None,
    study: Annotated[
        str | None, typer.Option(help="A study file that the study must agree with.")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    share: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Of the GPU's memory: 0.5 where two share it.")
    ] = 1.0,
    memory_gb: Annotated[
        float | None, typer.Option(min=0.1, help="Of the host's memory. [90 %]")
    ] = None,
    max_trials: Annotated[int | None, typer.Option(min=1, help="Leave after so many.")] = None,
    forever: Annotated[bool, typer.Option(help="Wait for more where the study is done.")] = False,
) -> None:
    """Join a study and work on it until it is done; SIGTERM puts the trial at work back."""
    from lesionseg.data.sets import as_roots
    from search.study.location import StudyLocation
    from search.trial_process.resources import worker_slot
    from search.workers.process_main import run_worker

    join = StudyLocation(name, out or Path("runs") / name, storage, as_roots(data))
    slot = worker_slot(device, threads, share=share, memory_gb=memory_gb)
    run_worker(join, slot, study=study, max_trials=max_trials, forever=forever)


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="A study; without it, all.")] = None,
    storage: Storage = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Until Ctrl-C: drawn anew on a terminal, else printed.")
    ] = False,
) -> None:
    """Where a study stands: trials by state, workers, the best so far, the test."""
    import json

    from search.monitoring import live
    from search.monitoring import tables as show
    from search.monitoring.status import looking

    look = looking(name, storage)
    console = show.make_console()
    if as_json:
        found = look()
        print(json.dumps(found[0] if name else found, indent=1))
    elif watch:
        live.watch(console, lambda: look(disk=False))
    else:
        show.print_statuses(console, look())


@app.command()
def pause(name: Name, storage: Storage = None) -> None:
    """Have a study's workers put their trials down and wait."""
    _command(name, storage, "pause")


@app.command()
def resume(name: Name, storage: Storage = None) -> None:
    """Have a paused study's workers go on."""
    _command(name, storage, "run")


@app.command()
def stop(name: Name, storage: Storage = None) -> None:
    """Have a study's workers put their trials down and leave; `run` goes on with it."""
    _command(name, storage, "stop")


@app.command(name="final")
def final_(
    name: Name,
    data: DataNow = None,
    storage: Storage = None,
    again: Annotated[bool, typer.Option(help="Test once more; it is counted.")] = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Retrain a study's best configuration and test it once."""
    from lesionseg.data.sets import as_roots
    from search.monitoring import tables as show
    from search.monitoring.status import find_run
    from search.results.final_test import run_final_test
    from search.results.report import write_report
    from search.signals import sigterm_as_interrupt
    from search.storage.study_dir import locked
    from search.study.lifecycle import open_study
    from search.trial_process.resources import default_slot

    folder = find_run(name)
    with locked(folder), sigterm_as_interrupt():
        opened = open_study(folder, storage=storage, data=as_roots(data))
        report = run_final_test(opened, default_slot(device, threads), again=again)
    console = show.make_console()
    show.print_final(console, report)
    console.print(f"report: {write_report(folder, storage=storage)}", markup=False)


@app.command()
def report(
    name: Name,
    storage: Storage = None,
    formats: Annotated[
        str, typer.Option("--format", help="html, md and json, or some of them, by comma.")
    ] = "html",
    against: Annotated[
        Path | None,
        typer.Option(help="Folder of a `baselines run` on the same test images, to compare with."),
    ] = None,
) -> None:
    """Write a study's report: a page, tables for a paper, or every number for machines."""
    from search.monitoring.status import find_run
    from search.results.report import parse_formats, write_reports

    wanted = parse_formats(formats)
    for path in write_reports(find_run(name), wanted, storage=storage, against=against):
        print(path)


@app.command()
def predict(
    run: Annotated[
        str, typer.Argument(help="A study's folder or name, its final/, or a model's file.")
    ],
    images: Annotated[
        list[str], typer.Argument(help="Files, folders, or patterns such as 'skin/**/*.jpg'.")
    ],
    out: Annotated[Path, typer.Option(help="A new folder.", show_default=False)],
    masks: Annotated[
        Path | None, typer.Option(help="Folder of true masks, to tell the Dice of each image.")
    ] = None,
    overlays: Annotated[bool, typer.Option(help="Draw the outlines on the images too.")] = True,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per pass. [by their size, 16 at most]")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Mark the lesion in any images: masks, overlays and a table."""
    # Before torch is imported: its threads are to sleep, not spin, while others read and write.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from search.monitoring import tables as show
    from search.results.image_paths import find_images, find_masks
    from search.results.predict import check_out, open_final, predict_files, print_summary
    from search.signals import sigterm_as_interrupt

    check_out(out)
    found = find_images(images)
    truth = None if masks is None else find_masks(found, masks)
    segmenter, workers = open_final(run, device, threads)
    console = show.make_console()
    with sigterm_as_interrupt(), show.counting(console, "predicting") as tick:
        summary = predict_files(
            segmenter,
            found,
            out,
            masks=truth,
            overlays=overlays,
            batch_size=batch_size,
            threads=workers,
            on_image=tick,
            on_broken=_warn,
        )
    print_summary(summary, out)


@app.command()
def export(
    run: Annotated[
        str, typer.Argument(help="A study's folder or name, its final/, or a model's file.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("model.onnx"),
    check: Annotated[
        Path | None, typer.Option(help="Folder of images to compare with torch on. [synthetic]")
    ] = None,
) -> None:
    """Write a study's final model as ONNX, checked against torch; needs the extra onnx."""
    from search.results.image_paths import find_images
    from search.results.onnx_export import export_model
    from search.results.predict import open_final

    segmenter, _ = open_final(run, "cpu")
    images = None if check is None else find_images([str(check)])
    print(export_model(segmenter, out, images).told())


@app.command()
def dashboard(
    name: Annotated[
        str | None, typer.Argument(help="A study; without it, all of the storage.")
    ] = None,
    storage: Storage = None,
    out: Annotated[Path | None, typer.Option(help="The study's folder. [runs/NAME]")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than this host need the password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8080,
    password_file: Annotated[
        Path | None,
        typer.Option(help="A file of one line; also from LESIONSEARCH_DASHBOARD_PASSWORD."),
    ] = None,
    public: Annotated[
        str | None,
        typer.Option(help="Origin that a reverse proxy shows it under: https://lab.example."),
    ] = None,
    allow_edit: Annotated[bool, typer.Option("--allow-edit", help="Let notes be written.")] = False,
) -> None:
    """Show studies in the browser: trials, curves, pictures, notes, figures."""
    from search.monitoring.dashboard.access import Reach, read_password

    reach = Reach(host, port, read_password(password_file), public, allow_edit)
    from search.monitoring.dashboard.server import Dashboard, find

    def told(line: str) -> None:
        print(f"lesionsearch: {line}", file=sys.stderr)

    shown = Dashboard(find(name, storage, out), reach, told)
    shown.serve(lambda url: print(f"dashboard: {url} (Ctrl-C ends it)", flush=True))


@app.command()
def options(
    family: Annotated[str | None, typer.Argument(help="One family only.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="As docs/options.md.")] = False,
) -> None:
    """Every model, loss, augmentation, mix, optimizer, schedule and setting, with its ranges."""
    from lesionseg.errors import InputError, nearest
    from lesionseg.registry import FAMILIES
    from search.monitoring import tables as show

    if family is not None and family not in FAMILIES:
        raise InputError(f"options: unknown family {family!r} ({nearest(family, FAMILIES)})")
    chosen = {family: FAMILIES[family]} if family else FAMILIES
    if markdown:
        from search.spec.options_reference import options_markdown

        print(options_markdown(chosen), end="")
        return
    show.print_options(show.make_console(), chosen)


@data_app.command(name="check")
def data_check(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="Folder or CSV manifest.")],
    layout: Annotated[str, typer.Option(help="The layout's name; auto finds out.")] = "auto",
    against: Annotated[
        list[Path] | None,
        typer.Option(help="A data set that is to share no picture with it; may be repeated."),
    ] = None,
    json_: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="All that was found, for machines."),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="A picture of all suspects.")
    ] = None,
) -> None:
    """Read every pair of a data set; say what is there, what is wrong, and what leaks (exit 1)."""
    from lesionseg.data.duplicates.leaks import audit_sets
    from lesionseg.viz.contact_sheet import draw_suspects
    from search.monitoring import tables as show
    from search.study.data_audit import check_files, refuse_leaks, write_json

    check_files(json_, sheet)
    console = show.make_console()
    with show.counting(console, "reading pairs") as tick:
        found = audit_sets([root, *(against or [])], layout, on_progress=tick)
    show.print_check(console, found)
    if json_:
        write_json(found, json_)
    if sheet:
        console.print(f"{draw_suspects(found, sheet)} suspects: {sheet}", markup=False)
    refuse_leaks(found)


@data_app.command(name="fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="isic2016, isic2017, isic2018 or ham10000.")],
    root: Annotated[Path, typer.Option(help="The data set's folder.")],
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="You have read the licence and accept it.")
    ] = False,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Where else the owner's files lie.")
    ] = None,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Leave them in .fetch/ when unpacked.")
    ] = False,
) -> None:
    """Fetch a public data set from its owner; started again, it goes on where it was."""
    from lesionseg.data.download.fetch import fetch
    from lesionseg.data.download.http import FetchFailed
    from lesionseg.data.index import DatasetIndex
    from search.errors import JobFailed
    from search.monitoring import tables as show

    with show.fetching(show.make_console()) as tick:
        try:
            fetch(
                name,
                root,
                accept=accept_license,
                base=mirror,
                keep_archives=keep_archives,
                on_progress=tick,
            )
        except FetchFailed as error:
            raise JobFailed(f"data fetch: {error}") from error
    index = DatasetIndex.read(root, name)
    print(f"{len(index.records)} pairs in {root}")


@data_app.command(name="synth")
def data_synth(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    n: Annotated[int, typer.Option("-n", "--number", help="Images to make.")] = 160,
    seed: Annotated[int, typer.Option(help="The same seed makes the same images.")] = 0,
    height: Annotated[int, typer.Option(help="In pixels.")] = 384,
    width: Annotated[int, typer.Option(help="In pixels.")] = 512,
) -> None:
    """Make synthetic dermoscopic images with exact masks, in the ISIC 2018 layout."""
    from lesionseg.data.synthetic import write_dataset
    from lesionseg.errors import InputError
    from search.monitoring import tables as show

    with show.counting(show.make_console(), "drawing lesions") as tick:
        try:
            write_dataset(
                root, n, seed=seed, height=height, width=width, on_progress=lambda i: tick(i, n)
            )
        except (ValueError, OSError) as error:
            raise InputError(f"data synth: {error}") from error
    print(f"{n} images and masks in {root}")


@trials_app.command(name="retry")
def trials_retry(
    name: Name,
    numbers: Annotated[list[int], typer.Argument(help="Trials that have ended.")],
    storage: Storage = None,
) -> None:
    """Queue trials once more, with the same configurations."""
    from search.study.queue import retry, room

    found = _records(name, storage)
    made = retry(found, numbers)
    _queued(made, room(found))


@trials_app.command(name="enqueue")
def trials_enqueue(
    name: Name,
    file: Annotated[Path, typer.Argument(help="YAML: a configuration, or a list of them.")],
    storage: Storage = None,
) -> None:
    """Queue configurations of your own: parameters, whole ones, or `baseline: NAME`."""
    from search.spec.study_spec import spec_from
    from search.study.queue import enqueue, room

    found = _records(name, storage)
    spec = spec_from(found.user_attrs["spec"], f"study {found.study_name!r}")
    _queued(enqueue(found, spec, file), room(found))


@trials_app.command(name="export")
def trials_export(
    name: Name,
    file: Annotated[Path | None, typer.Argument(help="Where to. [standard output]")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="A row a trial, for spreadsheets.")] = False,
    storage: Storage = None,
) -> None:
    """Write a study with all of its trials as JSON lines."""
    from search.study.transfer_files import export_to

    export_to(_records(name, storage), file, csv=csv)


@trials_app.command(name="import")
def trials_import(
    file: Annotated[Path, typer.Argument(help="What `trials export` wrote.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Where the images are now. [known when it is run]"),
    ] = None,
    out: Out = None,
    storage: Storage = None,
) -> None:
    """Make a study of JSON lines; `run` goes on with it."""
    from lesionseg.data.sets import as_roots
    from search.study.transfer_files import import_from

    print(import_from(file, out, storage, as_roots(data)))


@baselines_app.command(name="list")
def baselines_list() -> None:
    """The baselines: where each is from and what it is."""
    from search.monitoring import tables as show
    from search.spec import baselines

    show.print_baselines(show.make_console(), [baselines.baseline(n) for n in baselines.names()])


@baselines_app.command(name="run")
def baselines_run(
    data: Data,
    only: Annotated[
        list[str] | None, typer.Option(help="Baselines, by comma; may be repeated. [all]")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 40,
    image_size: Annotated[int, typer.Option(min=16, help="Side in pixels.")] = 256,
    repeats: Annotated[int, typer.Option(min=1, help="Trainings of each baseline.")] = 1,
    out: Annotated[Path, typer.Option(help="The study's folder.")] = Path("runs/baselines"),
    storage: Storage = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of data, or seed."),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Train the published systems under one budget, test each, and write one table."""
    from lesionseg.data.sets import some_roots
    from search.monitoring import tables as show
    from search.run_baselines import make_spec, run_baselines

    console = show.make_console()
    spec = make_spec(image_size, epochs, set_ or [])
    names = [name.strip() for each in only or [] for name in each.split(",") if name.strip()]
    with _told_how_to_go_on(console):
        rows = run_baselines(
            console,
            spec,
            some_roots(data),
            out,
            only=names,
            repeats=repeats,
            storage=storage,
            device=device,
            threads=threads,
        )
    show.print_baseline_table(console, rows)
    console.print(f"table and figures: {out}", markup=False)


def _run(
    study: str,
    data: list[Path],
    out: Path | None,
    overrides: list[str],
    *,
    storage: str | None = None,
    artifacts: str | None = None,
    crew: Any = None,
    final: bool,
) -> None:
    from lesionseg.data.sets import some_roots
    from search.monitoring import tables as show
    from search.run_study import Place, run_study
    from search.spec.study_spec import load_spec
    from search.workers.pool import make_crew

    console = show.make_console()
    spec = load_spec(study, overrides)
    place = Place(out or Path("runs") / spec.name, storage, artifacts)
    with _told_how_to_go_on(console):
        run_study(console, spec, some_roots(data), place, crew or make_crew(), final=final)


def _warn(error: Exception) -> None:
    print(f"lesionsearch: {' '.join(str(error).split())}", file=sys.stderr)


def _records(name: str, storage: str | None) -> Any:
    from search.monitoring.status import find_run
    from search.study.lifecycle import open_records

    return open_records(find_run(name), storage=storage)[0]


def _command(name: str, storage: str | None, word: Any) -> None:
    from search.storage.leases import TrialLeases

    ledger = TrialLeases(_records(name, storage))
    ledger.command = word
    there = len(ledger.workers())
    print(f"{name}: {there} worker{'s' if there != 1 else ''} told to {word}")


def _queued(numbers: list[int], room: int) -> None:
    print(f"queued as trial{'s' if len(numbers) != 1 else ''} {', '.join(map(str, numbers))}")
    if room < len(numbers):
        print(f"the budget has room for {max(0, room)} of them; `run` with a larger --trials")


@contextmanager
def _told_how_to_go_on(console: Any) -> Iterator[None]:
    """Says, where work is interrupted, which command goes on with it."""
    try:
        yield
    except KeyboardInterrupt:
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        told = f"interrupted; nothing finished is lost. Go on with:\n  {command}"
        console.print(told, markup=False, soft_wrap=True)
        raise


if __name__ == "__main__":
    app()
