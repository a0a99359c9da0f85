"""Finalists, seeds, two fidelities, ensembles and the time limit of the final test."""

import csv
import json
import statistics
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lesionseg.config import TrialConfig
from lesionseg.data.cache import Cache
from lesionseg.errors import InputError
from lesionseg.inference.evaluate import predict_probabilities
from lesionseg.metrics.overlap import dice_score
from lesionseg.training import checkpoint
from search.errors import JobFailed
from search.results import final_network, final_test, finalists, retraining
from search.results.final_metrics import measure_optimism
from search.results.final_test import run_final_test
from search.results.finalists import best_trials
from search.results.retraining import RetrainingFailed
from search.storage.study_dir import read_metrics
from search.study.queue import retry_trials
from search.trial_process.slot import Slot
from tests.search.helpers import SLOT, make_worker, open_tiny, queue, search

#: A final at twice the size, of other epochs than the search's two.
LARGE = {"image_size": 32, "epochs": 3}


def open_searched(data, folder, final, **changes):
    """A study whose trials have the widths 4, 8 and 8, each with another learning rate."""
    changes = {"budget.trials": 3, "final": final, **changes}
    opened = open_tiny(data, folder, changes)
    for width, lr in ((4, 0.01), (8, 0.02), (8, 0.05)):
        queue(opened, width, lr)
    search(opened)
    return opened


def dice_of(weights, cache, positions):
    """The mean Dice of a checkpoint at the cache's size, at a threshold of one half."""
    model, _ = checkpoint.load(weights)
    predicted = predict_probabilities(model, cache, positions, device=torch.device("cpu"))
    pairs = zip(predicted, cache.masks[positions], strict=True)
    return statistics.fmean(float(dice_score(p > 0.5, t > 0)) for p, t in pairs)


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory):
    """Two finalists with two seeds each at another fidelity, on two slots."""
    final = {**LARGE, "finalists": 2, "seeds": 2}
    opened = open_searched(tiny_data, tmp_path_factory.mktemp("finalists") / "s", final)
    threads, jobs, real = set(), [], retraining.supervise_in_parts
    progress: list[tuple[int, int]] = []
    cached: list[tuple[int, int]] = []

    def record(job, *rest):
        jobs.append(job)
        threads.add(threading.get_ident())
        return real(job, *rest)

    patch = pytest.MonkeyPatch()
    patch.setattr(retraining, "supervise_in_parts", record)
    report = run_final_test(
        opened,
        SLOT,
        SLOT,
        on_progress=lambda *done: progress.append(done),
        on_cache=lambda *done: cached.append(done),
    )
    patch.undo()
    return SimpleNamespace(
        opened=opened, report=report, jobs=jobs, threads=threads, progress=progress, cached=cached
    )


def test_the_best_trials_are_retrained_at_the_final_fidelity(finished):
    best = best_trials(finished.opened.study, 2)
    expected = [(t.user_attrs["config"]["model"], seed) for t in best for seed in (0, 1)]
    assert sorted(map(repr, expected)) == sorted(
        repr((job.config["model"], job.config["seed"])) for job in finished.jobs
    )
    assert {(job.config["image_size"], job.config["epochs"]) for job in finished.jobs} == {(32, 3)}
    assert {Cache(job.cache).image_size for job in finished.jobs} == {32}
    assert len(finished.threads) == 2
    assert finished.progress[-1] == (12, 12)
    assert finished.progress == sorted(finished.progress)
    assert finished.cached[-1] == (30, 30)


