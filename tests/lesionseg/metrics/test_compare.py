"""Intervals of means and of paired differences against theory, SciPy and hand-worked cases."""

import itertools
import time

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from lesionseg.metrics.compare import (
    PairedDifference,
    adjust_p_values,
    bootstrap_intervals,
    paired_difference,
    wilcoxon_p_value,
)
from lesionseg.metrics.overlap import METRICS


def some_scores(dice):
    """Scores that all have the given values."""
    return {name: np.asarray(dice, dtype=np.float64) for name in METRICS}


def single(n):
    return [str(i) for i in range(n)]


def width(interval):
    return interval[1] - interval[0]


def test_interval_contains_the_mean_and_is_reproducible():
    rng = np.random.default_rng(0)
    scores = {name: rng.random(40) for name in METRICS}
    first = bootstrap_intervals(scores, single(40), resamples=500)
    assert first == bootstrap_intervals(scores, single(40), resamples=500)
    assert first != bootstrap_intervals(scores, single(40), resamples=500, seed=1)
    assert tuple(first) == METRICS
    for name, (low, high) in first.items():
        assert low < scores[name].mean() < high


def test_higher_level_is_wider():
    scores = some_scores(np.random.default_rng(0).random(40))
    narrow, wide = (
        bootstrap_intervals(scores, single(40), resamples=500, level=v)["dice"] for v in (0.5, 0.95)
    )
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_width_equals_theory():
    """For a mean of many values: 1.96 standard errors to each side."""
    values = np.random.default_rng(0).random(400)
    low, high = bootstrap_intervals(some_scores(values), single(400))["dice"]
    expected = 2 * 1.96 * values.std() / np.sqrt(400)
    assert high - low == pytest.approx(expected, rel=0.06)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.1 * expected)


def test_coverage():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(150):
        low, high = bootstrap_intervals(some_scores(rng.beta(8, 2, 50)), single(50), resamples=200)[
            "dice"
        ]
        covered += low <= 0.8 <= high
    assert 0.88 <= covered / 150 <= 0.99


