"""Synthetic dermoscopic images of skin lesions with exact masks.

An image is composed in the order of the real scene: skin, lesion, artefacts, camera. The mask is
the set of pixels where the lesion covers more than one half; artefacts do not change it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lesionseg.data.synthetic.composition import Sample, render

__all__ = ["IMAGE_FOLDER", "MASK_FOLDER", "Sample", "render", "write_dataset"]

IMAGE_FOLDER = "ISIC2018_Task1-2_Training_Input"
MASK_FOLDER = "ISIC2018_Task1_Training_GroundTruth"


def write_dataset(
    root: Path,
    n: int,
    *,
    seed: int = 0,
    height: int = 384,
    width: int = 512,
    on_progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write images and masks (0 and 255) to a new folder, completely or not at all.

    The folder has the layout of the ISIC 2018 segmentation challenge.
    Image i is named ``SYNTH_000000i`` and depends on ``seed`` and i only: a larger set begins with
    the smaller one.

    Args:
        root: the folder; it may exist if it is empty.
        n: number of images, at least 1.
        seed: 0 or more.
        height: in pixels, at least 32.
        width: in pixels, at least 32.
        on_progress: called after each image with the number written.

    Raises:
        ValueError: an argument is out of range, or ``root`` is a file or not empty.
        OSError: a file cannot be written.
    """
    root = root.resolve()
    if n < 1 or seed < 0:
        raise ValueError(f"n must be at least 1 and seed 0 or more, got {n} and {seed}")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"root must be a new or empty folder, got {root}")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        part = Path(scratch) / root.name
        (part / IMAGE_FOLDER).mkdir(parents=True)
        (part / MASK_FOLDER).mkdir()
        for index in range(n):
            image_seed = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]
            sample = render(int(image_seed), height, width)
            stem = f"SYNTH_{index:07d}"
            _write(part / IMAGE_FOLDER / f"{stem}.jpg", sample.image[..., ::-1])
            _write(part / MASK_FOLDER / f"{stem}_segmentation.png", sample.mask)
            on_progress(index + 1)
        if root.exists():
            root.rmdir()
        part.rename(root)


def _write(path: Path, pixels: NDArray[np.uint8]) -> None:
    options = [cv2.IMWRITE_JPEG_QUALITY, 92] if path.suffix == ".jpg" else []
    encoded, data = cv2.imencode(path.suffix, np.ascontiguousarray(pixels), options)
    if not encoded:
        raise OSError(f"cannot encode an image of shape {pixels.shape} as {path.suffix}")
    path.write_bytes(data.tobytes())
