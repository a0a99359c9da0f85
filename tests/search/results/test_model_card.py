"""The model card, parsed as a model hub does, compared with the report."""

import re

import pytest
from huggingface_hub import ModelCard

from lesionseg.metrics.overlap import METRICS
from lesionseg.metrics.surface import SURFACE_DISTANCES
from search.results.formatting import DEFINITIONS
from search.results.model_card import render_model_card
from tests.search.results.report.fake_studies import validation_dice

DISTANCES = [f"{name}{unit}" for name in SURFACE_DISTANCES for unit in ("", "_percent")]
#: All scores differ.
SCORES = {name: (i + 1) / 173 for i, name in enumerate([*METRICS, *DISTANCES])}
REPORT = {
    "study": "isic",
    "trial": 9,
    "baseline": None,
    "final": {"fit_on": "train", "seeds": 1, "tta": True, "postprocess": True},
    "test": SCORES
    | {"average_precision": 0.91234, "calibration_error": 0.04321, "n": 12, "groups": 7},
    "ci95": {name: [value - 0.0111, value + 0.0222] for name, value in SCORES.items()},
    "confusion": {},
    "curves": {},
    "val": validation_dice(0.8908, 0.8901, -0.0007, True),
    "inference": {"tta": "flips", "chain": [{"threshold": {"value": 0.45}}, {"largest": {}}]},
    "inference_choice": None,
    "test_evaluations": 1,
    "overlays": [],
    "seconds": 123.4,
    "images_per_second": 386.5,
    "images_per_second_single": 50.25,
    "peak_memory": 1,
    "params": 1_234_567,
    "macs": 987_654_321,
    "seed": 3,
    "config": {
        "model": {"smp_linknet": {"encoder": "mobilenet_v2", "encoder_depth": 5}},
        "loss": {"bce": {}},
        "augment": {"flips": {}},
        "mix": {"none": {}},
        "optimizer": {"adamw": {"lr": 0.00378}},
        "schedule": {"cosine": {"warmup": 0.02}},
        "image_size": 64,
        "batch_size": 16,
        "epochs": 14,
    },
    "versions": {"python": "3.12.1", "lesionsearch": "0.1.0", "torch": "2.15.0"},
    "device": "cpu",
    "threads": 2,
}


def make_card(report=REPORT, layout="isic2018"):
    sizes = {"train": 70, "val": 15, "test": 12}
    text = render_model_card(
        report, layout=layout, split_sizes=sizes, fingerprint="0123456789abcdef"
    )
    return ModelCard(text, ignore_metadata_errors=False)


def words(card):
    return " ".join(card.text.split())


def table_cells(card):
    """Return the cells of each table row by its first cell."""
    rows = re.findall(r"^\| (.+?) \| (.*?) \|(?: (.*?) \|)?$", card.text, re.MULTILINE)
    return {name: (value, rest) for name, value, rest in rows}


def test_header_has_the_test_scores():
    data = make_card().data
    assert (data.license, data.library_name) == ("unknown", "lesionsearch")
    assert data.pipeline_tag == "image-segmentation"
    assert {"dermoscopy", "smp_linknet"} <= set(data.tags)
    assert data.metrics == ["dice", "jaccard"]
    assert data.model_name == "isic"
    scores = {r.metric_type: r.metric_value for r in data.eval_results}
    percents = {f"{name}_percent" for name in SURFACE_DISTANCES}
    assert scores.keys() == {*METRICS, *percents, "average_precision", "calibration_error"}
    assert scores == {name: REPORT["test"][name] for name in scores}
    assert {r.task_type for r in data.eval_results} == {"image-segmentation"}
    assert {r.dataset_type for r in data.eval_results} == {"isic2018"}


def test_table_has_the_scores_with_intervals():
    cells = table_cells(make_card())
    for key, (name, _) in DEFINITIONS.items():
        digits = 1 if key in SURFACE_DISTANCES else 2 if key in DISTANCES else 4
        ends = [f"{end:.{digits}f}" for end in REPORT["ci95"].get(key, [])]
        interval = " to ".join(ends) or "\N{EN DASH}"
        assert cells[name] == (f"{REPORT['test'][key]:.{digits}f}", interval)
    assert cells["parameters"][0] == "1,234,567"
    assert cells["multiply-adds per image"][0] == "987,654,321"
    assert cells["images: training, validation, test"][0] == "70, 15, 12"


