"""An ensemble predicts the weighted mean of its members; their differences by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import lesionseg
from lesionseg.config import TrialConfig
from lesionseg.errors import InputError
from lesionseg.inference.ensemble import (
    MAX_MEMBERS,
    Ensemble,
    check_members,
    disagreement,
    mean_and_deviation,
)
from lesionseg.inference.evaluate import evaluate
from lesionseg.inference.predictor import Segmenter
from lesionseg.inference.selection import Inference, select_inference
from lesionseg.inference.tta import predict_images
from lesionseg.metrics.overlap import dice_score
from lesionseg.models import count_params, multiply_adds
from lesionseg.runtime import throughput
from lesionseg.training import checkpoint
from lesionseg.viz.overlays import write_overlays
from tests.lesionseg.ensembles import SIZE, WEIGHTS, write_ensemble
from tests.lesionseg.inference.test_evaluate import Constant, RedIsLesion, data

CPU = torch.device("cpu")
CONFIG = TrialConfig(image_size=SIZE)


def ensemble_of(members, weights):
    return Ensemble(members, [CONFIG] * len(members), weights)


class Ramp(nn.Module):
    """Lesion at the left, or at the right; counts its forward passes."""

    def __init__(self, sign):
        super().__init__()
        self.sign, self.passes = sign, 0

    def forward(self, images):
        self.passes += 1
        n, _, height, width = images.shape
        return self.sign * torch.linspace(6, -6, width).repeat(n, 1, height, 1)


def pixels(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, SIZE, SIZE, 3), np.uint8)


# --- the module ----------------------------------------------------------------------------------


def test_logit_is_that_of_the_weighted_mean_probability():
    ensemble = ensemble_of([Constant(0.0), Constant(math.log(3))], (0.25, 0.75))
    found = ensemble(torch.zeros(2, 3, 4, 4))
    assert found.shape == (2, 1, 4, 4)
    mean = 0.25 * 0.5 + 0.75 * 0.75
    torch.testing.assert_close(found, torch.full_like(found, math.log(mean / (1 - mean))))


@pytest.mark.parametrize("sign", [-1, 1])
def test_certain_members_give_a_finite_logit(sign):
    ensemble = ensemble_of([Constant(sign * 1e4)] * 3, (0.2, 0.3, 0.5))
    found = ensemble(torch.zeros(1, 3, 4, 4))
    assert torch.isfinite(found).all() and (found.sigmoid() - float(sign > 0)).abs().max() < 1e-5


def test_configuration_is_that_of_the_largest_weight():
    configs = [replace(CONFIG, seed=i) for i in range(3)]
    members = [Constant(0.0)] * 3
    assert Ensemble(members, configs, (0.2, 0.4, 0.4)).config == configs[1]
    # Single precision if a member was trained in it.
    configs[0] = replace(configs[0], amp="off")
    assert Ensemble(members, configs, (0.2, 0.4, 0.4)).config == replace(configs[1], amp="off")


def test_cost_is_the_sum_over_members(tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "MIN_SECONDS", 0.0)
    whole, singles = write_ensemble(tmp_path)
    ensemble, *members = (checkpoint.load(path)[0] for path in (whole, *singles))
    assert count_params(ensemble) == sum(map(count_params, members))
    assert multiply_adds(ensemble, SIZE) == sum(multiply_adds(m, SIZE) for m in members)
    assert throughput.images_per_second(ensemble, SIZE, CPU, 2) > 0


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ((), (), f"an ensemble has 1 to {MAX_MEMBERS} members, each with a weight, got 0 members"),
        ((32,) * 21, (1 / 21,) * 21, "an ensemble has 1 to 20 members, each with a weight, got 21"),
        ((32, 32), (1.0,), "an ensemble has 1 to 20 members, each with a weight, got 2 members"),
        ((32, 32), (1.5, -0.5), "the weight of a member must be a positive number, got -0.5"),
        ((32, 32), (1.0, 0.0), "the weight of a member must be a positive number, got 0.0"),
        ((32, 32), (1.0, math.nan), "the weight of a member must be a positive number, got nan"),
        ((32, 32), (0.5, "0.5"), "the weight of a member must be a positive number, got '0.5'"),
        ((32, 32), (True, None), "the weight of a member must be a positive number, got True"),
        ((32, 32), (math.inf, 0.5), "the weights of the members must have the sum 1, got inf"),
        ((32, 32), (0.5, 0.499), "the weights of the members must have the sum 1, got 0.999"),
        ((32, 64), (0.5, 0.5), "the members of an ensemble must have one image size, got [32, 64]"),
    ],
)
def test_members_that_cannot_be_an_ensemble(sizes, weights, message):
    with pytest.raises(InputError) as caught:
        check_members([replace(CONFIG, image_size=size) for size in sizes], weights)
    assert str(caught.value).startswith(message)


def test_weights_of_thirds_have_the_sum_1():
    check_members([CONFIG] * 3, (1 / 3, 1 / 3, 1 / 3))


# --- deviation and disagreement ------------------------------------------------------------------


def test_mean_and_deviation_equal_numpys():
    members = np.random.default_rng(0).random((4, 2, 5, 6), np.float32)
    weights = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    mean, deviation = map(
        np.asarray, mean_and_deviation(torch.from_numpy(members), torch.from_numpy(weights))
    )
    wanted = np.average(members, axis=0, weights=weights)
    assert mean == pytest.approx(wanted, abs=1e-6)
    squares = np.average((members - wanted) ** 2, axis=0, weights=weights)
    assert deviation == pytest.approx(np.sqrt(squares), abs=1e-6)


def test_largest_deviation_is_one_half():
    members = torch.tensor([0.0, 1.0])[:, None]
    assert mean_and_deviation(members, torch.tensor([0.5, 0.5]))[1].tolist() == [0.5]


def test_disagreement_by_hand():
    """Masks of 4, 2 and 0 of 4 pixels; the mean is lesion in the first 2."""
    members = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])[:, None]
    weights = torch.tensor([0.25, 0.5, 0.25])
    mean, _ = mean_and_deviation(members, weights)
    assert (mean > 0.5).tolist() == [[True, True, False, False]]
    # Dice 2/3, 1 and 0.
    wanted = 1 - (0.25 * 2 / 3 + 0.5)
    assert disagreement(members, mean, weights).tolist() == pytest.approx([wanted])


def test_disagreement_of_many_images_equals_dice_by_dice():
    members = np.random.default_rng(0).random((3, 5, 8, 8), np.float32)
    members[:, 0], members[:, 1] = 0.1, 0.9  # all empty, all full
    weights = np.array([0.2, 0.3, 0.5])
    mean = np.tensordot(weights, members, 1).astype(np.float32)
    dice = [
        [dice_score(m > 0.5, e > 0.5) for m, e in zip(each, mean, strict=True)] for each in members
    ]
    wanted = 1 - weights @ np.array(dice)
    found = disagreement(*map(torch.from_numpy, (members, mean, weights.astype(np.float32))))
    assert found.numpy() == pytest.approx(wanted, abs=1e-6)
    assert found[:2].tolist() == [0, 0] and found[2:].min() > 0.1


# --- prediction ----------------------------------------------------------------------------------


def test_members_are_averaged_over_the_views_before_they_are_compared():
    """Mirrored members disagree on one view, and agree on the mean of both."""
    left, right = Ramp(1), Ramp(-1)
    ensemble = ensemble_of([left, right], (0.5, 0.5))
    found = predict_images(ensemble, pixels(2), ("none", "flips"), CPU)
    ramp = torch.sigmoid(torch.linspace(6, -6, SIZE)).numpy()
    for plain, flipped in zip(found["none"], found["flips"], strict=True):
        assert plain.probability[0] == pytest.approx(np.full(SIZE, 0.5), abs=1e-6)
        assert plain.uncertainty[0] == pytest.approx(np.abs(ramp - 0.5), abs=1e-6)
        assert plain.disagreement > 0.3
        assert flipped.uncertainty.max() < 1e-6
        assert flipped.probability == pytest.approx(plain.probability, abs=1e-6)
        assert type(plain.disagreement) is float
    assert (left.passes, right.passes) == (4, 4)  # one for each view of flips, shared with none


def test_a_single_network_has_neither_uncertainty_nor_disagreement():
    for outputs in predict_images(Ramp(1), pixels(2), ("none", "d4"), CPU).values():
        assert [(o.uncertainty, o.disagreement) for o in outputs] == [(None, None)] * 2


@pytest.mark.parametrize("tta", ["none", "d4"])
def test_prediction_is_the_mean_of_the_members_files(tmp_path, tta):
    whole, singles = write_ensemble(tmp_path)
    for path in (whole, *singles):
        checkpoint.set_inference(path, Inference(tta))
    ensemble, first, second = (lesionseg.load(path, "cpu") for path in (whole, *singles))
    image = np.random.default_rng(1).integers(0, 256, (40, 56, 3), np.uint8)
    found, a, b = (model.predict(image) for model in (ensemble, first, second))
    mean = WEIGHTS[0] * a.probability + WEIGHTS[1] * b.probability
    assert np.abs(found.probability - mean).max() < 1e-5
    assert np.abs(a.probability - b.probability).max() > 0.01
    assert np.array_equal(found.mask, found.probability > 0.5)
    assert found.uncertainty.shape == (40, 56) and found.uncertainty.dtype == np.float32
    # At the network's size, where no interpolation lies between the members and the deviation.
    image = pixels(1)[0]
    found, a, b = (model.predict(image) for model in (ensemble, first, second))
    deviation = np.abs(a.probability - b.probability) * math.sqrt(WEIGHTS[0] * WEIGHTS[1])
    assert np.abs(found.uncertainty - deviation).max() < 1e-5
    dice = [dice_score(each.mask, found.mask) for each in (a, b)]
    assert found.disagreement == pytest.approx(1 - np.dot(WEIGHTS, dice), abs=1e-5)
    assert a.disagreement is None and a.uncertainty is None


def test_evaluation_has_the_disagreement_of_each_image(tmp_path):
    records, cache = data(tmp_path / "d", ((64, 96), (40, 40)))
    # The second member finds no lesion; the first, which decides, finds the upper half.
    ensemble = ensemble_of([RedIsLesion(), Constant(-9.0)], (0.75, 0.25))
    found = evaluate(ensemble, cache, records, device=CPU)
    assert found.disagreement == pytest.approx([0.25, 0.25])
    assert found.disagreement.dtype == np.float64
    assert found.scores["dice"] == pytest.approx([1.0, 1.0], abs=0.03)
    alone = evaluate(RedIsLesion(), cache, records, device=CPU)
    assert alone.disagreement is None
    files = write_overlays(ensemble, cache, found, tmp_path / "overlays", CPU)
    assert len(files) == 2


def test_inference_is_selected_for_the_whole():
    """Probabilities of 0.2 and 0.55 on the lesion: the mean is above a lower threshold only."""
    images = np.zeros((4, SIZE, SIZE, 3), np.uint8)
    for i in range(4):
        images[i, 8 : 20 + i, 8:20] = 255

    class Faint(nn.Module):
        def __init__(self, probability):
            super().__init__()
            self.logit = math.log(probability / (1 - probability))

        def forward(self, x):
            return torch.where(x[:, :1] > 0, self.logit, -9.0)

    ensemble = ensemble_of([Faint(0.2), Faint(0.55)], (0.5, 0.5))
    choice = select_inference(ensemble, images, images[..., 0], device=CPU)
    assert choice.default_dice == 0 and choice.dice == 1
    assert [step.params["value"] for step in choice.inference.chain] == [0.35]


def test_half_precision_is_off_if_a_member_was_trained_without(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "lesionseg.inference.tta.amp_dtype", lambda device, mode: asked.append(mode)
    )
    ensemble = Ensemble([Ramp(1), Ramp(-1)], [CONFIG, replace(CONFIG, amp="off")], (0.9, 0.1))
    Segmenter(ensemble, ensemble.config).predict_probabilities(pixels(1))
    assert asked == ["off"]
