"""A training that was suspended ends as one that was not, to the last digit."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lesionseg.augment.mix import MIXES
from lesionseg.config import TrialConfig
from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.optim import OPTIMIZERS, SCHEDULES
from lesionseg.space import ComponentConfig
from lesionseg.training import batches, checkpoint, train_step, training_state
from lesionseg.training.types import Diverged, Suspended, TrainData, TrainingEnd
from tests.conftest import ROOT, write_folder
from tests.lesionseg.small import run_training, without_seconds

SMALL = TrialConfig(
    model=ComponentConfig("unet", {"width": 4, "depth": 2}),
    augment=ComponentConfig("flips"),
    optimizer=ComponentConfig("adam", {"lr": 1e-2}),
    schedule=ComponentConfig("cosine"),
    image_size=16,
    batch_size=4,
    epochs=3,
)
DROPOUT = ComponentConfig("unet", {"width": 4, "depth": 2, "dropout": 0.5})
# So slow that no epoch is better than the first, though every weight moves.
STILL = {"optimizer": ComponentConfig("sgd", {"lr": 1e-4, "momentum": 0.5}), "epochs": 6}
# Five steps, three batches of validation. So it is asked eight times an epoch: after each step,
# twice within the validation, and at the end.
STEPS, ASKED = 5, 8


def change(**settings):
    return dataclasses.replace(SMALL, **settings)


class SuspendAt:
    """``should_suspend`` that returns True at the n-th call; never for None."""

    def __init__(self, n):
        self.left = n or -1

    def __call__(self):
        self.left -= 1
        return self.left == 0


class AfterEveryStep:
    """``should_suspend`` that returns True once per step, with its ``on_step``."""

    def __init__(self):
        self.stepped = False

    def on_step(self, epoch, step, steps):
        self.stepped = True

    def __call__(self):
        stepped, self.stepped = self.stepped, False
        return stepped


class Outcome:
    """Comparable result of a training."""

    def __init__(self, result):
        self.history, self.stopped = without_seconds(result.history), result.stopped
        self.best = dataclasses.replace(result.best, seconds=0.0)
        # As bytes, which tell even zeros of either sign apart; the file's header has no order.
        weights = load_file(result.checkpoint)
        self.weights = {name: (w.shape, w.numpy().tobytes()) for name, w in weights.items()}
        _, self.config = checkpoint.load(result.checkpoint)

    def __eq__(self, other):
        return vars(self) == vars(other)


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """Returns the result of an uninterrupted training; each is computed once."""
    made = {}

    def once(config, data=data, keep="best"):
        key = config.digest(), keep, data.cache.path
        if key not in made:
            path = tmp_path_factory.mktemp("uninterrupted") / "model.safetensors"
            made[key] = Outcome(run_training(config, data, weights_path=path, keep=keep))
        return made[key]

    return once


def run_suspended(config, data, folder, asks, **options):
    """Train with a suspension at each of these calls of ``should_suspend``, then to the end."""
    path = folder / "state.pt"
    for ask in asks:
        with pytest.raises(Suspended):
            run_training(config, data, state_path=path, should_suspend=SuspendAt(ask), **options)
        assert path.is_file()
        torch.rand(11)  # whatever else a process draws
        np.random.random(3)
    result = run_training(
        config, data, state_path=path, weights_path=folder / "resumed.safetensors", **options
    )
    assert not asks or path.is_file()  # whoever asked for it deletes it
    return Outcome(result)


#: After the first epoch; after two steps of the second; in its validation.
THREE = (ASKED, 2, (STEPS - 2) + 1)


# --- all settings --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_resumes_bit_exactly(uninterrupted, data, tmp_path, name):
    # An impatient one, so that it moves within three epochs.
    params = {"patience": 0} if name == "plateau" else {}
    config = change(schedule=ComponentConfig(name, params), epochs=4)
    assert run_suspended(config, data, tmp_path, THREE) == uninterrupted(config)


def test_plateau_keeps_its_best_value(uninterrupted, data, tmp_path):
    """The learning rate is so small that no epoch is better than the first."""
    config = change(
        optimizer=ComponentConfig("sgd", {"lr": 1e-4, "momentum": 0.5}),
        schedule=ComponentConfig("plateau", {"factor": 0.5, "patience": 1}),
        epochs=5,
    )
    ended = run_suspended(config, data, tmp_path, [2 * ASKED, 1])
    assert [r.lr for r in ended.history] == pytest.approx([1e-4, 1e-4, 1e-4, 5e-5, 5e-5])
    assert ended == uninterrupted(config)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_resumes_bit_exactly(uninterrupted, data, tmp_path, name):
    config = change(optimizer=ComponentConfig(name))
    assert run_suspended(config, data, tmp_path, THREE) == uninterrupted(config)


@pytest.mark.parametrize("name", MIXES)
def test_every_mix_resumes_bit_exactly(uninterrupted, data, tmp_path, name):
    config = change(mix=ComponentConfig(name))
    assert run_suspended(config, data, tmp_path, THREE) == uninterrupted(config)


@pytest.mark.parametrize(
    "settings",
    [
        {
            "ema": 0.99,
            "model": DROPOUT,
            "mix": ComponentConfig("cutmix"),
            "accumulate": 2,
            "flooding": 0.2,
        },
        {"label_smoothing": 0.2},
        {"augment": ComponentConfig("full", {"strength": 1.0})},
        {"model": ComponentConfig("unet", {"width": 4, "depth": 3, "deep_supervision": True})},
        {"clip_norm": 0.0},
        {"loss": ComponentConfig("lovasz"), "overlap": "batch"},
        {"batch_size": 3},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_every_setting_resumes_bit_exactly(uninterrupted, data, tmp_path, settings):
    config = change(**settings)
    assert run_suspended(config, data, tmp_path, THREE) == uninterrupted(config)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_last_weights_are_kept_after_resuming(uninterrupted, data, tmp_path, ema):
    config = change(**STILL, ema=ema)
    ended = run_suspended(config, data, tmp_path, THREE, keep="last")
    assert ended.best.epoch == config.epochs
    assert ended == uninterrupted(config, keep="last")
    assert ended.weights != uninterrupted(config).weights


def test_another_random_state_changes_the_result(uninterrupted, data, tmp_path):
    """Otherwise the tests above would not depend on the random state."""
    path, config = tmp_path / "state.pt", change(model=DROPOUT)
    with pytest.raises(Suspended):
        run_training(config, data, state_path=path, should_suspend=SuspendAt(2))
    kept = torch.load(path, weights_only=True)
    kept["state"]["random"]["cpu"] = torch.Generator().manual_seed(99).get_state()
    torch.save(kept, path)
    other = run_training(config, data, state_path=path)
    assert without_seconds(other.history) != uninterrupted(config).history


def test_larger_unet_resumes_bit_exactly(uninterrupted, tmp_path):
    cache = build_cache(DatasetIndex.read(write_folder(tmp_path / "data", 12)), 64, tmp_path)
    data = TrainData(cache, np.arange(8), np.arange(8, 12))
    config = change(
        model=ComponentConfig(
            "unet", {"width": 8, "depth": 4, "residual": True, "attention": True}
        ),
        image_size=64,
        optimizer=ComponentConfig("adamw"),
        ema=0.9,
    )
    assert run_suspended(config, data, tmp_path, [1, 3]) == uninterrupted(config, data)


def test_gradient_scaler_resumes_bit_exactly(uninterrupted, data, tmp_path, monkeypatch):
    monkeypatch.setattr(train_step, "amp_dtype", lambda device, mode: torch.float16)
    config = change(seed=16)  # of no other test, which would be in float32
    once = uninterrupted(config)
    path = tmp_path / "state.pt"
    with pytest.raises(Suspended):
        run_training(config, data, state_path=path, should_suspend=SuspendAt(ASKED + 1))
    scales = torch.load(path, weights_only=True)["state"]["scaler"]
    assert scales["_growth_tracker"] > 0 or scales["scale"] < 65536
    assert run_suspended(config, data, tmp_path, []) == once


def test_loader_processes_resume_bit_exactly(uninterrupted, data, tmp_path, monkeypatch):
    config = change(
        model=DROPOUT,
        augment=ComponentConfig("full", {"strength": 1.0}),
        mix=ComponentConfig("mixup"),
    )
    alone = uninterrupted(config)
    monkeypatch.setattr(batches, "loader_workers", lambda device, n_bytes: 2)
    assert run_suspended(config, data, tmp_path, THREE) == alone


# --- moments of suspension -----------------------------------------------------------------------


@pytest.mark.parametrize("ask", [1, 2, ASKED - 1, ASKED, ASKED + 1])
def test_suspension_at_any_moment(uninterrupted, data, tmp_path, ask):
    config = change(epochs=2, model=DROPOUT, mix=ComponentConfig("mixup"), ema=0.9)
    assert run_suspended(config, data, tmp_path, [ask]) == uninterrupted(config)


def test_suspension_after_every_step(uninterrupted, data, tmp_path):
    config = change(model=DROPOUT, mix=ComponentConfig("cutmix"), ema=0.9)
    path, count, asking = tmp_path / "state.pt", 0, AfterEveryStep()
    while True:
        try:
            result = run_training(
                config,
                data,
                state_path=path,
                should_suspend=asking,
                on_step=asking.on_step,
                weights_path=tmp_path / "resumed.safetensors",
            )
            break
        except Suspended as suspended:
            assert suspended.epoch == count // STEPS
            count += 1
    assert count == config.epochs * STEPS
    assert Outcome(result) == uninterrupted(config)


def test_crash_with_saves_after_every_step(uninterrupted, data, tmp_path, monkeypatch):
    """The training resumes from one step before the crash."""
    monkeypatch.setattr(training_state, "MID_EPOCH_INTERVAL_S", 0.0)
    monkeypatch.setattr(training_state, "MIN_INTERVAL_FACTOR", 0.0)
    config, path, saved = change(model=DROPOUT, ema=0.9), tmp_path / "state.pt", []

    def crash(epoch, step, steps):
        if (epoch, step) == (2, 4):
            raise KeyboardInterrupt

    def save(epochs, seconds):
        assert seconds > 0
        saved.append(epochs)

    with pytest.raises(KeyboardInterrupt):
        run_training(config, data, state_path=path, on_step=crash, on_saved=save)
    assert saved == [0] * (STEPS + 2) + [1] * 4
    assert torch.load(path, weights_only=True)["state"]["step"] == 3
    assert run_suspended(config, data, tmp_path, []) == uninterrupted(config)


KILLED = """
import json, os, signal, sys
import numpy as np, torch
from pathlib import Path
from lesionseg.config import TrialConfig
from lesionseg.data.cache import Cache
from lesionseg.training import training_state
from lesionseg.training.train import train
from lesionseg.training.types import TrainData, TrainOptions

