"""The model card: read back as a model hub reads it, against metrics.json."""

import copy
import re

import pytest
from huggingface_hub import ModelCard

from lesionseg.metrics import METRICS, SURFACE_DISTANCES
from search.results.model_card import model_card

PARTS = {"train": 70, "val": 15, "test": 12}


def make_report():
    """metrics.json of a study, with numbers that are all different."""
    numbers = iter(range(1, 200))
    names = [*METRICS, *SURFACE_DISTANCES, *(f"{n}_percent" for n in SURFACE_DISTANCES)]
    test = {name: next(numbers) / 173 for name in names}
    test |= {"average_precision": 0.91234, "calibration_error": 0.04321, "n": 12, "groups": 7}
    return {
        "study": "isic",
        "trial": 9,
        "final": {"fit_on": "train", "seeds": 1, "tta": True, "postprocess": True},
        "test": test,
        "ci95": {name: [test[name] - 0.0111, test[name] + 0.0222] for name in names},
        "val": {"search": 0.8908, "retrained": 0.8901, "gap": -0.0007, "reproduced": True},
        "inference": {"tta": "flips", "chain": [{"threshold": {"value": 0.45}}, {"largest": {}}]},
        "test_evaluations": 1,
        "seconds": 123.4,
        "images_per_second": 386.5,
        "images_per_second_single": 50.25,
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
    }


def card_of(report, **changes):
    facts = {"layout": "isic2018", "parts": PARTS, "fingerprint": "0123456789abcdef"} | changes
    return ModelCard(model_card(report, **facts), ignore_metadata_errors=False)


def table(text):
    """Cells by the first of their row."""
    rows = re.findall(r"^\| (.+?) \| (.*?) \|(?: (.*?) \|)?$", text, re.MULTILINE)
    return {name: (value, rest) for name, value, rest in rows}


def test_a_hub_reads_the_header_with_every_number_of_the_test():
    report = make_report()
    data = card_of(report).data
    assert (data.license, data.library_name) == ("unknown", "lesionsearch")
    assert data.pipeline_tag == "image-segmentation"
    assert {"dermoscopy", "smp_linknet"} <= set(data.tags)
    assert data.metrics == ["dice", "jaccard"]
    assert data.model_name == "isic"
    told = {r.metric_type: r.metric_value for r in data.eval_results}
    assert told == {k: v for k, v in report["test"].items() if k in told}
    percents = {f"{name}_percent" for name in SURFACE_DISTANCES}
    assert told.keys() == {*METRICS, *percents, "average_precision", "calibration_error"}
    assert {r.task_type for r in data.eval_results} == {"image-segmentation"}
    assert {r.dataset_type for r in data.eval_results} == {"isic2018"}


def test_every_row_of_the_table_is_of_metrics_json_with_its_interval():
    report = make_report()
    shown = table(card_of(report).text)
    rows = {
        **{name: (name.replace("_", " ").capitalize(), 4) for name in METRICS},
        **{name: (f"{name.upper()} (pixels)", 2) for name in SURFACE_DISTANCES},
        **{f"{name}_percent": (f"{name.upper()} (% of the diagonal)", 2) for name in SURFACE_DISTANCES},
        "average_precision": ("Average precision", 4),
        "calibration_error": ("Calibration error", 4),
    }
    for key, (name, digits) in rows.items():
        value, interval = shown[name]
        assert value == f"{report['test'][key]:.{digits}f}"
        ends = report["ci95"].get(key)
        assert interval == (f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}" if ends else "")
    assert shown["parameters"][0] == "1,234,567"
    assert shown["multiply-adds per image"][0] == "987,654,321"
    assert shown["images: training, validation, test"][0] == "70, 15, 12"


def test_it_says_what_people_must_know():
    text = " ".join(card_of(make_report()).text.split())
    for said in (
        "Not a medical device.",
        "Test Dice **0.0058** (95% interval -0.0053 to 0.0280) on 12 images",
        "lesionsearch predict final/ images/ --out masks/",
        "lesionseg.load",
        "resized to 64 x 64 pixels",
        "test-time augmentation flips, threshold(value=0.45), largest",
        "The test images were looked at once.",
        "0.8908 in the search, 0.8901 retrained (reproduced)",
        "`0123456789abcdef`",
        "seed 3",
        "torch 2.15.0",
    ):
        assert said in text
    assert "{{" not in text and "{%" not in text and "None" not in text


def test_what_was_not_as_hoped_is_said():
    report = make_report()
    report["test_evaluations"] = 3
    report["val"]["reproduced"] = False
    text = " ".join(card_of(report).text.split())
    assert "looked at 3 times, so that the numbers may be too good" in text
    assert "NOT reproduced" in text
    report["final"]["fit_on"] = "train_val"
    report["val"] |= {"retrained": None, "reproduced": None}
    text = " ".join(card_of(report).text.split())
    assert "the training and validation images" in text
    assert "Validation Dice:" not in text


def test_without_steps_after_the_network_that_is_said():
    report = make_report()
    report["inference"] = {"tta": "none", "chain": []}
    assert "nothing but a cut at one half" in card_of(report).text


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a|b", "x: y\n- z", "`code`", "---", "'\"{[", "ünï 😀"]
)
def test_a_name_is_text_wherever_it_comes_from(name):
    report = copy.deepcopy(make_report())
    report["study"] = name
    found = card_of(report, layout=name)
    assert found.data.model_name == name
    assert "<script" not in found.text
    heading = next(line for line in found.text.splitlines() if line.startswith("# "))
    assert heading.endswith(": skin-lesion segmentation")
    assert len(table(found.text)) == len(table(card_of(make_report()).text))
