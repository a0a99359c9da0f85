"""The picture of a trial: which images, what is drawn, how large the file is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lesionseg.data.cache import Cache, build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.viz import trial_sheet
from lesionseg.viz.overlays import PREDICTED_COLOUR, TRUE_COLOUR
from tests.conftest import write_folder
from tests.lesionseg.inference.test_evaluate import RedIsLesion

CPU = torch.device("cpu")


class Areas:
    """The part of a cache that ``select_by_area`` uses."""

    def __init__(self, areas):
        self.areas = np.asarray(areas, dtype=np.float64)


class Half(torch.nn.Module):
    """Predicts lesion on the left half."""

    def forward(self, x):
        out = torch.full_like(x[:, :1], -5.0)
        out[..., : x.shape[-1] // 2] = 5.0
        return out


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    root = tmp_path_factory.mktemp("sheet")
    return build_cache(DatasetIndex.read(write_folder(root / "d", 9)), 32, root / "cache")


def test_selected_images_cover_lesion_areas():
    areas = Areas(np.linspace(0, 1, 60)[::-1])
    members = np.arange(60)
    # By size the members are 59, 58, ... 0; the middles of their sixths are the 5th, 15th, ...
    assert trial_sheet.select_by_area(areas, members).tolist() == [54, 44, 34, 24, 14, 4]


def test_selection_does_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    areas, members = Areas(rng.integers(0, 5, 100) / 10), np.arange(10, 90)
    chosen = trial_sheet.select_by_area(areas, members).tolist()
    assert len(set(chosen)) == 6
    assert trial_sheet.select_by_area(areas, rng.permutation(members)).tolist() == chosen


@pytest.mark.parametrize("n", [1, 5, 6])
def test_few_members_are_all_selected(n):
    members = np.arange(n)
    assert (
        sorted(trial_sheet.select_by_area(Areas(np.zeros(n)), members).tolist()) == members.tolist()
    )


def test_outlines_and_names(cache, tmp_path):
    path = tmp_path / "validation.jpg"
    trial_sheet.write_trial_sheet(Half(), cache, np.arange(6), path, CPU)
    with Image.open(path) as picture:
        assert picture.format == "JPEG"
        assert picture.size == (3 * 246 - 6, 2 * 260 + 20)
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    # The left half is predicted in each image: its right border stands in the middle.
    for left in (0, 246, 492):
        tile = pixels[20:220, left + 112 : left + 128]
        assert (np.abs(tile - PREDICTED_COLOUR).sum(2).min(1) < 60).mean() > 0.8
    assert (np.abs(pixels[:240, :240] - TRUE_COLOUR).sum(2) < 60).sum() > 50
    line = pixels[242:258, :240].min()
    assert line < 100  # letters


def test_dice_of_a_perfect_prediction(cache, tmp_path, monkeypatch):
    written = []
    draw = trial_sheet.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        trial_sheet.ImageDraw.ImageDraw,
        "text",
        lambda *a, **k: (written.append(a[2]), draw(*a, **k)),
    )
    trial_sheet.write_trial_sheet(RedIsLesion(), cache, np.arange(2), tmp_path / "s.jpg", CPU)
    names = [t for t in written if t.startswith("im")]
    assert names == ["im000", "im001"]
    found = trial_sheet.predict_probabilities(RedIsLesion(), cache, np.arange(2), device=CPU)
    for i, probability in enumerate(found):
        p, t = probability >= 0.5, cache.masks[i] > 0
        expected = 2 * (p & t).sum() / (p.sum() + t.sum()) if (p | t).any() else 1.0
        assert f"Dice {expected:.3f}" in written


def test_file_size_is_limited(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (6, 240, 240, 3)).astype(np.uint8)

    class Noisy(Areas):
        images, masks, names = noise, np.zeros((6, 240, 240), np.uint8), list("abcdef")

    path = tmp_path / "s.jpg"
    trial_sheet.write_trial_sheet(Half(), Noisy(np.zeros(6)), np.arange(6), path, CPU)
    assert 1000 < path.stat().st_size <= trial_sheet.MAX_BYTES
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["s.jpg"]


def test_long_names_are_truncated(cache, tmp_path):
    class Named(Areas):
        images, masks, names = cache.images[:1], cache.masks[:1], ["n" * 400]

    trial_sheet.write_trial_sheet(Half(), Named([0.0]), np.arange(1), tmp_path / "s.jpg", CPU)
    with Image.open(tmp_path / "s.jpg") as picture:
        assert picture.size == (240, 280)


def test_no_partial_file_remains(cache, tmp_path):
    class Broken(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        trial_sheet.write_trial_sheet(Broken(), cache, np.arange(2), tmp_path / "s.jpg", CPU)
    assert not [p for p in tmp_path.iterdir() if p.is_file()]