def test_text_states_conditions_and_results():
    text = words(make_card())
    for phrase in (
        "Not a medical device.",
        "Test Dice **0.0058** (95% interval -0.0053 to 0.0280) on 12 images",
        "lesionsearch predict final/ images/ --out masks/",
        "lesionseg.load",
        "resized to 64 x 64 pixels",
        "Inference steps: mean over flips, threshold(value=0.45), largest.",
        "Test evaluations: 1.",
        "0.8908 in the search, 0.8901 retrained (reproduced)",
        "`0123456789abcdef`",
        "seed 3",
        "torch 2.15.0",
    ):
        assert phrase in text
    assert "{{" not in text and "{%" not in text and "None" not in text


def test_text_states_problems():
    val = validation_dice(0.8908, 0.8, -0.0908, False)
    text = words(make_card(REPORT | {"test_evaluations": 3, "val": val}))
    assert "Test evaluations: 3; after the first one the results can be optimistic." in text
    assert "NOT reproduced" in text


def test_validation_dice_is_omitted_if_the_validation_images_were_trained_on():
    final = {"fit_on": "train_val"}
    text = words(make_card(REPORT | {"final": final, "val": validation_dice(0.8908)}))
    assert "the training and validation images" in text
    assert "Validation Dice:" not in text


def test_default_inference_is_named():
    report = REPORT | {"inference": {"tta": "none", "chain": []}}
    assert "Inference steps: threshold at 0.5 only." in make_card(report).text


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a|b", "x: y\n- z", "`code`", "---", "'\"{[", "ünï 😀"]
)
def test_names_are_shown_literally(name):
    card = make_card(REPORT | {"study": name}, layout=name)
    assert card.data.model_name == name
    assert "<script" not in card.text
    heading = next(line for line in card.text.splitlines() if line.startswith("# "))
    assert heading.endswith(": skin-lesion segmentation")
    assert len(table_cells(card)) == len(table_cells(make_card()))


ENSEMBLE = {
    "members": [
        {"kind": "final", "trial": 9, "seed": 3, "weight": 0.6, "dice": 0.8901,
         "config": REPORT["config"]},
        {"kind": "trial", "trial": 4, "seed": 0, "weight": 0.4, "dice": 0.8855,
         "config": REPORT["config"] | {"model": {"segnet": {"width": 16}}}},
    ],
    "dice": 0.8967, "best_dice": 0.8901, "gain": 0.0066, "standard_error": 0.0021,
    "images_per_second": 201.5, "best_images_per_second": 386.5, "mb": 9.9, "best_mb": 4.9,
}  # fmt: skip


def test_members_of_an_ensemble_are_listed():
    disagreement = {"spearman": -0.51234}
    card = make_card(REPORT | {"ensemble": ENSEMBLE, "disagreement": disagreement})
    assert card.data.tags[-3:] == ["ensemble", "smp_linknet", "segnet"]
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in card.text.splitlines()
        if line.startswith("| ")
    ]
    assert [row[:5] for row in rows if row[0] in {"9", "4"}] == [
        ["9", "final", "3", "0.600", "0.8901"], ["4", "search", "0", "0.400", "0.8855"],
    ]  # fmt: skip
    assert ["Ensemble", "0.8967", "201.5", "9.9"] in rows
    text = words(card)
    for phrase in (
        "retrained the best configurations. The model is an ensemble of 2 networks in one file",
        "| network | ensemble of 2; the largest weight has smp\\_linknet(",
        "prediction.disagreement",
        "with the Dice of the test images is -0.5123.",
        "The member with the largest weight was trained with bce",
        "Configuration, epoch, seed, members and inference steps were selected",
    ):
        assert phrase in text
    assert "{{" not in text and "{%" not in text and "None" not in text


def test_a_single_network_is_not_called_an_ensemble():
    keys = dict.fromkeys(("ensemble", "finalists", "optimism", "disagreement", "encoder_weights"))
    assert make_card(REPORT | keys).text == make_card().text
    assert "nsemble" not in make_card().text and "disagreement" not in make_card().text


@pytest.mark.parametrize(
    ("source", "shown"),
    [("bundled", "ImageNet (bundled)"), ("none", "none"), ("/a|b.pt", r"file /a\|b.pt")],
)
def test_encoder_weights_are_named(source, shown):
    text = make_card(REPORT | {"encoder_weights": source}).text
    assert f"| encoder weights | {shown} |" in text


def test_a_retraining_at_another_fidelity_is_not_called_a_failure():
    fidelity = {
        "search": {"image_size": 64, "epochs": 6}, "final": {"image_size": 128, "epochs": 14}
    }  # fmt: skip
    val = validation_dice(0.8908, 0.91)
    text = words(make_card(REPORT | {"val": val, "fidelity": fidelity}))
    assert "0.9100 retrained (not comparable: the search trained at 64 px, 6 epochs)." in text
    assert "NOT reproduced" not in text
