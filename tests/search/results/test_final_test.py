"""The final test: retraining, selection of inference steps, test evaluation."""

import csv
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from optuna.trial import TrialState
from PIL import Image
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from lesionseg.config import TrialConfig
from lesionseg.data.mask_io import read_mask
from lesionseg.errors import InputError
from lesionseg.inference.evaluate import predict_probabilities
from lesionseg.inference.postprocess import to_mask
from lesionseg.inference.selection import DEFAULT_INFERENCE, Inference
from lesionseg.metrics.overlap import METRICS
from lesionseg.metrics.surface import SURFACE_DISTANCES
from lesionseg.training import checkpoint
from search.errors import JobFailed
from search.results import final_test, retraining
from search.results.final_test import run_final_test
from search.results.finalists import best_trials
from search.storage import trial_records
from search.storage.study_dir import read_metrics
from search.study.opening import list_test_evaluations, open_study
from search.trial_process.slot import Slot
from tests.conftest import write_folder
from tests.search.helpers import SLOT, open_tiny, search

FILES = [
    "README.md",
    "config.yaml",
    "history.csv",
    "metrics.json",
    "model.safetensors",
    "overlays",
    "per_image.csv",
]


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory):
    """A study of three trials and its report; tests must not change it."""
    changes = {"budget.epochs": 4, "final.ensemble": 1}
    opened = open_tiny(tiny_data, tmp_path_factory.mktemp("finished") / "s", changes)
    search(opened)
    return opened, run_final_test(opened, SLOT)


@pytest.fixture
def searched(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 2})
    search(opened)
    return opened


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- metrics.json ------------------------------------------------------------------------------


def test_report_equals_metrics_json(finished):
    opened, report = finished
    stored = json.loads((opened.folder / "final" / "metrics.json").read_text())
    assert stored == json.loads(json.dumps(report)) == read_metrics(opened.folder)
    assert sorted(p.name for p in (opened.folder / "final").iterdir()) == FILES


def test_report_has_all_documented_keys(finished):
    opened, report = finished
    assert report["study"] == opened.name
    assert report["trial"] == best_trials(opened.study)[0].number
    distances = {f"{name}{unit}" for name in SURFACE_DISTANCES for unit in ("", "_percent")}
    of_pixels = {"average_precision", "calibration_error"}
    assert report["test"].keys() == {*METRICS, *distances, *of_pixels, "n", "groups"}
    assert report["ci95"].keys() == {*METRICS, *distances}
    curves = {"thresholds", "precision", "recall", "confidence", "frequency", "share"}
    assert report["curves"].keys() == curves
    thresholds, recall = report["curves"]["thresholds"], report["curves"]["recall"]
    assert thresholds[0] == 0 and thresholds == sorted(thresholds) and thresholds[-1] < 1
    assert recall[0] == 1 and recall == sorted(recall, reverse=True)
    assert report["confusion"].keys() == {"tp", "fp", "fn", "tn"}
    assert report["val"].keys() == {"search", "retrained", "gap", "reproduced", "seeds", "folds"}
    assert report["seconds"] > 0
    assert report["images_per_second"] > 0
    assert report["images_per_second_single"] > 0
    assert report["peak_memory"] > 10_000_000
    assert report["macs"] == best_trials(opened.study)[0].user_attrs["macs"] > 0
    assert report["baseline"] is None
    assert report["params"] == best_trials(opened.study)[0].user_attrs["params"]
    assert report["seed"] == 0
    assert report["test_evaluations"] == 1
    assert {"python", "torch", "optuna", "lesionsearch"} <= report["versions"].keys()
    assert report["config"] == best_trials(opened.study)[0].user_attrs["config"]


def test_each_test_image_has_one_row(finished):
    opened, report = finished
    rows = rows_of(opened.folder / "final" / "per_image.csv")
    assert [r["name"] for r in rows] == sorted(opened.split.test)
    assert report["test"]["n"] == len(rows) == len(opened.split.test)
    assert report["test"]["groups"] == len({r["group"] for r in rows})
    assert {(r["height"], r["width"]) for r in rows} == {("40", "48")}


def test_means_and_intervals_match_the_rows(finished):
    opened, report = finished
    rows = rows_of(opened.folder / "final" / "per_image.csv")
    for name in report["ci95"]:
        mean = statistics.fmean(float(r[name]) for r in rows)
        assert report["test"][name] == pytest.approx(mean, abs=1e-9)
        low, high = report["ci95"][name]
        assert min(float(r[name]) for r in rows) - 1e-9 <= low
        assert low - 1e-9 <= mean <= high + 1e-9
        assert high <= max(float(r[name]) for r in rows) + 1e-9
    shares = {
        k: statistics.fmean(float(r[k]) / (40 * 48) for r in rows) for k in report["confusion"]
    }
    assert report["confusion"] == pytest.approx(shares)
    assert math.fsum(report["confusion"].values()) == pytest.approx(1)


