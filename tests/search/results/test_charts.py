"""The charts as SVG: what they show, and that they lie well within a page."""

import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from search.results import charts
from search.results.charts import progress, space

SHARES = {"tp": 0.2, "fp": 0.05, "fn": 0.1, "tn": 0.65}
ROWS = [
    {"epoch": float(e), "train_loss": 1 / e, "val_loss": 1.2 / e, "dice": d}
    for e, d in enumerate((0.4, 0.7, 0.6), 1)
]


def trial(number, state, curve=(), value=None, reason=None):
    made = optuna.trial.create_trial(
        state=state,
        value=value,
        intermediate_values=dict(enumerate(curve, 1)),
        user_attrs={"reason": reason} if reason else {},
    )
    made.number = number
    return made


def some_trials():
    return [
        trial(0, TrialState.COMPLETE, (0.4, 0.8), 0.8),
        trial(1, TrialState.PRUNED, (0.3,)),
        trial(2, TrialState.COMPLETE, (0.5, 0.9), 0.9),
        trial(3, TrialState.FAIL, (0.1,), reason="diverged"),
        trial(4, TrialState.FAIL, reason="duplicate"),
        trial(5, TrialState.PRUNED),
        trial(6, TrialState.RUNNING, (0.2,)),
        trial(7, TrialState.WAITING),
    ]


def drawn(chart):
    """The SVG's elements; it is well-formed."""
    return list(ET.fromstring(str(chart)).iter())


def texts(chart):
    return [e.text for e in drawn(chart) if e.tag == "text"]


def label(chart):
    return drawn(chart)[0].get("aria-label")


CURVES = {
    "thresholds": [0.0, 0.5, 0.9],
    "precision": [0.3, 0.8, 1.0],
    "recall": [1.0, 0.75, 0.1],
    "confidence": [0.1, 0.5, 0.9],
    "frequency": [0.05, None, 0.95],
    "share": [0.6, 0.0, 0.4],
}
SPACE = [
    {"number": i, "state": state, "dice": dice, "params": params}
    for i, (state, dice, params) in enumerate(
        [
            ("complete", 0.8, {"model": "unet", "lr": 1e-4, "ema": True, "loss.focal.gamma": 2.0}),
            ("complete", 0.9, {"model": "segnet", "lr": 1e-2, "ema": False}),
            ("pruned", 0.5, {"model": "unet", "lr": 1e-3, "ema": True}),
            ("failed", None, {"model": "unet", "lr": 1e-3, "ema": True}),
        ]
    )
]
NAMES = ["model", "lr", "ema", "loss.focal.gamma"]

ALL = {
    "history": lambda: charts.history_chart(some_trials(), 2),
    "curves": lambda: charts.curves_chart(some_trials(), 2),
    "retraining": lambda: charts.retraining_chart(ROWS, 2),
    "importance": lambda: charts.importance_chart({"model": 0.75, "loss.focal.gamma": 0.25}),
    "confusion": lambda: charts.confusion_chart(SHARES),
    "dice": lambda: charts.dice_chart([0.2, 0.8, 0.9]),
    "recall": lambda: charts.recall_chart(CURVES, 0.9),
    "calibration": lambda: charts.calibration_chart(CURVES, 0.02),
    "size": lambda: charts.size_chart([0.01, 0.2, 0.0], [0.4, 0.9, 1.0]),
    "slices": lambda: charts.slices_chart(SPACE, NAMES, 1),
    "parallel": lambda: charts.parallel_chart(SPACE, NAMES, 1),
}


@pytest.mark.parametrize("name", ALL)
def test_a_chart_has_no_colour_font_size_or_link_of_its_own(name):
    chart = ALL[name]()
    head, *rest = drawn(chart)
    assert head.tag == "svg"
    assert set(head.attrib) == {"viewBox", "role", "aria-label"}
    assert "http" not in chart
    assert "font-family" not in chart
    assert "<style" not in chart
    assert "<metadata" not in chart
    assert "var(--ink)" in chart or "var(--muted)" in chart
    wanted = {e.get("href")[1:] for e in rest if e.get("href")}
    assert wanted <= {e.get("id") for e in rest}


@pytest.mark.parametrize("name", ALL)
def test_the_same_input_gives_the_same_bytes_whatever_the_settings(name):
    first = ALL[name]()
    with mpl.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path"}):
        assert ALL[name]() == first
        assert mpl.rcParams["font.size"] == 30


