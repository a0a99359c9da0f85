"""Counts, scores and means against scikit-learn, MONAI, smp and hand-worked cases."""

import dataclasses

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_dice, compute_iou

from lesionseg.metrics.overlap import (
    JACCARD_THRESHOLD,
    METRICS,
    Metrics,
    count_pixels,
    mean_scores,
    score_images,
)
from tests.lesionseg.metrics.masks import MASKS

NAMES = (
    "dice",
    "jaccard",
    "thresholded_jaccard",
    "precision",
    "recall",
    "specificity",
    "accuracy",
    "volume_similarity",
)

masks = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)


def scored(*rows):
    return score_images(np.array(rows, dtype=np.int64))


def test_metric_names_are_ordered():
    assert METRICS == NAMES
    assert tuple(scored((1, 1, 1, 1))) == NAMES
    assert JACCARD_THRESHOLD == 0.65


@given(masks)
@settings(max_examples=20, deadline=None)
def test_counts_equal_scikit_learns(pair):
    predicted, truth = pair
    counts = count_pixels(torch.from_numpy(predicted), torch.from_numpy(truth))
    assert counts.dtype == torch.int64 and counts.shape == (len(truth), 4)
    for row, p, t in zip(counts.tolist(), predicted, truth, strict=True):
        (tn, fp), (fn, tp) = sklearn.metrics.confusion_matrix(
            t.ravel(), p.ravel(), labels=[False, True]
        )
        assert row == [tp, fp, fn, tn]


@given(masks)
@settings(max_examples=20, deadline=None)
def test_scores_equal_scikit_learns(pair):
    predicted, truth = pair
    scores = score_images(
        count_pixels(torch.from_numpy(predicted), torch.from_numpy(truth)).numpy()
    )
    theirs = {
        "dice": sklearn.metrics.f1_score,
        "jaccard": sklearn.metrics.jaccard_score,
        "precision": sklearn.metrics.precision_score,
        "recall": sklearn.metrics.recall_score,
        "accuracy": sklearn.metrics.accuracy_score,
    }
    for i, (p, t) in enumerate(zip(predicted, truth, strict=True)):
        if t.any() and p.any():
            expected = {name: f(t.ravel(), p.ravel()) for name, f in theirs.items()}
            assert {n: scores[n][i] for n in theirs} == pytest.approx(expected)
        if not t.all() and not p.all():
            specificity = sklearn.metrics.recall_score(~t.ravel(), ~p.ravel())
            assert scores["specificity"][i] == pytest.approx(specificity)


@given(masks)
@settings(max_examples=20, deadline=None)
def test_classes_are_symmetric(pair):
    """Specificity is the recall of skin, in the empty cases too."""
    predicted, truth = (torch.from_numpy(m) for m in pair)
    of_lesion, of_skin = (
        score_images(count_pixels(p, t).numpy())
        for p, t in ((predicted, truth), (~predicted, ~truth))
    )
    assert np.array_equal(of_lesion["specificity"], of_skin["recall"])


def paired_with(name):
    """One mask of the table as the prediction of each: bool [N, 1, H, W] twice."""
    truth = torch.from_numpy(np.stack(list(MASKS.values())))[:, None]
    return torch.from_numpy(MASKS[name]).expand_as(truth), truth


@pytest.mark.parametrize("name", MASKS)
def test_scores_equal_smps(name):
    predicted, truth = paired_with(name)
    scores = score_images(count_pixels(predicted, truth).numpy())
    stats = smp.metrics.get_stats(predicted.int(), truth.int(), mode="binary")
    theirs = {
        "dice": smp.metrics.f1_score,
        "jaccard": smp.metrics.iou_score,
        "precision": smp.metrics.precision,
        "recall": smp.metrics.recall,
        "specificity": smp.metrics.specificity,
        "accuracy": smp.metrics.accuracy,
    }
    for metric, function in theirs.items():
        lesion = metric != "specificity"
        nothing = ~((predicted | truth) if lesion else ~(predicted & truth)).flatten(1).any(1)
        # smp has one rule for every 0/0; here it depends on whether the two agree.
        values = [
            float(function(*(s[i : i + 1] for s in stats), "micro-imagewise", zero_division=z))
            for i, z in enumerate(nothing.double().tolist())
        ]
        assert scores[metric].tolist() == pytest.approx(values, abs=1e-6), metric