def test_the_report_describes_the_finalists(finished):
    report, study = finished.report, finished.opened.study
    assert report == read_metrics(finished.opened.folder)
    assert report["fidelity"] == {
        "search": {"image_size": 16, "epochs": 2},
        "final": {"image_size": 32, "epochs": 3},
    }
    rows = report["finalists"]
    assert [row["trial"] for row in rows] == [t.number for t in best_trials(study, 2)]
    for row in rows:
        assert row["search"] == study.trials[row["trial"]].value
        assert len(row["dice"]) == 2 and row["seconds"] > 0
        assert row["mean"] == pytest.approx(statistics.fmean(row["dice"]))
        assert row["deviation"] == pytest.approx(statistics.stdev(row["dice"]))
    (chosen,) = [row for row in rows if row["chosen"]]
    assert chosen["mean"] == max(row["mean"] for row in rows)
    assert report["trial"] == chosen["trial"]
    val = report["val"]
    assert val["seeds"] == {"0": chosen["dice"][0], "1": chosen["dice"][1]}
    assert val["search"] == chosen["search"] and val["retrained"] == chosen["dice"][0]
    assert val["gap"] is val["reproduced"] is None  # another fidelity
    first, second = rows
    assert report["optimism"] == {
        "search_lead": pytest.approx(first["search"] - second["search"]),
        "final_lead": pytest.approx(first["mean"] - second["mean"]),
        "gap": None,
    }
    assert report["encoder_weights"] is None and report["time"] is None


def test_the_network_takes_images_of_the_final_size(finished):
    """The stored Dice of the selected steps is that of the file on images of 32 pixels."""
    opened, report = finished.opened, finished.report
    weights = opened.folder / "final" / "model.safetensors"
    _, config = checkpoint.load(weights)
    assert config.image_size == 32 and config.to_dict() == report["config"]
    cache = Cache(finished.jobs[0].cache)
    val = [cache.names.index(name) for name in opened.split.val]
    default = report["inference_choice"]["default_dice"]
    assert dice_of(weights, cache, np.array(val)) == pytest.approx(default, abs=1e-6)
    assert report["test"]["n"] == len(opened.split.test)
    assert not (opened.folder / "retraining").exists()


def test_a_repeated_call_returns_the_stored_result(finished):
    assert run_final_test(finished.opened, SLOT) == finished.report


@pytest.mark.parametrize(
    ("changes", "is_current"),
    [
        ({}, True),
        ({"candidates": [0, 1]}, False),
        ({"final": {"seeds": 1, "fit_on": "train", "tta": True, "postprocess": True}}, False),
        ({"final": {"unknown": 1}}, False),
    ],
)
def test_a_stored_result_is_of_the_same_trials_and_settings(finished, changes, is_current):
    opened = finished.opened
    trials, final = best_trials(opened.study, 2), opened.spec.final
    stored = {**finished.report, **changes}
    if "candidates" in changes:
        assert changes["candidates"] != [t.number for t in trials]
    assert final_test._is_current(stored, final, trials) == is_current


def test_a_result_of_an_earlier_version_is_current(finished):
    """It lacks the settings of this version, which have their defaults."""
    opened = finished.opened
    old = {"fit_on": "train", "seeds": 1, "tta": True, "postprocess": True}
    trial = best_trials(opened.study)[0]
    spec = opened.spec.final.model_copy(
        update={"image_size": None, "epochs": None, "finalists": 1, "seeds": 1}
    )
    assert final_test._is_current({"trial": trial.number, "final": old}, spec, [trial])


# --- ensemble ------------------------------------------------------------------------------------


def members_of(path):
    """The names of the tensors by member."""
    numbers = {name.partition(".")[0] for name in load_file(path)}
    return sorted(int(number) for number in numbers)