def test_ids_of_different_charts_differ():
    ids = [e.get("id") for make in ALL.values() for e in drawn(make()) if e.get("id")]
    assert len(ids) == len(set(ids))


def test_history_names_each_state_and_the_winner():
    chart = charts.history_chart(some_trials(), 2)
    assert {"complete", "best so far", "pruned (last reported)", "failed"} <= set(texts(chart))
    assert "the winner: 0.9000" in texts(chart)
    assert label(chart) == (
        "Validation Dice of 2 complete and 1 pruned trials by number; 1 failed. "
        "The best is trial 2 with 0.9000."
    )


def test_the_legend_names_only_what_is_there():
    chart = charts.history_chart(some_trials()[:1], None)
    assert "complete" in texts(chart)
    assert not {"failed", "pruned (last reported)"} & set(texts(chart))


def test_history_without_winner_or_trials_is_drawn():
    assert "None is complete." in label(charts.history_chart([], None))
    assert "None is complete." in label(charts.history_chart([trial(0, TrialState.FAIL)], None))


def test_the_axis_begins_under_the_lowest_value_that_is_no_outlier():
    usual = np.linspace(0.8, 0.9, 11).tolist()
    assert progress._floor(usual) == pytest.approx(0.794)
    assert progress._floor([0.01, *usual]) == pytest.approx(0.794)
    assert progress._floor([0.5, 0.5]) == pytest.approx(0.47)
    assert progress._floor([0.0]) == 0
    assert progress._floor([]) == 0


def test_outliers_are_drawn_at_the_edge():
    def heights(values):
        known = [trial(i, TrialState.COMPLETE, (), v) for i, v in enumerate(values)]
        chart = charts.history_chart(known, None)
        return [float(e.get("y")) for e in drawn(chart) if e.tag == "use"]

    usual = np.linspace(0.8, 0.9, 11).tolist()
    assert max(heights([*usual, 0.0])) == pytest.approx(max(heights(usual)), abs=0.01)


def test_values_that_are_no_numbers_are_left_out():
    known = [trial(0, TrialState.PRUNED, (0.2, float("nan")))]
    assert "0 pruned" in label(charts.history_chart(known, None))
    assert "1 pruned" in label(charts.curves_chart(known, None))


def test_curves_tell_the_winner_from_the_others():
    chart = charts.curves_chart(some_trials(), 2)
    assert {"complete", "pruned", "failed", "the winner"} <= set(texts(chart))
    assert label(chart).endswith("of the other trials 1 complete, 1 pruned, 1 failed.")
    assert "stroke-dasharray" in chart


def test_curves_of_very_many_trials_stay_light():
    many = [trial(i, TrialState.COMPLETE, [0.5] * 40, 0.5) for i in range(1000)]
    assert len(charts.curves_chart(many, 0)) < 300_000


def test_retraining_marks_the_epoch_that_was_kept():
    chart = charts.retraining_chart(ROWS, 2)
    assert "epoch 2: 0.7000" in texts(chart)
    assert {"training", "validation", "loss", "validation Dice"} <= set(texts(chart))


def test_importances_are_bars_with_names_and_shares():
    chart = charts.importance_chart({"model": 0.75, "loss.focal.gamma": 0.25})
    assert {"model", "loss.focal.gamma", "0.75", "0.25"} <= set(texts(chart))
    assert label(chart) == "Shares: model 0.75, loss.focal.gamma 0.25."


def test_at_most_so_many_bars_are_drawn():
    chart = charts.importance_chart({f"parameter_{i:02d}": 1 / 40 for i in range(40)})
    assert sum(text.startswith("parameter") for text in texts(chart)) == progress.MOST_BARS


def test_names_are_text_and_no_formula():
    assert "<b>$a_1$" in texts(charts.importance_chart({"<b>$a_1$": 0.6, "other": 0.4}))
    assert '"' not in label(charts.importance_chart({"a": 1.0}))


def test_confusion_shows_shares_of_all_and_of_the_row():
    shown = texts(charts.confusion_chart(SHARES))
    assert {"20.00%", "5.00%", "10.00%", "65.00%"} <= set(shown)
    assert {f"{p}% of the row" for p in ("66.7", "33.3", "7.1", "92.9")} <= set(shown)


def test_confusion_of_masks_without_lesion_is_drawn():
    shown = texts(charts.confusion_chart({"tp": 0.0, "fp": 0.1, "fn": 0.0, "tn": 0.9}))
    assert shown.count("0.0% of the row") == 2


