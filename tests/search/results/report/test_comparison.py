"""The comparison with baselines; expected values are from SciPy."""

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
    image_names,
    make_baseline_run,
    make_final,
    make_study,
)
from tests.search.results.report.html_reader import Page

NAMES = image_names(12)


def facts_of(folder, **options):
    (path,) = write_reports(folder, ["json"], **options)
    return json.loads(path.read_text())


@pytest.fixture()
def tested(tmp_path):
    folder = tmp_path / "run"
    study = make_study(folder)
    add_trials(study, 4)
    make_final(folder, study)
    return folder


def read_dice(folder):
    return np.array([i["dice"] for i in facts_of(folder)["test"]["images"]])


def test_baselines_are_compared_image_by_image(tested, tmp_path):
    reference = read_dice(tested)
    rng = np.random.default_rng(0)
    low, other = reference - rng.uniform(0.01, 0.1, 12), reference + rng.normal(0, 0.02, 12)
    systems = make_baseline_run(
        tmp_path / "systems",
        NAMES,
        {"low": [low.tolist()], "twice": [(other - 0.01).tolist(), (other + 0.01).tolist()]},
    )
    comparison = facts_of(tested, against=systems)["comparison"]
    assert (comparison["reference"], comparison["images"], comparison["groups"]) == (None, 12, 6)
    by_name = {row["baseline"]: row for row in comparison["rows"]}
    p_values = {}
    for name, theirs in (("low", low), ("twice", other)):
        row, gap = by_name[name], reference - theirs
        assert row["dice"] == pytest.approx(theirs.mean())
        assert row["difference"] == pytest.approx(gap.mean())
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
        # A patient has two images.
        p_values[name] = stats.wilcoxon(gap.reshape(6, 2).mean(1), zero_method="pratt").pvalue
        assert row["p"] == pytest.approx(p_values[name])
    assert by_name["low"]["difference_low"] > 0
    small, large = sorted(p_values.values())
    assert sorted(row["p_holm"] for row in comparison["rows"]) == pytest.approx(
        [min(1, 2 * small), min(1, max(2 * small, large))]
    )
    assert by_name["twice"]["trainings"] == 2
    page = Page(write_reports(tested, ["html"], against=systems)[0])
    rows = page.table("systems")[1:]
    assert rows[0][0] == "this study ★"
    assert {row[0]: row[1] for row in rows[1:]} == {
        n: f"{r['dice']:.4f}" for n, r in by_name.items()
    }


def test_baseline_run_is_compared_with_its_best(tmp_path):
    systems = make_baseline_run(
        tmp_path / "systems", NAMES, {"bad": [[0.5] * 12], "good": [np.linspace(0.7, 0.9, 12)]}
    )
    comparison = facts_of(systems)["comparison"]
    assert comparison["reference"] == "good"
    assert [row["baseline"] for row in comparison["rows"]] == ["good", "bad"]
    assert comparison["rows"][0]["difference"] is None
    assert comparison["rows"][1]["difference"] == pytest.approx(0.3)
    assert "good has the highest test Dice" in Page(write_report(systems)).text


def test_equal_scores_give_p_value_1(tested, tmp_path):
    systems = make_baseline_run(tmp_path / "systems", NAMES, {"same": [read_dice(tested).tolist()]})
    (row,) = facts_of(tested, against=systems)["comparison"]["rows"]
    assert (row["p"], row["p_holm"]) == (1, 1)
    assert row["difference"] == pytest.approx(0, abs=1e-12)


def test_other_test_images_are_refused(tested, tmp_path):
    systems = make_baseline_run(tmp_path / "systems", NAMES[:10], {"one": [[0.5] * 10]})
    with pytest.raises(InputError, match=r"tested on other images \(10 there, 12 here\)"):
        write_reports(tested, against=systems)


def test_folder_without_test_results_is_refused(tested, tmp_path):
    bare = make_study(tmp_path / "bare")
    add_trial(bare, "complete", [0.5])
    with pytest.raises(InputError, match="contains no test results"):
        write_reports(tested, against=tmp_path / "bare")
    with pytest.raises(InputError, match="contains no test results"):
        write_reports(tested, against=tmp_path / "nowhere")


def test_no_comparison_without_baselines(tested):
    assert facts_of(tested)["comparison"] is None
    assert "systems" not in Page(write_report(tested)).tables


def test_no_report_is_written_if_the_comparison_fails(tested, tmp_path):
    systems = make_baseline_run(tmp_path / "systems", NAMES, {"one": [[0.5] * 12]})
    shutil.rmtree(next((systems / "results").iterdir()))
    with pytest.raises(InputError):
        write_reports(tested, ["json"], against=systems)
    assert not (tested / "report.json").exists()
