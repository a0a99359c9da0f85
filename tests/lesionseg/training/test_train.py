"""One training: what it keeps, when it stops, that it repeats to the last digit."""

import dataclasses
import math
import pickle

import numpy as np
import pytest
import sklearn.metrics
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from lesionseg.config import TrialConfig
from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.inference.evaluate import predict_probabilities
from lesionseg.models import build_model
from lesionseg.registry import FAMILIES
from lesionseg.space import ComponentConfig
from lesionseg.training import checkpoint
from lesionseg.training.types import Diverged, EpochRecord, TrainData, TrainingEnd
from tests.conftest import write_folder
from tests.lesionseg.small import run_training, without_seconds

CPU = torch.device("cpu")
SMALL = TrialConfig(
    model=ComponentConfig("unet", {"width": 4, "depth": 2}),
    augment=ComponentConfig("flips"),
    optimizer=ComponentConfig("adam", {"lr": 3e-3}),
    schedule=ComponentConfig("constant"),
    image_size=16,
    batch_size=4,
    epochs=3,
)


def change(**settings):
    return dataclasses.replace(SMALL, **settings)


class Scripted(nn.Module):
    """Returns prescribed logits in evaluation mode and trains a single parameter.

    script: for each epoch, what is answered to each validation image; [epochs][images] of either
    numbers or maps [S, S].
    """

    def __init__(self, script, size=16):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.script, self.size = [list(images) for images in script], size
        self.epoch = -1

    def train(self, mode=True):
        if mode and not self.training:
            self.queue = []
        if not mode and self.training:
            self.epoch += 1
            self.queue = list(self.script[self.epoch])
        return super().train(mode)

    def forward(self, images):
        n = len(images)
        if self.training:
            return self.weight.expand(n, 1, self.size, self.size)
        answers = [torch.as_tensor(self.queue.pop(0), dtype=torch.float32) for _ in range(n)]
        return torch.stack([a.expand(1, self.size, self.size) for a in answers])


def script_of(data, dice):
    """Logits with exactly these mean Dice, in tenths, over the ten validation images."""
    right = [torch.from_numpy(data.cache.masks[i].astype(np.float32)) * 2 - 1 for i in data.val]
    wrong = [-r for r in right]
    return [right[: round(d * 10)] + wrong[round(d * 10) :] for d in dice]


def scripted(data, dice, config=SMALL, **options):
    config = dataclasses.replace(config, epochs=len(dice))
    return run_training(config, data, model=Scripted(script_of(data, dice)), **options)


# --- reproducibility -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "augment", [ComponentConfig("none"), ComponentConfig("full", {"strength": 1.0})]
)
def test_training_is_reproducible(data, tmp_path, augment):
    config = change(augment=augment)
    one = run_training(config, data, weights_path=tmp_path / "one.safetensors")
    torch.rand(7)  # whatever else was drawn meanwhile
    other = run_training(config, data, weights_path=tmp_path / "other.safetensors")
    assert without_seconds(one.history) == without_seconds(other.history)
    assert one.best.epoch == other.best.epoch
    weights = [load_file(tmp_path / f"{name}.safetensors") for name in ("one", "other")]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_segnet_is_reproducible(tmp_path):
    """torch lists its unpooling as nondeterministic."""
    cache = build_cache(DatasetIndex.read(write_folder(tmp_path / "data", 6)), 32, tmp_path)
    data = TrainData(cache, np.arange(4), np.arange(4, 6))
    config = change(model=ComponentConfig("segnet", {"width": 4}), image_size=32)
    one, other = (run_training(config, data).history for _ in range(2))
    assert without_seconds(one) == without_seconds(other)


def test_seed_changes_the_result(data):
    one, other = (run_training(change(seed=s), data) for s in (0, 1))
    assert without_seconds(one.history) != without_seconds(other.history)


def test_model_option_equals_building(data):
    config = change(seed=5)
    torch.manual_seed(5)
    model = build_model(config.model, image_size=config.image_size)
    given, built = run_training(config, data, model=model), run_training(config, data)
    assert without_seconds(given.history) == without_seconds(built.history)