torch.set_num_threads(1)
config, cache, path = TrialConfig.from_dict(json.loads(sys.argv[1])), *map(Path, sys.argv[2:])
fsync, calls = os.fsync, []

def kill_in_second_save(file):
    calls.append(file)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(file)

os.fsync = kill_in_second_save
training_state.MID_EPOCH_INTERVAL_S = training_state.MIN_INTERVAL_FACTOR = 0.0
data = TrainData(Cache(cache), np.arange(20), np.arange(20, 30))
train(config, data, options=TrainOptions(state_path=path))
"""


def test_kill_during_a_save_resumes_from_the_previous_one(uninterrupted, data, tmp_path):
    config, path = change(model=DROPOUT), tmp_path / "state.pt"
    arguments = [json.dumps(config.to_dict()), str(data.cache.path), str(path)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert torch.load(path, weights_only=True)["state"]["step"] == 1
    assert path.with_name(".state.pt.partial").exists()
    assert run_suspended(config, data, tmp_path, []) == uninterrupted(config)
    assert not path.with_name(".state.pt.partial").exists()  # written over by the next save


# --- stopping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("asks", [[ASKED], [2 * ASKED], [ASKED, ASKED], [2 * ASKED + 3, 3]])
def test_early_stopping_after_resuming(uninterrupted, data, tmp_path, asks):
    config = change(**STILL, patience=2)
    ended = run_suspended(config, data, tmp_path, asks)
    assert (ended.best.epoch, len(ended.history), ended.stopped) == (1, 3, "early")
    assert ended == uninterrupted(config)


def test_callback_stops_a_resumed_training(data, tmp_path):
    options = {"on_epoch": lambda record: record.epoch == 2}
    config = change(epochs=5)
    ended = run_suspended(config, data, tmp_path, [ASKED - 1], **options)
    assert (ended.stopped, len(ended.history)) == ("callback", 2)
    assert ended == Outcome(
        run_training(config, data, weights_path=tmp_path / "once.safetensors", **options)
    )


def test_no_suspension_after_the_last_epoch(data, tmp_path):
    """``should_suspend`` is not called after the last epoch."""
    result = run_training(
        change(epochs=1), data, state_path=tmp_path / "s.pt", should_suspend=SuspendAt(ASKED)
    )
    assert result.stopped is TrainingEnd.FINISHED


class Explosive(nn.Module):
    """A cubic output: a step that is too large makes the next one larger."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, images):
        return 1000 * self.conv(images) ** 3


