"""Image and mask of a pair with EXIF orientations in one of the files or both."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lesionseg.data.cache import build_cache
from lesionseg.data.duplicates.audit import audit_dataset
from lesionseg.data.index import DatasetIndex
from lesionseg.data.mask_checks import describe_readings
from lesionseg.data.pair_io import load_pair, read_true_mask
from lesionseg.data.pairs import Record
from lesionseg.errors import InputError
from tests.lesionseg.data.test_image_io import STORED, with_orientation

#: Upright height and width.
WIDE, SQUARE = (40, 60), (48, 48)
TURNED = [5, 6, 7, 8]


def scene(shape=WIDE):
    """Return a picture of skin with a dark lesion in the upper left, and its mask."""
    mask = np.zeros(shape, bool)
    mask[4 : shape[0] // 3, 6 : shape[1] // 2] = True
    return np.where(mask[..., None], (90, 60, 50), (220, 180, 160)).astype(np.uint8), mask


def put(root, name, orientation, frame, shape=WIDE, suffix="png", mask_tag=1):
    """Write a pair whose mask was made on the ``upright`` image or on the image as ``stored``."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    image, mask = scene(shape)
    path = root / "images" / f"{name}.{suffix}"
    with_orientation(path, STORED[orientation](image), orientation)
    pixels = STORED[orientation](mask) if frame == "stored" else STORED[mask_tag](mask)
    with_orientation(root / "masks" / f"{name}.png", pixels.astype(np.uint8) * 255, mask_tag)
    return Record(name, path, root / "masks" / f"{name}.png", name)


def fits(image, mask):
    """Return whether the lesion is where the image is dark."""
    dark = np.asarray(image.convert("L")) < 130
    return np.array_equal(dark, np.asarray(mask) > 0)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("frame", ["upright", "stored"])
def test_the_size_decides_what_a_mask_was_made_on(tmp_path, suffix, orientation, frame):
    record = put(tmp_path, "a", orientation, frame, suffix=suffix)
    pair = load_pair(record, 500)
    assert fits(pair.image, pair.mask) or suffix == "webp"
    assert np.array_equal(np.asarray(pair.mask) > 0, scene()[1])
    assert pair.shape == WIDE and pair.area == scene()[1].mean()
    assert (pair.reading.alignment, pair.reading.is_turned) == (frame, frame == "stored")
    assert np.array_equal(read_true_mask(pair.reading.apply(record)), scene()[1])


@pytest.mark.parametrize(("image_tag", "mask_tag"), [(1, 6), (6, 6), (3, 3), (6, 8)])
def test_the_orientation_of_the_masks_own_file_counts(tmp_path, image_tag, mask_tag):
    pair = load_pair(put(tmp_path, "a", image_tag, "upright", mask_tag=mask_tag), 500)
    assert fits(pair.image, pair.mask)
    same = image_tag == mask_tag
    either = (image_tag, mask_tag) == (6, 8)
    assert pair.reading.alignment == ("same" if same else "either" if either else "upright")


def test_a_mask_of_another_size_is_refused_with_the_orientations(tmp_path):
    record = put(tmp_path, "a", 6, "upright")
    Image.new("L", (50, 40)).save(record.mask)
    with pytest.raises(InputError) as caught:
        load_pair(record, 500)
    assert str(caught.value) == (
        f"{record.mask}: the mask has 50x40 pixels (EXIF orientation 1), its image 40x60 as stored "
        f"and 60x40 upright (EXIF orientation 6); they must be of one size, as stored or upright"
    )


@pytest.mark.parametrize(
    ("others", "turned"),
    [([], False), (["upright"], False), (["stored"], True), (["stored", "upright"], False),
     (["stored", "stored", "upright"], True)],
)  # fmt: skip
def test_the_other_masks_decide_where_both_ways_fit(tmp_path, others, turned):
    """A square picture, and a half turn of another one."""
    frame = "stored" if turned else "upright"
    for i, other in enumerate(others):
        put(tmp_path, f"other{i}", 6, other)
    put(tmp_path, "plain", 1, "upright")
    put(tmp_path, "square", 6, frame, SQUARE)
    put(tmp_path, "half", 3, frame)
    index = DatasetIndex.read(tmp_path)
    cache = build_cache(index, 48, tmp_path / "cache")
    audit = audit_dataset(index)
    lines = describe_readings(cache.list_masks(index.records))
    assert lines == describe_readings(audit.masks)
    how = "were turned with the image, as most others" if turned else "were taken to be upright"
    assert lines[-1] == (
        f"2 masks of images with another EXIF orientation fit either way and {how}: half, square"
    )
    for records in (cache.apply_readings(index.records), [p.record for p in audit.pairs]):
        for record in records:
            shape = SQUARE if record.name == "square" else WIDE
            assert np.array_equal(read_true_mask(record), scene(shape)[1]), record.name
    position = cache.names.index("square")
    dark = cache.images[position].mean(axis=2) < 130
    assert np.array_equal(dark, cache.masks[position] > 0)
    # Records that were resolved once lead to the same cache.
    resolved = DatasetIndex(index.root, index.layout, cache.apply_readings(index.records))
    again = build_cache(resolved, 48, tmp_path / "other")
    assert again.path.name == cache.path.name and again.readings == cache.readings
    assert np.array_equal(again.masks, cache.masks)


def test_any_orientation_gives_the_mask_or_tells_that_both_ways_fit(tmp_path):
    @settings(max_examples=60, deadline=None)
    @given(
        st.sampled_from(list(STORED)),
        st.sampled_from(list(STORED)),
        st.sampled_from(["upright", "stored"]),
        st.sampled_from([WIDE, SQUARE]),
        st.sampled_from(["png", "jpg", "tif"]),
    )
    def check(image_tag, mask_tag, frame, shape, suffix):
        if frame == "stored":
            mask_tag = 1
        pair = load_pair(put(tmp_path, "a", image_tag, frame, shape, suffix, mask_tag), 500)
        right = np.array_equal(np.asarray(pair.mask) > 0, scene(shape)[1])
        assert right or (frame == "stored" and pair.reading.alignment == "either")

    check()