def test_rows_match_scikit_learn_on_the_stored_model(finished):
    """Weights and masks are read from files."""
    opened, _ = finished
    model, config = checkpoint.load(opened.folder / "final" / "model.safetensors")
    assert config.image_size == 16
    rows = rows_of(opened.folder / "final" / "per_image.csv")
    names = opened.cache.names
    where = np.array([names.index(r["name"]) for r in rows])
    device = next(model.parameters()).device
    inference = checkpoint.read_inference(opened.folder / "final" / "model.safetensors")
    predicted = predict_probabilities(
        model, opened.cache, where, device=device, inference=inference
    )
    masks = {r.name: r.mask for r in opened.index.records}
    for row, probability in zip(rows, predicted, strict=True):
        truth, _ = read_mask(masks[row["name"]])
        mask = to_mask(inference.chain, probability, truth.shape)
        t, p = truth.ravel(), mask.ravel()
        tn, fp, fn, tp = confusion_matrix(t, p, labels=[False, True]).ravel()
        assert [int(row[k]) for k in ("tp", "fp", "fn", "tn")] == [tp, fp, fn, tn]
        assert float(row["dice"]) == pytest.approx(f1_score(t, p))
        assert float(row["jaccard"]) == pytest.approx(jaccard_score(t, p))


def test_retraining_on_a_cpu_repeats_the_trial_exactly(finished):
    opened, report = finished
    best = best_trials(opened.study)[0]
    assert report["val"]["search"] == report["val"]["retrained"] == best.value
    assert report["val"]["gap"] == 0
    assert report["val"]["reproduced"] is True
    assert report["val"]["seeds"] == {"0": best.value}
    history = rows_of(opened.folder / "final" / "history.csv")
    assert [float(r["dice"]) for r in history] == list(best.intermediate_values.values())


def test_config_yaml_is_the_configuration(finished):
    opened, report = finished
    plain = yaml.safe_load((opened.folder / "final" / "config.yaml").read_text())
    config = TrialConfig.from_dict(plain)
    assert config.digest() == best_trials(opened.study)[0].user_attrs["digest"]
    assert config.to_dict() == report["config"]
    assert checkpoint.load(opened.folder / "final" / "model.safetensors")[1] == config


def test_model_card_has_the_scores_and_the_data(finished):
    opened, report = finished
    card = ModelCard.load(opened.folder / "final" / "README.md", ignore_metadata_errors=False)
    scores = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert scores == {name: report["test"][name] for name in scores} and "dice" in scores
    assert card.data.model_name == opened.name
    parts = ", ".join(str(len(getattr(opened.split, p))) for p in ("train", "val", "test"))
    assert f"| images: training, validation, test | {parts} |" in card.text
    assert f"`{opened.index.fingerprint()}`" in card.text


def test_listed_overlays_exist(finished):
    opened, report = finished
    folder = opened.folder / "final" / "overlays"
    assert {file for _, file in report["overlays"]} == {p.name for p in folder.iterdir()}
    assert {kind for kind, _ in report["overlays"]} <= {"best", "median", "worst"}


# --- number of test evaluations ---------------------------------------------------


def without_clocks(report):
    """The report without what each evaluation changes, at any depth."""
    if isinstance(report, list):
        return [without_clocks(each) for each in report]
    if not isinstance(report, dict):
        return report
    clocks = {"test_evaluations", "seconds", "peak_memory", "images_per_second"}
    clocks |= {"images_per_second_single", "best_images_per_second"}
    return {k: without_clocks(v) for k, v in report.items() if k not in clocks}


@pytest.mark.slow
def test_tested_study_is_tested_again_only_on_request(searched):
    first = run_final_test(searched, SLOT)
    assert run_final_test(searched, SLOT) == first
    assert run_final_test(open_study(searched.folder), SLOT) == first
    report = first
    assert len(list_test_evaluations(searched.study)) == 1
    again = run_final_test(searched, SLOT, again=True)
    assert again["test_evaluations"] == len(list_test_evaluations(searched.study)) == 2
    # Nothing but the count and the clocks has changed.
    assert without_clocks(again) == without_clocks(report)


