"""report.html against the records and files that it was built from."""

import csv
import itertools
import json
import re
import resource
import shutil
import signal

import pytest
import yaml

from lesionseg.errors import InputError
from lesionseg.metrics.overlap import METRICS
from lesionseg.metrics.surface import SURFACE_DISTANCES
from search.errors import JobFailed
from search.results.formatting import DEFINITIONS, format_duration
from search.results.report import FORMATS, write_report, write_reports
from search.storage import trial_records
from search.storage.study_dir import read_metrics
from search.study.opening import load_study
from tests.search.results.report.fake_studies import (
    EVIL,
    SPEC,
    add_trial,
    add_trials,
    curve_to,
    make_final,
    make_study,
    validation_dice,
)
from tests.search.results.report.html_reader import Page


def test_page_shows_the_numbers_of_metrics_json(finished, page):
    metrics = read_metrics(finished)
    rows = {row[0]: row[1:3] for row in page.table("scores")[1 : 1 + len(METRICS)]}
    assert rows == {
        DEFINITIONS[m][0]: [
            f"{metrics['test'][m]:.4f}",
            "{:.4f} to {:.4f}".format(*metrics["ci95"][m]),
        ]
        for m in METRICS
    }
    low, high = metrics["ci95"]["dice"]
    assert (
        f"{metrics['test']['dice']:.4f} test Dice, 95% interval {low:.4f} to {high:.4f}"
        in page.text
    )
    assert "12 test images of 6 patients or lesions; 1 test evaluation." in page.text
    for share in metrics["confusion"].values():
        assert f"{100 * share:.2f}%" in page.text
    assert f"Val. Dice, search {metrics['val']['search']:.4f}" in page.text
    assert f"Val. Dice, retrained {metrics['val']['retrained']:.4f}" in page.text
    assert "\N{MINUS SIGN}0.0012 reproduced" in page.text


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"tta": "none", "chain": []}, "on the validation images: threshold at 0.5 only."),
        (
            {"tta": "d4", "chain": [{"threshold": {"value": 0.4}}, {"largest": {}}]},
            "mean over flips and rotations, threshold(value=0.4), largest.",
        ),
    ],
)
def test_inference_steps_are_named(done, chosen, expected):
    folder, _, report_ = done
    report_["inference"] = chosen
    (folder / "final" / "metrics.json").write_text(json.dumps(report_))
    assert expected in " ".join(Page(write_report(folder)).text.split())


def test_every_metric_has_a_name_and_a_definition():
    assert tuple(DEFINITIONS)[: len(METRICS)] == METRICS
    distances = {f"{name}{unit}" for name in SURFACE_DISTANCES for unit in ("", "_percent")}
    assert set(DEFINITIONS) == {*METRICS, *distances, "average_precision", "calibration_error"}


def test_an_unknown_metric_without_interval_is_shown_under_its_key(done):
    folder, _, metrics = done
    metrics["test"]["unknown_metric"] = 3.25
    (folder / "final" / "metrics.json").write_text(json.dumps(metrics))
    assert Page(write_report(folder)).table("scores")[-1] == [
        "unknown_metric",
        "3.2500",
        "\N{EN DASH}",
        "",
    ]


def test_headline_counts_the_trials(finished, page):
    study = load_study(finished)
    metrics = read_metrics(finished)
    counted = trial_records.count_by_state(trial_records.all_trials(study))
    assert counted == {
        "waiting": 0, "running": 0, "complete": 10, "pruned": 4, "failed": 1, "closed": 1,
    }  # fmt: skip
    assert (
        f"Trial {metrics['trial']} was selected by validation Dice from 15 trials "
        f"(10 complete, 4 pruned, 1 failed; 1 more closed without cost)"
    ) in page.text
    assert [row[:2] for row in page.table("states")[1:]] == [
        [state.capitalize(), str(n)] for state, n in counted.items()
    ]
    assert page.table("reasons")[1:] == [
        ["failed", "oom", "1", "3", "OutOfMemoryError: 3 GiB wanted"],
        ["closed", "duplicate", "1", "5", "the same configuration as trial 1"],
    ]


