"""The charts as SVG: their content, and that they fit into a page."""

import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest

from search.results.charts import parameters, plots
from search.results.charts.parameters import ParameterScale
from search.results.charts.svg import lower_limit, render_chart

EPOCHS = [
    {"epoch": float(e), "train_loss": 1 / e, "val_loss": 1.2 / e, "dice": d}
    for e, d in enumerate((0.4, 0.7, 0.6), 1)
]
CURVES = {
    "thresholds": [0.0, 0.5, 0.9],
    "precision": [0.3, 0.8, 1.0],
    "recall": [1.0, 0.75, 0.1],
    "confidence": [0.1, 0.5, 0.9],
    "frequency": [0.05, None, 0.95],
    "share": [0.6, 0.0, 0.4],
}
NAMES = ["model", "lr", "ema", "loss.focal.gamma"]


def draw(chart, *args):
    return render_chart(lambda figure: chart(figure, *args), wide=True)


def make_trial(number, state, curve=(), dice=None, **params):
    points = [[epoch, value] for epoch, value in enumerate(curve, 1)]
    return {"number": number, "state": state, "dice": dice, "curve": points, "params": params}


TRIALS = [
    make_trial(0, "complete", (0.4, 0.8), 0.8),
    make_trial(1, "pruned", (0.3,), 0.3),
    make_trial(2, "complete", (0.5, 0.9), 0.9),
    make_trial(3, "failed", (0.1,)),
    make_trial(4, "closed"),
    make_trial(5, "pruned"),
    make_trial(6, "running", (0.2,)),
    make_trial(7, "waiting"),
]
SPACE = [
    make_trial(0, "complete", (), 0.8, model="unet", lr=1e-4, ema=True, **{NAMES[3]: 2.0}),
    make_trial(1, "complete", (), 0.9, model="segnet", lr=1e-2, ema=False),
    make_trial(2, "pruned", (), 0.5, model="unet", lr=1e-3, ema=True),
    make_trial(3, "failed", (), None, model="unet", lr=1e-3, ema=True),
]
ALL = {
    "history": lambda: draw(plots.history_chart, TRIALS, 2),
    "curves": lambda: draw(plots.curves_chart, TRIALS, 2),
    "retraining": lambda: draw(plots.retraining_chart, EPOCHS, 2),
    "dice": lambda: draw(plots.dice_chart, [0.2, 0.8, 0.9]),
    "recall": lambda: draw(plots.recall_chart, CURVES, 0.9),
    "calibration": lambda: draw(plots.calibration_chart, CURVES, 0.02),
    "size": lambda: draw(plots.size_chart, [0.01, 0.2, 0.0], [0.4, 0.9, 1.0]),
    "disagreement": lambda: draw(plots.disagreement_chart, [(0.3, 0.5), (0.1, 0.9), (0.0, 1.0)], 2),
    "slices": lambda: draw(parameters.slices_chart, SPACE, NAMES, 1),
    "parallel": lambda: draw(parameters.parallel_chart, SPACE, NAMES, 1),
}


def elements(chart):
    """Return the SVG's elements; it must be well-formed."""
    return list(ET.fromstring(str(chart)).iter())


def texts(chart):
    return [e.text for e in elements(chart) if e.tag == "text"]


def alt(chart):
    return elements(chart)[0].get("aria-label")


@pytest.mark.parametrize("name", ALL)
def test_chart_uses_the_pages_style_and_not_the_users_settings(name):
    chart = ALL[name]()
    root, *rest = elements(chart)
    assert root.tag == "svg"
    assert set(root.attrib) == {"viewBox", "role", "aria-label"}
    assert not any(word in chart for word in ("http", "font-family", "<style", "<metadata"))
    assert "var(--ink)" in chart or "var(--muted)" in chart
    references = {e.get("href")[1:] for e in rest if e.get("href")}
    assert references <= {e.get("id") for e in rest}
    with mpl.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path"}):
        assert ALL[name]() == chart
        assert mpl.rcParams["font.size"] == 30


def test_ids_differ_between_charts():
    ids = [e.get("id") for make in ALL.values() for e in elements(make()) if e.get("id")]
    assert len(ids) == len(set(ids))


def test_history_shows_each_state_and_the_selected_trial():
    chart = ALL["history"]()
    assert {"complete", "best so far", "pruned (last reported)", "failed"} <= set(texts(chart))
    assert "selected: 0.9000" in texts(chart)
    assert alt(chart) == (
        "Validation Dice of 2 complete and 1 pruned trials by number; 1 failed. "
        "The best is trial 2 with 0.9000."
    )


def test_legend_has_no_entry_for_missing_states():
    shown = set(texts(draw(plots.history_chart, TRIALS[:1], None)))
    assert "complete" in shown
    assert not {"failed", "pruned (last reported)"} & shown


@pytest.mark.parametrize("trials", [[], TRIALS[3:4], TRIALS[5:6]])
def test_history_without_complete_trials(trials):
    assert "None is complete." in alt(draw(plots.history_chart, trials, None))
    assert alt(draw(plots.curves_chart, trials, None))


def test_axis_starts_below_the_lowest_value_that_is_no_outlier():
    usual = np.linspace(0.8, 0.9, 11).tolist()
    assert lower_limit(usual) == pytest.approx(0.794)
    assert lower_limit([0.01, *usual]) == pytest.approx(0.794)
    assert lower_limit([0.5, 0.5]) == pytest.approx(0.47)
    assert lower_limit([0.0]) == 0
    assert lower_limit([]) == 0


