"""The published systems: training, tests and the table."""

import csv
import io
import statistics

import numpy as np
import pytest
from optuna.trial import TrialState
from PIL import Image
from rich.console import Console

from lesionseg.errors import InputError
from lesionseg.metrics import overlap, surface
from search.results import evaluation
from search.results.baseline_table import (
    COLUMN_TITLES,
    BaselineResult,
    TestResult,
    compare_baselines,
    csv_row,
    format_cells,
    format_markdown,
)
from search.results.tables import print_baseline_table
from search.run_baselines import BaselineOptions, make_spec, run_baselines
from search.spec import baselines
from search.storage import trial_records
from search.storage.trial_records import TrialAttr
from search.study.opening import list_test_evaluations, open_study
from tests.search.helpers import in_memory

TWO = ["c-baseline-unet", "e-unet-ham-v1"]
FEW = ["data.limit.train=8", "data.limit.val=4", "data.limit.test=4"]


def run(data, folder, only, **options):
    spec = make_spec(options.pop("size", 16), options.pop("epochs", 1), FEW)
    run_options = BaselineOptions(data, folder, only, device="cpu", threads=1, **options)
    return run_baselines(Console(file=io.StringIO()), spec, run_options)


@pytest.fixture(scope="module")
def done(tiny_data, tmp_path_factory):
    """Two baselines, trained for an epoch; not to be changed."""
    folder = tmp_path_factory.mktemp("seeds") / "s"
    return folder, run(tiny_data, folder, TWO)


def test_all_are_trained_and_tested_and_the_best_is_first(done):
    folder, found = done
    assert sorted(row.baseline for row in found) == sorted(TWO)
    assert all(row.is_tested for row in found)
    assert found[0].means["dice"] >= found[1].means["dice"]
    assert found[0].difference is None
    opened = open_study(folder)
    for trial in trial_records.all_trials(opened.study):
        expected = baselines.build_config(trial.user_attrs[TrialAttr.BASELINE], 16, 1)
        assert trial_records.config_of(trial) == expected.to_dict()
    assert len(list_test_evaluations(opened.study)) == 2


def test_scores_are_means_of_the_per_image_scores(done):
    folder, found = done
    tables = {}
    for row in found:
        path = folder / "results" / str(row.trials[0]) / "per_image.csv"
        with path.open(newline="") as file:
            tables[row.baseline] = list(csv.DictReader(file))
        assert len(tables[row.baseline]) == 4
        for name in ("dice", "precision", "hd95", "assd_percent"):
            values = [float(r[name]) for r in tables[row.baseline]]
            assert row.means[name] == pytest.approx(statistics.fmean(values))
            low, high = row.ci95[name]
            assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    one, other = ([float(r["dice"]) for r in tables[row.baseline]] for row in found)
    gaps = [b - a for a, b in zip(one, other, strict=True)]
    assert found[1].difference.difference == pytest.approx(statistics.fmean(gaps))


