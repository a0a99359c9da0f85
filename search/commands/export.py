"""``lesionsearch export``: write a final model as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.commands.common import ModelSource


def export(
    run: ModelSource,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("model.onnx"),
    check: Annotated[
        Path | None,
        typer.Option(
            help="Folder of images on which the outputs of ONNX and torch are compared.",
            show_default="synthetic",
        ),
    ] = None,
) -> None:
    """Write a final model as ONNX and compare it with torch. Needs the extra 'onnx'."""
    from search.results.image_paths import find_images
    from search.results.onnx_export import export_model
    from search.results.predict import load_final_model

    segmenter, _ = load_final_model(run, "cpu")
    images = None if check is None else find_images([str(check)])
    print(export_model(segmenter, out, images))
