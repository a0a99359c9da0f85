"""DataFingerprint: the properties of a data set that a plan depends on."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from lesionseg.data.cache import read_pair
from lesionseg.data.index import DatasetIndex
from lesionseg.data.split import make_split
from lesionseg.errors import InputError
from search.spec.study_spec import DataSpec
from search.study.creation import uses_official_split
from search.trial_process.resources import count_cores

#: Pairs that are read, and the size in pixels at which their reading is timed.
SAMPLE, SAMPLE_SIZE = 24, 256


@dataclass(frozen=True)
class DataFingerprint:
    """A data set in numbers.

    Attributes:
        images, groups: numbers of pairs, and of patients or lesions.
        train, val, test: numbers of images of each part, near-duplicates not considered.
        is_official: whether the data set defines its test images.
        side: median of the images' shorter sides in pixels.
        megapixels: mean of their pixels in millions.
        areas: 5%, 50% and 95% quantiles of the lesion's share of an image.
        reading_s: seconds to read all pairs once, on all cores.
    """

    images: int
    groups: int
    train: int
    val: int
    test: int
    is_official: bool
    side: int
    megapixels: float
    areas: tuple[float, float, float]
    reading_s: float


def read_fingerprint(index: DatasetIndex, data: DataSpec) -> DataFingerprint:
    """Read the fingerprint of a data set; only a sample of its images is opened.

    Args:
        index: the data set.
        data: how it is split and limited.

    Raises:
        InputError: there are too few images for three parts, a pair cannot be read, or a
            cross-validation is wanted.
    """
    if data.split.kfold:
        raise InputError(
            "data.split.kfold: no plan is made for a cross-validation; print a plan with "
            "`lesionsearch plan -o FILE` and set it there"
        )
    records, is_official = index.records, uses_official_split(data, index)
    split = make_split(
        records, np.zeros(len(records)), data.split.shares,
        official=is_official, limits=data.limit.model_dump(),
    )  # fmt: skip
    sample = records[:: max(1, len(records) // SAMPLE)][:SAMPLE]
    start = time.perf_counter()
    pairs = [read_pair(record, SAMPLE_SIZE) for record in sample]
    seconds = (time.perf_counter() - start) / len(sample) * len(records)
    shapes = np.array([pair.shape for pair in pairs])
    low, middle, high = np.quantile([pair.area for pair in pairs], (0.05, 0.5, 0.95)).tolist()
    return DataFingerprint(
        images=len(records),
        groups=len({record.group for record in records}),
        train=len(split.train),
        val=len(split.val),
        test=len(split.test),
        is_official=is_official,
        side=int(np.median(shapes.min(axis=1))),
        megapixels=float(shapes.prod(axis=1).mean() / 1e6),
        areas=(low, middle, high),
        reading_s=seconds / count_cores(),
    )