@pytest.mark.slow
def test_an_ensemble_of_the_search_and_the_retraining(tiny_data, tmp_path):
    """With equal sizes the networks of the search are candidates too."""
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 2})
    search(opened)
    report = run_final_test(opened, SLOT)
    ensemble, weights = report["ensemble"], opened.folder / "final" / "model.safetensors"
    assert ensemble is not None  # the two trials err on different images
    members = ensemble["members"]
    assert sum(member["weight"] for member in members) == pytest.approx(1)
    assert [m["weight"] for m in members] == sorted((m["weight"] for m in members), reverse=True)
    assert members_of(weights) == list(range(len(members)))
    assert ensemble["dice"] - ensemble["best_dice"] == pytest.approx(ensemble["gain"])
    assert ensemble["gain"] > ensemble["standard_error"]
    assert max(member["dice"] for member in members) == pytest.approx(ensemble["best_dice"])
    for member in members:  # of equal fidelity: the Dice of the search
        assert member["dice"] == pytest.approx(opened.study.trials[member["trial"]].value)
    params = {t.number: t.user_attrs["params"] for t in opened.study.trials}
    assert report["params"] == sum(params[member["trial"]] for member in members)
    assert report["config"] == members[0]["config"] and report["seed"] == members[0]["seed"]
    assert ensemble["mb"] == pytest.approx(weights.stat().st_size / 1e6, rel=0.1)
    assert ensemble["mb"] > ensemble["best_mb"] > 0
    assert ensemble["images_per_second"] > 0 and ensemble["best_images_per_second"] > 0
    trained = [m["trial"] for m in members if m["kind"] == "final"]
    # A retraining repeats its trial on a CPU: the trial's own weights are no candidate.
    assert not {m["trial"] for m in members if m["kind"] == "trial"} & {*trained, report["trial"]}
    with (opened.folder / "final" / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(0 <= float(row["disagreement"]) <= 1 for row in rows)
    assert report["disagreement"].keys() == {"spearman"}
    assert report["val"]["gap"] == 0  # of the chosen configuration


def test_a_failed_selection_leads_to_a_single_network(tiny_data, tmp_path, monkeypatch):
    opened = open_searched(tiny_data, tmp_path / "s", {"ensemble": 3})
    for path in (opened.folder / "trials").glob("*/model.safetensors"):
        path.write_bytes(b"damaged")
    events = []
    report = run_final_test(opened, SLOT, on_event=events.append)
    assert report["ensemble"] is None and report["disagreement"] is None
    (event,) = events
    assert event.startswith("final: the selection of an ensemble failed: ")
    assert event.endswith("; a single network is tested")


def test_one_selected_member_is_the_chosen_network(finished, tmp_path, monkeypatch):
    """Not the best seed of all finalists."""
    other = final_network.Candidate("trial", 9, {"seed": 7}, 1, 1, tmp_path / "other")
    choice = SimpleNamespace(members=(SimpleNamespace(index=1, weight=1.0, dice=0.9),))
    monkeypatch.setattr(final_network, "run_job", lambda *args: SimpleNamespace(choice=choice))
    monkeypatch.setattr(final_network, "_stored_candidates", lambda *args: [other])
    (tmp_path / "best").write_bytes(b"best")
    best = SimpleNamespace(trial=3, config={"seed": 1}, params=5, macs=6, weights=tmp_path / "best")
    setup = SimpleNamespace(
        is_joint=False, has_size_of_search=True, search=None, slot=SLOT, on_event=print,
        final=finished.opened, schedule=SimpleNamespace(member_limit=5),
    )  # fmt: skip
    retrained = SimpleNamespace(models=[best], tested=SimpleNamespace(best_model=best))
    network = final_network.build_network(setup, retrained, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"best"
    (member,) = network.members
    assert (member.candidate.trial, member.weight) == (3, 1.0)


# --- train and val -------------------------------------------------------------------------------


@pytest.mark.slow
def test_finalists_are_compared_before_the_chosen_one_is_trained_on_all_images(
    tiny_data, tmp_path, monkeypatch
):
    final = {**LARGE, "finalists": 2, "seeds": 2, "fit_on": "train_val"}
    opened = open_searched(tiny_data, tmp_path / "s", final)
    jobs, results, real = [], {}, retraining.supervise_in_parts

    def record(job, *rest):
        jobs.append(job)
        outcome = real(job, *rest)
        results[job.weights_path.stem] = outcome.result
        return outcome

    monkeypatch.setattr(retraining, "supervise_in_parts", record)
    report = run_final_test(opened, SLOT)
    n_train, n_val = len(opened.split.train), len(opened.split.val)
    assert [len(job.train) for job in jobs] == [n_train] * 4 + [n_train + n_val] * 2
    compared = [job.weights_path.stem for job in jobs if job.config["seed"] in (0, 1)][:4]
    chosen = [stem for stem in compared if stem.startswith(f"trial_{report['trial']}_")]
    epochs = round(statistics.fmean(results[stem].best.epoch for stem in chosen))
    joint = [results[job.weights_path.stem] for job in jobs[4:]]
    assert [len(result.history) for result in joint] == [epochs, epochs]
    # The comparison is reported; the tested networks have no held-out images.
    assert len(report["finalists"]) == 2
    assert report["val"]["seeds"].keys() == {"0", "1"}
    ensemble = report["ensemble"]
    assert [m["weight"] for m in ensemble["members"]] == [0.5, 0.5]
    assert [m["seed"] for m in ensemble["members"]] == [0, 1]
    assert {m["dice"] for m in ensemble["members"]} == {None}
    assert ensemble["gain"] is ensemble["dice"] is ensemble["standard_error"] is None
    model, _ = checkpoint.load(opened.folder / "final" / "model.safetensors")
    assert model.weights.tolist() == [0.5, 0.5]


@pytest.mark.slow
def test_steps_for_a_larger_network_are_chosen_without_its_size(tiny_data, tmp_path, monkeypatch):
    final = {**LARGE, "fit_on": "train_val"}
    opened = open_searched(tiny_data, tmp_path / "s", final)
    jobs, real = [], final_network.run_job

    def record(job, *rest):
        jobs.append(job)
        return real(job, *rest)

    monkeypatch.setattr(final_network, "run_job", record)
    report = run_final_test(opened, SLOT)
    (job,) = jobs
    assert job.scale_free and Cache(job.cache).image_size == 16
    assert report["finalists"] is report["optimism"] is None
    assert not any("crf" in c["name"] for c in report["inference_choice"]["candidates"])
    # No images are left to select an epoch on, and the search's epochs are others: all are trained.
    with (opened.folder / "final" / "history.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3


# --- failures ------------------------------------------------------------------------------------


def failing(monkeypatch, trials, real=finalists.retrain):
    """Let the retrainings of these trials fail."""

    def retrain(opened, slot, each, folder, **options):
        if each.trial.number in trials:
            raise RetrainingFailed(f"trial {each.trial.number} failed: diverged")
        return real(opened, slot, each, folder, **options)

    monkeypatch.setattr(finalists, "retrain", retrain)


def test_a_finalist_that_fails_is_left_out(tiny_data, tmp_path, monkeypatch):
    opened = open_searched(tiny_data, tmp_path / "s", {"finalists": 3, "ensemble": 1})
    best = [trial.number for trial in best_trials(opened.study, 3)]
    failing(monkeypatch, best[:1])
    events = []
    report = run_final_test(opened, SLOT, on_event=events.append)
    assert events == [f"trial {best[0]} failed: diverged; it is left out"]
    assert [row["trial"] for row in report["finalists"]] == best[1:]
    assert report["candidates"] == best
    assert report["optimism"] is None  # the search's best was not retrained
    # The stored result stays valid.
    assert run_final_test(opened, SLOT)["test_evaluations"] == 1


def test_the_first_error_is_raised_if_all_fail(tiny_data, tmp_path, monkeypatch):
    opened = open_searched(tiny_data, tmp_path / "s", {"finalists": 2})
    best = [trial.number for trial in best_trials(opened.study, 2)]
    failing(monkeypatch, best)
    with pytest.raises(JobFailed, match=f"^trial {best[0]} failed: diverged$"):
        run_final_test(opened, SLOT)


def test_a_device_that_fails_ends_the_final_test(tiny_data, tmp_path):
    """All retrainings would fail likewise."""
    opened = open_searched(tiny_data, tmp_path / "s", {"finalists": 2})
    with pytest.raises(JobFailed, match=r"retraining of trial \d failed: device: 'cuda:63' is not"):
        run_final_test(opened, Slot("cuda:63", 1))


def test_networks_that_do_not_take_the_final_size_are_left_out(tiny_data, tmp_path, monkeypatch):
    opened = open_searched(tiny_data, tmp_path / "s", {**LARGE, "finalists": 2})
    first, second = best_trials(opened.study, 2)
    real, events = final_test.trainable.__globals__["to_final"], []

    def refuse(config, spec):
        if config == TrialConfig.from_dict(first.user_attrs["config"]):
            raise InputError("final.image_size: too small")
        return real(config, spec)

    monkeypatch.setitem(final_test.trainable.__globals__, "to_final", refuse)
    usable = final_test.trainable([first, second], opened.spec, events.append)
    assert usable == [second]
    assert events == ["final: final.image_size: too small; the trial is left out"]
    with pytest.raises(InputError, match="too small"):
        final_test.trainable([first], opened.spec, events.append)


def test_finalists_have_distinct_configurations(tiny_data, tmp_path):
    opened = open_searched(tiny_data, tmp_path / "s", {})
    best = best_trials(opened.study, 3)
    (number,) = retry_trials(opened.study, [best[0].number])
    repeated = make_worker(opened).run_one()
    assert repeated.number == number
    assert repeated.state.name == "COMPLETE" and repeated.value == best[0].value
    assert [t.number for t in best_trials(opened.study, 9)] == [t.number for t in best]


# --- time ----------------------------------------------------------------------------------------


def test_a_training_ends_at_its_deadline(tiny_data, tmp_path):
    opened = open_searched(tiny_data, tmp_path / "s", {})
    trial = best_trials(opened.study)[0]
    config = replace(TrialConfig.from_dict(trial.user_attrs["config"]), epochs=50)
    job = retraining.Retraining(trial, config, "train", 50)
    model = retraining.retrain(opened, SLOT, job, tmp_path / "r", deadline=0.0)
    assert len(model.result.history) == 1 and model.weights.is_file()
    kept = retraining.load_finished(job, tmp_path / "r")
    assert kept == model
    other = replace(job, last_epoch=49)
    assert retraining.load_finished(other, tmp_path / "r") is None


def test_the_plan_fits_the_time_that_is_left(tiny_data, tmp_path, monkeypatch):
    """Six trainings of 20,000 epochs do not fit into 40 seconds, of which the report takes some."""
    final = {"epochs": 20_000, "finalists": 3, "seeds": 2, "image_size": 32}
    opened = open_searched(tiny_data, tmp_path / "s", final, **{"budget.total_hours": 1e4})
    monkeypatch.setattr(final_test, "remaining_s", lambda opened: 40.0)
    failing(monkeypatch, range(3))  # the schedule is made, nothing is trained
    events = []
    with pytest.raises(JobFailed):
        run_final_test(opened, SLOT, on_event=events.append)
    path = opened.folder / "retraining" / "schedule.json"
    schedule = json.loads(path.read_text())["schedule"]
    assert (schedule["plan"]["finalists"], schedule["plan"]["seeds"]) == (1, 1)
    assert 1 <= schedule["plan"]["epochs"] < 20_000
    assert schedule["left_s"] == 40.0
    assert "finalists 1 instead of 3" in events[0] and "for the 0.7 minutes" in events[0]
    # The plan is kept: the states of the trainings depend on it.
    monkeypatch.setattr(final_test, "remaining_s", lambda opened: 1e6)
    with pytest.raises(JobFailed):
        run_final_test(opened, SLOT)
    assert json.loads(path.read_text())["schedule"] == schedule


@pytest.mark.slow
def test_a_result_in_limited_time_has_its_forecast(tiny_data, tmp_path, monkeypatch):
    final = {"ensemble": 1, "epochs": 2}
    opened = open_searched(tiny_data, tmp_path / "s", final, **{"budget.total_hours": 1.0})
    report = run_final_test(opened, SLOT)
    time = report["time"]
    assert 3000 < time["left_s"] <= 3600
    assert 0 < time["forecast_s"] < 600 and time["used_s"] > 0
    assert report["fidelity"]["final"]["epochs"] == 3  # up to 1.5 times the planned ones


@pytest.mark.parametrize(
    ("search_values", "means", "is_repetition", "expected"),
    [
        ([0.9, 0.8, 0.7], [0.8, 0.8, 0.6], True, (0.15, 0.1, 0.1)),
        ([0.9, 0.8, 0.7], [0.7, 0.8, 0.8], False, (0.15, -0.1, None)),
        ([0.9], [0.85], True, (None, None, 0.05)),
        ([0.9], [0.85], False, None),
    ],
)
def test_optimism_by_hand(search_values, means, is_repetition, expected):
    rows = [
        SimpleNamespace(trial=SimpleNamespace(number=i, value=v, user_attrs={}), mean=m)
        for i, (v, m) in enumerate(zip(search_values, means, strict=True))
    ]
    optimism = measure_optimism(rows, 0, is_repetition=is_repetition)
    if expected is None:
        assert optimism is None
    else:
        keys = ("search_lead", "final_lead", "gap")
        assert optimism == {
            key: None if value is None else pytest.approx(value)
            for key, value in zip(keys, expected, strict=True)
        }
