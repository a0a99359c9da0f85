"""Cross-validation: values, pruning, saved results and resumption."""

import csv
import io
import json
import statistics
import threading
from dataclasses import asdict

import numpy as np
import pytest
import torch
from optuna.pruners import NopPruner
from optuna.trial import TrialState

from lesionseg.config import TrialConfig
from lesionseg.data.cache import Cache
from lesionseg.data.loader import normalise
from lesionseg.data.split import find_positions
from lesionseg.errors import InputError
from lesionseg.metrics import overlap
from lesionseg.metrics.overlap import METRICS, Metrics
from lesionseg.training import checkpoint
from lesionseg.training.train import train
from lesionseg.training.types import EpochRecord, TrainData, TrainingEnd, TrainResult
from search.monitoring import notes
from search.monitoring.dashboard.artifact_reader import draw_curves
from search.monitoring.status import StatusReader
from search.results import retraining
from search.results.final_test import run_final_test
from search.storage import trial_records
from search.storage.leases import TrialLeases
from search.storage.retention import FOLDS, HISTORY, PICTURE, STATE, WEIGHTS
from search.study import cross_validation
from search.study.cross_validation import FoldPruner
from search.study.data_summary import summarize_data
from search.study.opening import open_study
from search.study.pruners import PRUNERS
from search.study.transfer import write_csv
from search.trial_process import supervisor
from tests.search import failing_fold_training, failing_training
from tests.search.failing_training import FAILURE_WIDTHS, SUSPEND_POINT
from tests.search.helpers import (
    LONG_WAIT_S,
    SLOT,
    RecordingListener,
    find_pruned,
    in_memory,
    make_worker,
    open_tiny,
    queue,
    wait_until,
)

THREE = {"data.split": {"kfold": 3}}


def open_folded(tiny_data, folder, changes=None):
    return open_tiny(tiny_data, folder, {**THREE, **(changes or {})})


def rows_of(opened, number):
    path = opened.artifact_store.local_path(number, HISTORY)
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def done(tiny_data, tmp_path_factory):
    """A study with one complete trial; not to be changed."""
    opened = open_folded(tiny_data, tmp_path_factory.mktemp("folds") / "s", {"budget.epochs": 4})
    queue(opened, width=8, lr=0.05)
    heard = RecordingListener()
    with make_worker(opened, heard) as worker:
        trial = worker.run_one()
    return opened, trial, heard


@pytest.fixture(scope="module")
def truth(done):
    """The results of each fold, trained without a search."""
    opened, trial, _ = done
    config = TrialConfig.from_dict(trial.user_attrs["config"])
    cache, results = Cache(opened.cache.path), []
    pool = sorted({*opened.split.train, *opened.split.val})
    threads = torch.get_num_threads()
    torch.set_num_threads(SLOT.threads)
    for val in json.loads((opened.folder / "split.json").read_text())["folds"]:
        rest = [name for name in pool if name not in val]
        data = TrainData(cache, find_positions(rest, cache.names), find_positions(val, cache.names))
        results.append(train(config, data))
    torch.set_num_threads(threads)
    return results


# --- what a trial gives --------------------------------------------------------------------------


def test_the_value_is_the_mean_of_the_best_dice(done, truth):
    _, trial, _ = done
    best = [max(r.metrics.dice for r in result.history) for result in truth]
    assert len(set(best)) == 3
    assert trial.state == TrialState.COMPLETE
    assert trial.value == pytest.approx(statistics.fmean(best), abs=1e-12)
    told = trial.user_attrs["folds"]
    assert told["dice"] == best
    assert told["best_epochs"] == [result.best.epoch for result in truth]
    assert (told["of"], told["mean"]) == (3, trial.value)
    assert told["deviation"] == pytest.approx(np.std(best, ddof=1))


def test_reported_values(done, truth):
    _, trial, _ = done
    best = [result.best.metrics.dice for result in truth]
    expected = {r.epoch: r.metrics.dice for r in truth[0].history}
    expected |= {5: statistics.fmean(best[:2]), 6: statistics.fmean(best)}
    assert trial.intermediate_values == expected
    assert trial_records.dice_by_epoch(trial) == {r.epoch: r.metrics.dice for r in truth[0].history}