@pytest.mark.slow
def test_better_trial_is_a_second_test_evaluation(searched, tiny_data):
    run_final_test(searched, SLOT)
    best = best_trials(searched.study)[0]
    # The same training under another number, as if it had been a little better.
    trial = searched.study.ask()
    for name, value in best.user_attrs.items():
        trial.set_user_attr(name, value)
    searched.study.tell(trial, best.value + 1e-6)
    report = run_final_test(searched, SLOT)
    assert (report["trial"], report["test_evaluations"]) == (trial.number, 2)


# --- settings of the retraining ------------------------------------------------------------------


@pytest.mark.slow
def test_best_seed_on_validation_images_is_tested(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 1, "final": {"seeds": 2}})
    search(opened)
    report = run_final_test(opened, SLOT)
    seeds = report["val"]["seeds"]
    assert list(seeds) == ["0", "1"]
    assert seeds[str(report["seed"])] == max(seeds.values())
    # The gap is that of the trial's own seed, whichever was chosen.
    assert report["val"]["retrained"] == seeds["0"] == report["val"]["search"]
    assert report["config"]["seed"] == report["seed"]
    assert report["test_evaluations"] == 1
    assert sorted(p.name for p in (opened.folder / "final").iterdir()) == FILES


@pytest.mark.slow
def test_training_on_train_and_val_ends_at_the_best_epoch(tiny_data, tmp_path):
    changes = {"budget.trials": 2, "budget.epochs": 4, "final": {"fit_on": "train_val"}}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    search(opened)
    report = run_final_test(opened, SLOT)
    best = best_trials(opened.study)[0]
    # More images: another first loss than the search's. Nothing is left to compare with.
    assert report["val"] == {
        "search": best.value,
        "retrained": None,
        "gap": None,
        "reproduced": None,
        "seeds": None,
        "folds": None,
    }
    assert report["test"]["n"] == len(opened.split.test)
    assert len(rows_of(opened.folder / "final" / "history.csv")) == best.user_attrs["best_epoch"]


# --- inference steps --------------------------------------------------------------


def test_selected_inference_is_in_report_and_checkpoint(finished):
    opened, report = finished
    kept = checkpoint.read_inference(opened.folder / "final" / "model.safetensors")
    assert kept.to_dict() == report["inference"]
    choice = report["inference_choice"]
    assert choice["dice"] >= choice["default_dice"] - 1e-9
    assert [c["name"] for c in choice["candidates"]]


@pytest.mark.slow
def test_default_inference_if_no_steps_are_allowed(tiny_data, tmp_path):
    changes = {"budget.trials": 1, "final": {"tta": False, "postprocess": False}}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    search(opened)
    report = run_final_test(opened, SLOT)
    assert report["inference"] == DEFAULT_INFERENCE.to_dict()
    assert report["inference_choice"] is None
    weights = opened.folder / "final" / "model.safetensors"
    assert checkpoint.read_inference(weights) == Inference()


def test_inference_is_selected_with_the_weights_of_the_search_if_val_was_trained_on(
    tiny_data, tmp_path
):
    changes = {"budget.trials": 1, "final": {"fit_on": "train_val"}}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    search(opened)
    report = run_final_test(opened, SLOT)
    # The weights of the search have the trial's Dice on these images.
    assert report["inference_choice"]["default_dice"] == pytest.approx(report["val"]["search"])
    final = opened.folder / "final"
    assert checkpoint.read_inference(final / "model.safetensors").to_dict() == report["inference"]
    assert sorted(p.name for p in final.iterdir()) == FILES


# --- inputs of the final test ---------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A study of one trial whose images a test may change, if it restores them."""
    root = tmp_path_factory.mktemp("own")
    opened = open_tiny(write_folder(root / "data", 30), root / "s", {"budget.trials": 1})
    search(opened)
    return opened


@contextmanager
def changed(path, change):
    """Change a file, and restore it."""
    content, times = path.read_bytes(), path.stat()
    change(path)
    try:
        yield
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def first_test_record(opened):
    return next(r for r in opened.index.records if r.name in opened.split.test)


@pytest.mark.parametrize("part", ["image", "mask"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (Path.unlink, "no such file"),
        (lambda path: path.write_bytes(b""), "not an image"),
        (lambda path: path.write_bytes(path.read_bytes()[:-60]), "damaged"),
        (lambda path: Image.open(path).resize((40, 48)).save(path), "40x48"),
    ],
)
def test_unusable_test_images_are_found_before_the_retraining(own, part, change, reason):
    path = getattr(first_test_record(own), part)
    epochs = []
    with changed(path, change), pytest.raises(InputError) as caught:
        run_final_test(own, SLOT, on_progress=lambda *done: epochs.append(done))
    message = str(caught.value)
    assert message.startswith("final: ") and path.name in message and reason in message
    assert epochs == [] and list_test_evaluations(own.study) == []
    assert not (own.folder / "retraining").exists() and not list(own.folder.glob("*final*"))


