"""Host memory stays flat over the epochs, and workers of one host share one cache."""

import sys

import numpy as np
import pytest
from PIL import Image

from bench.memory import (
    FLAT,
    MIB,
    SIDE,
    Weight,
    growth,
    peak,
    share,
    train_and_weigh,
    write_pictures,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), 300)


def test_a_training_takes_no_more_with_every_epoch(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("LESIONSEARCH_CACHE", str(tmp_path / "cache"))
    weights = [weight for _, weight in train_and_weigh(pictures, 12)]
    assert len(weights) == 12
    assert growth(weights) < FLAT
    # And not because nothing was seen: it has torch.
    assert all(weight.own > 50 * MIB for weight in weights)


def test_growth_is_told_where_there_is_some():
    leaking = [Weight(100 * MIB + epoch * 10 * MIB, 0) for epoch in range(5)]
    assert growth(leaking) == 135 - 115  # medians of 130 and 140, of 110 and 120
    assert peak(leaking) == 30
    settling = [Weight(500 * MIB, 0), *[Weight(100 * MIB, 0)] * 4]
    assert growth(settling) == peak(settling) == 0
    # One reading alone that is high is a peak and no growth.
    once = [Weight((150 if epoch == 4 else 100) * MIB, 0) for epoch in range(8)]
    assert (growth(once), peak(once)) == (0, 50)


def test_of_two_workers_that_join_at_once_one_builds_the_cache_that_both_map(tmp_path):
    # So many that whoever builds the cache is seen at it.
    many = write_pictures(tmp_path / "many", 3000)
    seen = share(many, tmp_path / "study", tmp_path / "cache", epochs=10)
    assert len(seen.builders) == 1
    assert seen.caches == 1
    assert len(seen.trainings) == 2
    assert len(set(seen.trainings.values())) == 1
    assert seen.together
    assert seen.is_one
    for resident, proportional in seen.pss.values():
        assert proportional < resident


def test_the_pictures_differ(pictures):
    seen = set()
    for path in sorted((pictures / "images").iterdir()):
        with Image.open(path) as picture:
            assert picture.size == (SIDE, SIDE)
            seen.add(picture.tobytes())
        mask = np.asarray(Image.open(pictures / "masks" / f"{path.stem}.png"))
        assert 0 < mask.mean() < 0.6
    assert len(seen) == 300
