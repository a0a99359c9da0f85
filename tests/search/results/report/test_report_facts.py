"""report.json has the measured numbers; page and Markdown show the same ones."""

import csv
import html
import json
import re
import shutil

import pytest
from optuna.trial import TrialState, create_trial

from lesionseg.errors import InputError
from search.results.documents import escape_markdown
from search.results.formatting import DEFINITIONS, MISSING
from search.results.report import FORMATS, parse_formats, write_reports
from search.results.report.search_facts import (
    estimate_pruning_savings,
    search_facts,
    varied_params,
)
from search.storage import trial_records
from search.storage.study_dir import read_metrics
from search.study.opening import load_study
from tests.search.results.report.fake_studies import (
    EVIL,
    add_trial,
    add_trials,
    image_names,
    make_baseline_run,
    make_final,
    make_study,
)
from tests.search.results.report.html_reader import Page


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A finished study with everything that a report can show: folder, facts, page, Markdown."""
    root = tmp_path_factory.mktemp("written")
    folder = root / "run"
    study = make_study(folder)
    add_trials(study, 20, baseline="unet-bce")
    make_final(folder, study)
    names = image_names(12)
    dice = {"one": [[0.7 + 0.01 * i for i in range(12)]], "two": [[0.5] * 12, [0.6] * 12]}
    systems = make_baseline_run(root / "systems", names, dice)
    html, md, plain = write_reports(folder, FORMATS, against=systems)
    facts = json.loads(plain.read_text())
    return folder, facts, Page(html), md.read_text()


def md_tables(text):
    """Cells of every table row, as a reader sees them."""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return [
        [
            html.unescape(re.sub(r"\\(.)", r"\1", cell.strip()))
            for cell in row.strip("|").split(" | ")
        ]
        for row in rows
    ]


def numbers(text):
    """Every number that a text shows with a decimal point."""
    return set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", text))


def test_report_json_contains_metrics_json_unchanged(written):
    folder, facts, _, _ = written
    assert facts["test"]["metrics"] == read_metrics(folder)
    with (folder / "final" / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(i["name"], i["dice"]) for i in facts["test"]["images"]] == [
        (row["name"], float(row["dice"])) for row in rows
    ]
    assert facts["test"]["images"][0]["lesion_share"] == pytest.approx(
        (int(rows[0]["tp"]) + int(rows[0]["fn"])) / 10_000
    )


def test_page_and_markdown_show_the_scores(written):
    folder, _, page, md = written
    metrics = read_metrics(folder)
    expected = [
        [
            DEFINITIONS[key][0],
            f"{value:.4f}",
            "{:.4f} to {:.4f}".format(*metrics["ci95"][key]) if key in metrics["ci95"] else MISSING,
        ]
        for key, value in metrics["test"].items()
        if key not in {"n", "groups"}
    ]
    assert [row[:3] for row in page.table("scores")[1:]] == expected
    rows = md_tables(md)
    assert all(any(row[:3] == want for row in rows) for want in expected)
    for part in metrics["confusion"].values():
        assert f"{100 * part:.2f}%" in md
        assert f"{100 * part:.2f}%" in page.text


def test_every_number_of_the_markdown_is_on_the_page(written):
    _, _, page, md = written
    shown = numbers(page.text)
    tables = "\n".join(" | ".join(row) for row in md_tables(md))
    assert len(numbers(tables)) > 60
    assert numbers(tables) - shown == set()


def test_every_number_of_the_page_is_in_report_json(written):
    """Each is a number of report.json at some rounding."""
    _, facts, page, _ = written

    def leaves(value):
        if isinstance(value, dict):
            for each in value.values():
                yield from leaves(each)
        elif isinstance(value, list):
            for each in value:
                yield from leaves(each)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield abs(float(value))
        elif isinstance(value, str):
            yield from map(float, numbers(value))

    trials = set(leaves(facts))
    scaled = [v * s for v in trials for s in (1, 100, 1e-6)]
    tables = set(page.tables) - {"states"}  # shares of a sum
    for name in tables:
        for row in page.table(name):
            for cell in row:
                for number in numbers(cell):
                    digits = len(number.partition(".")[2])
                    near = 0.5 * 10**-digits + 1e-9
                    wide = near if "lr" not in cell else float(number) * 0.05
                    assert any(abs(v - float(number)) <= wide for v in scaled), (name, cell)


def test_counts_times_and_pruning_savings_match_the_trials(written):
    folder, facts, page, _ = written
    trials = trial_records.all_trials(load_study(folder))
    search = facts["search"]
    assert search["counts"] == trial_records.count_by_state(trials)
    # 20 trials: 3 failed, 5 closed, 2 6 10 14 18 pruned after 2 epochs of 1.5 s, 13 complete of 6.
    assert search["pruning"] == {
        "trials": 5, "timed": 5, "mean_epochs": 6, "seconds_saved": 5 * 4 * 1.5,
        "seconds_spent": 15.0,
    }  # fmt: skip
    assert "saved about 30 s of training; these trials took 15 s." in page.text
    assert search["time"] == [
        {"state": "complete", "trials": 13, "seconds": 13 * 13.0},
        {"state": "pruned", "trials": 5, "seconds": 5 * 5.0},
        {"state": "failed", "trials": 1, "seconds": 3.0},
        {"state": "closed", "trials": 1, "seconds": 1.0},
    ]
    assert page.table("states")[3] == ["Complete", "13", "169", "85.4%"]
    assert len(search["trials"]) == 20
    assert search["trials"][3]["curve"] == [[1, 0.2]]
    assert search["baselines"] == [
        {
            "baseline": "unet-bce",
            "number": 0,
            "state": "complete",
            "dice": trials[0].value,
            "difference": trials[0].value - search["best"]["dice"],
        }
    ]
    assert facts["environment"]["searched_on"] == [
        {"device": "cpu", "threads": 2, "share": 1.0, "trials": 20}
    ]


def pruned(epochs, seconds, **attrs):
    return create_trial(
        state=TrialState.PRUNED,
        intermediate_values=dict.fromkeys(range(1, epochs + 1), 0.5),
        user_attrs={"epochs": epochs, "seconds": seconds} | attrs,
    )


def complete(epochs):
    return create_trial(state=TrialState.COMPLETE, value=0.5, user_attrs={"epochs": epochs})


@pytest.mark.parametrize(
    ("trials", "seconds"),
    [
        ([pruned(2, 4.0)], None),  # no complete trial to compare with
        ([pruned(2, 4.0), complete(10), complete(6)], 12.0),  # 6 more epochs of 2 s
        ([pruned(9, 9.0), complete(8)], 0.0),  # it ran longer than others: it saved nothing
        (
            [pruned(1, 1.0, reason="time"), complete(8)],
            0.0,
        ),  # stopped by the time budget, not by the pruner
        ([complete(8)], 0.0),
        ([], None),
    ],
)
def test_pruning_savings(trials, seconds):
    assert estimate_pruning_savings(trials)["seconds_saved"] == seconds


def test_parameters_with_one_value_are_not_varied(tmp_path):
    study = make_study(tmp_path)
    add_trials(study, 12)
    trials = trial_records.all_trials(study)
    names = varied_params(trials, {"loss": 0.9})
    assert names[0] == "loss"
    for name in names:
        assert len({t.params[name] for t in trials if name in t.params}) > 1
    assert varied_params([], {}) == []


def test_data_summary_is_shown_with_a_warning_about_leakage(written):
    _, _, page, md = written
    assert page.table("splits")[1] == ["train", "70", "69", "20.0%", "2.0% to 60.0%", "1", "0"]
    assert page.table("areas")[0][1:3] == ["0 to 1%", "1 to 2%"]
    assert "Some images are in several splits." in page.text
    assert "2 image sizes, most often 120 \N{MULTIPLICATION SIGN} 90 (96)" in page.text
    assert ["train", "70", "69", "20.0%", "2.0% to 60.0%", "1", "0"] in md_tables(md)


def test_report_without_data_summary(tmp_path):
    study = make_study(tmp_path)
    add_trial(study, "complete", [0.5])
    (tmp_path / "data.json").unlink()
    html, md, _ = write_reports(tmp_path, FORMATS)
    assert Page(html).table("splits")[1] == ["train", "70"]
    assert ["train", "70"] in md_tables(md.read_text())


@pytest.mark.parametrize("trials_", ["none", "one", "failed", "running"])
def test_every_format_is_written_for_a_study_in_any_state(tmp_path, trials_):
    study = make_study(tmp_path, EVIL)
    if trials_ == "one":
        add_trial(study, "complete", [0.5])
    elif trials_ == "failed":
        add_trial(study, "failed", [], "oom", f"{EVIL} | a\n# b")
    elif trials_ == "running":
        add_trial(study, "pruned", [0.5])
        study.ask()
        study.enqueue_trial({})
    html, md, plain = write_reports(tmp_path, FORMATS)
    page, facts = Page(html), json.loads(plain.read_text())
    assert page.open == []
    assert not page.of("script")
    assert facts["study"] == EVIL
    assert facts["test"]["metrics"] is None
    assert facts["selected"] is None or facts["selected"]["trial"] == 0
    assert "<script" not in md.read_text()
    assert not [line for line in md.read_text().splitlines() if line.startswith("# b")]


def test_nan_becomes_null(tmp_path):
    study = make_study(tmp_path)
    add_trial(study, "failed", [0.5, float("nan")], "diverged")
    (path,) = write_reports(tmp_path, ["json"])
    trial = json.loads(path.read_text(), parse_constant=pytest.fail)["search"]["trials"][0]
    assert trial["curve"] == [[1, 0.5], [2, None]]
    assert trial["dice"] is None


def test_equal_records_give_equal_bytes(written, tmp_path):
    shutil.copytree(written[0], tmp_path / "run")
    before = [p.read_bytes() for p in write_reports(tmp_path / "run", FORMATS)]
    assert [p.read_bytes() for p in write_reports(tmp_path / "run", FORMATS)] == before


def test_markdown_shows_names_literally():
    assert escape_markdown("a|b_c\n<d>") == r"a\|b\_c &lt;d&gt;"


@pytest.mark.parametrize(
    ("text", "formats"),
    [("html", ["html"]), ("md, json,md", ["md", "json"]), ("json,html", ["json", "html"])],
)
def test_formats_are_separated_by_commas(text, formats):
    assert parse_formats(text) == formats


@pytest.mark.parametrize(
    ("text", "message"),
    [("pdf", "unknown format 'pdf' (known: html, json, md)"), (" ", "unknown format ''")],
)
def test_unknown_formats_are_refused(text, message):
    with pytest.raises(InputError) as caught:
        parse_formats(text)
    assert message in str(caught.value)


def test_running_trial_counts_until_its_latest_heartbeat(tmp_path):
    study = make_study(tmp_path)
    trial = study.ask()
    trial.set_user_attr("training_start_s", 100.0)
    trial.set_user_attr("training_end_s", 160.0)
    facts = search_facts(trial_records.all_trials(study))
    assert facts["time"] == [{"state": "running", "trials": 1, "seconds": 60.0}]
