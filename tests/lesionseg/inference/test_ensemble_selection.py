"""Selection of an ensemble's members: steps worked by hand, and what holds for any candidates."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from lesionseg.errors import InputError
from lesionseg.inference import ensemble_selection as module
from lesionseg.inference.ensemble_selection import (
    EnsembleMember,
    select_ensemble,
    select_members,
)
from lesionseg.inference.predictor import Segmenter
from lesionseg.metrics.overlap import dice_score
from lesionseg.training import checkpoint
from tests.lesionseg.ensembles import SIZE, write_ensemble

CPU = torch.device("cpu")
#: Lesion in the first 8 of 16 pixels.
TRUTH = (np.arange(16) < 8).reshape(4, 4)


def picture(*runs):
    """Probabilities [4, 4] from pairs of a number of pixels and their value."""
    values = np.concatenate([np.full(n, value, np.float32) for n, value in runs])
    return values.reshape(4, 4)


#: Finds 6 of 8 pixels: Dice 12 / 14.
A = picture((6, 0.9), (2, 0.45), (8, 0.2))
#: Finds the 2 that A misses, no others, and a false one: Dice 4 / 11.
B = picture((6, 0.3), (2, 0.7), (1, 0.95), (7, 0.2))
NOTHING = picture((16, 0.1))


def repeated(n, *pictures):
    """Candidates that predict the same for each of n images, and the masks of these."""
    return [np.stack([p] * n) for p in pictures], np.stack([TRUTH] * n)


def noisy(m, n, seed, side=12, noise=1.5):
    """Candidates [M, N, S, S] with independent errors around random rectangles."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((n, side, side), np.bool_)
    for mask in truth:
        top, left = rng.integers(1, 5, 2)
        mask[top : top + 6, left : left + 5] = True
    logits = 2.0 * truth - 1 + noise * rng.standard_normal((m, *truth.shape))
    return (1 / (1 + np.exp(-logits))).astype(np.float32), truth


# --- steps by hand -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_member_is_added_again_where_that_helps(dtype):
    """A and B: all 8 pixels and the false one, Dice 16 / 17. A, A and B: the 8 pixels alone."""
    candidates, truth = repeated(3, NOTHING, B, A)
    choice = select_members([c.astype(dtype) for c in candidates], truth, limit=2)
    assert [(m.index, m.weight) for m in choice.members] == [(2, 2 / 3), (1, 1 / 3)]
    assert [m.dice for m in choice.members] == pytest.approx([12 / 14, 4 / 11])
    assert (choice.dice, choice.best_dice) == pytest.approx((1.0, 12 / 14))
    assert choice.gain == pytest.approx(2 / 14) and choice.standard_error == pytest.approx(0)


def test_gain_and_standard_error_are_those_of_paired_differences():
    """Perfect with B on two images; on the third A is perfect alone, and B does no harm."""
    perfect = np.where(TRUTH, 0.9, 0.1).astype(np.float32)
    candidates, truth = (
        [np.stack([A, A, perfect]), np.stack([B, B, perfect])],
        np.stack([TRUTH] * 3),
    )
    choice = select_members(candidates, truth, limit=5)
    gains = np.array([2 / 14, 2 / 14, 0])
    assert len(choice.members) == 2 and choice.dice == pytest.approx(1)
    assert choice.gain == pytest.approx(gains.mean())
    assert choice.standard_error == pytest.approx(gains.std(ddof=1) / math.sqrt(3))


def test_a_gain_below_its_standard_error_is_not_taken():
    """B helps on one image, from 12/14 to 16/17, and harms on the other, from 1 to 16/17."""
    harm = picture((8, 0.45), (1, 0.95), (7, 0.2))
    perfect = np.where(TRUTH, 0.9, 0.1).astype(np.float32)
    candidates = [np.stack([A, perfect]), np.stack([B, harm])]
    truth = np.stack([TRUTH] * 2)
    mean = (candidates[0] + candidates[1]) / 2
    gains = [
        dice_score(m > 0.5, t) - dice_score(c > 0.5, t)
        for m, c, t in zip(mean, candidates[0], truth, strict=True)
    ]
    assert sum(gains) / 2 > module.MIN_GAIN and min(gains) < 0
    choice = select_members(candidates, truth, limit=5)
    assert [(m.index, m.weight) for m in choice.members] == [(0, 1.0)]
    assert (choice.gain, choice.standard_error) == (0, 0)


@pytest.mark.parametrize(
    ("pictures", "n", "limit"),
    [
        ((A,), 3, 5),  # one candidate
        ((A, B), 3, 1),  # one member at most
        ((A, B), 1, 5),  # one image: no standard error
        ((A, A, A), 3, 5),  # equal candidates
        ((A, NOTHING), 3, 5),
    ],
)
def test_the_best_candidate_alone(pictures, n, limit):
    candidates, truth = repeated(n, *pictures)
    choice = select_members(candidates, truth, limit)
    assert choice.members == (EnsembleMember(0, 1.0, pytest.approx(12 / 14)),)
    assert choice.dice == choice.best_dice and choice.gain == 0
    assert choice.standard_error == (None if n == 1 else 0)


def test_of_equal_candidates_the_first_is_added():
    candidates, truth = repeated(3, NOTHING, B, A, B, A)
    choice = select_members(candidates, truth, limit=5)
    assert [m.index for m in choice.members] == [2, 1]


