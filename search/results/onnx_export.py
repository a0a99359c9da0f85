"""Export of a final model as ONNX file, verified against torch."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from lesionseg.data.image_io import Pixels, read_image_and_size, resize_square
from lesionseg.data.synthetic import render
from lesionseg.errors import InputError
from lesionseg.inference.onnx_export import compare_with_torch, export_onnx, require_onnx
from lesionseg.inference.predictor import Segmenter
from lesionseg.runtime.files import atomic_path
from search.errors import JobFailed
from search.storage.study_dir import create_folder

#: Largest accepted difference in probability between ONNX Runtime and torch.
TOLERANCE = 1e-3
#: Images that the file is compared on.
MAX_IMAGES = 16


def export_model(
    segmenter: Segmenter, out: Path, check: list[Path] | None = None, **metadata: str
) -> str:
    """Write an ONNX file if it agrees with torch, otherwise nothing; return a line about it.

    Args:
        segmenter: the model.
        out: ends in .onnx; an existing file is replaced.
        check: images to compare with torch on; synthetic ones by default.
        metadata: further metadata of the file.

    Raises:
        InputError: see ``lesionseg.inference.onnx_export.export_onnx``; ``out`` cannot be written;
            or an image in ``check`` cannot be read.
        JobFailed: the difference from torch exceeds TOLERANCE.
    """
    require_onnx()
    if out.suffix.lower() != ".onnx" or os.path.isdir(out):
        raise InputError(f"--out: must be a file that ends in .onnx, got {str(out)!r}")
    images = _read_images(segmenter.image_size, check)
    create_folder(out.absolute().parent)
    try:
        with atomic_path(out) as partial:
            export_onnx(segmenter, partial, metadata)
            comparison = compare_with_torch(segmenter, partial, images)
            if not comparison.max_difference <= TOLERANCE:  # also if it is NaN
                raise JobFailed(
                    f"export: {segmenter.config.model.name}: ONNX Runtime differs from torch by "
                    f"{comparison.max_difference:.2g} in probability; the limit is {TOLERANCE:g}"
                )
    except OSError as error:
        raise JobFailed(f"export: {out} cannot be written: {error.strerror or error}") from error
    kind = "of the given" if check else "synthetic"
    return (
        f"{out} ({out.stat().st_size / 1e6:.1f} MB); compared with torch on {len(images)} {kind} "
        f"images: largest difference in probability {comparison.max_difference:.1e}, "
        f"mean Dice between the masks {comparison.mean_dice:.4f}"
    )


def _read_images(size: int, paths: list[Path] | None) -> Pixels:
    """Return at most MAX_IMAGES images, uint8 [N, size, size, 3]."""
    if not paths:
        rendered = (Image.fromarray(render(seed).image) for seed in range(MAX_IMAGES))
        return np.stack([resize_square(image, size) for image in rendered])
    # Evenly spaced, because neighbours are often similar.
    indices = np.linspace(0, len(paths) - 1, min(MAX_IMAGES, len(paths))).round().astype(int)
    images = (read_image_and_size(paths[i], size)[0] for i in indices)
    return np.stack([resize_square(image, size) for image in images])
