"""Write synthetic pictures in the folder layout of the ISIC 2018 segmentation challenge."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lesionseg.data.synthetic._render import check_drawable, render

IMAGE_FOLDER = "ISIC2018_Task1-2_Training_Input"
MASK_FOLDER = "ISIC2018_Task1_Training_GroundTruth"
_JPEG_QUALITY = 92


def write_dataset(
    root: Path,
    n: int,
    *,
    seed: int = 0,
    height: int = 384,
    width: int = 512,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Write `n` pictures and masks under `root`, whole or not at all.

    Picture i is `ISIC2018_Task1-2_Training_Input/SYNTH_000000i.jpg` and its mask
    `ISIC2018_Task1_Training_GroundTruth/SYNTH_000000i_segmentation.png`, 0 and 255. What picture
    i shows depends on `seed` and i alone, so a larger set begins with the smaller one. The set
    is built in a temporary folder beside `root` and moved into place when complete.

    Args:
        root: the folder to make; it may exist if it is empty.
        n: how many pictures, at least 1.
        seed: any whole number from 0.
        height: rows of each picture, at least 32.
        width: columns of each picture, at least 32.
        on_progress: called after each picture with how many are written so far.

    Raises:
        ValueError: An argument is outside the limits above, or `root` is a file or not empty.
        OSError: The disk refuses a file.
    """
    root = root.resolve()
    _check_request(root, n)
    check_drawable(seed, height, width)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as holder:
        staged = Path(holder) / root.name
        (staged / IMAGE_FOLDER).mkdir(parents=True)
        (staged / MASK_FOLDER).mkdir()
        for index in range(n):
            _write_pair(staged, index, _seed_of(seed, index), height, width)
            if on_progress is not None:
                on_progress(index + 1)
        if root.exists():
            root.rmdir()
        staged.rename(root)


def _check_request(root: Path, n: int) -> None:
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}: ask for one picture or more")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(
            f"root must be a new or empty folder, got {root}, which is not: "
            "name another folder or empty this one first"
        )


def _seed_of(seed: int, index: int) -> int:
    """The seed of picture `index` of the set `seed`."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0])


def _write_pair(root: Path, index: int, seed: int, height: int, width: int) -> None:
    sample = render(seed, height, width)
    name = f"SYNTH_{index:07d}"
    bgr = np.ascontiguousarray(sample.image[..., ::-1])
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    (root / IMAGE_FOLDER / f"{name}.jpg").write_bytes(_encode(".jpg", bgr, quality))
    (root / MASK_FOLDER / f"{name}_segmentation.png").write_bytes(_encode(".png", sample.mask, []))


def _encode(extension: str, pixels: NDArray[np.uint8], options: list[int]) -> bytes:
    done, encoded = cv2.imencode(extension, pixels, options)
    if not done:
        raise OSError(f"cannot encode a picture of shape {pixels.shape} as {extension}")
    return encoded.tobytes()