def test_resized_pairs_are_not_the_studys_test_images(own):
    record = first_test_record(own)
    with ExitStack() as stack:
        for path in (record.image, record.mask):
            half = lambda path: Image.open(path).resize((24, 20)).save(path)  # noqa: E731
            stack.enter_context(changed(path, half))
        with pytest.raises(InputError, match=r"24x20 pixels, 48x40 when .* was created"):
            run_final_test(own, SLOT)


def test_a_study_with_near_duplicates_has_the_data_that_it_was_created_with(tmp_path):
    """Their merged groups are not those that the fingerprint is of."""
    data = write_folder(tmp_path / "data", 30)
    for part in ("images", "masks"):
        first, *_ = sorted((data / part).iterdir())
        shutil.copy(first, first.with_name(f"zz_copy{first.suffix}"))
    opened = open_tiny(data, tmp_path / "s", {"budget.trials": 1})
    assert opened.index.fingerprint() != opened.study.user_attrs["data"]
    search(opened)
    assert run_final_test(opened, SLOT)["test_evaluations"] == 1


def test_too_little_disk_space_is_found_before_the_retraining(own, monkeypatch):
    free = shutil.disk_usage(own.folder).free
    monkeypatch.setattr("search.results.final_check.OTHER_BYTES", 2 * free)
    with pytest.raises(
        JobFailed, match=r"^final: .*s: needs about [\d.]+ GB, [\d.]+ GB are free; "
    ):
        run_final_test(own, SLOT)
    assert not (own.folder / "retraining").exists()


def test_retrained_weights_are_kept_when_an_image_vanishes_during_the_test(own):
    image, epochs = first_test_record(own).image, []
    content = image.read_bytes()

    def delete_image(done, total):
        epochs.append(done)
        if done == total:
            image.unlink(missing_ok=True)

    with pytest.raises(JobFailed) as caught:
        run_final_test(own, SLOT, on_progress=delete_image)
    assert str(caught.value) == (
        f"final: the test evaluation failed: {image}: no such file; the retrained weights are "
        f"kept, `lesionsearch final {own.folder}` continues with them"
    )
    assert epochs == [1, 2] and not list(own.folder.glob("*final*"))
    assert list_test_evaluations(own.study) == []  # no score was computed
    image.write_bytes(content)
    epochs.clear()
    report = run_final_test(own, SLOT, on_progress=lambda done, total: epochs.append(done))
    assert epochs == [2]  # nothing was trained again
    assert report["test_evaluations"] == len(list_test_evaluations(own.study)) == 1
    assert report["val"]["gap"] == 0 and report["seconds"] > 0
    assert len(rows_of(own.folder / "final" / "history.csv")) == 2
    assert not (own.folder / "retraining").exists()
    assert sorted(p.name for p in (own.folder / "final").iterdir()) == FILES


@pytest.mark.parametrize(("again", "option"), [(False, ""), (True, " --again")])
def test_the_command_that_continues_does_not_return_the_stored_result(tmp_path, again, option):
    command = f"`lesionsearch final {tmp_path}{option}` continues with them"
    with (
        pytest.raises(JobFailed, match=f"^final: full; .*{command}$"),
        final_test._weights_kept(tmp_path, again=again),
    ):
        raise JobFailed("full")


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["safetensors", "json"])
def test_damaged_kept_weights_are_trained_again(searched, ending):
    epochs, folder = [], searched.folder
    (folder / ".final.partial").write_text("in the way")
    with pytest.raises(JobFailed, match=r"s/final: cannot be written: .*; the retrained weights"):
        run_final_test(searched, SLOT)
    (folder / ".final.partial").unlink()
    assert list_test_evaluations(searched.study) == []
    (kept,) = (folder / "retraining").glob(f"*.{ending}")
    kept.write_bytes(kept.read_bytes()[:-20])
    run_final_test(searched, SLOT, on_progress=lambda done, total: epochs.append(done))
    assert epochs == [1, 2] and len(list_test_evaluations(searched.study)) == 1


# --- errors ---------------------------------------------------------------------------


