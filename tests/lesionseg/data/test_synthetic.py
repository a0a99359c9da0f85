"""Synthetic images: reproducible, with exact masks, neither trivial nor impossible to segment."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lesionseg.data import synthetic
from lesionseg.data.synthetic import (
    IMAGE_FOLDER,
    MASK_FOLDER,
    Sample,
    artefacts,
    render,
    write_dataset,
)
from lesionseg.data.synthetic.fields import FieldSampler
from lesionseg.data.synthetic.lesion import draw_outline, signed_distance

SMALL = (96, 128)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [render(seed, *SMALL) for seed in range(60)]


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    folder = tmp_path / "parent"
    folder.mkdir()
    return folder


def _files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def _dice(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return float(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()))


def _otsu(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    _, dark = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)
    return dark.astype(np.bool_)


def _lab(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    lab = cv2.cvtColor(image.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
    return np.asarray(lab, dtype=np.float32)


def _contrast(sample: Sample) -> float:
    """Lab distance between the mean colours of a band inside and a band outside the contour."""
    inside = cv2.distanceTransform(sample.mask, cv2.DIST_L2, 5)
    outside = cv2.distanceTransform(255 - sample.mask, cv2.DIST_L2, 5)
    lab = _lab(sample.image)
    within = lab[(inside > 2) & (inside <= 10)] if inside.max() > 3 else lab[inside > 0]
    return float(np.linalg.norm(within.mean(0) - lab[(outside > 2) & (outside <= 10)].mean(0)))


# --- repeatability -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 2**63])
def test_same_arguments_give_the_same_bytes(seed: int) -> None:
    first, second = render(seed, *SMALL), render(seed, *SMALL)
    assert first.image.tobytes() == second.image.tobytes()
    assert first.mask.tobytes() == second.mask.tobytes()


def test_a_larger_set_begins_with_the_smaller_one(parent: Path) -> None:
    write_dataset(parent / "two", 2, seed=5, height=48, width=64)
    write_dataset(parent / "four", 4, seed=5, height=48, width=64)
    two, four = _files(parent / "two"), _files(parent / "four")
    assert len(two) == 4
    assert two.items() <= four.items()


def test_sets_of_other_seeds_share_no_picture(parent: Path) -> None:
    write_dataset(parent / "a", 3, seed=0, height=48, width=64)
    write_dataset(parent / "b", 3, seed=1, height=48, width=64)
    assert not set(_files(parent / "a").values()) & set(_files(parent / "b").values())


# --- masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (97, 64), (96, 128), (40, 300)])
def test_every_size_gives_rgb_and_a_binary_mask(height: int, width: int) -> None:
    sample = render(1, height, width)
    assert sample.image.shape == (height, width, 3)
    assert sample.mask.shape == (height, width)
    assert sample.image.dtype == sample.mask.dtype == np.uint8
    assert set(np.unique(sample.mask)) <= {0, 255}


def test_no_mask_is_empty_and_each_is_one_piece_without_holes() -> None:
    for seed in range(150):
        mask = render(seed, 33, 47).mask
        contours, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        assert len(contours) == 1, f"seed {seed}: {len(contours)} contours, {tree}"


def test_the_mask_is_the_half_level_of_a_symmetric_edge() -> None:
    sampler = FieldSampler(np.random.default_rng(3), 160, 160)
    outline = draw_outline(sampler, raggedness=0.4, softness=0.2)
    assert np.array_equal(outline.coverage > 0.5, outline.mask)
    edge = np.abs(outline.inside_px) < 4.0
    assert 0.0 < outline.coverage[edge].min() < outline.coverage[edge].max() < 1.0
    for distance in (0.5, 1.5, 2.5):
        inner = outline.coverage[np.isclose(outline.inside_px, distance)].mean()
        outer = outline.coverage[np.isclose(outline.inside_px, -distance)].mean()
        assert inner + outer == pytest.approx(1.0, abs=0.02)


def test_distance_is_finite_if_a_lesion_fills_the_image() -> None:
    distance = signed_distance(np.ones((40, 50), dtype=np.bool_))
    assert np.allclose(distance, np.hypot(40, 50))


def test_artefacts_change_the_picture_but_not_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [render(seed, *SMALL) for seed in range(8)]
    for layer in ("add_markings", "add_hair", "add_gel"):
        monkeypatch.setattr(artefacts, layer, lambda sampler, image, *rest: image)
    bare = [render(seed, *SMALL) for seed in range(8)]
    pairs = list(zip(samples, bare, strict=True))
    assert all(np.array_equal(a.mask, b.mask) for a, b in pairs)
    assert sum(not np.array_equal(a.image, b.image) for a, b in pairs) >= 4


# --- realism -------------------------------------------------------------------------------------


def test_areas_are_spread_like_those_of_real_lesions(samples: list[Sample]) -> None:
    area = np.array([np.mean(sample.mask > 0) for sample in samples])
    smallest, lower, median, upper, largest = np.quantile(area, [0.0, 0.1, 0.5, 0.9, 1.0])
    assert smallest > 0.004
    assert lower < 0.08
    assert 0.1 < median < 0.3
    assert upper > 0.4
    assert largest > 0.6


def test_some_lesions_reach_the_border_and_most_do_not(samples: list[Sample]) -> None:
    inner = (slice(1, -1), slice(1, -1))
    reach = [sample.mask.sum() > np.pad(sample.mask[inner], 1).sum() for sample in samples]
    assert 0.08 < np.mean(reach) < 0.4


def test_most_lesions_differ_visibly_from_the_skin_around(samples: list[Sample]) -> None:
    partial = [sample for sample in samples if np.mean(sample.mask > 0) < 0.8]
    contrast = np.array([_contrast(sample) for sample in partial])
    assert np.mean(contrast > 3.0) > 0.85
    assert 10.0 < np.median(contrast) < 30.0


def test_skin_ranges_from_dark_to_light(samples: list[Sample]) -> None:
    tones = [_lab(s.image)[s.mask == 0].mean(0) for s in samples if np.mean(s.mask > 0) < 0.8]
    lightness, redness, yellowness = np.array(tones).T
    assert lightness.min() < 55.0
    assert lightness.max() > 80.0
    assert redness.std() > 3.0
    assert yellowness.std() > 3.0


def test_a_threshold_solves_the_task_only_in_part(samples: list[Sample]) -> None:
    scores = [_dice(_otsu(sample.image), sample.mask > 0) for sample in samples]
    assert 0.6 < np.mean(scores) < 0.85
    assert min(scores) < 0.5


# --- data sets on disk ---------------------------------------------------------------------------


def test_the_official_layout_is_written(parent: Path) -> None:
    counts: list[int] = []
    write_dataset(parent / "set", 3, seed=9, height=48, width=64, on_progress=counts.append)
    assert counts == [1, 2, 3]
    assert sorted(_files(parent / "set")) == [
        *(f"{IMAGE_FOLDER}/SYNTH_000000{i}.jpg" for i in range(3)),
        *(f"{MASK_FOLDER}/SYNTH_000000{i}_segmentation.png" for i in range(3)),
    ]
    assert [path.name for path in parent.iterdir()] == ["set"]


def test_files_contain_the_rendered_samples(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples: list[Sample] = []

    def record(seed: int, height: int, width: int) -> Sample:
        samples.append(render(seed, height, width))
        return samples[-1]

    monkeypatch.setattr(synthetic, "render", record)
    write_dataset(parent / "set", 1, height=96, width=128)
    mask = cv2.imread(str(parent / "set" / MASK_FOLDER / "SYNTH_0000000_segmentation.png"), -1)
    image = cv2.imread(str(parent / "set" / IMAGE_FOLDER / "SYNTH_0000000.jpg"))
    assert mask is not None
    assert image is not None
    assert np.array_equal(mask, samples[0].mask)
    error = np.abs(image[..., ::-1].astype(int) - samples[0].image.astype(int))
    assert error.mean() < 3.0


def test_parents_are_created_and_an_empty_folder_is_accepted(parent: Path) -> None:
    root = parent / "a" / "b"
    root.mkdir(parents=True)
    write_dataset(root, 1, height=32, width=32)
    write_dataset(parent / "c" / "d", 1, height=32, width=32)
    assert len(_files(root)) == len(_files(parent / "c" / "d")) == 2


@pytest.mark.parametrize("occupied_by", ["a file within", "a file itself"])
def test_an_occupied_root_is_refused_and_left_alone(parent: Path, occupied_by: str) -> None:
    root = parent / "set"
    kept = root / "notes.txt" if occupied_by == "a file within" else root
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    with pytest.raises(ValueError, match="new or empty folder") as refusal:
        write_dataset(root, 1, height=32, width=32)
    assert str(root) in str(refusal.value)
    assert kept.read_text() == "mine"


def test_an_interrupt_leaves_nothing_behind(parent: Path) -> None:
    def interrupt(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(parent / "set", 3, height=32, width=32, on_progress=interrupt)
    assert list(parent.iterdir()) == []