def test_the_exported_epochs_are_those_of_all_folds(done):
    opened, _, _ = done
    file = io.StringIO(newline="")
    write_csv(opened.study, file)
    file.seek(0)
    assert [row["epochs"] for row in csv.DictReader(file)] == ["12"]


def test_time_and_memory_of_all_folds(done, truth):
    _, trial, heard = done
    attrs = trial.user_attrs
    assert attrs["epochs"] == 12 == len(heard.epochs)
    assert attrs["best_epoch"] == round(np.mean([result.best.epoch for result in truth]))
    for name in METRICS:
        each = [asdict(result.best.metrics)[name] for result in truth]
        assert attrs["val"][name] == pytest.approx(np.mean(each), abs=1e-12)


def test_the_history_contains_all_folds(done, truth):
    opened, trial, _ = done
    rows = rows_of(opened, trial.number)
    assert [(int(r["fold"]), int(r["epoch"])) for r in rows] == [
        (fold, epoch) for fold in (1, 2, 3) for epoch in (1, 2, 3, 4)
    ]
    dice = [r.metrics.dice for result in truth for r in result.history]
    assert [float(r["dice"]) for r in rows] == dice
    assert (
        draw_curves(opened.artifact_store.local_path(trial.number, HISTORY).read_text())[:4]
        == b"\x89PNG"
    )


def test_files_of_the_first_fold_are_kept(done, tiny_data):
    opened, trial, _ = done
    assert opened.artifact_store.list_files(trial.number) == sorted([HISTORY, PICTURE, WEIGHTS])
    model, _ = checkpoint.load(opened.artifact_store.local_path(trial.number, WEIGHTS))
    val = find_positions(opened.split.val, opened.cache.names)
    images = torch.from_numpy(opened.cache.images[val])
    with torch.inference_mode():
        predicted = model(normalise(images)) > 0
    counts = overlap.count_pixels(predicted, torch.from_numpy(opened.cache.masks[val])[:, None] > 0)
    dice = overlap.mean_scores(overlap.score_images(counts.numpy())).dice
    assert dice == pytest.approx(trial.user_attrs["folds"]["dice"][0], abs=1e-3)


def test_status_and_note_show_the_folds(done):
    opened, trial, _ = done
    found = StatusReader(opened.folder).read().best.folds
    assert found == trial.user_attrs["folds"]
    note = notes.format_trial_note(trial)
    assert "mean of 3 folds" in note
    for n, dice in enumerate(found["dice"], 1):
        assert f"| {n} | {notes.escape_markdown(f'{dice:.4f}')} |" in note


