"""The fingerprint of a data set."""

import pytest

from lesionseg.data.index import DatasetIndex
from search.planning.fingerprint import read_fingerprint
from search.spec.study_spec import DataSpec
from tests.conftest import write_folder
from tests.search.helpers import open_tiny, refusal


def test_parts_are_those_of_a_study(tmp_path):
    data = write_folder(tmp_path / "data", 40)
    opened = open_tiny(data, tmp_path / "study")
    found = read_fingerprint(DatasetIndex.read(data), DataSpec())
    parts = tuple(len(getattr(opened.split, part)) for part in ("train", "val", "test"))
    assert (found.train, found.val, found.test) == parts
    assert (found.images, found.groups, found.is_official) == (40, 40, False)
    assert (found.side, found.megapixels) == (40, pytest.approx(48 * 40 / 1e6))
    areas = opened.cache.areas
    assert min(areas) <= found.areas[0] <= found.areas[1] <= found.areas[2] <= max(areas)
    assert found.reading_s > 0


def test_split_and_limits_of_the_study(tmp_path):
    index = DatasetIndex.read(write_folder(tmp_path / "data", 40))
    split = {"train": 0.5, "val": 0.25, "test": 0.25}
    found = read_fingerprint(index, DataSpec(split=split, limit={"val": 3}))
    assert (found.train, found.val, found.test) == (20, 3, 10)
    assert "kfold: no plan" in refusal(read_fingerprint, index, DataSpec(split={"kfold": 3}))


def test_twelve_images_are_split_and_two_are_refused(tmp_path):
    twelve = read_fingerprint(DatasetIndex.read(write_folder(tmp_path / "twelve", 12)), DataSpec())
    assert min(twelve.train, twelve.val, twelve.test) > 0
    two = DatasetIndex.read(write_folder(tmp_path / "two", 2))
    assert "2 images are too few" in refusal(read_fingerprint, two, DataSpec())