# --- results -------------------------------------------------------------------------------------


def test_history_has_a_record_per_epoch(data):
    calls = []
    result = run_training(SMALL, data, lambda record: calls.append(record) or False)
    assert [r.epoch for r in result.history] == [1, 2, 3]
    assert tuple(calls) == result.history
    assert all(isinstance(r, EpochRecord) for r in calls)
    assert result.best in result.history
    assert result.best.metrics.dice == max(r.metrics.dice for r in result.history)
    assert result.stopped is TrainingEnd.FINISHED
    assert result.checkpoint is None
    assert 0 < sum(r.seconds for r in result.history) < result.seconds
    assert result.peak_memory > 1e6


def test_result_can_be_pickled(data):
    result = run_training(change(epochs=1), data)
    assert pickle.loads(pickle.dumps(result)) == result


def test_it_learns(data):
    result = run_training(change(epochs=8, optimizer=ComponentConfig("adam", {"lr": 1e-2})), data)
    assert result.history[-1].train_loss < 0.7 * result.history[0].train_loss
    assert result.best.metrics.dice > 0.8


@pytest.mark.parametrize(
    ("schedule", "lr"),
    [
        (ComponentConfig("constant"), [0.1, 0.1]),
        # Two epochs of five steps; the rate of the fifth and of the tenth step.
        (
            ComponentConfig("cosine", {"warmup": 0.0}),
            [0.05 * (1 + math.cos(k * math.pi / 10)) for k in (4, 9)],
        ),
        (ComponentConfig("plateau", {"factor": 0.5, "patience": 0}), [0.1, 0.1]),
    ],
    ids=lambda v: getattr(v, "name", None),
)
def test_recorded_learning_rate_is_of_the_last_step(data, schedule, lr):
    config = change(epochs=2, optimizer=ComponentConfig("adam", {"lr": 0.1}), schedule=schedule)
    assert [r.lr for r in run_training(config, data).history] == pytest.approx(lr)


def test_validation_loss_is_the_mean_over_images(data):
    """Ten images in batches of four, four and two, each with another constant logit."""
    logits = np.linspace(-2, 2, 10)
    config = change(epochs=1, loss=ComponentConfig("bce"))
    result = run_training(config, data, model=Scripted([logits]))
    losses = [
        sklearn.metrics.log_loss(
            data.cache.masks[i].ravel(), np.full(256, 1 / (1 + np.exp(-z))), labels=[0, 1]
        )
        for i, z in zip(data.val, logits, strict=True)
    ]
    assert result.best.val_loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_training_loss_is_the_mean_over_steps(data):
    """The loss of a constant probability of one half is log 2."""
    config = change(
        epochs=1,
        loss=ComponentConfig("bce"),
        batch_size=20,
        optimizer=ComponentConfig("sgd", {"lr": 1e-4}),
    )
    result = run_training(config, data, model=Scripted(script_of(data, [0.5])))
    assert result.best.train_loss == pytest.approx(math.log(2), rel=1e-6)


def test_metrics_equal_scikit_learns(data):
    result = run_training(change(epochs=1), data, model=Scripted([[5.0] * 5 + [-5.0] * 5]))
    truth = [data.cache.masks[i].ravel() for i in data.val]
    said = [np.ones(256)] * 5 + [np.zeros(256)] * 5
    pairs = list(zip(truth, said, strict=True))
    expected = {
        "dice": sklearn.metrics.f1_score,
        "jaccard": sklearn.metrics.jaccard_score,
        "recall": sklearn.metrics.recall_score,
        "accuracy": sklearn.metrics.accuracy_score,
    }
    for name, judge in expected.items():
        assert getattr(result.best.metrics, name) == pytest.approx(
            np.mean([judge(*p) for p in pairs])
        )


