"""``lesionsearch data synth``: write synthetic images and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def synth(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    n: Annotated[int, typer.Option("-n", "--number", help="Number of images.")] = 160,
    seed: Annotated[int, typer.Option(help="Seed; equal seeds give equal images.")] = 0,
    height: Annotated[int, typer.Option(help="Height in pixels.")] = 384,
    width: Annotated[int, typer.Option(help="Width in pixels.")] = 512,
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