def test_groups_widen_the_interval():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.random(30), 6) + rng.normal(0, 0.01, 180)
    groups = [str(i // 6) for i in range(180)]
    alone = bootstrap_intervals(some_scores(values), single(180), resamples=1000)["dice"]
    together = bootstrap_intervals(some_scores(values), groups, resamples=1000)["dice"]
    # Six pictures that say the same are worth one: the square root of six wider.
    assert width(together) / width(alone) == pytest.approx(np.sqrt(6), rel=0.15)


def test_groups_are_resampled_whole():
    # Two groups: three pictures of 0 and one of 1. A draw of two groups gives 0 (one in four),
    # 1/4 (two in four) or 1 (one in four).
    scores, groups = some_scores([0, 0, 1, 0]), ["a", "a", "b", "a"]
    assert bootstrap_intervals(scores, groups, level=0.4)["dice"] == (0.25, 0.25)
    assert bootstrap_intervals(scores, groups, level=0.95)["dice"] == (0.0, 1.0)


@pytest.mark.parametrize(
    ("values", "groups", "expected"),
    [([0.7], ["a"], 0.7), ([0.2, 0.4], ["a", "a"], 0.3), ([0.5] * 5, list("abcde"), 0.5)],
    ids=["one-image", "one-group", "all-alike"],
)
def test_constant_scores_give_a_point(values, groups, expected):
    low, high = bootstrap_intervals(some_scores(values), groups, resamples=50)["dice"]
    assert (low, high) == pytest.approx((expected, expected))


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abcd")), min_size=1, max_size=12))
@settings(max_examples=20, deadline=None)
def test_interval_is_within_the_values(pairs):
    values, groups = zip(*pairs, strict=True)
    low, high = bootstrap_intervals(some_scores(values), list(groups), resamples=40)["dice"]
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_group_names_do_not_matter():
    values = np.random.default_rng(0).random(12)
    plain = bootstrap_intervals(
        some_scores(values), [f"{i // 3:02}" for i in range(12)], resamples=300
    )
    renamed = bootstrap_intervals(
        some_scores(values), [f"p{i // 3:02}" for i in range(12)], resamples=300
    )
    assert plain == renamed


def test_all_names_use_the_same_resamples():
    values = np.random.default_rng(0).random(30)
    intervals = bootstrap_intervals(
        {"hd95": values, "twice": 2 * values}, single(30), resamples=200
    )
    assert list(intervals) == ["hd95", "twice"]
    assert intervals["twice"] == pytest.approx(tuple(2 * v for v in intervals["hd95"]))
    alone = bootstrap_intervals({"a": values}, single(30), resamples=200)["a"]
    assert intervals["hd95"] == pytest.approx(alone)


def test_equals_resampling_one_by_one():
    """The same resamples with explicit lists of images."""
    rng = np.random.default_rng(3)
    values, groups = rng.random(20), rng.choice(list("abcdefg"), 20)
    names = np.unique(groups)
    draws = np.random.default_rng(5)
    means = []
    for _ in range(300):
        drawn = draws.integers(len(names), size=len(names))
        means.append(np.concatenate([values[groups == names[i]] for i in drawn]).mean())
    interval = bootstrap_intervals({"a": values}, list(groups), resamples=300, level=0.9, seed=5)[
        "a"
    ]
    assert interval == pytest.approx(tuple(np.percentile(means, [5, 95])))


def test_paired_interval_equals_that_of_the_differences():
    rng = np.random.default_rng(0)
    a, b = rng.random(40), rng.random(40)
    groups = [str(i // 4) for i in range(40)]
    result = paired_difference(a, b, groups, resamples=400, seed=3)
    alone = bootstrap_intervals({"d": a - b}, groups, resamples=400, seed=3)["d"]
    assert result == PairedDifference((a - b).mean(), *alone)
    draws = np.random.default_rng(3).integers(10, size=(400, 10))
    of_a, of_b = (v.reshape(10, 4).mean(1)[draws].mean(1) for v in (a, b))
    assert (result.low, result.high) == pytest.approx(
        tuple(np.percentile(of_a - of_b, [2.5, 97.5]))
    )


def test_small_consistent_difference_is_detected():
    """Images differ more than the two models."""
    rng = np.random.default_rng(0)
    b = rng.random(60)
    a = b + 0.02 + rng.normal(0, 0.01, 60)
    of_a, of_b = (bootstrap_intervals({"x": v}, single(60))["x"] for v in (a, b))
    assert of_a[0] < of_b[1]  # apart, the two intervals tell nothing
    result = paired_difference(a, b, single(60))
    assert 0 < result.low < result.difference < result.high
    assert result.difference == pytest.approx(0.02, abs=0.005)


def test_equal_scores_have_no_difference():
    a = np.random.default_rng(0).random(20)
    assert paired_difference(a, a.copy(), single(20), resamples=50) == PairedDifference(
        0.0, 0.0, 0.0
    )


def test_five_thousand_resamples_of_400_images_take_well_under_a_second():
    scores = dict.fromkeys(METRICS, np.random.default_rng(0).random(400))
    start = time.process_time()
    bootstrap_intervals(scores, single(400))
    assert time.process_time() - start < 0.8


def by_all_signs(differences):
    """Wilcoxon's exact p-value: how many of all sign patterns are as far out as this one."""
    ranks = scipy.stats.rankdata(np.abs(differences))
    seen = abs((ranks * np.sign(differences)).sum())
    every = itertools.product((-1, 1), repeat=len(ranks))
    return np.mean([abs((ranks * signs).sum()) >= seen - 1e-9 for signs in every])


@pytest.mark.parametrize(
    "differences", [[0.1, 0.2, 0.3, 0.4, 0.5], [0.3, -0.1, 0.2, 0.5, -0.4, 0.6], [0.2]]
)
def test_wilcoxon_equals_the_exact_test(differences):
    a = np.array(differences)
    groups = [f"g{i}" for i in range(len(a))]
    assert wilcoxon_p_value(a, np.zeros(len(a)), groups) == pytest.approx(by_all_signs(a))
    assert wilcoxon_p_value(np.zeros(len(a)), a, groups) == pytest.approx(by_all_signs(a))


def test_wilcoxon_is_over_groups():
    differences = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    groups = ["a", "b", "c", "d", "e"]
    alone = wilcoxon_p_value(differences, np.zeros(5), groups)
    # Each picture ten times tells nothing new.
    again = wilcoxon_p_value(np.repeat(differences, 10), np.zeros(50), list(np.repeat(groups, 10)))
    assert again == pytest.approx(alone)


def test_wilcoxon_of_no_difference_is_one():
    same = np.array([0.5, 0.6])
    assert wilcoxon_p_value(same, same, ["a", "b"]) == 1
    assert wilcoxon_p_value(same, same[::-1].copy(), ["a", "a"]) == 1


@pytest.mark.parametrize(
    ("chances", "raised"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 4 x 0.005, 3 x 0.01, 2 x 0.03
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([], []),
    ],
)
def test_holm_multiplies_step_by_step(chances, raised):
    assert adjust_p_values(chances) == pytest.approx(raised)


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_keeps_the_order_and_lies_between_the_raw_values_and_bonferronis(chances):
    raised = adjust_p_values(chances)
    for p, q in zip(chances, raised, strict=True):
        assert p <= q <= min(1, len(chances) * p) + 1e-12
    for i, p in enumerate(chances):
        assert all(raised[i] <= raised[j] for j, q in enumerate(chances) if p < q)
