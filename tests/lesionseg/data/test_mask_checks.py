"""Checks for implausible masks."""

import numpy as np
import pytest
from PIL import Image

from lesionseg.data.cache import build_cache
from lesionseg.data.duplicates.audit import audit_dataset
from lesionseg.data.index import DatasetIndex
from lesionseg.data.mask_checks import looks_inverted, require_lesions, warn_of_inverted
from lesionseg.errors import InputError
from tests.conftest import write_folder


def rewrite_masks(root, change):
    for path in sorted((root / "masks").iterdir()):
        with Image.open(path) as mask:
            changed = change(mask.convert("L"))
        changed.save(path)
    return root


def inverted(mask):
    return mask.point(range(255, -1, -1))


def as_alpha(mask):
    return Image.merge("LA", (Image.new("L", mask.size, 255), mask))


def read(root, **options):
    """Return the masks as the cache and as `data check` read them."""
    index = DatasetIndex.read(root, **options)
    cache = build_cache(index, 32)
    masks = cache.list_masks(index.records)
    assert [m.reading for m in masks] == [m.reading for m in audit_dataset(index).masks]
    return cache, masks


WARNING = (
    "the masks seem to be inverted: in 8 of 8 images most of the border is lesion, and the lesion "
    "is lighter than the skin; "
)


def test_inverted_masks_are_suspected_and_can_be_turned(tmp_path):
    plain, masks = read(write_folder(tmp_path / "plain", 8))
    assert warn_of_inverted(masks) == []
    root = rewrite_masks(write_folder(tmp_path / "inverted", 8), inverted)
    cache, masks = read(root)
    remedy = "if black is lesion, set data.invert_masks=true (of `data check`: --invert-masks)"
    assert warn_of_inverted(masks) == [WARNING + remedy]
    turned, masks = read(root, invert_masks=True)
    assert warn_of_inverted(masks) == []
    assert turned.path != cache.path
    assert np.array_equal(turned.masks, plain.masks)
    assert turned.areas == pytest.approx(plain.areas)


def test_the_wrong_setting_is_suspected_too(tmp_path):
    _, masks = read(write_folder(tmp_path / "plain", 8), invert_masks=True)
    remedy = "they are inverted because of data.invert_masks; leave it out"
    assert warn_of_inverted(masks) == [WARNING + remedy]


def test_each_data_set_is_suspected_separately(tmp_path):
    rewrite_masks(write_folder(tmp_path / "odd", 8), inverted)
    write_folder(tmp_path / "plain", 12)
    index = DatasetIndex.read((tmp_path / "odd", tmp_path / "plain"))
    (line,) = warn_of_inverted(build_cache(index, 32).list_masks(index.records))
    assert line.startswith("odd: the masks seem to be inverted: in 8 of 8 images")


@pytest.mark.parametrize(
    ("image", "mask", "expected"),
    [
        ([[9, 9, 9], [9, 1, 9], [9, 9, 9]], [[1, 1, 1], [1, 0, 1], [1, 1, 1]], True),
        ([[1, 1, 1], [1, 9, 1], [1, 1, 1]], [[1, 1, 1], [1, 0, 1], [1, 1, 1]], False),  # darker
        ([[9, 9, 9], [9, 1, 9], [9, 9, 9]], [[1, 1, 1], [1, 0, 0], [0, 0, 0]], False),  # half
        ([[9, 9, 9], [9, 1, 9], [9, 9, 9]], [[1, 1, 1], [1, 1, 1], [1, 1, 1]], False),  # full
        ([[9, 9, 9], [9, 1, 9], [9, 9, 9]], [[0, 0, 0], [0, 0, 0], [0, 0, 0]], False),
    ],
)
def test_looks_inverted(image, mask, expected):
    grey, binary = np.array(image, np.uint8), np.array(mask, np.uint8)
    assert looks_inverted(grey, binary) is expected
    assert looks_inverted(np.dstack([grey] * 3), 255 * binary) is expected


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda mask: mask.point([255] * 256), "4 are all lesion, 0 all skin"),
        (lambda mask: mask.point([0] * 256), "0 are all lesion, 4 all skin"),
        (lambda mask: as_alpha(mask.point([255] * 256)), "4 are all lesion, 0 all skin"),
    ],
)
def test_a_data_set_whose_masks_are_all_full_or_empty_is_refused(tmp_path, change, counts):
    _, masks = read(rewrite_masks(write_folder(tmp_path / "set", 4), change))
    with pytest.raises(InputError) as caught:
        require_lesions(masks)
    assert str(caught.value) == (
        f"data: none of 4 masks shows both lesion and skin: {counts}, such as "
        f"{tmp_path / 'set' / 'masks' / 'im000.png'} (4 were read from colours, 0 from an alpha "
        f"channel); save masks with 0 for skin and 255 for lesion"
    )


def test_one_mask_with_lesion_and_skin_is_enough(tmp_path):
    rewrite_masks(write_folder(tmp_path / "set", 1), as_alpha)
    Image.new("RGB", (48, 40)).save(tmp_path / "set/images/empty.png")
    Image.new("L", (48, 40)).save(tmp_path / "set/masks/empty.png")
    _, masks = read(tmp_path / "set")
    require_lesions(masks)
    assert [m.reading.from_alpha for m in masks] == [False, True]
