"""export: a study's final model as ONNX, not given out before it agrees with torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lesionseg.data.image_io import Pixels, enough, read_image, squeeze
from lesionseg.data.synthetic import render
from lesionseg.errors import InputError
from lesionseg.inference.onnx_export import Check, compare, export_onnx, need_onnx
from lesionseg.inference.predictor import Segmenter
from search.errors import JobFailed
from search.storage.study_dir import create_folder

#: The largest difference in probability from torch that is let through.
TOLERANCE = 1e-3
#: Images that the file is checked on, at most.
IMAGES = 16


@dataclass(frozen=True)
class Exported:
    """What was written: the file, its size in bytes, and how it was checked."""

    path: Path
    size: int
    check: Check
    on: str

    def told(self) -> str:
        """The same in one line."""
        return (
            f"{self.path} ({self.size / 1e6:.1f} MB); on {self.on} it differs from torch by "
            f"{self.check.largest:.1e} in probability at most, Dice between the masks "
            f"{self.check.agreement:.4f}"
        )


def export_model(
    segmenter: Segmenter, out: Path, check: list[Path] | None = None, **about: str
) -> Exported:
    """Writes the file ``out``, or nothing.

    Args:
        segmenter: the model.
        out: ends in .onnx; a file that is there is replaced.
        check: pictures to compare the file with torch on; synthetic ones without.
        about: more metadata.

    Raises:
        InputError: as ``lesionseg.inference.onnx_export.export_onnx``; ``out`` cannot be written; a picture of
            ``check`` cannot be read.
        Failed: the file differs from torch by more than TOLERANCE.
    """
    need_onnx()
    _check_out(out)
    images = _images(segmenter.image_size, check)
    create_folder(out.absolute().parent)
    partial = out.with_name(f".{out.name}.partial")
    try:
        export_onnx(segmenter, partial, about)
        found = compare(segmenter, partial, images)
        if not found.largest <= TOLERANCE:
            raise JobFailed(
                f"export: {segmenter.config.model.name}: ONNX Runtime differs from torch by "
                f"{found.largest:.2g} in probability, at most {TOLERANCE:g} is let through"
            )
        os.replace(partial, out)
    except OSError as error:
        raise JobFailed(f"export: {out} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
    on = f"{len(images)} of the images" if check else f"{len(images)} synthetic images"
    return Exported(out, out.stat().st_size, found, on)


def _check_out(out: Path) -> None:
    if out.suffix.lower() != ".onnx" or out.is_dir():
        raise InputError(f"--out: must be a file that ends in .onnx, got {str(out)!r}")


def _images(size: int, check: list[Path] | None) -> Pixels:
    if check:
        # Spread over all that are there, since neighbours are often alike.
        chosen = np.linspace(0, len(check) - 1, min(IMAGES, len(check))).round().astype(int)
        return np.stack([squeeze(read_image(check[i], draft=enough(size)), size) for i in chosen])
    drawn = (Image.fromarray(render(seed).image) for seed in range(IMAGES))
    return np.stack([squeeze(image, size) for image in drawn])