def test_tables_and_figures_are_written(done):
    folder, found = done
    for name in ("dice_vs_time.png", "overlays.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 100
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    assert (folder / "table.md").read_text() == format_markdown(found)
    with (folder / "table.csv").open(newline="") as file:
        plain = list(csv.DictReader(file))
    assert [r["baseline"] for r in plain] == [r.baseline for r in found]
    assert float(plain[0]["dice"]) == found[0].means["dice"]
    assert plain[0]["difference"] == "" and plain[1]["difference"] != ""
    shown = {p.stem for p in (folder / "results" / "0").glob("*.png")}
    assert shown == {p.stem for p in (folder / "results" / "1").glob("*.png")}
    assert shown == set(open_study(folder).split.test)  # of four images, five shares are all


def test_the_printed_table_is_complete(done):
    _, found = done
    stream = io.StringIO()
    print_baseline_table(Console(file=stream, width=400), found)
    text = stream.getvalue()
    assert all(heading in text for heading in COLUMN_TITLES)
    assert all(row.baseline in text for row in found)


@pytest.mark.slow
def test_existing_results_are_kept_and_repeats_are_added(tiny_data, tmp_path):
    folder = tmp_path / "s"
    run(tiny_data, folder, TWO[:1])
    before = (folder / "results" / "0" / "result.json").stat().st_mtime_ns
    found = run(tiny_data, folder, TWO[:1], repeats=2)
    assert (folder / "results" / "0" / "result.json").stat().st_mtime_ns == before
    (row,) = found
    assert row.trials == (0, 1) and len(row.dice) == 2
    assert row.means["dice"] == pytest.approx(statistics.fmean(row.dice))
    known = trial_records.all_trials(open_study(folder).study)
    assert [trial_records.config_of(t)["seed"] for t in known] == [0, 1]
    assert "2 seeds" in format_cells(row)[1]


def test_a_run_interrupted_before_a_test_resumes_with_it(tiny_data, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    folder = tmp_path / "s"
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate_checkpoint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_data, folder, TWO[:1])
    assert not (folder / "results").exists()
    (row,) = run(tiny_data, folder, TWO[:1])
    assert row.trials == (0,)
    assert len(trial_records.all_trials(open_study(folder).study)) == 1


@pytest.mark.slow
def test_a_failed_baseline_has_a_row_with_its_reason(tiny_data, tmp_path, monkeypatch):
    build_config = baselines.build_config

    def build_broken_config(name, *args, **kwargs):
        config = build_config(name, *args, **kwargs)
        if name != TWO[0]:
            return config
        plain = config.to_dict() | {"optimizer": {"sgd": {"lr": 1.0}}, "clip_norm": 0.0}
        plain["loss"] = {"nothing": {}}
        return type(config).from_dict(plain)

    monkeypatch.setattr(baselines, "build_config", build_broken_config)
    found = run(tiny_data, tmp_path / "s", TWO)
    assert [row.baseline for row in found] == [TWO[1], TWO[0]]
    assert "unknown loss 'nothing'" in found[1].message and not found[1].is_tested
    assert "unknown loss" in format_markdown(found)
    assert "unknown loss" in str(csv_row(found[1])["message"])


@pytest.mark.parametrize(
    ("size", "only", "message"),
    [
        (48, ["segnet-bce"], "segnet-bce: segnet takes multiples of 32"),
        (64, ["unet-dise"], "did you mean 'unet-dice'?"),
    ],
)
def test_invalid_baselines_are_rejected_before_files_are_written(
    tiny_data, tmp_path, size, only, message
):
    with pytest.raises(InputError) as caught:
        run(tiny_data, tmp_path / "s", only, size=size)
    assert message in str(caught.value)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("text", ["search.loss=dice", "budget.trials=3", "fixed.batch_size=2"])
def test_keys_that_baselines_determine_cannot_be_set(text):
    with pytest.raises(InputError, match="the baselines determine the rest"):
        make_spec(64, 5, [text])


@pytest.mark.slow
def test_each_host_tests_the_baselines_that_it_trained(tiny_data, tmp_path, postgres_url):
    """The other host is another folder with the same database."""
    run(tiny_data, tmp_path / "one" / "s", TWO[:1], storage=postgres_url)
    found = run(tiny_data, tmp_path / "two" / "s", TWO, storage=postgres_url)
    assert [(row.baseline, row.is_tested) for row in found] == [(TWO[1], True), (TWO[0], False)]
    assert found[1].message == "trained on another host"
    assert not (tmp_path / "two" / "s" / "results" / "0").exists()


# --- the table from made-up results ----------------------------------------------------------


def make_test_result(dice):
    images = [
        dict.fromkeys(overlap.METRICS, 0.5)
        | {f"{n}{u}": 1.0 for n in surface.SURFACE_DISTANCES for u in ("", "_percent")}
        | {"group": str(i), "dice": d}
        for i, d in enumerate(dice)
    ]
    return TestResult({"batch": 10.0, "single": 5.0}, images)


def add_trial(study, name):
    trial = study.ask()
    for key, value in {
        TrialAttr.BASELINE: name, "params": 10, "macs": 20, "seconds": 3.0,
        "peak_memory": 4, "best_epoch": 1, "epochs": 2, "val": {"dice": 0.5},
    }.items():  # fmt: skip
        trial.set_user_attr(key, value)
    study.tell(trial, 0.5)
    return trial.number


def test_interval_of_a_constant_difference_has_zero_width():
    study = in_memory()
    low, high = add_trial(study, "unet-bce"), add_trial(study, "unet-dice")
    results = {low: make_test_result([0.5, 0.6, 0.7]), high: make_test_result([0.6, 0.7, 0.8])}
    best, other = compare_baselines(results, trial_records.all_trials(study))
    assert (best.baseline, other.baseline) == ("unet-dice", "unet-bce")
    gap = other.difference
    assert [gap.difference, gap.low, gap.high] == pytest.approx([-0.1, -0.1, -0.1])
    assert format_cells(other)[2].startswith("-0.1000 (-0.1000")


def test_table_without_results_contains_reasons():
    study = in_memory()
    trial = study.ask()
    trial.set_user_attr(TrialAttr.BASELINE, "unet-bce")
    trial.set_user_attr("message", "out | of memory")
    study.tell(trial, state=TrialState.FAIL)
    found = compare_baselines({}, trial_records.all_trials(study))
    assert found == [BaselineResult("unet-bce", message="out | of memory")]
    assert r"out \| of memory" in format_markdown(found)  # a bar would end the cell
    assert csv_row(found[0])["message"] == "out | of memory"
