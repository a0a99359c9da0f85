"""``lesionsearch predict`` and ``export``: segment images with a final model; write it as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.commands.common import Device, ModelSource, Threads, print_error
from search.output import tolerant_output


@tolerant_output()
def predict(
    run: ModelSource,
    images: Annotated[
        list[str], typer.Argument(help="Files, folders, or patterns such as 'skin/**/*.jpg'.")
    ],
    out: Annotated[Path, typer.Option(help="A new folder.", show_default=False)],
    masks: Annotated[
        Path | None, typer.Option(help="Folder of true masks, to compute the Dice of each image.")
    ] = None,
    overlays: Annotated[bool, typer.Option(help="Also write images with outlines.")] = True,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty", help="Also write where the members of an ensemble disagree, as images."
        ),
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images per batch.", show_default="by their size, at most 16"),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Segment the lesion in any images: masks, overlays and a table."""
    from lesionseg.runtime.openmp import limit_spinning

    limit_spinning()  # before torch is imported
    from search.errors import JobFailed
    from search.monitoring.console import make_console, progress_bar
    from search.results.image_paths import find_images, find_masks
    from search.results.predict import check_output_folder, load_final_model, write_predictions
    from search.results.tables import print_prediction_summary
    from search.signals import SignalHandler

    check_output_folder(out)
    paths = find_images(images)
    mask_paths = None if masks is None else find_masks(paths, masks)
    segmenter, n_threads = load_final_model(run, device, threads)
    console = make_console()
    with SignalHandler().installed(), progress_bar(console, "predicting") as tick:
        summary = write_predictions(
            segmenter,
            paths,
            out,
            masks=mask_paths,
            overlays=overlays,
            uncertainty=uncertainty,
            batch_size=batch_size,
            threads=n_threads,
            on_image=tick,
            on_error=print_error,
        )
    print_prediction_summary(console, summary, out)
    if summary.unusable:
        raise JobFailed(
            f"predict: {summary.unusable} of {len(paths)} images are unusable, see above"
        )


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