def test_empty_masks_of_images_without_lesion_score_1():
    candidates, _ = repeated(2, NOTHING, A)
    choice = select_members(candidates, np.zeros((2, 4, 4), np.bool_), limit=2)
    assert choice.members == (EnsembleMember(0, 1.0, 1.0),)


# --- for any candidates --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_the_ensemble_is_never_worse_than_its_best_member(seed, limit):
    candidates, truth = noisy(7, 10, seed)
    choice = select_members(candidates, truth, limit)
    alone = [
        np.mean([dice_score(*p) for p in zip(c > 0.5, truth, strict=True)]) for c in candidates
    ]
    assert choice.best_dice == pytest.approx(max(alone))
    assert 1 <= len(choice.members) <= limit
    assert len({m.index for m in choice.members}) == len(choice.members)
    assert sum(m.weight for m in choice.members) == pytest.approx(1)
    weights = [m.weight for m in choice.members]
    assert weights == sorted(weights, reverse=True)
    assert [m.dice for m in choice.members] == pytest.approx(
        [alone[m.index] for m in choice.members]
    )
    # The ensemble of these weights has the Dice that is stated.
    mean = sum(m.weight * candidates[m.index].astype(np.float64) for m in choice.members)
    dice = np.mean([dice_score(*p) for p in zip(mean > 0.5, truth, strict=True)])
    assert choice.dice == pytest.approx(dice, abs=1e-3)
    assert choice.dice >= choice.best_dice and choice.gain >= 0
    assert choice.gain == pytest.approx(choice.dice - choice.best_dice)
    if limit > 1:
        assert len(choice.members) > 1 and choice.gain > 0.02  # independent errors cancel
    assert select_members(candidates, truth, limit) == choice


def test_memory_is_that_of_a_few_images():
    candidates, truth = noisy(12, 60, 0, side=48)
    tracemalloc.start()
    select_members(candidates, truth, limit=3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < candidates.nbytes / 20


@pytest.mark.parametrize(
    ("candidates", "truth", "limit"),
    [
        ([], np.zeros((2, 4, 4), np.bool_), 5),
        ([np.zeros((2, 4, 4))], np.zeros((3, 4, 4), np.bool_), 5),
        ([np.zeros((0, 4, 4))], np.zeros((0, 4, 4), np.bool_), 5),
        ([np.zeros((2, 4, 4))], np.zeros((2, 4, 4), np.bool_), 0),
        ([np.zeros((2, 4, 4))], np.zeros((2, 4, 4), np.bool_), 21),
    ],
)
def test_invalid_arguments(candidates, truth, limit):
    with pytest.raises(ValueError, match=r"needs candidates|the limit must lie in \[1, 20\]"):
        select_members(candidates, truth, limit)


# --- checkpoints ---------------------------------------------------------------------------------


def test_candidates_are_read_from_their_files(tmp_path):
    _, singles = write_ensemble(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
    models = [Segmenter(*checkpoint.load(path)) for path in singles]
    maps = [model.predict_probabilities(images) for model in models]
    # The truth is what the second finds.
    choice = select_ensemble(singles, images, maps[1] > 0.5, limit=5, device=CPU)
    assert choice.members == (EnsembleMember(1, 1.0, 1.0),)
    assert choice == select_members(maps, maps[1] > 0.5, 5)


def test_candidates_that_do_not_fit_into_memory_are_left_out(monkeypatch):
    """Room for three: the worst of those read so far makes room for each further one."""
    candidates, truth = noisy(6, 10, 1)
    shades = [0.0, 0.9, 0.1, 0.2, 0.8, 0.3]  # noise that is added to each
    spoilt = [(1 - s) * c + s * c[::-1] for s, c in zip(shades, candidates, strict=True)]
    monkeypatch.setattr(module, "_predict_candidate", lambda path, *_: spoilt[int(path.name)])
    images = np.zeros((*truth.shape, 3), np.uint8)
    seen = []
    monkeypatch.setattr(
        module,
        "select_members",
        lambda maps, *rest: seen.append(maps) or select_members(maps, *rest),
    )
    paths = [Path(str(i)) for i in range(6)]
    found = select_ensemble(
        paths, images, truth, limit=3, device=CPU, max_bytes=3 * truth.size * 4 + 8
    )
    alone = [np.mean([dice_score(*p) for p in zip(c > 0.5, truth, strict=True)]) for c in spoilt]
    best = sorted(sorted(range(6), key=lambda i: -alone[i])[:3])
    assert [id(m) for m in seen[0]] == [id(spoilt[i]) for i in best]
    wanted = select_members([spoilt[i] for i in best], truth, 3)
    assert [m.index for m in found.members] == [best[m.index] for m in wanted.members]


@pytest.mark.parametrize(
    ("index", "size", "message"),
    [
        (0, SIZE, "a member must be a single network of 32 px, got an ensemble"),
        (1, 64, "a member must be a single network of 64 px, got 32 px"),
    ],
)
def test_files_that_cannot_be_members_are_refused(tmp_path, index, size, message):
    whole, singles = write_ensemble(tmp_path)
    path = (whole, *singles)[index]
    images = np.zeros((2, size, size, 3), np.uint8)
    with pytest.raises(InputError) as caught:
        select_ensemble([path], images, images[..., 0], limit=2, device=CPU)
    assert str(caught.value) == f"{path}: {message}"
