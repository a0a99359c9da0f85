"""load_thumbnails(): small images to find near-duplicates with, the same for all image sizes."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import numpy as np

from lesionseg.data.cache import cache_key, map_parallel
from lesionseg.data.duplicates.alignment import THUMB_PX
from lesionseg.data.duplicates.matching import thumbnail
from lesionseg.data.image_io import Pixels, read_image_and_size
from lesionseg.data.index import DatasetIndex
from lesionseg.data.pairs import Record
from lesionseg.runtime.files import atomic_write


def load_thumbnails(index: DatasetIndex, root: Path) -> Pixels:
    """Return grey thumbnails of all images, uint8 [N, THUMB_PX, THUMB_PX].

    They are read from the image files once and kept in ``root``, the parent folder of all caches.
    Thumbnails of cached images would depend on the size of these images. A borderline pair would be
    a near-duplicate at some sizes only, and the split of a study would depend on its image size.
    """
    path = root / f"{cache_key(index, THUMB_PX)}-thumbnails.npy"
    shape = (len(index.records), THUMB_PX, THUMB_PX)
    with suppress(OSError, ValueError, EOFError):
        kept = np.load(path, allow_pickle=False)
        if kept.shape == shape and kept.dtype == np.uint8:
            return np.asarray(kept)
    thumbnails = np.stack(map_parallel(_read_thumbnail, index.records))
    buffer = io.BytesIO()
    np.save(buffer, thumbnails)
    with suppress(OSError):  # read again next time
        atomic_write(path, buffer.getvalue(), unique=True)
    return thumbnails


def _read_thumbnail(record: Record) -> Pixels:
    image, _ = read_image_and_size(record.image, THUMB_PX)
    return thumbnail(image)
