"""Tallies, curves and calibration against scikit-learn, NumPy and hand-worked cases."""

import numpy as np
import pytest
import sklearn.metrics
import torch
from sklearn.calibration import calibration_curve

from lesionseg.metrics.curves import (
    average_precision,
    calibration,
    calibration_error,
    mean_confusion,
    mean_histogram,
    precision_recall,
    probability_histogram,
)
from lesionseg.metrics.overlap import count_pixels, score_images
from tests.lesionseg.metrics.masks import MASKS, SHAPE


def foretold(truth, seed=0, noise=0.25):
    """Probabilities of 0.3 and 0.6 by class, with noise."""
    rng = np.random.default_rng(seed)
    return np.clip(0.3 + 0.3 * truth + rng.normal(0, noise, truth.shape), 0, 1)


def middles(bins):
    return (np.arange(bins) + 0.5) / bins


def images(n=4):
    """Images of several sizes and kinds: (probability, truth) each."""
    rng = np.random.default_rng(7)
    truths = [rng.random((5 + 3 * i, 9)) < 0.2 + 0.15 * i for i in range(n)]
    return [(foretold(truth, seed), truth) for seed, truth in enumerate(truths)]


def pooled_of(pairs, bins=1000):
    return mean_histogram(np.stack([probability_histogram(p, t, bins) for p, t in pairs]))


def pixels_of(pairs, bins):
    """Every pixel: its binned probability, its truth, and 1 / the pixels of its image."""
    place = [np.minimum((p * bins).astype(int), bins - 1).ravel() for p, _ in pairs]
    truth = [t.ravel() for _, t in pairs]
    weight = [np.full(t.size, 1 / t.size) for _, t in pairs]
    return middles(bins)[np.concatenate(place)], np.concatenate(truth), np.concatenate(weight)


# --- histograms ----------------------------------------------------------------------------------


def test_histogram_equals_numpys():
    for name, truth in MASKS.items():
        p = foretold(truth)
        ours = probability_histogram(p, truth, 50)
        assert ours.dtype == np.int64 and ours.shape == (2, 50) and ours.sum() == truth.size
        for row, part in zip(ours, (~truth, truth), strict=True):
            theirs = np.histogram(p[part], bins=50, range=(0, 1))[0]
            assert row.tolist() == theirs.tolist(), name


def test_bin_edges():
    p = np.array([[0.0, 0.2499, 0.25, 0.5, 0.7499, 0.75, 1.0]])
    assert probability_histogram(p, np.zeros((1, 7), bool), 4).tolist() == [
        [2, 1, 2, 2],
        [0, 0, 0, 0],
    ]


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_half_precision_values_are_binned_exactly(kind):
    p = np.linspace(0, 1, 4000).reshape(40, 100).astype(kind)
    truth = np.random.default_rng(0).random(p.shape) < 0.5
    assert np.array_equal(
        probability_histogram(p, truth), probability_histogram(p.astype(np.float64), truth)
    )
    below_one = np.nextafter(kind(1), kind(0))
    assert probability_histogram(np.full((1, 1), below_one), np.ones((1, 1), bool))[1, -1] == 1


@pytest.mark.parametrize(
    ("p", "truth"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2), bool)),
        (np.full((2, 3), np.nan), np.zeros((2, 3), bool)),
        (np.full((2, 3), np.nan), np.ones((2, 3), bool)),
    ],
    ids=["shapes", "nan", "nan-lesion"],
)
def test_invalid_probabilities_are_refused(p, truth):
    with pytest.raises(ValueError), np.errstate(invalid="ignore"):
        probability_histogram(p, truth, 9)


def test_images_have_equal_weight():
    small, large = np.array([[1, 0], [0, 1]]), np.array([[0, 0], [300, 700]])
    assert mean_histogram(np.stack([small, large])) == pytest.approx(
        np.array([[0.25, 0.0], [0.15, 0.25 + 0.35]])
    )
    assert mean_histogram(np.stack([small, 1000 * large])) == pytest.approx(
        mean_histogram(np.stack([small, large]))
    )
    assert pooled_of(images()).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("histograms", "message"),
    [
        (np.ones((0, 2, 9), int), "at least one image"),
        (np.stack([np.ones((2, 9), int), np.zeros((2, 9), int)]), "pixels in each"),
    ],
    ids=["no-image", "an-empty-image"],
)
def test_invalid_histograms_are_refused(histograms, message):
    with pytest.raises(ValueError, match=message):
        mean_histogram(histograms)


