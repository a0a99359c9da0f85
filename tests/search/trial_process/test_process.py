"""Real training processes: their messages, how they end, and that none outlives its parent."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from lesionseg.config import TrialConfig
from lesionseg.data.cache import Cache, build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.errors import InputError
from lesionseg.inference.ensemble_selection import select_ensemble
from lesionseg.inference.selection import DEFAULT_INFERENCE
from lesionseg.models import build_model, count_params, multiply_adds
from lesionseg.space import ComponentConfig
from lesionseg.training import checkpoint
from lesionseg.training.types import Diverged, EpochRecord, TrainingEnd
from search.trial_process import protocol
from search.trial_process.child_main import describe_error
from search.trial_process.process import TrialProcess, measure_memory
from search.trial_process.protocol import (
    JobError,
    ModelBuilt,
    Resumed,
    StepDone,
    Suspended,
    Trained,
    TrainJob,
)
from search.trial_process.slot import Slot
from tests.conftest import ROOT
from tests.search import loader_training
from tests.search.helpers import LONG_WAIT_S, SLOT, is_gone, wait_until

CONFIG = TrialConfig(
    model=ComponentConfig("unet", {"width": 4, "depth": 1}),
    loss=ComponentConfig("bce"),
    augment=ComponentConfig("none"),
    optimizer=ComponentConfig("adam", {"lr": 0.01}),
    schedule=ComponentConfig("constant"),
    image_size=16,
    batch_size=8,
    epochs=3,
    amp="off",
)


@pytest.fixture(scope="session")
def index(tiny_data):
    return DatasetIndex.read(tiny_data)


@pytest.fixture(scope="session")
def job(index):
    cache = build_cache(index, 16)
    return TrainJob(CONFIG.to_dict(), cache.path, np.arange(20), np.arange(20, 30), SLOT)


def with_settings(job, **changes) -> TrainJob:
    """Return the job with changed settings of its configuration."""
    return replace(job, config=replace(CONFIG, **changes).to_dict())


def run(job, stop_at=None, on_epoch=lambda child, record: None):
    """Return all messages but StepDone. on_epoch: called before the reply to an epoch."""
    messages = []
    with TrialProcess(job) as child:
        for message in child.messages():
            if isinstance(message, StepDone):  # their number depends on the time
                continue
            messages.append(message)
            if isinstance(message, EpochRecord):
                on_epoch(child, message)
            if isinstance(message, ModelBuilt | EpochRecord):
                child.reply(stop=stop_at is not None and getattr(message, "epoch", 0) >= stop_at)
        pid = child.pid
    assert is_gone(pid)
    return messages


PAGE_FAULTS = """
import resource
import torch
for _ in range(10):  # until the heap has its final size
    torch.ones(16_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(16_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's allocator")
def test_a_training_on_a_cpu_keeps_freed_memory(job):
    def count_page_faults(environment):
        command = [sys.executable, "-c", PAGE_FAULTS]
        return int(subprocess.check_output(command, env=environment))

    with TrialProcess(job) as child:
        environment = psutil.Process(child.pid).environ()
    assert count_page_faults(environment) < 1000
    del environment["MALLOC_MMAP_MAX_"], environment["MALLOC_TRIM_THRESHOLD_"]
    assert count_page_faults(environment) > 10_000  # of 156,250 pages


# --- what a child says -------------------------------------------------------------------------


def test_a_training_on_a_cache_that_was_truncated_reports_nothing_more(job, index, tmp_path):
    cache = build_cache(index, 16, tmp_path)
    states = tmp_path / "state.pt"

    def truncate(_child, _record):
        masks = cache.path / "masks.npy"  # the rest of the page then reads as zeros
        os.truncate(masks, masks.stat().st_size - 300)

    damaged = replace(job, cache=cache.path, state_path=states)
    _, first, error = run(damaged, on_epoch=truncate)
    assert first.epoch == 1
    assert isinstance(error, JobError)
    assert "masks.npy was truncated to " in error.message
    assert not states.exists()


def test_train_job_sends_model_epochs_and_result(job, tmp_path):
    path = tmp_path / "deep" / "model.safetensors"
    built, *records, trained = run(replace(job, weights_path=path))
    model = build_model(CONFIG.model, image_size=CONFIG.image_size)
    assert built == ModelBuilt(count_params(model), multiply_adds(model, CONFIG.image_size))
    assert [r.epoch for r in records] == [1, 2, 3]
    assert isinstance(trained, Trained)
    assert trained.result.history == tuple(records)
    assert trained.result.stopped is TrainingEnd.FINISHED
    assert trained.result.best == max(records, key=lambda r: (r.metrics.dice, -r.epoch))
    assert trained.result.checkpoint == path
    _, config = checkpoint.load(path)
    assert config == CONFIG


@pytest.mark.parametrize("keep", [False, True])
def test_stopped_training_writes_files_only_on_request(job, tmp_path, keep):
    """A pruned trial frees its slot at once; a retraining keeps its weights."""
    weights, picture = tmp_path / "w", tmp_path / "p.jpg"
    job = replace(job, weights_path=weights, picture_path=picture, keep_stopped=keep)
    *_, trained = run(job, stop_at=2)
    assert trained.result.stopped is TrainingEnd.CALLBACK
    assert (weights.exists(), picture.exists()) == (keep, keep)
    assert trained.result.checkpoint == (weights if keep else None)


def test_training_is_deterministic(job):
    def values(messages):
        return [(r.train_loss, r.val_loss, r.metrics, r.lr) for r in messages[1:-1]]

    assert values(run(job)) == values(run(job))


def test_stopped_training_returns_its_epochs(job):
    *_, trained = run(job, stop_at=2)
    assert trained.result.stopped is TrainingEnd.CALLBACK
    assert len(trained.result.history) == 2


def test_network_is_not_trained_after_a_stop(job):
    built, end = run(job, stop_at=0)
    assert isinstance(built, ModelBuilt)
    assert end.reason == "config"
    assert end.message == "stopped before training"


def test_evaluate_job_returns_counts_speed_overlays_and_masks(job, index, tmp_path):
    weights = tmp_path / "model.safetensors"
    run(replace(job, weights_path=weights))
    records = index.records[20:]
    (tested,) = run(
        protocol.EvaluateJob(
            weights, job.cache, records, SLOT, tmp_path / "overlays", show=(records[3].name,)
        )
    )
    assert isinstance(tested, protocol.Evaluated)
    found = tested.evaluation
    assert found.counts.shape == (10, 4)
    assert found.shapes == ((40, 48),) * 10  # height and width of the masks on disk
    assert (found.counts.sum(axis=1) == 40 * 48).all()
    assert tested.speed.keys() == {"batch", "single"} and min(tested.speed.values()) > 0
    assert tested.overlays
    assert tested.shown.keys() == {records[3].name}
    assert tested.shown[records[3].name].shape == (40, 48)
    assert all((tmp_path / "overlays" / file).is_file() for _, file in tested.overlays)


def test_selected_inference_is_stored_in_the_checkpoint(job, tmp_path):
    weights = tmp_path / "model.safetensors"
    run(replace(job, weights_path=weights))
    (chosen,) = run(protocol.SelectInferenceJob(weights, job.cache, job.val, SLOT))
    assert isinstance(chosen, protocol.InferenceSelected)
    assert checkpoint.read_inference(weights) == chosen.choice.inference
    assert checkpoint.load(weights)[1] == CONFIG
    (plain,) = run(
        protocol.SelectInferenceJob(weights, job.cache, job.val, SLOT, tta=False, postprocess=False)
    )
    assert plain.choice.inference == DEFAULT_INFERENCE == checkpoint.read_inference(weights)


@pytest.fixture
def candidates(job, tmp_path):
    """Weights of three trainings: two seeds, and one that has learnt next to nothing."""
    paths = tuple(tmp_path / f"{i}.safetensors" for i in range(3))
    for i, (path, epochs) in enumerate(zip(paths, (8, 8, 1), strict=True)):
        run(replace(with_settings(job, epochs=epochs, seed=i), weights_path=path))
    return paths


def test_selected_ensemble_is_written(job, index, candidates, tmp_path):
    out = tmp_path / "final" / "model.safetensors"
    select = protocol.SelectEnsembleJob(candidates, out, 2, job.cache, job.val, SLOT)
    (selected,) = run(select)
    assert isinstance(selected, protocol.EnsembleSelected)
    chosen = selected.choice
    cache = Cache(job.cache)
    wanted = select_ensemble(
        candidates, cache.images[job.val], cache.masks[job.val], limit=2, device=torch.device("cpu")
    )
    assert chosen == wanted
    model, config = checkpoint.load(out)
    stored = model.configs if len(chosen.members) > 1 else [config]
    configs = [checkpoint.load(path)[1] for path in candidates]
    assert [configs[member.index] for member in chosen.members] == list(stored)
    # Of one member a single network.
    (alone,) = run(replace(select, limit=1))
    assert len(alone.choice.members) == 1 and alone.choice.dice == chosen.best_dice
    assert type(checkpoint.load(out)[0]) is type(checkpoint.load(candidates[0])[0])


def test_selection_and_evaluation_of_an_ensemble(job, index, candidates, tmp_path):
    loaded = map(checkpoint.load, candidates[:2])
    members = [checkpoint.MemberWeights(m.state_dict(), config, 0.5) for m, config in loaded]
    weights = tmp_path / "model.safetensors"
    checkpoint.save_ensemble(weights, members)
    (chosen,) = run(protocol.SelectInferenceJob(weights, job.cache, job.val, SLOT))
    assert checkpoint.read_inference(weights) == chosen.choice.inference
    folder = tmp_path / "overlays"
    (tested,) = run(protocol.EvaluateJob(weights, job.cache, index.records[20:], SLOT, folder))
    assert tested.evaluation.disagreement.shape == (10,)
    assert min(tested.speed.values()) > 0 and tested.overlays


# --- suspension and resumption -----------------------------------------------------------------


def test_training_is_suspended_and_resumed(job, tmp_path):
    """Suspended before its first step; suspended between two epochs; not suspended."""
    job = replace(
        with_settings(job, epochs=4), state_path=tmp_path / "state.pt", weights_path=tmp_path / "w"
    )
    whole = [message for message in run(job) if isinstance(message, EpochRecord)]
    job.weights_path.unlink()
    job.state_path.unlink()
    records: list[EpochRecord] = []
    for stop_after, at in ((0, 0), (2, 0), (None, 2)):
        with TrialProcess(job) as child:
            for message in child.messages():
                match message:
                    case Resumed(history):
                        assert list(history) == records
                        assert len(records) == at
                    case ModelBuilt():
                        child.suspend() if stop_after == 0 else child.reply(stop=False)
                    case EpochRecord():
                        records.append(message)
                        suspend = stop_after == message.epoch
                        child.suspend() if suspend else child.reply(stop=False)
            if stop_after is None:
                assert isinstance(message, Trained)
            else:
                assert message == Suspended(stop_after)
                assert job.state_path.is_file() and not job.weights_path.exists()

    def values(records):
        return [(r.epoch, r.train_loss, r.val_loss, r.metrics, r.lr) for r in records]

    assert values(records) == values(whole)
    assert message.result.history == tuple(records)
    assert job.weights_path.is_file()


def test_state_of_another_configuration_is_ignored(job, tmp_path):
    state = tmp_path / "state.pt"
    with TrialProcess(replace(with_settings(job, epochs=3), state_path=state)) as child:
        for message in child.messages():
            if isinstance(message, ModelBuilt):
                child.suspend()
    assert state.is_file()
    messages = run(replace(with_settings(job, epochs=3, seed=5), state_path=state))
    assert not any(isinstance(message, Resumed) for message in messages)
    assert isinstance(messages[-1], Trained)


def test_accumulation_factor_changes_only_rounding(job):
    whole, parts = run(job)[-1].result, run(replace(job, accumulation_factor=4))[-1].result
    losses = [[r.train_loss for r in result.history] for result in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]  # batch norm sees two images at a time


# --- watched from outside ----------------------------------------------------------------------


def test_receive_times_out(job):
    with TrialProcess(with_settings(job, epochs=100_000)) as child:
        assert isinstance(next(child.messages()), ModelBuilt)
        assert child.receive(0.05) is None  # it waits for its answer
        child.reply(stop=False)
        assert isinstance(child.receive(30), EpochRecord)


def test_memory_of_a_training(job):
    with TrialProcess(with_settings(job, epochs=100_000)) as child:
        assert isinstance(next(child.messages()), ModelBuilt)
        assert 1e6 < measure_memory(child.pid) < 4e9
        child.kill()
        assert is_gone(child.pid)
        assert measure_memory(child.pid) == 0


@pytest.fixture
def family():
    """The id of a process of 200 MB with four forked children of 20 MB each."""
    script = """
        import os, time
        held = bytearray(os.urandom(1000)) * 200_000
        for i in range(4):
            if os.fork() == 0:
                own = bytearray(os.urandom(1000)) * 20_000
                break
        os.write(1, b"ready\\n")
        time.sleep(1000)
    """
    top = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert [top.stdout.readline() for _ in range(5)] == ["ready\n"] * 5
        yield top.pid
    finally:
        os.killpg(top.pid, signal.SIGKILL)
        top.communicate()


def test_memory_shared_since_a_fork_is_counted_once(family):
    assert 280e6 < measure_memory(family) < 360e6


def test_memory_without_smaps_counts_shared_pages_per_process(family, monkeypatch):
    def unknown(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", unknown)
    assert 5 * 200e6 + 4 * 20e6 < measure_memory(family) < 1300e6


# --- with loader processes, as on a GPU -----------------------------------------------------------


def with_loaders(job, **changes):
    return replace(with_settings(job, **changes), program=loader_training.__name__)


def loaders_of(child):
    """Return the training's descendants."""
    return psutil.Process(child.pid).children(recursive=True)


def test_loaders_are_children_of_the_training_and_do_not_change_results(job):
    seen = []

    def look(child, record):
        seen.append([(loader.pid, loader.ppid()) for loader in loaders_of(child)])

    changes = {"augment": ComponentConfig("full")}
    plain, records = run(with_settings(job, **changes)), []
    job = with_loaders(job, **changes)
    with TrialProcess(job) as child:
        for message in child.messages():
            records += [message] if isinstance(message, EpochRecord) else []
            if isinstance(message, EpochRecord):
                look(child, message)
            if isinstance(message, ModelBuilt | EpochRecord):
                child.reply(stop=False)
        pid = child.pid
    # Two children of the training, the same ones in every epoch.
    assert len(seen) == 3 and seen[0] == seen[1] == seen[2]
    assert [parent for _, parent in seen[0]] == [pid] * loader_training.LOADERS
    assert all(is_gone(loader) for loader, _ in seen[0])

    def values(records):
        return [(r.train_loss, r.val_loss, r.metrics, r.lr) for r in records]

    assert values(records) == values(plain[1:-1])


def test_signal_to_the_process_group_loses_no_step(job, tmp_path):
    """The worker suspends only after all prefetched batches were used."""
    job = replace(with_loaders(job, epochs=50, batch_size=2), state_path=tmp_path / "state.pt")
    signalled, last = False, None
    with TrialProcess(job) as child:
        for message in child.messages():
            if isinstance(message, ModelBuilt | EpochRecord):
                child.reply(stop=False)
            elif isinstance(message, StepDone):
                if not signalled and (message.epoch, message.step) >= (2, 2):
                    os.killpg(child.pid, signal.SIGTERM)
                    signalled = True
                if last is None and (message.epoch, message.step) >= (3, 4):
                    last = message
                    child.suspend()
    assert isinstance(message, Suspended)
    kept = torch.load(job.state_path, weights_only=True)["state"]
    assert (len(kept["history"]) + 1, kept["step"]) >= (last.epoch, last.step)


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_loaders_end_with_the_training(job, how):
    with TrialProcess(with_loaders(job, epochs=100_000)) as child:
        for message in child.messages():
            if isinstance(message, EpochRecord):
                break
            if isinstance(message, ModelBuilt):
                child.reply(stop=False)
        loaders = [loader.pid for loader in loaders_of(child)]
        assert len(loaders) == loader_training.LOADERS and not any(map(is_gone, loaders))
        if how == "killed":
            os.kill(child.pid, signal.SIGKILL)
            assert wait_until(lambda: all(map(is_gone, loaders)), LONG_WAIT_S)
    assert wait_until(lambda: all(map(is_gone, loaders)), LONG_WAIT_S)


# --- what goes wrong ---------------------------------------------------------------------------


def test_nan_loss_is_reported_as_diverged(job, tmp_path):
    """Pixels of NaN make any training diverge; no learning rate surely does."""
    shutil.copytree(job.cache, tmp_path / "cache")
    pixels = np.load(job.cache / "images.npy").astype(np.float32)
    np.save(tmp_path / "cache" / "images.npy", np.full_like(pixels, np.nan))
    built, end = run(replace(job, cache=tmp_path / "cache", weights_path=tmp_path / "w"))
    assert isinstance(built, ModelBuilt)
    assert end.reason == "diverged"
    assert end.message == "the training loss became nan in epoch 1"
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("config", "fragment"),
    [
        ({"model": {"unte": {}}}, "unknown model 'unte' (did you mean 'unet'?)"),
        ({"model": {"unet": {"width": 1000}}}, "model.unet: width must lie in [4, 128]"),
        ({"optimizer": {"adam": {"lr": 50.0}}}, "optimizer.adam: lr must lie in"),
        ({"bach_size": 3}, "unknown key 'bach_size' (did you mean 'batch_size'?)"),
    ],
)
def test_invalid_configuration_is_reported_in_one_line(job, config, fragment):
    *_, end = run(replace(job, config=CONFIG.to_dict() | config))
    assert isinstance(end, JobError)
    assert end.reason == "config"
    assert fragment in end.message
    assert "\n" not in end.message
    assert "InputError" in end.trace


def test_missing_cache_is_reported(job, tmp_path):
    *_, end = run(replace(job, cache=tmp_path / "none"))
    assert isinstance(end, JobError)
    assert end.reason == "data"
    assert end.message.startswith("FileNotFoundError: ")


def test_damaged_weights_are_reported(job, index, tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"\0" * 100)
    (end,) = run(protocol.EvaluateJob(weights, job.cache, index.records, SLOT, tmp_path / "o"))
    assert isinstance(end, JobError)
    assert "not a safetensors file" in end.message


@pytest.mark.parametrize(
    ("number", "name", "hint"),
    [
        (signal.SIGKILL, "SIGKILL", " (out of memory?)"),
        (signal.SIGSEGV, "SIGSEGV", ""),
    ],
)
def test_killed_process_is_reported_with_the_signal(job, number, name, hint):
    def kill(child, record):
        if record.epoch == 2:
            os.kill(child.pid, number)
            assert wait_until(lambda: is_gone(child.pid), LONG_WAIT_S)

    built, first, second, end = run(with_settings(job, epochs=1000), on_epoch=kill)
    assert isinstance(built, ModelBuilt)
    assert (first.epoch, second.epoch) == (1, 2)
    assert end == JobError("crash", f"the training process was ended by {name}{hint}")


def test_signals_to_the_terminal_and_the_service_are_left_to_the_parent(job):
    def interrupt(child, record):
        server = psutil.Process(child.pid).parent()
        assert "multiprocessing.forkserver" in " ".join(server.cmdline())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(child.pid, number)
            server.send_signal(number)

    *records, end = run(with_settings(job, epochs=3), on_epoch=interrupt)
    assert len(records) == 1 + 3
    assert isinstance(end, Trained)


@pytest.mark.parametrize(
    ("error", "reason", "message"),
    [
        (MemoryError("9 GiB"), "oom", "MemoryError: 9 GiB"),
        (torch.OutOfMemoryError("CUDA\nout of memory"), "oom", "OutOfMemoryError: CUDA out of m"),
        (Diverged("the loss became nan"), "diverged", "the loss became nan"),
        (InputError("model: no"), "config", "model: no"),
        (ZeroDivisionError("x"), "crash", "ZeroDivisionError: x"),
        (RuntimeError(""), "crash", "RuntimeError: "),
        (RuntimeError("[enforce fail] can't allocate memory"), "oom", "RuntimeError: [enforce"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), "oom", "RuntimeError: CUBLAS"),
        (FileNotFoundError(2, "No such file"), "data", "FileNotFoundError: "),
        (OSError(28, "No space left on device"), "disk", "OSError: [Errno 28]"),
        (OSError(5, "Input/output error"), "disk", "OSError: [Errno 5]"),
        (RuntimeError("CUDA error: no CUDA-capable device is detected\nx"), "device", "RuntimeErr"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "device", "RuntimeErr"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "crash", "RuntimeE"),
        (PermissionError(13, "Permission denied"), "crash", "PermissionError: "),
    ],
)
def test_exceptions_have_a_reason_and_one_line(error, reason, message):
    end = describe_error(error, "trace")
    assert end.reason == reason
    assert end.message.startswith(message)
    assert "\n" not in end.message
    assert end.trace == "trace"


def test_long_message_is_truncated():
    assert len(describe_error(RuntimeError("x" * 10_000), "").message) <= 500


def test_device_that_has_gone_is_reported(job):
    (end,) = run(replace(job, slot=Slot("cuda:63", 1)))
    assert (end.reason, end.message[:30]) == ("device", "device: 'cuda:63' is not avail")


# --- how it ends -------------------------------------------------------------------------------


def test_exception_in_the_parent_ends_the_process(job):
    pids = []

    def fail():
        with TrialProcess(with_settings(job, epochs=100_000)) as child:
            pids.append(child.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert is_gone(*pids)


def test_close_and_reply_after_death_have_no_effect(job):
    child = TrialProcess(with_settings(job, epochs=100_000))
    assert isinstance(next(child.messages()), ModelBuilt)
    os.kill(child.pid, signal.SIGKILL)
    assert wait_until(lambda: is_gone(child.pid), LONG_WAIT_S)
    child.reply(stop=False)
    child.reply(stop=False)
    child.close()
    child.close()


def test_process_ends_when_the_parent_is_killed(job, tmp_path):
    """The script has no ``if __name__ == "__main__"``: a child must not run it again."""
    endless = with_settings(job, epochs=100_000)
    script = textwrap.dedent(
        f"""
        import pathlib
        import numpy as np
        from search.trial_process.process import TrialProcess
        from search.trial_process.protocol import ModelBuilt, TrainJob
        from search.trial_process.slot import Slot

        print("top", flush=True)
        job = TrainJob({endless.config!r}, pathlib.Path({str(job.cache)!r}),
                       np.arange(20), np.arange(20, 30), Slot("cpu", 1))
        with TrialProcess(job) as child:
            for message in child.messages():
                if not isinstance(message, ModelBuilt):
                    print(child.pid, flush=True)
                child.reply(stop=False)
        """
    )
    (tmp_path / "script.py").write_text(script)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        assert parent.stdout.readline() == "top\n"
        pid = int(parent.stdout.readline())
        others = psutil.Process(parent.pid).children(recursive=True)
        assert pid in {p.pid for p in others}
        parent.kill()
        parent.wait()
        assert wait_until(lambda: is_gone(pid), LONG_WAIT_S)
        assert "top" not in parent.stdout.read()
        # The fork server and multiprocessing's resource tracker end as well.
        assert wait_until(lambda: all(is_gone(p.pid) for p in others), LONG_WAIT_S)
    finally:
        parent.kill()
        parent.stdout.close()


@pytest.mark.parametrize("step", ["ensure_running", "connect_to_new_process"])
def test_killed_fork_server_is_replaced(job, monkeypatch, step):
    run(job)  # starts the server
    server, killed = forkserver._forkserver, []
    owner = server if step == "ensure_running" else forkserver
    real = getattr(owner, step)

    def run_and_kill_server(*args):
        result = real(*args)
        if not killed:
            killed.append(psutil.Process(server._forkserver_pid))
            killed[0].kill()
            assert wait_until(lambda: killed[0].status() == psutil.STATUS_ZOMBIE, LONG_WAIT_S)
        return result

    monkeypatch.setattr(owner, step, run_and_kill_server)
    assert isinstance(run(job)[-1], Trained)
    assert killed[0].pid != server._forkserver_pid


def test_fork_server_that_cannot_be_reached_raises(job, monkeypatch):
    def refused(*_):
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(forkserver, "connect_to_new_process", refused)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConnectionRefusedError):
        TrialProcess(job)
    assert len(os.listdir("/proc/self/fd")) == before