def test_study_without_complete_trial_fails_with_the_reasons(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"constraints": {"max_params_m": 0.0001}})
    with pytest.raises(JobFailed, match=r"^s: no complete trial \(no trial was run\)$"):
        run_final_test(opened, SLOT)
    for _ in range(2):
        trial = opened.study.ask()
        trial.set_user_attr("reason", trial_records.EndReason.CONSTRAINT)
        opened.study.tell(trial, state=TrialState.FAIL)
    with pytest.raises(JobFailed, match=r"no complete trial \(constraint 2\)"):
        run_final_test(opened, SLOT)
    assert not (opened.folder / "final").exists()
    assert list_test_evaluations(opened.study) == []


def test_failed_retraining_leaves_no_files_and_no_test_evaluation(searched):
    with pytest.raises(
        JobFailed, match=r"the retraining of trial \d failed: device: 'cuda:63' is not"
    ):
        run_final_test(searched, Slot("cuda:63", 1))
    assert not list(searched.folder.glob("*final*"))
    assert list_test_evaluations(searched.study) == []


def test_interrupted_retraining_leaves_the_previous_result_unchanged(searched, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    reply = "search.trial_process.process.TrialProcess.reply"
    with monkeypatch.context() as patch:
        patch.setattr(reply, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_final_test(searched, SLOT)
    assert not list(searched.folder.glob("*final*"))
    report = run_final_test(searched, SLOT)
    monkeypatch.setattr(reply, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_final_test(searched, SLOT, again=True)
    assert read_metrics(searched.folder) == report
    assert [p.name for p in searched.folder.glob("*final*")] == ["final"]


#: Kills itself as soon as the retraining has saved a state.
KILLED = """
import os, signal, sys
from pathlib import Path
from search.results.final_test import run_final_test
from search.study.opening import open_study
from search.trial_process.slot import Slot

folder = Path(sys.argv[1])

def watch(done, total):
    if list((folder / "retraining").glob("*.pt")):
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    run_final_test(open_study(folder), Slot("cpu", 1), on_progress=watch)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fit_on", ["train", "train_val"])
def test_killed_retraining_resumes_bit_exactly(tiny_data, tmp_path, fit_on):
    settings = {
        "budget.trials": 1, "budget.epochs": 12, "data.image_size": 64, "final.fit_on": fit_on,
        "final.seeds": 2,
    }  # fmt: skip
    opened = open_tiny(tiny_data, tmp_path / "s", settings)
    search(opened)
    whole = tmp_path / "whole"
    shutil.copytree(opened.folder, whole)
    all_epochs, epochs = [], []
    expected = run_final_test(
        open_study(whole), SLOT, on_progress=lambda done, total: all_epochs.append(done)
    )
    killed = subprocess.run([sys.executable, "-c", KILLED, opened.folder], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (opened.folder / "final").exists()
    report = run_final_test(opened, SLOT, on_progress=lambda done, total: epochs.append(done))
    assert epochs == all_epochs[-len(epochs) :] and len(epochs) < len(all_epochs)  # it resumed
    assert report["test"] == expected["test"] and report["val"] == expected["val"]
    assert not (opened.folder / "retraining").exists()
    ours, theirs = (f / "final" / "model.safetensors" for f in (opened.folder, whole))
    (model, config), (other, same_config) = map(checkpoint.load, (ours, theirs))
    assert config == same_config
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert sorted(p.name for p in ours.parent.iterdir()) == FILES


def test_retraining_computes_in_the_parts_that_its_trial_needed(searched, monkeypatch):
    jobs, supervise = [], retraining.supervise_in_parts

    def record(job, *rest):
        jobs.append(job)
        return supervise(job, *rest)

    monkeypatch.setattr(retraining, "supervise_in_parts", record)
    trial = best_trials(searched.study)[0]
    trial.user_attrs["accumulation_factor"] = 2
    monkeypatch.setattr(final_test, "best_trials", lambda study, number: [trial])
    slot = replace(SLOT, share=0.5)
    run_final_test(searched, slot)
    assert [(job.accumulation_factor, job.slot) for job in jobs] == [(2, slot)]


@pytest.mark.slow
def test_files_of_a_killed_run_are_deleted(searched):
    partial = searched.folder / ".final.partial"
    (partial / "overlays").mkdir(parents=True)
    (partial / "metrics.json").write_text("{")
    assert read_metrics(searched.folder) is None
    run_final_test(searched, SLOT)
    assert [p.name for p in searched.folder.glob("*final*")] == ["final"]
    assert sorted(p.name for p in (searched.folder / "final").iterdir()) == FILES


def test_best_trial_has_the_highest_value_and_the_lowest_number(searched):
    values = Counter(t.value for t in searched.study.trials)
    best = best_trials(searched.study)[0]
    assert best.value == max(values)
    assert all(t.number >= best.number for t in searched.study.trials if t.value == best.value)
