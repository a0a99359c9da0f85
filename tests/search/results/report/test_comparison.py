"""The comparison with published systems, against values worked out by other libraries."""

import json
import shutil

import numpy as np
import pytest
from scipy import stats

from lesionseg.errors import InputError
from search.results.report import write_report, write_reports
from tests.search.results.report.fake_studies import (
    add_trial,
    add_trials,
    make_final,
    make_study,
    make_baseline_run,
    image_names,
)
from tests.search.results.report.html_reader import Page

NAMES = image_names(12)


def facts_of(folder, **terms):
    (path,) = write_reports(folder, ["json"], **terms)
    return json.loads(path.read_text())


@pytest.fixture()
def tested(tmp_path):
    folder = tmp_path / "run"
    study = make_study(folder)
    add_trials(study, 4)
    make_final(folder, study)
    return folder


def ours(folder):
    return np.array([i["dice"] for i in facts_of(folder)["test"]["images"]])


def test_systems_are_compared_on_the_same_images_in_pairs(tested, tmp_path):
    mine = ours(tested)
    rng = np.random.default_rng(0)
    low, other = mine - rng.uniform(0.01, 0.1, 12), mine + rng.normal(0, 0.02, 12)
    systems = make_baseline_run(
        tmp_path / "systems",
        NAMES,
        {"low": [low.tolist()], "twice": [(other - 0.01).tolist(), (other + 0.01).tolist()]},
    )
    told = facts_of(tested, against=systems)["comparison"]
    assert (told["reference"], told["images"], told["groups"]) == (None, 12, 6)
    by_name = {row["baseline"]: row for row in told["rows"]}
    chances = {}
    for name, theirs in (("low", low), ("twice", other)):
        row, gap = by_name[name], mine - theirs
        assert row["dice"] == pytest.approx(theirs.mean())
        assert row["difference"] == pytest.approx(gap.mean())
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
        # A patient has two images.
        chances[name] = stats.wilcoxon(gap.reshape(6, 2).mean(1), zero_method="pratt").pvalue
        assert row["p"] == pytest.approx(chances[name])
    assert by_name["low"]["difference_low"] > 0
    small, large = sorted(chances.values())
    assert sorted(row["p_holm"] for row in told["rows"]) == pytest.approx(
        [min(1, 2 * small), min(1, max(2 * small, large))]
    )
    assert by_name["twice"]["trainings"] == 2
    page = Page(write_reports(tested, ["html"], against=systems)[0])
    rows = page.table("systems")[1:]
    assert rows[0][0] == "this study ★"
    assert {row[0]: row[1] for row in rows[1:]} == {
        n: f"{r['dice']:.4f}" for n, r in by_name.items()
    }


def test_a_run_of_systems_compares_them_with_its_best(tmp_path):
    systems = make_baseline_run(
        tmp_path / "systems", NAMES, {"bad": [[0.5] * 12], "good": [np.linspace(0.7, 0.9, 12)]}
    )
    told = facts_of(systems)["comparison"]
    assert told["reference"] == "good"
    assert [row["baseline"] for row in told["rows"]] == ["good", "bad"]
    assert told["rows"][0]["difference"] is None
    assert told["rows"][1]["difference"] == pytest.approx(0.3)
    assert "good has the highest test Dice" in Page(write_report(systems)).text


def test_a_system_that_equals_ours_is_no_different(tested, tmp_path):
    systems = make_baseline_run(tmp_path / "systems", NAMES, {"same": [ours(tested).tolist()]})
    (row,) = facts_of(tested, against=systems)["comparison"]["rows"]
    assert (row["p"], row["p_holm"]) == (1, 1)
    assert row["difference"] == pytest.approx(0, abs=1e-12)


def test_other_test_images_are_refused(tested, tmp_path):
    systems = make_baseline_run(tmp_path / "systems", NAMES[:10], {"one": [[0.5] * 10]})
    with pytest.raises(InputError, match=r"tested on other images \(10 there, 12 here\)"):
        write_reports(tested, against=systems)


def test_a_folder_without_tested_systems_is_refused(tested, tmp_path):
    bare = make_study(tmp_path / "bare")
    add_trial(bare, "complete", [0.5])
    with pytest.raises(InputError, match="contains no test results"):
        write_reports(tested, against=tmp_path / "bare")
    with pytest.raises(InputError, match="contains no test results"):
        write_reports(tested, against=tmp_path / "nowhere")


def test_without_systems_there_is_no_comparison(tested):
    assert facts_of(tested)["comparison"] is None
    assert "systems" not in Page(write_report(tested)).tables


def test_a_broken_result_does_not_stay_behind_as_a_report(tested, tmp_path):
    systems = make_baseline_run(tmp_path / "systems", NAMES, {"one": [[0.5] * 12]})
    shutil.rmtree(next((systems / "results").iterdir()))
    with pytest.raises(InputError):
        write_reports(tested, ["json"], against=systems)
    assert not (tested / "report.json").exists()