def test_leaderboard_is_the_ranking_with_the_selected_trial_marked(finished, page):
    study = load_study(finished)
    metrics = read_metrics(finished)
    rows = page.table("leaderboard")[1:]
    best = trial_records.rank_trials(trial_records.all_trials(study))
    assert [row[0].split()[0] for row in rows] == [str(t.number) for t in best[:10]]
    assert [row[1] for row in rows] == [f"{t.value:.4f}" for t in best[:10]]
    assert [row[0].endswith("★") for row in rows] == [True] + 9 * [False]
    assert rows[0][0] == f"{metrics['trial']} ★"
    assert rows[0][-3:] == ["0.12 M", "6", "9"]


def test_overlays_are_in_order_with_name_and_dice(finished, page):
    metrics = read_metrics(finished)
    with (finished / "final" / "per_image.csv").open() as file:
        dice = {row["name"]: float(row["dice"]) for row in csv.DictReader(file)}
    names = [re.sub(r"^[a-z]+_\d_|\.png$", "", file) for _, file in metrics["overlays"]]
    assert [image["alt"] for image in page.of("img")] == [
        f"{n} with true and predicted outline, Dice {dice[n]:.4f}" for n in names
    ]
    assert (
        page.text.index("Best ISIC")
        < page.text.index("Median ISIC")
        < page.text.index("Worst ISIC")
    )


def test_missing_picture_is_replaced_by_a_text(done):
    folder, _, metrics = done
    (folder / "final" / "overlays" / metrics["overlays"][0][1]).unlink()
    (folder / "final" / "overlays" / metrics["overlays"][1][1]).write_bytes(b"no picture")
    page = Page(write_report(folder))
    assert len(page.of("img")) == 7
    assert page.text.count("picture not available") == 2


def test_deleted_tables_are_named_where_they_are_missed(done):
    folder, _, metrics = done
    for name in ("per_image.csv", "history.csv"):
        (folder / "final" / name).unlink()
    html, md, plain = write_reports(folder, FORMATS)
    facts, page = json.loads(plain.read_text())["test"], Page(html)
    assert facts["missing"] == ["per_image.csv", "history.csv"] and facts["metrics"] == metrics
    assert (facts["images"], facts["retraining"], facts["kept_epoch"]) == ([], [], None)
    for text in (page.text, " ".join(md.read_text().replace("\\", "").split())):
        assert "final/per_image.csv is missing, so the Dice of each image is not known" in text
        assert "final/history.csv is missing, so the curves of the retraining are not kn" in text
    assert [row[0] for row in page.tables["scores"]][1] == "Dice"


def test_overlays_of_long_and_odd_names_are_found(tmp_path):
    names = ["a" * 240 + str(i) for i in range(5)] + ["ä" * 120, "a: b?", "latin\udce9", "x\ny"]
    folder = tmp_path / "run"
    study = make_study(folder)
    add_trials(study)
    make_final(folder, study, names)
    html, md, plain = write_reports(folder, FORMATS)
    overlays = json.loads(plain.read_text())["test"]["overlays"]
    assert sorted(overlay["name"] for overlay in overlays) == sorted(names)
    assert all(overlay["dice"] for overlay in overlays)
    assert len(Page(html).of("img")) == 9
    assert "picture not available" not in html.read_text() and md.read_text()


def test_a_report_that_cannot_be_written_is_one_line(done, monkeypatch):
    folder, *_ = done
    before = (folder / "report.html").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(JobFailed) as caught:
            write_report(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    path = folder / "report.html"
    assert str(caught.value) == f"report: {path}: cannot be written: File too large"
    assert path.read_bytes() == before and not list(folder.glob(".*.partial"))


def test_page_has_no_external_files(page):
    assert page.open == []
    assert page.source.startswith("<!DOCTYPE html>\n<html lang")
    assert not re.search(r"https?:|@import|url\((?!#)", page.source)
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.of("img"))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert {a["href"][0] for tag, a in page.elements if "href" in a} == {"#"}