def test_status_and_note_without_folds(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s")
    trial = make_worker(opened).run_one()
    assert "folds" not in trial.user_attrs
    assert next(iter(rows_of(opened, 0)[0])) == "epoch"
    assert StatusReader(opened.folder).read().best.folds is None
    assert "folds" not in json.loads((opened.folder / "split.json").read_text())


def test_out_of_memory_in_any_fold(tiny_data, tmp_path):
    changes = {"search.model": {"unet": {"width": [4, 128], "depth": 1}}}
    opened = open_folded(tiny_data, tmp_path / "s", changes)
    queue(opened, width=FAILURE_WIDTHS["fits in halves"])
    trial = make_worker(opened, program=failing_training.__name__).run_one()
    assert trial.state == TrialState.COMPLETE
    assert trial.user_attrs["accumulation_factor"] == 2
    assert len(rows_of(opened, 0)) == 6


def test_a_failed_fold_fails_the_trial(tiny_data, tmp_path):
    opened = open_folded(tiny_data, tmp_path / "s")
    queue(opened)
    with make_worker(opened, program=failing_fold_training.__name__) as worker:
        (opened.folder / "trials" / failing_fold_training.DIVERGES).touch()
        trial = worker.run_one()
    assert (trial.state, trial_records.reason_of(trial)) == (TrialState.FAIL, "diverged")
    assert len(trial.user_attrs["folds"]["dice"]) == 2
    assert opened.artifact_store.list_files(0) == [HISTORY, PICTURE]


# --- pruning -------------------------------------------------------------------------------------


def test_pruner_compares_equal_numbers_of_folds():
    curves = [
        {1: 0.1, 10: 0.9, 11: 0.6, 12: 0.50},
        {1: 0.1, 10: 0.9, 11: 0.5, 12: 0.52},
        # Below the median 0.55 of two folds, whatever the first one's epochs were.
        {1: 0.1, 10: 0.99, 11: 0.54, 12: 0.9},
        # At 0.56 above the median 0.54; at 0.505 below the median 0.51 of three folds.
        {1: 0.0, 10: 0.0, 11: 0.56, 12: 0.505},
        # As good as the median 0.55 is good enough. Three folds: 0.505, the median of three.
        {1: 0.0, 10: 0.0, 11: 0.55, 12: 0.505},
        # One that ended its first fold early has no step there, and is judged by its mean.
        {1: 0.1, 11: 0.2, 12: 0.9},
    ]
    assert find_pruned(FoldPruner(NopPruner(), 10, 2), curves) == [(2, 11), (3, 12), (5, 11)]


def test_pruner_needs_its_startup_trials():
    curves = [{11: 0.5}, {11: 0.4}, {11: 0.3}, {11: 0.2}]
    assert find_pruned(FoldPruner(NopPruner(), 10, 3), curves) == [(3, 11)]
    assert find_pruned(FoldPruner(NopPruner(), 10, 0), curves) == [(1, 11), (2, 11), (3, 11)]


@pytest.mark.parametrize("name", ["median", "hyperband", "halving"])
def test_pruner_of_the_first_fold(name):
    rng = np.random.default_rng(0)
    curves = [dict(enumerate(rng.random(9), 1)) for _ in range(40)]
    alone = find_pruned(PRUNERS[name](9, 2, 3), curves)
    assert alone
    with_folds = [curve | {10: 1 - n / 1000} for n, curve in enumerate(curves)]
    # Those who pass are judged once more, by nobody before the 1000th has come.
    assert find_pruned(FoldPruner(PRUNERS[name](9, 2, 3), 9, 1000), with_folds) == alone


def test_pruner_ignores_interrupted_trials():
    study = in_memory(pruner=FoldPruner(NopPruner(), 2, 1))
    first = study.ask()
    for step, value in {1: 0.1, 2: 0.2, 3: 0.9}.items():
        first.report(value, step)
    first.set_user_attr("reason", trial_records.EndReason.LOST)
    study.tell(first, state=TrialState.FAIL)
    second = study.ask()
    second.report(0.8, 3)
    assert not second.should_prune()


def test_a_trial_is_stopped_between_folds(tiny_data, tmp_path):
    opened = open_folded(
        tiny_data, tmp_path / "s", {"pruner.name": "median", "pruner.min_epochs": 1}
    )
    assert isinstance(opened.study.pruner, FoldPruner)
    opened.study.pruner = FoldPruner(NopPruner(), 2, 1)
    for lr in (0.05, 0.001):
        queue(opened, width=8, lr=lr)
    worker = make_worker(opened)
    good, bad = worker.run_one(), worker.run_one()
    if good.value == 0.0:
        pytest.fail("the one that is to be better is not")
    assert (bad.state, list(bad.intermediate_values)) == (TrialState.PRUNED, [1, 2, 3])
    assert len(bad.user_attrs["folds"]["dice"]) == 2
    assert bad.user_attrs["epochs"] == 4
    assert [r["fold"] for r in rows_of(opened, 1)] == ["1", "1", "2", "2"]
    assert opened.artifact_store.list_files(1) == [HISTORY, PICTURE]


def test_time_limit_in_a_fold(tiny_data, tmp_path):
    opened = open_folded(tiny_data, tmp_path / "s")
    for width in (4, 8):
        queue(opened, width=width)
    heard = RecordingListener()
    worker = make_worker(opened, heard, is_out_of_time=lambda: len(heard.epochs) >= 6 + 3)
    first, second = worker.run_one(), worker.run_one()
    assert first.state == TrialState.COMPLETE
    assert (second.state, trial_records.reason_of(second)) == (TrialState.PRUNED, "time")
    assert len(rows_of(opened, 1)) == 3
    assert len(second.user_attrs["folds"]["dice"]) == 1


def test_the_time_limit_covers_all_folds():
    conditions = supervisor.StopConditions(total_s=60, elapsed_s=59)
    supervision = supervisor.Supervisor(None, lambda message: False, conditions)
    assert supervision.check_time(supervision.started_at + 0.9) is None
    late = supervision.check_time(supervision.started_at + 1.1)
    assert (late.reason, late.message) == (
        "timeout",
        "it took longer than 1 minutes (budget.trial_minutes)",
    )


# --- what is kept between folds ------------------------------------------------------------------


def result_of(dice, stopped=TrainingEnd.FINISHED):
    history = tuple(
        EpochRecord(n, 0.5, float("nan"), Metrics(**dict.fromkeys(METRICS, value)), 0.01, 1.0)
        for n, value in enumerate(dice, 1)
    )
    best = max(history, key=lambda record: record.metrics.dice)
    return TrainResult(best, history, stopped, 2.5, 7, None)


def test_save_and_load_results(tmp_path):
    results = [result_of([0.1, 0.3, 0.2]), result_of([1 / 3], TrainingEnd.EARLY)]
    cross_validation.save_results(tmp_path / "f.json", "abc", results)
    found = cross_validation.load_results(tmp_path / "f.json", "abc")
    assert repr(found) == repr(results)  # NaN is not itself
    assert cross_validation.load_results(tmp_path / "f.json", "another") == []
    assert cross_validation.load_results(tmp_path / "nothing.json", "abc") == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": "lesionsearch-folds/1"}', "null"]
)
def test_a_damaged_file_is_ignored(tmp_path, text):
    (tmp_path / "f.json").write_text(text)
    assert cross_validation.load_results(tmp_path / "f.json", "abc") == []