def test_divergence_after_resuming(data, tmp_path):
    config = change(
        epochs=20,
        loss=ComponentConfig("bce"),
        optimizer=ComponentConfig("sgd", {"lr": 1.0, "momentum": 0.99}),
        clip_norm=0.0,
    )

    def run(**options):
        torch.manual_seed(0)
        run_training(config, data, model=Explosive(), **options)

    with pytest.raises(Diverged) as once:
        run()
    asking, sums = AfterEveryStep(), []
    path = tmp_path / "state.pt"
    with pytest.raises(Diverged) as again:  # noqa: PT012
        while True:
            try:
                run(state_path=path, should_suspend=asking, on_step=asking.on_step)
            except Suspended:
                sums.append(float(torch.load(path, weights_only=True)["state"]["loss_sum"]))
    assert str(again.value) == str(once.value)
    assert not np.isfinite(sums).all()


# --- callbacks -----------------------------------------------------------------------------------


def test_on_resume_is_called_first_and_once(data, tmp_path):
    path, calls = tmp_path / "state.pt", []
    hooks = {
        "on_resume": lambda records: calls.append([r.epoch for r in records]),
        "on_epoch": lambda record: calls.append(record.epoch) or False,
        "on_step": lambda epoch, step, steps: calls.append((epoch, step, steps)),
        "on_saved": lambda epochs, seconds: calls.append(f"saved {epochs}"),
    }
    with pytest.raises(Suspended) as caught:
        run_training(SMALL, data, state_path=path, should_suspend=SuspendAt(3), **hooks)
    assert calls == [(1, 1, 5), (1, 2, 5), (1, 3, 5), "saved 0"]
    assert str(caught.value) == "suspended after 0 epochs"
    calls.clear()
    with pytest.raises(Suspended):
        run_training(SMALL, data, state_path=path, should_suspend=SuspendAt(2 + 3 + 1), **hooks)
    steps = [entry for entry in calls if isinstance(entry, tuple)]
    assert steps == [(1, 4, 5), (1, 5, 5), (2, 1, 5)]
    assert calls[0] == [] and 1 in calls and calls[-1] == "saved 1"
    calls.clear()
    run_training(SMALL, data, state_path=path, **hooks)
    assert calls[:2] == [[1], (2, 2, 5)]
    assert [entry for entry in calls if isinstance(entry, int)] == [2, 3]