def test_gradients_are_clipped(data):
    """A step of SGD is at most rate x norm, plus Nesterov's term."""
    config = change(
        epochs=1,
        batch_size=20,
        optimizer=ComponentConfig("sgd", {"lr": 1.0, "momentum": 0.5, "weight_decay": 1e-6}),
    )

    def moved(clip_norm):
        torch.manual_seed(0)
        model = build_model(config.model, image_size=config.image_size)
        before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        run_training(dataclasses.replace(config, clip_norm=clip_norm), data, model=model)
        after = torch.cat([p.detach().flatten() for p in model.parameters()])
        return float((after - before).norm())

    assert moved(0.01) == pytest.approx(1.5 * 0.01, rel=0.02)
    assert moved(0.0) > 5 * moved(0.01)


def test_batches_differ_per_epoch_and_validation_does_not(data):
    class Watching(Scripted):
        """Notes what it is shown: one list of batches for each epoch, twice."""

        def __init__(self, script):
            super().__init__(script)
            self.seen = {True: [], False: []}

        def forward(self, images):
            shown = self.seen[self.training]
            if len(shown) == self.epoch + self.training:
                shown.append([])
            shown[-1].append(images.numpy().tobytes())
            return super().forward(images)

    model = Watching(script_of(data, [0.5] * 3))
    run_training(change(augment=ComponentConfig("none")), data, model=model)
    first, second, third = model.seen[True]
    assert len(first) == len(second) == len(third) == 5
    assert not set(first) & set(second) | set(second) & set(third) | set(first) & set(third)
    judged = model.seen[False]
    assert judged[0] == judged[1] == judged[2] and len(judged[0]) == 3


# --- kept weights --------------------------------------------------------------------------------


def test_saved_weights_reproduce_the_best_dice(data, tmp_path):
    config = change(epochs=6, optimizer=ComponentConfig("adam", {"lr": 3e-2}))
    result = run_training(config, data, weights_path=tmp_path / "m.safetensors")
    assert result.checkpoint == tmp_path / "m.safetensors"
    model, its_config = checkpoint.load(result.checkpoint)
    assert its_config == config
    found = predict_probabilities(
        model, data.cache, data.val, device=CPU, batch_size=config.batch_size
    )
    dice = [
        sklearn.metrics.f1_score(data.cache.masks[i].ravel(), (p > 0.5).ravel(), zero_division=0)
        for i, p in zip(data.val, found, strict=True)
    ]
    assert result.best.metrics.dice == pytest.approx(np.mean(dice), abs=1e-9)
    # Otherwise the test could not tell the best epoch from the last.
    assert len({r.metrics.dice for r in result.history}) > 1


def weights_of(path):
    return float(load_file(path)["weight"])


@pytest.mark.parametrize(("keep", "kept"), [("best", 2), ("last", 4)])
def test_best_or_last_weights_are_kept(data, tmp_path, keep, kept):
    model, seen = Scripted(script_of(data, [0.2, 0.7, 0.7, 0.4])), []

    def watch(record):
        seen.append(float(model.weight.detach()))
        return False

    path = tmp_path / "m.safetensors"
    result = run_training(change(epochs=4), data, watch, model=model, keep=keep, weights_path=path)
    assert len(set(seen)) == 4
    assert result.best.epoch == kept
    assert weights_of(path) == seen[kept - 1]


# --- stopping ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dice", "patience", "epochs", "best", "stopped"),
    [
        # A tie is no better: the third and fourth epoch use up a patience of two.
        ([0.2, 0.5, 0.5, 0.4, 0.9, 0.9], 2, 4, 2, "early"),
        ([0.2, 0.5, 0.4, 0.6, 0.5, 0.5, 0.9], 2, 6, 4, "early"),
        ([0.5, 0.4, 0.9], 1, 2, 1, "early"),
        ([0.1, 0.2, 0.3, 0.4], 1, 4, 4, "finished"),
        ([0.5, 0.4, 0.3, 0.2, 0.1], 0, 5, 1, "finished"),
        ([0.0, 0.0, 0.0], 5, 3, 1, "finished"),
    ],
)
def test_early_stopping(data, dice, patience, epochs, best, stopped):
    result = scripted(data, dice, change(patience=patience))
    assert [r.metrics.dice for r in result.history] == pytest.approx(dice[:epochs])
    assert (result.best.epoch, result.stopped) == (best, stopped)


