"""Finalists, ensemble, disagreement and two fidelities in page, Markdown and JSON."""

import csv
import json

import pytest

from search.results.report import FORMATS, write_report, write_reports
from search.storage import trial_records
from search.study.opening import load_study
from tests.search.results.report.fake_studies import (
    SPEC,
    add_trial,
    add_trials,
    curve_to,
    ensemble_final,
    image_names,
    make_final,
    make_study,
    validation_dice,
)
from tests.search.results.report.html_reader import Page
from tests.search.results.report.test_report_facts import md_tables

WEIGHTS = {"resnet34": "imagenet", "mit_b0": "none", "tu-tf_efficientnet_lite0": "bundled"}
MINUS = "\N{MINUS SIGN}"


def make_tested(folder, spec=None, **changes):
    """Write a study with an ensemble; return its metrics. spec, changes: to spec and metrics."""
    study = make_study(folder, changes=spec)
    add_trials(study)
    return make_final(folder, study, image_names(30), **ensemble_final(study) | changes)


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """The folder, metrics, page, Markdown and facts of a study with an ensemble."""
    folder = tmp_path_factory.mktemp("ensemble") / "run"
    metrics = make_tested(folder, {"encoder_weights": WEIGHTS})
    html, md, plain = write_reports(folder, FORMATS)
    return folder, metrics, Page(html), md.read_text(), json.loads(plain.read_text())


def test_finalists_are_listed_with_the_chosen_one_marked(tested):
    folder, _, page, _, _ = tested
    best = trial_records.rank_trials(trial_records.all_trials(load_study(folder)))[:3]
    first, second, third = (f"{t.number} {t.value:.4f}".split() for t in best)
    assert page.table("finalists")[1:] == [
        [*first, "0.8901, 0.8967", "0.8934", "0.0047", "2 minutes"],
        [f"{second[0]} ★", second[1], "0.9012, 0.9002", "0.9007", "0.0007", "2 minutes"],
        [*third, "0.8876", "0.8876", "\N{EN DASH}", "62 seconds"],
    ]
    assert "retrained with 1 to 2 seeds each at 128 px, 18 epochs." in page.text
    lead = best[0].value - (best[1].value + best[2].value) / 2
    assert (
        f"In the search, trial {first[0]} was {lead:.4f} above the mean of the other finalists, "
        "after the retraining 0.0008 below it: none of the lead remained." in page.text
    )
    assert (
        f"The best 3 trials were retrained on the training images; trial {second[0]} had the "
        "highest mean validation Dice. An ensemble of 3 networks was tested on 30 images."
    ) in page.text
    assert "The search continued" not in page.text  # the best trial of the search was a finalist


def test_members_are_listed_with_gain_and_cost(tested):
    _, metrics, page, _, _ = tested
    members = metrics["ensemble"]["members"]
    assert [row[:5] for row in page.table("members")[1:]] == [
        [str(members[0]["trial"]), "final", "1", "0.500", "0.9012"],
        [str(members[1]["trial"]), "final", "0", "0.300", "0.8934"],
        [str(members[2]["trial"]), "search", "2", "0.200", "0.8876"],
    ]
    for row, member in zip(page.table("members")[1:], members, strict=True):
        assert row[5].startswith(next(iter(member["config"]["model"])))
    assert page.table("ensemble-cost")[1:] == [
        ["Ensemble", "0.9071", "56.8", "51.9"], ["Best single network", "0.9012", "171.5", "17.3"],
    ]  # fmt: skip
    assert "mean over images: +0.0059, standard error 0.0013." in page.text
    assert "Configuration of the member with the largest weight" in page.text


def test_the_five_images_of_largest_disagreement_are_listed(tested):
    folder, _, page, _, facts = tested
    with (folder / "final" / "per_image.csv").open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: -float(row["disagreement"]))
    assert page.table("doubtful")[1:] == [
        [row["name"], f"{float(row['disagreement']):.4f}", f"{float(row['dice']):.4f}"]
        for row in rows[:5]
    ]
    assert f"Dice of the test images: {MINUS}0.6789;" in page.text
    labels = [svg["aria-label"] for svg in page.of("svg")]
    assert any("disagreement of the members of 30 test images" in label for label in labels)
    found = {image["name"]: image["disagreement"] for image in facts["test"]["images"]}
    assert found == {row["name"]: float(row["disagreement"]) for row in rows}


def test_weights_and_both_fidelities_are_named(tested):
    _, _, page, _, facts = tested
    assert "Encoder weights ImageNet (bundled) of the member with the largest weight" in page.text
    assert (
        "Weights that the encoders start from: none: mit_b0; ImageNet (hub): resnet34; "
        "ImageNet (bundled): tu-tf_efficientnet_lite0." in page.text
    )
    assert (
        "Image size and epochs 128 px, 18 epochs in the final test; 64 px, 6 epochs in the search"
    ) in page.text
    size = "\N{MULTIPLICATION SIGN}".join(["128 ", " 128"])
    assert f"the network's input is {size}, in the search 64" in page.text
    assert "Gap not comparable: retrained at another image size or for other epochs" in page.text
    assert "15 minutes were left, forecast 11 minutes, used 11 minutes" in page.text
    assert facts["search"]["encoder_weights"] == WEIGHTS