def test_pictures_have_alternative_texts_and_ids_are_unique(page):
    assert len(page.of("svg")) == 9
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.of("svg"))
    assert all(image["alt"] for image in page.of("img"))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    references = [a["href"][1:] for _, a in page.elements if "href" in a]
    references += [a["aria-labelledby"] for a in page.of("section")]
    assert set(references) <= set(ids)


def test_markup_in_names_and_messages_is_shown_as_text(tmp_path):
    evil_file = "<b onclick=x>&amp;$x_1$"
    study = make_study(tmp_path, name=EVIL)
    add_trial(study, "complete", [0.5])
    add_trial(study, "failed", [], f"crash{EVIL}", f"RuntimeError: {EVIL}")
    make_final(tmp_path, study, [f"{evil_file}{i}" for i in range(9)], versions={EVIL: EVIL})
    page = Page(write_report(tmp_path))
    assert not page.of("script")
    assert not page.of("b")[10:]
    assert page.text.startswith(f"{EVIL}: report")
    assert page.table("reasons")[1] == ["failed", f"crash{EVIL}", "1", "1", f"RuntimeError: {EVIL}"]
    assert all(image["alt"].startswith(evil_file) for image in page.of("img"))
    assert page.text.count(evil_file) == 9
    assert page.table("environment")[-1] == [EVIL, EVIL]


def test_without_a_final_test_the_page_says_so(done):
    folder, study, _ = done
    shutil.rmtree(folder / "final")
    page = Page(write_report(folder))
    best = trial_records.rank_trials(trial_records.all_trials(study))[0]
    assert f"{best.value:.4f} validation Dice of the best trial; not tested yet" in page.text
    assert "The final test has not been run yet" in page.text
    assert "Test evaluations 0" in page.text
    assert "scores" not in page.tables
    assert page.table("leaderboard")[1][0] == f"{best.number} ★"


@pytest.mark.parametrize(
    ("ends", "sentence"),
    [
        ([], "0 trials were run (0 complete, 0 pruned, 0 failed)"),
        (["pruned"], "1 trial was run (0 complete, 1 pruned, 0 failed)"),
        (["pruned", "pruned"], "2 trials were run (0 complete, 2 pruned, 0 failed)"),
        (["failed"], "1 trial was run (0 complete, 0 pruned, 1 failed)"),
    ],
)
def test_without_a_complete_trial_the_page_says_so(tmp_path, ends, sentence):
    study = make_study(tmp_path)
    for end in ends:
        add_trial(study, end, [0.3, 0.4], "oom" if end == "failed" else None)
    page = Page(write_report(tmp_path))
    assert "no complete trial" in page.text
    assert sentence in page.text
    assert "so there is no leaderboard" in page.text
    assert "Selected configuration" not in page.text


def test_page_of_a_single_trial(tmp_path):
    study = make_study(tmp_path)
    add_trial(study, "complete", [0.5])
    make_final(tmp_path, study)
    page = Page(write_report(tmp_path))
    assert "from 1 trial (1 complete" in page.text
    assert "Importances need 10 complete or pruned trials; there are 1." in page.text


def test_failed_test_evaluation_is_counted(done):
    folder, study, _ = done
    study.set_user_attr(
        "test_evaluations", ["2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"]
    )
    text = Page(write_report(folder)).text
    assert "There were 2 test evaluations." in text
    assert "Test evaluations 2" in text


def test_retraining_that_differs_is_warned_about(tmp_path):
    study = make_study(tmp_path)
    add_trial(study, "complete", [0.5])
    val = validation_dice(0.5, 0.45, -0.05, False, {"0": 0.45})
    make_final(tmp_path, study, val=val)
    text = Page(write_report(tmp_path)).text
    assert "The retraining did not reproduce the search." in text
    assert "Gap \N{MINUS SIGN}0.0500 not reproduced" in text


