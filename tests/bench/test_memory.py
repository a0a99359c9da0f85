"""Host memory stays flat over the epochs, and workers of one host observe_sharing one cache."""

import sys

import numpy as np
import pytest
from PIL import Image

from bench.memory import (
    MAX_GROWTH_MIB,
    MIB,
    SIDE,
    MemoryUse,
    growth,
    observe_sharing,
    peak,
    train_and_measure,
    write_images,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


@pytest.fixture(scope="module")
def images_folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 300)


def test_a_training_takes_no_more_with_every_epoch(images_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LESIONSEARCH_CACHE", str(tmp_path / "cache"))
    readings = [reading for _, reading in train_and_measure(images_folder, 12)]
    assert len(readings) == 12
    assert growth(readings) < MAX_GROWTH_MIB
    # The process has imported torch.
    assert all(reading.own > 50 * MIB for reading in readings)


def test_growth_and_peak():
    leaking = [MemoryUse(100 * MIB + epoch * 10 * MIB, 0) for epoch in range(5)]
    assert growth(leaking) == 135 - 115  # medians of 130 and 140, of 110 and 120
    assert peak(leaking) == 30
    settling = [MemoryUse(500 * MIB, 0), *[MemoryUse(100 * MIB, 0)] * 4]
    assert growth(settling) == peak(settling) == 0
    # A single high value is a peak, but no growth.
    once = [MemoryUse((150 if epoch == 4 else 100) * MIB, 0) for epoch in range(8)]
    assert (growth(once), peak(once)) == (0, 50)


def test_of_two_workers_that_join_at_once_one_builds_the_cache_that_both_map(tmp_path):
    # Enough images for the building of the cache to be observed.
    many = write_images(tmp_path / "many", 2000)
    seen = observe_sharing(many, tmp_path / "study", tmp_path / "cache", epochs=6)
    assert len(seen.builders) == 1
    assert seen.caches == 1
    assert len(seen.trainings) == 2
    assert len(set(seen.trainings.values())) == 1
    assert seen.together
    assert seen.is_one
    for resident, proportional in seen.pss.values():
        assert proportional < resident


def test_the_images_differ(images_folder):
    seen = set()
    for path in sorted((images_folder / "images").iterdir()):
        with Image.open(path) as picture:
            assert picture.size == (SIDE, SIDE)
            seen.add(picture.tobytes())
        mask = np.asarray(Image.open(images_folder / "masks" / f"{path.stem}.png"))
        assert 0 < mask.mean() < 0.6
    assert len(seen) == 300