def test_callback_stops_the_training(data, tmp_path):
    result = scripted(
        data,
        [0.3, 0.6, 0.1, 0.9],
        on_epoch=lambda record: record.epoch == 3,
        weights_path=tmp_path / "m.safetensors",
    )
    assert result.stopped is TrainingEnd.CALLBACK
    assert [r.epoch for r in result.history] == [1, 2, 3]
    assert result.best.epoch == 2
    assert result.checkpoint.is_file()


def test_callback_precedes_early_stopping(data):
    result = scripted(data, [0.5, 0.4], change(patience=1), on_epoch=lambda r: r.epoch == 2)
    assert result.stopped is TrainingEnd.CALLBACK


def test_error_in_the_callback_is_raised(data, tmp_path):
    def broken(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(SMALL, data, broken, weights_path=tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


class Broken(nn.Module):
    """Returns a value that is not finite from an epoch on, in training or evaluation."""

    def __init__(self, value, epoch, when):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.value, self.left, self.when = value, epoch, when

    def train(self, mode=True):
        self.left -= mode
        return super().train(mode)

    def forward(self, images):
        bad = self.left <= 0 and self.training == (self.when == "training")
        logits = self.weight.expand(len(images), 1, 16, 16)
        return logits * 0 + self.value if bad else logits


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("when", "what"), [("training", "training"), ("evaluation", "validation")])
def test_loss_that_is_not_finite_raises_diverged(data, tmp_path, value, when, what):
    calls = []
    with pytest.raises(Diverged) as caught:
        run_training(
            change(epochs=4, loss=ComponentConfig("bce")),
            data,
            lambda record: calls.append(record.epoch) or False,
            model=Broken(value, 3, when),
            weights_path=tmp_path / "m.safetensors",
        )
    assert str(caught.value) in {f"the {what} loss became {v} in epoch 3" for v in ("nan", "inf")}
    assert calls == [1, 2]
    assert not (tmp_path / "m.safetensors").exists()


class Explosive(nn.Module):
    """A cubic output: a step that is too large makes the next one larger."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, images):
        return 10 * self.conv(images) ** 3


def test_divergence_with_a_high_learning_rate(data):
    config = change(
        epochs=20,
        loss=ComponentConfig("bce"),
        optimizer=ComponentConfig("sgd", {"lr": 1.0, "momentum": 0.99}),
        clip_norm=0.0,
    )
    with pytest.raises(Diverged, match=r"^the \w+ loss became (nan|inf) in epoch"):
        run_training(config, data, model=Explosive())


# --- degenerate data -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "batch_size"), [([3], 4), ([3], 1), ([3, 4], 16), (range(20), 64), (range(5), 4)]
)
def test_few_images_and_large_batches(data, members, batch_size):
    few = TrainData(data.cache, np.asarray(list(members)), np.array([25]))
    result = run_training(change(batch_size=batch_size), few)
    assert len(result.history) == 3
    assert all(math.isfinite(r.train_loss) for r in result.history)


def test_empty_masks(tmp_path):
    root = write_folder(tmp_path / "data", 4)
    for i in range(4):
        Image.new("L", (48, 40)).save(root / f"masks/im{i:03}.png")
    cache = build_cache(DatasetIndex.read(root), 16, tmp_path / "cache")
    everyone = np.arange(4)
    result = run_training(change(epochs=6), TrainData(cache, everyone, everyone))
    assert all(math.isfinite(r.val_loss) for r in result.history)
    assert result.best.metrics.dice in (0.0, 0.25, 0.5, 0.75, 1.0)


# --- registry ------------------------------------------------------------------------------------

ROWS = [(f, n) for f, table in FAMILIES.items() if f != "model" for n in table]


@pytest.mark.parametrize(("family", "name"), ROWS)
def test_every_registry_entry_trains(data, family, name):
    config = change(epochs=2, **{family: ComponentConfig(name)})
    result = run_training(config, TrainData(data.cache, np.arange(8), data.val))
    assert all(math.isfinite(r.train_loss + r.val_loss) for r in result.history)


@pytest.mark.parametrize(
    "component",
    [
        ComponentConfig("unet", {"width": 8, "depth": 2}),
        ComponentConfig("segnet", {"width": 8}),
    ],
    ids=lambda p: p.name,
)
def test_overfits_eight_images(tmp_path, component):
    root = write_folder(tmp_path / "data", 8)
    cache = build_cache(DatasetIndex.read(root), 32, tmp_path / "cache")
    everyone = np.arange(8)
    config = change(
        model=component,
        image_size=32,
        epochs=35,
        augment=ComponentConfig("none"),
        optimizer=ComponentConfig("adam", {"lr": 1e-2}),
        schedule=ComponentConfig("onecycle"),
    )
    assert run_training(config, TrainData(cache, everyone, everyone)).best.metrics.dice > 0.95


# --- training modifiers --------------------------------------------------------------------------


def kept(config, data, path):
    run_training(config, data, weights_path=path)
    return load_file(path)


def test_accumulated_step_equals_a_whole_one(data, tmp_path):
    """With group norm nothing depends on the number of parts."""
    model = ComponentConfig("unet", {"width": 4, "depth": 1, "norm": "group"})
    config = change(
        model=model, loss=ComponentConfig("bce_dice"), epochs=2, batch_size=5, clip_norm=0.0
    )
    optimizer = ComponentConfig("sgd", {"lr": 0.1, "momentum": 0.5})
    config = dataclasses.replace(config, optimizer=optimizer, augment=ComponentConfig("none"))
    whole = kept(config, data, tmp_path / "whole.safetensors")
    parts = kept(dataclasses.replace(config, accumulate=2), data, tmp_path / "parts.safetensors")
    more = kept(dataclasses.replace(config, accumulate=64), data, tmp_path / "more.safetensors")
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(more[name], whole[name], atol=2e-5, rtol=1e-4)


def test_averaged_network_is_validated_and_kept(data, tmp_path):
    config = change(ema=0.99, epochs=2)
    path = tmp_path / "model.safetensors"
    plain = run_training(change(epochs=2), data, weights_path=tmp_path / "plain.safetensors")
    result = run_training(config, data, weights_path=path)
    assert [r.train_loss for r in result.history] == [r.train_loss for r in plain.history]
    assert [r.val_loss for r in result.history] != [r.val_loss for r in plain.history]
    model, _ = checkpoint.load(path)
    found = np.stack(list(predict_probabilities(model, data.cache, data.val, device=CPU))) > 0.5
    dice = [
        sklearn.metrics.f1_score(data.cache.masks[i].ravel(), mask.ravel())
        for i, mask in zip(data.val, found, strict=True)
    ]
    assert np.mean(dice) == pytest.approx(result.best.metrics.dice)


@pytest.mark.parametrize(
    "settings",
    [
        {"flooding": 0.9},
        {"label_smoothing": 0.3},
        {"mix": ComponentConfig("cutmix", {"alpha": 1.0})},
    ],
)
def test_training_modifiers_do_not_change_the_validation_loss(data, settings):
    """With a learning rate of almost 0 only the losses differ."""
    still = {"optimizer": ComponentConfig("sgd", {"lr": 1e-4, "momentum": 0.5}), "epochs": 1}
    plain = run_training(change(**still), data).history[0]
    other = run_training(change(**still, **settings), data).history[0]
    assert abs(other.train_loss - plain.train_loss) > 1e-3
    assert other.val_loss == pytest.approx(plain.val_loss, abs=2e-3)


def test_loss_is_not_below_the_flood_level(data):
    history = run_training(change(flooding=0.5, epochs=4), data).history
    assert all(r.train_loss >= 0.5 for r in history)


def test_deep_supervision_validates_the_main_output(data, tmp_path):
    model = ComponentConfig("unet", {"width": 4, "depth": 3, "deep_supervision": True})
    path = tmp_path / "model.safetensors"
    result = run_training(change(model=model, epochs=2), data, weights_path=path)
    weights = load_file(path)
    torch.manual_seed(SMALL.seed)
    initial = build_model(model, image_size=16).state_dict()
    moved = [k for k in weights if "extra_heads" in k and not torch.equal(weights[k], initial[k])]
    assert moved and all(math.isfinite(r.val_loss) for r in result.history)