def test_outliers_are_at_the_lower_edge():
    def heights(values):
        trials = [make_trial(i, "complete", (), v) for i, v in enumerate(values)]
        chart = draw(plots.history_chart, trials, None)
        return [float(e.get("y")) for e in elements(chart) if e.tag == "use"]

    usual = np.linspace(0.8, 0.9, 11).tolist()
    assert max(heights([*usual, 0.0])) == pytest.approx(max(heights(usual)), abs=0.01)


def test_curves_distinguish_states_and_the_selected_trial():
    chart = ALL["curves"]()
    assert {"complete", "pruned", "failed", "selected"} <= set(texts(chart))
    assert alt(chart).endswith("of the other trials 1 complete, 1 pruned, 1 failed.")
    assert "stroke-dasharray" in chart


def test_missing_values_of_a_curve_are_skipped():
    chart = draw(plots.curves_chart, [make_trial(0, "pruned", (0.2, None, 0.3))], None)
    assert "1 pruned" in alt(chart)


def test_retraining_marks_the_kept_epoch():
    chart = ALL["retraining"]()
    assert "epoch 2: 0.7000" in texts(chart)
    assert {"training", "validation", "loss", "validation Dice"} <= set(texts(chart))
    assert alt(chart).endswith("the weights are of epoch 2, Dice 0.7000.")


def test_names_are_neither_markup_nor_formulas():
    trial = make_trial(0, "complete", (), 0.5, **{"<b>$a_1$": 1})
    assert "<b>$a_1$" in texts(draw(parameters.slices_chart, [trial], ["<b>$a_1$"], None))


@pytest.mark.parametrize("dice", [[1.0], [0.0, 1.0], [0.97, 0.98, 0.99]])
def test_dice_histogram(dice):
    chart = draw(plots.dice_chart, dice)
    assert f"over {len(dice)} test images: median {np.median(dice):.4f}" in alt(chart)


def test_recall_marks_threshold_one_half():
    chart = ALL["recall"]()
    assert "threshold 0.5" in texts(chart)
    assert alt(chart) == (
        "Precision over recall: area 0.9000, recall 0.7500 and precision 0.8000 at threshold 0.5."
    )


def test_calibration_skips_empty_bins():
    assert "in 2 bins: error 0.0200" in alt(ALL["calibration"]())
    empty = {"confidence": [0.5], "frequency": [None], "share": [0.0]}
    assert "in 0 bins" in alt(draw(plots.calibration_chart, empty, 0.0))


def test_size_skips_images_without_lesion():
    assert alt(ALL["size"]()) == (
        "Dice over lesion size of 2 test images; 1 without lesion are not shown."
    )
    assert "of 0 test images" in alt(draw(plots.size_chart, [0.0], [1.0]))


def test_size_axis_has_labels_for_similar_and_for_different_sizes():
    similar = texts(draw(plots.size_chart, [0.3, 0.31, 0.32], [0.4, 0.9, 1.0]))
    ticks = [float(t) for t in similar if t.replace(".", "").isdigit()]
    assert len([t for t in ticks if 29 <= t <= 33]) >= 2
    different = texts(draw(plots.size_chart, [0.001, 0.9], [0.4, 0.9]))
    assert {"1", "10"} <= set(different)


def test_images_of_largest_disagreement_are_highlighted():
    chart = ALL["disagreement"]()
    assert "of the members of 3 test images; the 2 of largest disagreement" in alt(chart)
    styles = [e.get("style") for e in elements(chart) if e.tag == "use"]
    assert [("--vermilion" in s, "--blue" in s) for s in styles if s].count(
        (True, False)
    ) == 3  # with the legend's
    assert "largest disagreement" in texts(chart)


def test_slices_have_one_panel_per_parameter_and_show_categories():
    assert {*NAMES, "segnet", "unet", "true", "false"} <= set(texts(ALL["slices"]()))
    letters = "abcdefgh"
    rows = [
        make_trial(i, "complete", (), 0.5 + i / 10, **dict.fromkeys(letters, i)) for i in range(3)
    ]
    shown = texts(draw(parameters.slices_chart, rows, list(letters), None))
    assert [t for t in shown if t in letters] == list("abcdef")


def test_slice_without_complete_trials():
    assert alt(draw(parameters.slices_chart, SPACE[2:3], ["lr"], None)) == "Validation Dice by lr."


def test_parallel_coordinates_show_complete_trials_and_the_ends_of_each_axis():
    chart = ALL["parallel"]()
    assert "of 2 complete trials over model, lr, ema, loss.focal.gamma, Dice;" in alt(chart)
    assert {"0.0001", "0.01", "segnet", "unet", "0.8", "0.9", "selected"} <= set(texts(chart))
    equal = [SPACE[0], SPACE[1] | {"dice": 0.8}]
    assert "of 2 complete trials" in alt(draw(parameters.parallel_chart, equal, ["model"], None))


def test_parameter_scale():
    names = ParameterScale(["b", "a", "c"])
    assert [names.height(v) for v in "abc"] == [0, 0.5, 1]
    assert names.height(None) < 0
    assert ParameterScale([1e-4, 1e-2]).height(1e-3) == pytest.approx(0.5)
    assert ParameterScale([1, 3]).height(2) == 0.5
    assert ParameterScale([3, 3]).height(3) == 0.5
    assert ParameterScale([True, False]).labels() == [(0, "false"), (1, "true")]
