"""``lesionsearch demo``: the main job on synthetic images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

#: What differs from the study ``quick``.
OVERRIDES = ("name=demo", "budget.trials=10", "budget.epochs=12", "fixed.batch_size=8")


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("runs/demo"),
    images: Annotated[int, typer.Option(min=20, help="Number of synthetic images.")] = 160,
) -> None:
    """Run a search on synthetic lesions: study, test evaluation and report, in minutes on a CPU."""
    from lesionseg.data.synthetic import write_dataset
    from search.commands.run import start_study
    from search.monitoring.console import make_console, progress_bar

    console = make_console()
    data = out.with_name(f"{out.name}-data")
    if not data.exists():
        with progress_bar(console, "drawing lesions") as tick:
            write_dataset(data, images, on_progress=lambda done: tick(done, images))
    console.print(f"{images} synthetic dermoscopic images in {data}", markup=False)
    start_study("quick", [data], out, list(OVERRIDES))