def test_overlaps_equal_monais():
    theirs = {"dice": compute_dice, "jaccard": compute_iou}
    for name in MASKS:
        predicted, truth = paired_with(name)
        scores = score_images(count_pixels(predicted, truth).numpy())
        for metric, function in theirs.items():
            values = function(predicted.float(), truth.float(), ignore_empty=False).flatten()
            assert scores[metric].tolist() == pytest.approx(values.tolist(), abs=1e-6), metric


def test_volume_similarity_depends_on_areas_only():
    """1 - |fn - fp| / (2tp + fp + fn) is 1 - |difference| / sum of the areas."""
    for name in MASKS:
        found, present = (pair.flatten(1).sum(1).double().numpy() for pair in paired_with(name))
        expected = 1 - abs(found - present) / np.maximum(found + present, 1)
        ours = score_images(count_pixels(*paired_with(name)).numpy())["volume_similarity"]
        assert ours == pytest.approx(expected), name


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # dice, jaccard, thresholded, precision, recall, specificity, accuracy, volume similarity
        pytest.param((0, 0, 0, 9), (1, 1, 1, 1, 1, 1, 1, 1), id="empty-found-empty"),
        pytest.param((0, 1, 0, 8), (0, 0, 0, 0, 0, 8 / 9, 8 / 9, 0), id="empty-one-pixel-found"),
        pytest.param((0, 9, 0, 0), (0, 0, 0, 0, 0, 0, 0, 0), id="empty-found-full"),
        pytest.param((0, 0, 3, 6), (0, 0, 0, 0, 0, 1, 6 / 9, 0), id="lesion-found-empty"),
        pytest.param((0, 0, 9, 0), (0, 0, 0, 0, 0, 0, 0, 0), id="full-found-empty"),
        pytest.param((9, 0, 0, 0), (1, 1, 1, 1, 1, 1, 1, 1), id="full-found-full"),
        pytest.param(
            (8, 0, 1, 0), (16 / 17, 8 / 9, 8 / 9, 1, 8 / 9, 0, 8 / 9, 16 / 17), id="full-missed"
        ),
        pytest.param((0, 2, 3, 4), (0, 0, 0, 0, 0, 4 / 6, 4 / 9, 4 / 5), id="beside-it"),
        pytest.param((0, 3, 3, 3), (0, 0, 0, 0, 0, 1 / 2, 1 / 3, 1), id="as-large-beside-it"),
        pytest.param((1, 0, 0, 0), (1, 1, 1, 1, 1, 1, 1, 1), id="one-pixel"),
        pytest.param((2, 1, 1, 5), (2 / 3, 0.5, 0, 2 / 3, 2 / 3, 5 / 6, 7 / 9, 1), id="a-half"),
        pytest.param((2, 3, 1, 3), (1 / 2, 1 / 3, 0, 2 / 5, 2 / 3, 1 / 2, 5 / 9, 3 / 4), id="more"),
    ],
)
def test_scores_case_by_case(counts, expected):
    scores = {name: float(values[0]) for name, values in scored(counts).items()}
    assert scores == pytest.approx(dict(zip(NAMES, expected, strict=True)))


@pytest.mark.parametrize(
    ("tp", "wrong", "kept"), [(13, 7, 0.65), (65, 35, 0.65), (649, 351, 0.0), (66, 34, 0.66)]
)
def test_jaccard_threshold(tp, wrong, kept):
    for row in ((tp, wrong, 0, 50), (tp, 0, wrong, 50), (tp, wrong - 1, 1, 0)):
        assert scored(row)["thresholded_jaccard"][0] == kept


def test_images_have_equal_weight():
    scores = scored((1, 1, 0, 2), (0, 0, 1000, 9000))
    assert scores["dice"].tolist() == pytest.approx([2 / 3, 0])
    assert mean_scores(scores).dice == pytest.approx(1 / 3)


def test_means_are_plain_numbers():
    means = mean_scores(scored((1, 0, 0, 1), (0, 1, 1, 0)))
    assert means == Metrics(*[0.5] * 7, 1.0)
    assert {type(v) for v in dataclasses.asdict(means).values()} == {float}


def test_mean_of_no_image_is_refused():
    with pytest.raises(ValueError, match="at least one image, got none"):
        mean_scores(score_images(np.zeros((0, 4), np.int64)))


def test_masks_of_two_shapes_are_refused():
    one, other = torch.zeros(2, 1, 3, 3, dtype=torch.bool), torch.zeros(2, 3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="must be equal"):
        count_pixels(one, other)