# --- going on ------------------------------------------------------------------------------------

LONG = {"budget.epochs": 5, "fixed.batch_size": 4}


class Calling(RecordingListener):
    """Calls a function after a number of epochs."""

    def __init__(self, when, call):
        super().__init__()
        self.when, self.call = when, call

    def epoch_ended(self, number, record):
        super().epoch_ended(number, record)
        if len(self.epochs) == self.when:
            self.call()


@pytest.fixture(scope="module")
def undisturbed(tiny_data, tmp_path_factory):
    """Trial and history of the same training without interruption."""
    opened = open_folded(tiny_data, tmp_path_factory.mktemp("undisturbed") / "s", LONG)
    queue(opened, width=8)
    return make_worker(opened).run_one(), rows_of(opened, 0)


def without_times(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def check_resumed(opened, after, undisturbed):
    """Check that trial 1 resumed in the third fold with bit-exact results."""
    again = make_worker(open_study(opened.folder), after).run_one()
    expected, rows = undisturbed
    assert after.epochs == [(1, 3), (1, 4), (1, 5)]
    assert (again.number, again.state, again.value) == (1, TrialState.COMPLETE, expected.value)
    assert again.intermediate_values == expected.intermediate_values
    assert again.user_attrs["folds"] == expected.user_attrs["folds"]
    assert again.user_attrs["val"] == expected.user_attrs["val"]
    assert again.user_attrs["resumed_at"] == 12
    assert without_times(rows_of(opened, 1)) == without_times(rows)
    assert opened.artifact_store.list_files(0) == []
    assert opened.artifact_store.list_files(1) == sorted([HISTORY, PICTURE, WEIGHTS])
    assert trial_records.count_finished(opened.study.trials) == 1


def test_an_interrupted_trial_resumes_in_its_third_fold(tiny_data, tmp_path, undisturbed):
    opened = open_folded(tiny_data, tmp_path / "s", LONG)
    queue(opened, width=8)
    stopping = threading.Event()
    listener = Calling(12, stopping.set)
    with make_worker(
        opened, listener, stop_event=stopping, program=failing_fold_training.__name__
    ) as worker:
        cut = worker.run_one()
    assert trial_records.reason_of(cut) == trial_records.EndReason.INTERRUPTED
    assert opened.artifact_store.list_files(0) == sorted([FOLDS, PICTURE, STATE, WEIGHTS])
    state = torch.load(opened.artifact_store.local_path(0, STATE), weights_only=True)["state"]
    assert (len(state["history"]) + 1, state["step"]) == SUSPEND_POINT
    check_resumed(opened, RecordingListener(), undisturbed)


def test_a_lost_trial_resumes_in_its_third_fold(tiny_data, tmp_path, undisturbed):
    opened = open_folded(tiny_data, tmp_path / "s", LONG)
    queue(opened, width=8)
    others = TrialLeases(opened.study, grace_s=0.0)
    states = []

    def reap():
        path = opened.artifact_store.local_path(0, STATE)
        assert wait_until(path.is_file, LONG_WAIT_S)
        others.connected_since -= 1
        states.append(torch.load(path, weights_only=True)["state"])
        assert others.reap_expired() == [(0, 1)]

    with make_worker(
        opened, Calling(12, reap), leases=TrialLeases(opened.study, grace_s=3.0),
        program=failing_fold_training.__name__,
    ) as worker:  # fmt: skip
        cut = worker.run_one()
    assert trial_records.reason_of(cut) == trial_records.EndReason.LOST
    assert {FOLDS, WEIGHTS} <= {*opened.artifact_store.list_files(0)}
    again = make_worker(open_study(opened.folder)).run_one()
    expected, rows = undisturbed
    assert again.value == expected.value
    assert again.intermediate_values == expected.intermediate_values
    assert without_times(rows_of(opened, 1)) == without_times(rows)
    assert opened.artifact_store.list_files(1) == sorted([HISTORY, PICTURE, WEIGHTS])


@pytest.mark.parametrize("lacking", [FOLDS, WEIGHTS])
def test_a_trial_restarts_without_its_files(tiny_data, tmp_path, undisturbed, lacking):
    opened = open_folded(tiny_data, tmp_path / "s", LONG)
    queue(opened, width=8)
    stopping = threading.Event()
    listener = Calling(12, stopping.set)
    with make_worker(
        opened, listener, stop_event=stopping, program=failing_fold_training.__name__
    ) as worker:
        worker.run_one()
    opened.artifact_store.delete(0, lacking)
    after = RecordingListener()
    again = make_worker(open_study(opened.folder), after).run_one()
    assert len(after.epochs) == 15
    assert again.value == undisturbed[0].value
    assert without_times(rows_of(opened, 1)) == without_times(undisturbed[1])


def test_the_retraining_repeats_the_first_fold(done):
    opened, trial, _ = done
    val = run_final_test(opened, SLOT)["val"]
    assert val["folds"] == trial.user_attrs["folds"]
    assert val["search"] == trial.value
    assert val["retrained"] == trial.user_attrs["folds"]["dice"][0]
    assert (val["gap"], val["reproduced"]) == (0.0, True)


def test_retraining_on_train_and_val(tiny_data, tmp_path, monkeypatch):
    changes = {"budget.epochs": 4, "final.fit_on": "train_val"}
    opened = open_folded(tiny_data, tmp_path / "s", changes)
    queue(opened, width=8, lr=0.05)
    trial = make_worker(opened).run_one()
    jobs = []
    real = retraining.supervise_in_parts

    def record(job, *args):
        jobs.append(job)
        return real(job, *args)

    monkeypatch.setattr(retraining, "supervise_in_parts", record)
    run_final_test(opened, SLOT)
    names = np.array(opened.cache.names)
    assert list(names[jobs[0].train]) == sorted({*names} - {*opened.split.test})
    with (opened.folder / "final" / "history.csv").open(newline="") as file:
        epochs = [int(row["epoch"]) for row in csv.DictReader(file)]
    best = trial.user_attrs["folds"]["best_epochs"]
    assert epochs == list(range(1, round(np.mean(best)) + 1))


def test_limits_apply_to_each_fold(tiny_data, tmp_path):
    """Each fold has its own images, so all folds together have more than the first one."""
    opened = open_folded(tiny_data, tmp_path / "s", {"data.limit": {"train": 4, "val": 2}})
    known = {n for fold in opened.split.folds for n in (*fold.train, *fold.val)}
    first = opened.split.folds[0]
    assert known > {*first.train, *first.val}
    names = np.array(opened.cache.names)
    assert list(names[opened.trial_data.train_val]) == sorted(known)
    card = summarize_data(opened.index, opened.cache, opened.split)
    assert card["used"] == len(known) + len(opened.split.test)


def test_kfold_is_not_a_resumable_key(tiny_data, tmp_path):
    open_folded(tiny_data, tmp_path / "s")
    with pytest.raises(InputError, match=r"data\.split\.val, data\.split\.kfold differ"):
        open_tiny(tiny_data, tmp_path / "s")


def test_workers_agree_on_the_folds(tiny_data, tmp_path):
    opened = open_folded(tiny_data, tmp_path / "s")
    again = open_study(tmp_path / "s")
    assert again.split == opened.split
    for expected, folds in zip(opened.trial_data.folds, again.trial_data.folds, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(expected, folds, strict=True))
