"""What a peer is given, and what it hands back.

Imports neither torch nor this project's packages: nnU-Net runs in an environment of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: Files in a peer's folder: what it is given, and what it reports once its model is trained.
JOB, TRAINED = "job.json", "trained.json"
MASKS = "masks"
BILINEAR = Image.Resampling.BILINEAR


class Pair(NamedTuple):
    """Names and paths of an image and its mask."""

    name: str
    image: str
    mask: str


@dataclass(frozen=True)
class Job:
    """The task of one peer.

    data: the folder that was split; train, val: its images for the peer.
    judged: the images to predict, by data set, without their masks.
    began: time of the start of the process; ``minutes`` later the model must be trained.
    limit: the largest number of images of each part; for rehearsals.
    """

    data: str
    out: str
    minutes: float
    threads: int
    seed: int
    train: Sequence[Pair]
    val: Sequence[Pair]
    judged: Mapping[str, Mapping[str, str]]
    limit: int | None = None
    began: float = field(default_factory=time.time)

    @property
    def seconds_left(self) -> float:
        """Until the model must be trained."""
        return self.began + 60 * self.minutes - time.time()

    @property
    def folder(self) -> Path:
        """The peer's own folder."""
        return Path(self.out)

    def write(self) -> Path:
        """Write the job into the peer's folder and return the file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / JOB).write_text(json.dumps(asdict(self)))
        return self.folder / JOB

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read the file of ``write``."""
        plain = json.loads(path.read_text())
        parts = {part: [Pair(*pair) for pair in plain[part]] for part in ("train", "val")}
        return cls(**plain | parts)


@dataclass(frozen=True)
class Trained:
    """A trained model: ``segment`` returns an image file's mask at its own size, bool [H, W]."""

    segment: Callable[[Path], Mask]
    notes: Mapping[str, Any]


def read_pixels(path: Path, size: int) -> NDArray[np.uint8]:
    """Read an image at one size, uint8 [S, S, 3]."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB").resize((size, size), BILINEAR))


def read_pairs(pairs: Sequence[Pair], size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read images uint8 [N, S, S, 3] and masks uint8 [N, S, S] in {0, 1}."""
    images = np.stack([read_pixels(Path(pair.image), size) for pair in pairs])
    masks = np.zeros(images.shape[:3], np.uint8)
    for row, pair in zip(masks, pairs, strict=True):
        with Image.open(pair.mask) as mask:
            row[:] = np.asarray(mask.convert("L").resize((size, size), BILINEAR)) > 127
    return images, masks


def mask_at_size_of(path: Path, probability: Floats) -> Mask:
    """Threshold a probability [S, S] at the size of an image file."""
    with Image.open(path) as image:
        size = image.size
    full = Image.fromarray(probability.astype(np.float32)).resize(size, BILINEAR)
    return np.asarray(full) > 0.5
