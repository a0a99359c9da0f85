"""Counts, scores, means and intervals against scikit-learn, smp and hand-worked cases."""

import dataclasses

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lesionseg.metrics import METRICS, Metrics, bootstrap, count, mean, score

NAMES = ("dice", "jaccard", "thresholded_jaccard", "precision", "recall", "specificity", "accuracy")

masks = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)


def scored(*rows):
    return score(np.array(rows, dtype=np.int64))


def test_the_names_stand_in_one_order():
    assert METRICS == NAMES
    assert tuple(scored((1, 1, 1, 1))) == NAMES


@given(masks)
def test_counts_are_scikit_learns_confusion_matrix(pair):
    predicted, truth = pair
    counts = count(torch.from_numpy(predicted), torch.from_numpy(truth))
    assert counts.dtype == torch.int64 and counts.shape == (len(truth), 4)
    for row, p, t in zip(counts.tolist(), predicted, truth, strict=True):
        (tn, fp), (fn, tp) = sklearn.metrics.confusion_matrix(
            t.ravel(), p.ravel(), labels=[False, True]
        )
        assert row == [tp, fp, fn, tn]


@given(masks)
def test_scores_are_scikit_learns_wherever_it_defines_them(pair):
    predicted, truth = pair
    scores = score(count(torch.from_numpy(predicted), torch.from_numpy(truth)).numpy())
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
def test_every_score_is_finite_and_between_0_and_1(pair):
    predicted, truth = pair
    scores = score(count(torch.from_numpy(predicted), torch.from_numpy(truth)).numpy())
    for values in scores.values():
        assert values.dtype == np.float64 and values.shape == (len(truth),)
        assert ((values >= 0) & (values <= 1)).all()


@given(masks)
def test_lesion_and_skin_are_treated_alike(pair):
    """Specificity is the recall of skin, in the empty cases too."""
    predicted, truth = (torch.from_numpy(m) for m in pair)
    of_lesion, of_skin = (
        score(count(p, t).numpy()) for p, t in ((predicted, truth), (~predicted, ~truth))
    )
    assert np.array_equal(of_lesion["specificity"], of_skin["recall"])


def test_the_mean_is_smps_of_the_isic_kind():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(8, 1, 16, 16, generator=generator) < 0.3
    predicted = truth ^ (torch.rand(8, 1, 16, 16, generator=generator) < 0.2)
    ours = mean(score(count(predicted, truth).numpy()))
    stats = smp.metrics.get_stats(predicted.int(), truth.int(), mode="binary")
    kind = {"reduction": "micro-imagewise"}
    assert ours.dice == pytest.approx(float(smp.metrics.f1_score(*stats, **kind)))
    assert ours.jaccard == pytest.approx(float(smp.metrics.iou_score(*stats, **kind)))
    assert ours.specificity == pytest.approx(float(smp.metrics.specificity(*stats, **kind)))
    assert ours.accuracy == pytest.approx(float(smp.metrics.accuracy(*stats, **kind)))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # dice, jaccard, thresholded, precision, recall, specificity, accuracy
        pytest.param((0, 0, 0, 9), (1, 1, 1, 1, 1, 1, 1), id="empty-found-empty"),
        pytest.param((0, 1, 0, 8), (0, 0, 0, 0, 0, 8 / 9, 8 / 9), id="empty-one-pixel-found"),
        pytest.param((0, 9, 0, 0), (0, 0, 0, 0, 0, 0, 0), id="empty-found-full"),
        pytest.param((0, 0, 3, 6), (0, 0, 0, 0, 0, 1, 6 / 9), id="lesion-found-empty"),
        pytest.param((0, 0, 9, 0), (0, 0, 0, 0, 0, 0, 0), id="full-found-empty"),
        pytest.param((9, 0, 0, 0), (1, 1, 1, 1, 1, 1, 1), id="full-found-full"),
        pytest.param((8, 0, 1, 0), (16 / 17, 8 / 9, 8 / 9, 1, 8 / 9, 0, 8 / 9), id="full-missed"),
        pytest.param((0, 2, 3, 4), (0, 0, 0, 0, 0, 4 / 6, 4 / 9), id="beside-it"),
        pytest.param((1, 0, 0, 0), (1, 1, 1, 1, 1, 1, 1), id="one-pixel"),
        pytest.param((2, 1, 1, 5), (2 / 3, 0.5, 0, 2 / 3, 2 / 3, 5 / 6, 7 / 9), id="a-half"),
    ],
)
def test_scores_case_by_case(counts, expected):
    scores = {name: float(values[0]) for name, values in scored(counts).items()}
    assert scores == pytest.approx(dict(zip(NAMES, expected, strict=True)))


