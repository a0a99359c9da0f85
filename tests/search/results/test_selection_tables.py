"""Sentences about finalists and ensembles."""

import pytest

from search.results.selection_tables import describe_gain, describe_optimism, finalists_table

FINALISTS = [
    {"trial": 3, "search": 0.80, "dice": [0.81], "mean": 0.81, "deviation": None, "seconds": 60.0,
     "chosen": True},
    {"trial": 9, "search": 0.85, "dice": [0.79], "mean": 0.79, "deviation": None, "seconds": 60.0,
     "chosen": False},
]  # fmt: skip
CURSE = "The best of many noisy values is too high on average (winner's curse)"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (0.05, 0.02, "after the retraining 0.0200 above it: 40% of the lead remained."),
        (0.05, 0.06, "after the retraining 0.0600 above it: 100% of the lead remained."),
        (0.05, -0.02, "after the retraining 0.0200 below it: none of the lead remained."),
        (0.05, 0.0, "after the retraining 0.0000 above it: none of the lead remained."),
        (0.0, 0.01, "after the retraining 0.0100 above it."),
    ],
)
def test_lead_of_the_best_trial_of_the_search(before, after, expected):
    optimism = {"search_lead": before, "final_lead": after, "gap": None}
    text = describe_optimism(optimism, FINALISTS)
    start = f"In the search, trial 9 was {before:.4f} above the mean of the other finalists, "
    assert text.startswith(start + expected)
    assert CURSE in text


def test_gap_between_search_and_retraining():
    optimism = {"search_lead": None, "final_lead": None, "gap": 0.06}
    text = describe_optimism(optimism, FINALISTS[1:])
    assert text.startswith(
        f"The search value of trial 9 is 0.0600 above the mean of its retrainings. {CURSE}"
    )
    assert describe_optimism(dict.fromkeys(optimism), FINALISTS) == ""


def test_caption_of_one_finalist():
    table = finalists_table(FINALISTS[:1], {"image_size": 64, "epochs": 1})
    assert table.caption.startswith(
        "The best trial of the search, retrained with 1 seed at 64 px, 1 epoch."
    )
    assert table.highlighted == 0


def test_gain_without_standard_error():
    assert describe_gain({"gain": 0.01, "standard_error": None}) == "+0.0100"