def test_no_comparison_if_the_validation_images_were_trained_on(tmp_path):
    study = make_study(tmp_path, changes={"final": {"fit_on": "train_val", "seeds": 1}})
    add_trial(study, "complete", [0.5])
    make_final(tmp_path, study, val=validation_dice(0.5))
    text = Page(write_report(tmp_path)).text
    assert "not comparable: the validation images were trained on" in text
    assert "that curve does not show generalization" in text
    assert "did not reproduce" not in text


def test_several_seeds_are_listed(tmp_path):
    study = make_study(tmp_path)
    add_trial(study, "complete", [0.5])
    val = validation_dice(0.5, 0.5, 0.0, True, {"0": 0.5, "1": 0.51})
    make_final(tmp_path, study, val=val, seed=1)
    assert (
        "2 seeds, validation Dice: seed 0 0.5000, seed 1 0.5100."
        in Page(write_report(tmp_path)).text
    )


def test_search_that_continued_after_the_test_is_warned_about(done):
    folder, study, metrics = done
    better = add_trial(study, "complete", curve_to(0.99))
    page = Page(write_report(folder))
    assert f"Trial {better} has since reached a validation Dice of 0.9900" in page.text
    marked = [row[0] for row in page.table("leaderboard") if "★" in row[0]]
    assert marked == [f"{metrics['trial']} ★"]


def test_unfinished_search_is_warned_about(done):
    folder, study, _ = done
    study.ask()
    study.enqueue_trial({})
    assert "The search was not finished when this report was written: 1 running, 1 waiting." in (
        Page(write_report(folder)).text
    )


def test_page_has_command_files_and_environment_for_reproduction(finished, page):
    metrics = read_metrics(finished)
    assert f"lesionsearch run {finished}/study.yaml --data DIR --out NEW" in page.text
    plain = re.findall(r'<pre id="(\w+)"><code>(.*?)</code>', page.source, re.DOTALL)
    shown = {name: yaml.safe_load(text) for name, text in plain if name != "command"}
    assert shown == {"spec": SPEC.model_dump(mode="json"), "configuration": metrics["config"]}
    assert ["torch", "2.11.0"] in page.table("environment")


def test_large_pictures_are_scaled_down(done):
    folder, study, _ = done
    shutil.rmtree(folder / "final")
    make_final(folder, study, size=(480, 360))
    overlays = (folder / "final" / "overlays").glob("*.png")
    assert sum(path.stat().st_size for path in overlays) > 3_000_000
    assert write_report(folder).stat().st_size < 5_000_000


def test_error_leaves_the_previous_report_unchanged(done, monkeypatch):
    folder, _, _ = done
    (folder / "report.html").write_text("the last one")
    before = sorted(folder.iterdir())

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("search.results.report.render", fail)
    with pytest.raises(OSError, match="no space"):
        write_report(folder)
    assert sorted(folder.iterdir()) == before
    assert (folder / "report.html").read_text() == "the last one"


def test_folder_without_study_is_refused(tmp_path):
    with pytest.raises(InputError, match="no study here"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("hours", "expected"),
    [(2.25, "2.2 hours"), (1, "1.0 hours"), (0.5, "30 minutes"), (0.01, "36 seconds")],
)
def test_durations(hours, expected):
    assert format_duration(hours * 3600) == expected


#: Elements that a paragraph cannot hold: a browser would end it before them.
BLOCKS = {"p", "div", "table", "ul", "figure", "section", "h1", "h2", "h3", "pre", "dl"}


def test_page_is_well_structured(page):
    assert page.nested & {("p", block) for block in BLOCKS} == set()
    assert all(th.get("scope") in {"row", "col"} for th in page.of("th"))
    levels = [int(tag[1]) for tag, _ in page.elements if tag in {"h1", "h2", "h3"}]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    for rows in page.tables.values():
        assert len({len(row) for row in rows}) == 1  # no cell is lacking
    assert page.repeated == []


def test_page_has_landmarks_and_language(page):
    for tag in ("main", "header", "footer", "nav"):
        assert len(page.of(tag)) == 1
    assert page.of("html") == [{"lang": "en"}]
    assert "color-scheme" in {meta.get("name") for meta in page.of("meta")}