def test_time_and_memory_include_earlier_processes(data, tmp_path):
    path = tmp_path / "state.pt"
    with pytest.raises(Suspended):
        run_training(SMALL, data, state_path=path, should_suspend=SuspendAt(ASKED + 2))
    kept = torch.load(path, weights_only=True)
    kept["state"] |= {"seconds": 1000.0, "epoch_seconds": 100.0, "peak_memory": 10**15}
    torch.save(kept, path)
    result = run_training(SMALL, data, state_path=path)
    assert result.peak_memory == 10**15
    assert 1000 < result.seconds < 1100
    first, second, third = (r.seconds for r in result.history)
    assert first < 100 < second and third < 100


def test_suspension_without_a_state(data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (None, tmp_path / "file" / "state.pt"):
        with pytest.raises(Suspended) as caught:
            run_training(SMALL, data, state_path=path, should_suspend=SuspendAt(ASKED))
        assert caught.value.epoch == 1
        assert str(caught.value) == "suspended after 1 epochs"


def test_unwritable_state_does_not_end_the_training(uninterrupted, data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "state.pt"
    once = uninterrupted(SMALL)
    assert (
        Outcome(
            run_training(SMALL, data, state_path=path, weights_path=tmp_path / "free.safetensors")
        )
        == once
    )


# --- accumulation --------------------------------------------------------------------------------


def test_accumulation_factor_multiplies_the_configuration(data, tmp_path):
    model = ComponentConfig("unet", {"width": 4, "depth": 1, "norm": "batch"})
    alike = run_training(change(model=model, accumulate=2), data, accumulation_factor=2)
    assert without_seconds(
        run_training(change(model=model), data, accumulation_factor=4).history
    ) == without_seconds(alike.history)
    assert without_seconds(run_training(change(model=model), data).history) != without_seconds(
        alike.history
    )


def test_resuming_with_another_accumulation_factor(data, tmp_path):
    """With group norm only rounding depends on the number of parts."""
    path, resumed = tmp_path / "state.pt", []
    config = change(
        model=ComponentConfig("unet", {"width": 4, "depth": 1, "norm": "group"}),
        optimizer=ComponentConfig("sgd", {"lr": 0.1, "momentum": 0.5}),
    )
    with pytest.raises(Suspended):
        run_training(config, data, state_path=path, should_suspend=SuspendAt(ASKED + 2))
    result = run_training(
        config, data, state_path=path, accumulation_factor=2, on_resume=resumed.append
    )
    assert len(resumed) == 1
    once = run_training(config, data)
    assert [r.train_loss for r in result.history] == pytest.approx(
        [r.train_loss for r in once.history], rel=1e-4
    )


# --- invalid states ------------------------------------------------------------------------------


def spoil(path, kind):
    kept = torch.load(path, weights_only=True)
    content = kept["state"]
    match kind:
        case "truncated":
            return path.write_bytes(path.read_bytes()[:-100])
        case "empty":
            return path.write_bytes(b"")
        case "text":
            return path.write_text("not a state")
        case "lacking":
            del content["scaler"]
        case "history":
            content["history"][0]["metrics"]["beauty"] = 1.0
        case "shape":
            name = list(content["model"])[-1]
            content["model"][name] = torch.zeros(3, 3)
        case "optimizer":
            content["optimizer"]["param_groups"].append({"params": [99]})
        case "schedule":
            content["schedule"] = None
        case "random":
            content["random"]["cpu"] = torch.zeros(3, dtype=torch.uint8)
    return torch.save(kept, path)


@pytest.mark.parametrize(
    "kind",
    [
        "truncated",
        "empty",
        "text",
        "lacking",
        "history",
        "shape",
        "optimizer",
        "schedule",
        "random",
    ],
)
def test_invalid_state_starts_from_the_beginning(uninterrupted, data, tmp_path, kind):
    path, config = tmp_path / "state.pt", change(model=DROPOUT, ema=0.9)
    with pytest.raises(Suspended):
        run_training(config, data, state_path=path, should_suspend=SuspendAt(ASKED + 3))
    spoil(path, kind)
    resumed = []
    ended = run_suspended(config, data, tmp_path, [], on_resume=resumed.append)
    assert not resumed
    assert ended == uninterrupted(config)


@pytest.mark.parametrize("other", ["config", "train", "val", "keep"])
def test_state_of_another_training_is_ignored(uninterrupted, data, tmp_path, other):
    path, resumed = tmp_path / "state.pt", []
    config, theirs, keep = SMALL, data, "best"
    match other:
        case "config":
            config = change(seed=1)
        case "train":
            theirs = dataclasses.replace(data, train=np.arange(1, 21))
        case "val":
            theirs = dataclasses.replace(data, val=np.arange(21, 30))
        case "keep":
            keep = "last"
    with pytest.raises(Suspended):
        run_training(
            config, theirs, state_path=path, should_suspend=SuspendAt(ASKED + 3), keep=keep
        )
    ended = run_suspended(SMALL, data, tmp_path, [], on_resume=resumed.append)
    assert not resumed
    assert ended == uninterrupted(SMALL)
