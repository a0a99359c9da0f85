"""``lesionsearch data fetch``: download a public data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
    """Download a public data set from its owner's server; a second call resumes."""
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