@pytest.mark.parametrize(
    ("tp", "wrong", "kept"), [(13, 7, 0.65), (65, 35, 0.65), (649, 351, 0.0), (66, 34, 0.66)]
)
def test_jaccard_counts_from_65_hundredths_on(tp, wrong, kept):
    for row in ((tp, wrong, 0, 50), (tp, 0, wrong, 50), (tp, wrong - 1, 1, 0)):
        assert scored(row)["thresholded_jaccard"][0] == kept


def test_an_image_counts_once_whatever_its_size():
    scores = scored((1, 1, 0, 2), (0, 0, 1000, 9000))
    assert scores["dice"].tolist() == pytest.approx([2 / 3, 0])
    assert mean(scores).dice == pytest.approx(1 / 3)


def test_means_are_plain_numbers():
    means = mean(scored((1, 0, 0, 1), (0, 1, 1, 0)))
    assert means == Metrics(*[0.5] * 7)
    assert {type(v) for v in dataclasses.asdict(means).values()} == {float}


def test_no_image_has_no_mean():
    with pytest.raises(ValueError, match="at least one image, got none"):
        mean(score(np.zeros((0, 4), np.int64)))


def test_masks_of_two_shapes_are_refused():
    one, other = torch.zeros(2, 1, 3, 3, dtype=torch.bool), torch.zeros(2, 3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"one shape, got \(2, 1, 3, 3\) and \(2, 3, 3\)"):
        count(one, other)


def some_scores(dice):
    """Scores of which all are the given ones."""
    return {name: np.asarray(dice, dtype=np.float64) for name in METRICS}


def single(n):
    return [str(i) for i in range(n)]


def width(interval):
    return interval[1] - interval[0]


def test_an_interval_holds_the_mean_and_is_the_same_each_time():
    rng = np.random.default_rng(0)
    scores = {name: rng.random(40) for name in METRICS}
    first = bootstrap(scores, single(40), resamples=500)
    assert first == bootstrap(scores, single(40), resamples=500)
    assert first != bootstrap(scores, single(40), resamples=500, seed=1)
    assert tuple(first) == NAMES
    for name, (low, high) in first.items():
        assert low < scores[name].mean() < high


def test_a_surer_interval_is_wider():
    scores = some_scores(np.random.default_rng(0).random(40))
    narrow, wide = (
        bootstrap(scores, single(40), resamples=500, level=v)["dice"] for v in (0.5, 0.95)
    )
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_interval_is_as_wide_as_theory_says():
    """For a mean of many values: 1.96 standard errors to each side."""
    values = np.random.default_rng(0).random(400)
    low, high = bootstrap(some_scores(values), single(400))["dice"]
    expected = 2 * 1.96 * values.std() / np.sqrt(400)
    assert high - low == pytest.approx(expected, rel=0.06)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.1 * expected)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(150):
        low, high = bootstrap(some_scores(rng.beta(8, 2, 50)), single(50), resamples=200)["dice"]
        covered += low <= 0.8 <= high
    assert 0.88 <= covered / 150 <= 0.99


def test_pictures_of_one_lesion_make_the_interval_wider():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.random(30), 6) + rng.normal(0, 0.01, 180)
    groups = [str(i // 6) for i in range(180)]
    alone = bootstrap(some_scores(values), single(180), resamples=1000)["dice"]
    together = bootstrap(some_scores(values), groups, resamples=1000)["dice"]
    # Six pictures that say the same are worth one: the square root of six wider.
    assert width(together) / width(alone) == pytest.approx(np.sqrt(6), rel=0.15)


def test_groups_are_drawn_whole_and_weigh_by_their_pictures():
    # Two groups: three pictures of 0 and one of 1. A draw of two groups gives 0 (one in four),
    # 1/4 (two in four) or 1 (one in four).
    scores, groups = some_scores([0, 0, 1, 0]), ["a", "a", "b", "a"]
    assert bootstrap(scores, groups, level=0.4)["dice"] == (0.25, 0.25)
    assert bootstrap(scores, groups, level=0.95)["dice"] == (0.0, 1.0)


@pytest.mark.parametrize(
    ("values", "groups", "expected"),
    [([0.7], ["a"], 0.7), ([0.2, 0.4], ["a", "a"], 0.3), ([0.5] * 5, list("abcde"), 0.5)],
    ids=["one-image", "one-group", "all-alike"],
)
def test_an_interval_without_any_doubt_is_a_point(values, groups, expected):
    low, high = bootstrap(some_scores(values), groups, resamples=50)["dice"]
    assert (low, high) == pytest.approx((expected, expected))


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abcd")), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_an_interval_lies_within_the_values_in_any_case(pairs):
    values, groups = zip(*pairs, strict=True)
    low, high = bootstrap(some_scores(values), list(groups), resamples=40)["dice"]
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_what_groups_are_called_does_not_matter():
    values = np.random.default_rng(0).random(12)
    plain = bootstrap(some_scores(values), [f"{i // 3:02}" for i in range(12)], resamples=300)
    renamed = bootstrap(some_scores(values), [f"p{i // 3:02}" for i in range(12)], resamples=300)
    assert plain == renamed