# --- precision and recall ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in MASKS if MASKS[name].any()])
def test_precision_and_recall_of_one_image_are_those_of_its_thresholded_mask(name):
    truth = MASKS[name]
    p = foretold(truth)
    curve = precision_recall(pooled_of([(p, truth)], bins=20))
    assert curve.thresholds.tolist() == pytest.approx([k / 20 for k in range(20)])
    called = torch.from_numpy(p >= curve.thresholds[:, None, None])
    scores = score_images(count_pixels(called, torch.from_numpy(truth).expand_as(called)).numpy())
    some = called.flatten(1).any(1).numpy()
    assert curve.recall == pytest.approx(scores["recall"])
    assert curve.precision[some] == pytest.approx(scores["precision"][some])
    assert (curve.precision[~some] == 1).all()


def test_precision_and_recall_are_scikit_learns_of_weighted_pixels():
    bins, pairs = 40, images()
    p, truth, weight = pixels_of(pairs, bins)
    precision, recall, thresholds = sklearn.metrics.precision_recall_curve(
        truth, p, sample_weight=weight
    )
    curve = precision_recall(pooled_of(pairs, bins))
    at = np.searchsorted(middles(bins), thresholds - 1e-9)
    assert len(at) > 30
    assert curve.precision[at] == pytest.approx(precision[:-1])
    assert curve.recall[at] == pytest.approx(recall[:-1])


@pytest.mark.parametrize("bins", [1, 2, 10, 1000])
def test_average_precision_is_scikit_learns_of_weighted_pixels(bins):
    for n in (1, 2, 4):
        p, truth, weight = pixels_of(images(n), bins)
        expected = sklearn.metrics.average_precision_score(truth, p, sample_weight=weight)
        assert average_precision(pooled_of(images(n), bins)) == pytest.approx(expected)


def test_average_precision_of_every_mask_is_scikit_learns():
    for name, mask in MASKS.items():
        if mask.any():
            pair = foretold(mask), mask
            p, truth, _ = pixels_of([pair], 1000)
            expected = sklearn.metrics.average_precision_score(truth, p)
            assert average_precision(pooled_of([pair])) == pytest.approx(expected), name


def test_average_precision_by_hand():
    """From above: 1 of 1 right at recall 1/3, 1 of 2 there still, 3 of 4 at recall 1."""
    tallied = np.array([[[0, 0, 1, 0], [0, 2, 0, 1]]])
    assert average_precision(mean_histogram(tallied)) == pytest.approx(1 / 3 * 1 + 2 / 3 * 3 / 4)
    curve = precision_recall(mean_histogram(tallied))
    assert curve.precision.tolist() == pytest.approx([3 / 4, 3 / 4, 1 / 2, 1])
    assert curve.recall.tolist() == pytest.approx([1, 1, 1 / 3, 1 / 3])


def test_perfect_probabilities_have_an_average_precision_of_one():
    truth = MASKS["ring"]
    assert average_precision(pooled_of([(truth.astype(float), truth)])) == 1.0
    constant = pooled_of([(np.full(SHAPE, 0.4), truth)])
    assert average_precision(constant) == pytest.approx(truth.mean())


def test_without_any_lesion_average_precision_is_0_and_recall_1_as_in_scikit_learn():
    pair = foretold(MASKS["empty"]), MASKS["empty"]
    with pytest.warns(UserWarning, match="No positive class"):
        theirs = sklearn.metrics.average_precision_score(pair[1].ravel(), pair[0].ravel())
    table = pooled_of([pair])
    assert average_precision(table) == theirs == 0.0
    curve = precision_recall(table)
    assert (curve.recall == 1).all()
    assert np.isfinite(curve.precision).all() and curve.precision[0] == 0


# --- calibration ---------------------------------------------------------------------------------


def test_calibration_is_scikit_learns():
    """At the middles of 1000 bins, of which none lies on an edge of 15."""
    pairs = images(1)
    p, truth, _ = pixels_of(pairs, 1000)
    frequency, confidence = calibration_curve(truth, p, n_bins=15)
    table = calibration(pooled_of(pairs))
    held = table.share > 0
    assert len(table.share) == 15 and held.sum() == len(frequency) > 8
    assert table.frequency[held] == pytest.approx(frequency)
    assert table.confidence[held] == pytest.approx(confidence)


