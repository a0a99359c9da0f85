"""``lesionsearch data``: audit, download or generate a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from search.output import tolerant_output


def check(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="Folder or CSV manifest.")],
    layout: Annotated[str, typer.Option(help="Name of the layout; auto detects it.")] = "auto",
    against: Annotated[
        list[Path] | None,
        typer.Option(help="A data set that must not share images with DIR. Repeatable."),
    ] = None,
    json_: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all findings as JSON.")
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Write a contact sheet of all suspect images."),
    ] = None,
    invert_masks: Annotated[
        bool, typer.Option("--invert-masks", help="In the masks of DIR, black is lesion.")
    ] = False,
) -> None:
    """Read every pair of a data set; report counts, defects and leakage; exit with 1 on leaks."""
    from lesionseg.data.duplicates.leakage import audit_datasets
    from lesionseg.viz.contact_sheet import draw_contact_sheet
    from search.monitoring.console import make_console, progress_bar
    from search.monitoring.tables import print_leakage_report
    from search.study.data_audit import check_output_files, raise_on_leaks

    check_output_files(json_, sheet)
    console = make_console()
    with progress_bar(console, "reading pairs") as tick:
        found = audit_datasets(
            [root, *(against or [])], layout, on_progress=tick, invert_masks=invert_masks
        )
    print_leakage_report(console, found)
    if json_:
        json_.write_text(json.dumps(found.to_dict(), indent=1), encoding="utf-8")
    if sheet:
        console.print(f"{draw_contact_sheet(found, sheet)} suspects: {sheet}", markup=False)
    raise_on_leaks(found)


@tolerant_output()
def fetch(
    name: Annotated[str, typer.Argument(help="isic2016, isic2017, isic2018 or ham10000.")],
    root: Annotated[Path, typer.Option(help="Folder of the data set.")],
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="Accept the licence of the data set.")
    ] = False,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Download the files from another server.")
    ] = None,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Keep the archives in .fetch/.")
    ] = False,
) -> None:
    """Download a public data set from its owner's server; run the command again to resume."""
    from lesionseg.data.download.fetch import fetch_dataset
    from lesionseg.data.download.http import DownloadError
    from lesionseg.data.index import DatasetIndex
    from search.errors import JobFailed
    from search.monitoring.console import download_bars, make_console

    with download_bars(make_console()) as tick:
        try:
            fetch_dataset(
                name,
                root,
                accept_license=accept_license,
                base_url=mirror,
                keep_archives=keep_archives,
                on_progress=tick,
            )
        except DownloadError as error:
            raise JobFailed(f"data fetch: {error}") from error
    print(f"{len(DatasetIndex.read(root, name).records)} pairs in {root}")


def synth(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="Number of images.")] = 160,
    seed: Annotated[int, typer.Option(min=0, help="Seed; equal seeds give equal images.")] = 0,
    height: Annotated[int, typer.Option(min=32, help="Height in pixels.")] = 384,
    width: Annotated[int, typer.Option(min=32, help="Width in pixels.")] = 512,
) -> None:
    """Write synthetic dermoscopic images with exact masks, in the ISIC 2018 layout."""
    from lesionseg.data.synthetic import write_dataset
    from lesionseg.errors import InputError
    from search.monitoring.console import make_console, progress_bar

    with progress_bar(make_console(), "drawing lesions") as tick:
        try:
            write_dataset(
                root, n, seed=seed, height=height, width=width, on_progress=lambda i: tick(i, n)
            )
        except (ValueError, OSError) as error:
            raise InputError(f"data synth: {error}") from error
    print(f"{n} images and masks in {root}")