@pytest.mark.parametrize("values", [[1.0], [0.0, 1.0], [0.97, 0.98, 0.99]])
def test_dice_of_any_number_of_images_is_drawn(values):
    chart = charts.dice_chart(values)
    assert f"over {len(values)} test images: median {np.median(values):.4f}" in label(chart)


def test_recall_marks_the_usual_threshold():
    chart = charts.recall_chart(CURVES, 0.9)
    assert "threshold 0.5" in texts(chart)
    assert label(chart) == (
        "Precision over recall: area 0.9000, recall 0.7500 and precision 0.8000 at threshold 0.5."
    )


def test_calibration_leaves_empty_bins_out():
    chart = charts.calibration_chart(CURVES, 0.02)
    assert "in 2 bins: error 0.0200" in label(chart)
    empty = {"confidence": [0.5], "frequency": [None], "share": [0.0]}
    assert "in 0 bins" in label(charts.calibration_chart(empty, 0.0))


def test_images_without_lesion_have_no_size_to_stand_at():
    assert label(charts.size_chart([0.01, 0.2, 0.0], [0.4, 0.9, 1.0])) == (
        "Dice over lesion size of 2 test images; 1 without lesion are left out."
    )
    assert "of 0 test images" in label(charts.size_chart([0.0], [1.0]))


def test_slices_have_an_axis_a_parameter_and_the_names_of_choices():
    shown = texts(charts.slices_chart(SPACE, NAMES, 1))
    assert {*NAMES, "segnet", "unet", "true", "false"} <= set(shown)


def test_at_most_so_many_slices_are_drawn():
    rows = [
        {
            "number": i,
            "state": "complete",
            "dice": 0.5 + i / 10,
            "params": dict.fromkeys("abcdefgh", i),
        }
        for i in range(3)
    ]
    shown = texts(charts.slices_chart(rows, list("abcdefgh"), None))
    assert [t for t in shown if t in "abcdefgh"] == list("abcdef")


def test_a_slice_of_pruned_trials_only_is_drawn():
    chart = charts.slices_chart(SPACE[2:3], ["lr"], None)
    assert label(chart) == "Validation Dice against each of lr."


def test_parallel_coordinates_are_of_complete_trials_with_the_ends_of_each_axis():
    chart = charts.parallel_chart(SPACE, NAMES, 1)
    assert "of 2 complete trials over model, lr, ema, loss.focal.gamma and Dice" in label(chart)
    assert {"0.0001", "0.01", "segnet", "unet", "0.800", "0.900", "the winner"} <= set(texts(chart))


def test_trials_of_one_dice_are_drawn():
    rows = [SPACE[0], SPACE[1] | {"dice": 0.8}]
    assert "of 2 complete trials" in label(charts.parallel_chart(rows, ["model"], None))


def test_places_on_a_scale():
    names = space._Scale(["b", "a", "c"])
    assert [names.height(v) for v in "abc"] == [0, 0.5, 1]
    assert names.height(None) < 0
    log = space._Scale([1e-4, 1e-2])
    assert log.height(1e-3) == pytest.approx(0.5)
    assert space._Scale([1, 3]).height(2) == 0.5
    assert space._Scale([3, 3]).height(3) == 0.5
    assert space._Scale([True, False]).labels() == [(0, "false"), (1, "true")]


def test_slices_of_very_many_trials_stay_light_and_keep_the_winner():
    rows = [
        {"number": i, "state": "complete", "dice": 0.5 + i / 40_000, "params": {"x": i / 7}}
        for i in range(20_000)
    ]
    chart = charts.slices_chart(rows, ["x"], 19_999)
    assert len(chart) < 300_000
    assert chart.count("<use") < 2200
    assert len(space._some(rows, 19_999)) == 2001
    assert space._some(rows, 19_999)[-1]["number"] == 19_999
    assert space._some(rows[:5], None) == rows[:5]


def test_sizes_that_are_close_are_told_by_numbers_too():
    close = texts(charts.size_chart([0.3, 0.31, 0.32], [0.4, 0.9, 1.0]))
    ticks = [float(t) for t in close if t.replace(".", "").isdigit()]
    assert len([t for t in ticks if 29 <= t <= 33]) >= 2
    wide = texts(charts.size_chart([0.001, 0.9], [0.4, 0.9]))
    assert {"1", "10"} <= set(wide)