@pytest.mark.parametrize(("fine", "bins"), [(1000, 15), (1000, 10), (60, 15), (10, 10), (7, 1)])
def test_the_calibration_error_is_that_of_the_weighted_pixels(fine, bins):
    pairs = images()
    p, truth, weight = pixels_of(pairs, fine)
    weight = weight / len(pairs)
    home = np.floor(p * bins + 1e-9).astype(int)
    expected = 0.0
    for b in range(bins):
        w, t, q = (a[home == b] for a in (weight, truth, p))
        if w.sum():
            expected += w.sum() * abs(np.average(t, weights=w) - np.average(q, weights=w))
    assert calibration_error(pooled_of(pairs, fine), bins) == pytest.approx(expected)


def test_the_binned_calibration_error_is_near_that_of_the_probabilities_themselves():
    rng = np.random.default_rng(0)
    p = rng.random((200, 200))
    truth = rng.random(p.shape) < p**2
    home = np.minimum((p * 15).astype(int), 14)
    parts = [(truth[home == b], p[home == b]) for b in range(15)]
    exact = sum(len(t) * abs(t.mean() - q.mean()) for t, q in parts) / p.size
    assert exact > 0.1
    assert calibration_error(pooled_of([(p, truth)])) == pytest.approx(exact, abs=0.001)


def test_calibration_by_hand():
    """Middles 1/4 and 3/4; of the pixels there, 1 in 5 and 4 in 5 are lesion: 0.05 off each."""
    table = calibration(np.array([[0.4, 0.1], [0.1, 0.4]]), bins=2)
    assert table.confidence.tolist() == [0.25, 0.75]
    assert table.frequency.tolist() == pytest.approx([0.2, 0.8])
    assert table.share.tolist() == [0.5, 0.5]
    assert calibration_error(np.array([[0.4, 0.1], [0.1, 0.4]]), bins=2) == pytest.approx(0.05)
    # In one bin the two errors make up for each other.
    assert calibration_error(np.array([[0.4, 0.1], [0.1, 0.4]]), bins=1) == pytest.approx(0)


def test_calibration_error_of_calibrated_and_miscalibrated_probabilities():
    rng = np.random.default_rng(0)
    p = rng.random((300, 300))
    truth = rng.random(p.shape) < p
    assert calibration_error(pooled_of([(p, truth)])) < 0.01
    assert calibration_error(pooled_of([(1 - p, truth)])) == pytest.approx(0.5, abs=0.02)


def test_empty_bin():
    table = np.zeros((2, 10))
    table[1, 9] = 1.0
    result = calibration(table, bins=5)
    assert result.confidence.tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.95])
    assert np.isnan(result.frequency[:4]).all() and result.frequency[4] == 1
    assert result.share.tolist() == [0, 0, 0, 0, 1]
    assert calibration_error(table, bins=5) == pytest.approx(0.05)


@pytest.mark.parametrize("name", ["empty", "full"])
def test_without_lesion_or_without_skin_the_error_is_the_distance_from_it(name):
    p, truth = np.full(SHAPE, 0.3), MASKS[name]
    assert calibration_error(pooled_of([(p, truth)])) == pytest.approx(
        0.7 if truth.all() else 0.3, abs=0.00051
    )


# --- confusion -----------------------------------------------------------------------------------


def test_confusion_is_the_mean_of_scikit_learns_shares():
    pairs = [(p >= 0.5, t) for p, t in images()]
    rows = [count_pixels(*(torch.from_numpy(m)[None] for m in pair)).numpy() for pair in pairs]
    theirs = np.mean(
        [
            sklearn.metrics.confusion_matrix(
                t.ravel(), p.ravel(), labels=[False, True], normalize="all"
            )
            for p, t in pairs
        ],
        axis=0,
    )
    (tn, fp), (fn, tp) = theirs
    ours = mean_confusion(np.concatenate(rows))
    assert ours == pytest.approx({"tp": tp, "fp": fp, "fn": fn, "tn": tn})
    assert list(ours) == ["tp", "fp", "fn", "tn"]
    assert sum(ours.values()) == pytest.approx(1)


def test_confusion_by_hand():
    counts = np.array([[1, 0, 0, 1], [0, 100, 300, 0]])
    assert mean_confusion(counts) == {"tp": 0.25, "fp": 0.125, "fn": 0.375, "tn": 0.25}
    assert {type(v) for v in mean_confusion(counts).values()} == {float}


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.ones((0, 4), int), "at least one image"),
        (np.zeros((2, 4), int), "pixels in each"),
    ],
    ids=["no-image", "no-pixel"],
)
def test_invalid_counts_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        mean_confusion(counts)