def test_markdown_and_json_have_the_same_facts(tested):
    _, metrics, page, md, facts = tested
    rows = md_tables(md)
    for name in ("finalists", "members", "ensemble-cost", "doubtful"):
        assert all(row in rows for row in page.table(name))
    plain = " ".join(md.replace("\\", "").split())
    for text in ("none of the lead remained", "standard error 0.0013", f"{MINUS}0.6789"):
        assert text in plain
    assert facts["test"]["metrics"] == metrics


def test_a_report_of_one_network_has_none_of_the_sections(finished, page):
    assert not {"finalists", "members", "ensemble-cost", "doubtful"} & page.tables.keys()
    assert "Image size and epochs 64 px, 6 epochs in search and final test" in page.text
    (plain,) = write_reports(finished, ["json"])
    images = json.loads(plain.read_text())["test"]["images"]
    assert {image["disagreement"] for image in images} == {None}


def test_seeds_with_equal_weights_are_not_called_selected(tmp_path):
    ensemble = ensemble_final(make_trials(tmp_path / "other"))["ensemble"]
    unknown = dict.fromkeys(("dice", "best_dice", "gain", "standard_error"))
    members = [member | {"dice": None, "kind": "final"} for member in ensemble["members"]]
    make_tested(
        tmp_path / "run",
        SPEC.model_dump(mode="json") | {"final": {"fit_on": "train_val", "seeds": 3}},
        ensemble=ensemble | unknown | {"members": members},
        finalists=None, optimism=None, disagreement={"spearman": None}, val=validation_dice(0.9),
    )  # fmt: skip
    page = Page(write_report(tmp_path / "run"))
    assert "They were not selected, because no validation images are left" in page.text
    assert "their plain mean" in page.text
    assert "Gain in validation Dice" not in page.text and "finalists" not in page.tables
    assert [row[4] for row in page.table("members")[1:]] == ["\N{EN DASH}"] * 3
    assert "Dice of the test images: \N{EN DASH};" in page.text


def make_trials(folder):
    study = make_study(folder)
    add_trials(study)
    return study


def test_one_finalist_with_one_seed_needs_no_table(tmp_path):
    finalists = ensemble_final(make_trials(tmp_path / "other"))["finalists"]
    make_tested(tmp_path / "run", finalists=finalists[2:], ensemble=None, disagreement=None)
    page = Page(write_report(tmp_path / "run"))
    assert not {"finalists", "members", "doubtful"} & page.tables.keys()
    assert "It was retrained on the training images and tested on 30 images." in page.text


def test_several_finalists_without_an_ensemble(tmp_path):
    metrics = make_tested(tmp_path, ensemble=None, disagreement=None)
    page = Page(write_report(tmp_path))
    assert "had the highest mean validation Dice and was tested on 30 images." in page.text
    assert "finalists" in page.tables and "members" not in page.tables
    assert f"Seed 1, the best of trial {metrics['trial']}, was tested." in page.text


def test_the_chosen_finalist_is_retrained_on_all_images(tmp_path):
    spec = SPEC.model_dump(mode="json") | {"final": {"fit_on": "train_val"}}
    metrics = make_tested(tmp_path, spec)
    assert (
        f"The best 3 trials were retrained on the training images; trial {metrics['trial']} had "
        "the highest mean validation Dice and was then retrained on the training and validation "
        "images. An ensemble of 3 networks was tested on 30 images."
    ) in Page(write_report(tmp_path)).text


def test_without_the_table_of_images_the_disagreement_is_missed(tmp_path):
    make_tested(tmp_path)
    (tmp_path / "final" / "per_image.csv").unlink()
    page = Page(write_report(tmp_path))
    assert "is missing, so the disagreement of each image is not known" in page.text
    assert "members" in page.tables and "doubtful" not in page.tables


def test_a_later_trial_that_is_better_than_all_finalists_is_warned_about(tmp_path):
    metrics = make_tested(tmp_path)
    better = add_trial(load_study(tmp_path), "complete", curve_to(0.99))
    text = Page(write_report(tmp_path)).text
    assert f"Trial {better} has since reached a validation Dice of 0.9900" in text
    assert f"the tested trial is {metrics['trial']}." in text


def test_before_the_test_the_plan_and_the_weights_of_the_study_are_shown(tmp_path):
    planned = SPEC.final.model_dump(mode="json") | {"image_size": 96, "epochs": None}
    make_study(tmp_path, changes={"final": planned, "encoder_weights": {"resnet34": "none"}})
    text = Page(write_report(tmp_path)).text
    assert "Image size and epochs 96 px, 6 epochs in the final test; 64 px, 6 epochs in" in text
    assert "Encoder weights none: resnet34" in text
