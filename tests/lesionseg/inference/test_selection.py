"""The choice of an inference: networks of known faults get the mend, the others get nothing."""

from __future__ import annotations

import json
from dataclasses import asdict

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from lesionseg.data.loader import MEAN, STD, normalise
from lesionseg.errors import InputError
from lesionseg.inference import selection as module
from lesionseg.inference.postprocess import POSTPROCESS, refine_probability, to_mask
from lesionseg.inference.selection import DEFAULT_INFERENCE, THRESHOLDS, Inference, select_inference
from lesionseg.inference.tta import predict_with_ttas
from lesionseg.space import ComponentConfig

CPU = torch.device("cpu")
SIDE = 32


def discs(n, seed=0):
    """Discs of several sizes, bool [N, S, S], away from the border."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    where = [(rng.uniform(12, 20), rng.uniform(12, 20), rng.uniform(5, 9)) for _ in range(n)]
    return np.stack([(x - a) ** 2 + (y - b) ** 2 < r**2 for a, b, r in where])


def pictures(red, green=0):
    """Images whose red channel is the probability of ``Red``, in 1/250."""
    images = np.zeros((*red.shape, 3), np.uint8)
    images[..., 0] = np.round(250 * red)
    images[..., 1] = green
    return images


class Red(nn.Module):
    """The probability is the red channel."""

    def forward(self, x):
        red = (x[:, :1] * STD[0] + MEAN[0]) / 250
        return torch.logit(red, eps=1e-4)


class Shaded(Red):
    """Lower probabilities at the left."""

    def forward(self, x):
        return super().forward(x) + torch.linspace(-5, 5, x.shape[-1])


def perfect(masks):
    return pictures(np.where(masks, 0.9, 0.1))


def apply(model, images, masks, chosen):
    """The mean Dice of an inference, image by image and pixel by pixel."""
    probabilities = predict_with_ttas(model, normalise(torch.from_numpy(images)), [chosen.tta])[
        chosen.tta
    ]
    found = []
    for p, image, truth in zip(probabilities.squeeze(1).numpy(), images, masks > 0, strict=True):
        mask = to_mask(chosen.chain, refine_probability(chosen.chain, p, image), p.shape)
        both = mask.sum() + truth.sum()
        found.append(2 * (mask & truth).sum() / both if both else 1.0)
    return float(np.mean(found))


def names(choice):
    return [component.name for component in choice.inference.chain]


def pick_of(choice, name):
    return next(component.params for component in choice.inference.chain if component.name == name)


def uncertain(n=6, seed=0):
    """Lesions of probability 0.32 on background of 0.28, with noise."""
    masks = discs(n, seed)
    return pictures(np.where(masks, 0.32, 0.28)), masks.astype(np.uint8)


def specked(n=8, seed=0):
    """Confident discs and one to three false 2 x 2 specks in the corners."""
    masks = discs(n, seed)
    red = np.where(masks, 0.9, 0.1)
    for i in range(n):
        for corner in ((1, 1), (1, 28), (28, 1))[: 1 + i % 3]:
            red[i, corner[0] : corner[0] + 2, corner[1] : corner[1] + 2] = 0.9
    return pictures(red), masks.astype(np.uint8)


def test_underconfident_network_gets_a_lower_threshold():
    images, masks = uncertain()
    choice = select_inference(Red(), images, masks, device=CPU)
    assert choice.inference == Inference("none", (ComponentConfig("threshold", {"value": 0.3}),))
    assert choice.default_dice == 0
    assert choice.dice == 1


def test_overconfident_network_gets_a_higher_threshold():
    masks = discs(6)
    images = pictures(np.where(masks, 0.78, 0.72))
    choice = select_inference(Red(), images, masks.astype(np.uint8), device=CPU)
    assert choice.inference.chain == (ComponentConfig("threshold", {"value": 0.75}),)


def test_threshold_nearest_to_one_half_is_preferred():
    masks = discs(6)
    images = pictures(np.where(masks, 0.42, 0.12))
    choice = select_inference(Red(), images, masks.astype(np.uint8), device=CPU)
    assert pick_of(choice, "threshold") == {"value": 0.4}


def test_specks_are_removed():
    images, masks = specked()
    choice = select_inference(Red(), images, masks, device=CPU)
    assert set(names(choice)) & {"largest", "opening"}
    assert choice.dice == pytest.approx(1.0)
    assert choice.default_dice < 0.98


def test_selected_operation_is_not_evaluated_again():
    choice = select_inference(Red(), *specked(), device=CPU)
    tried = [row.name for row in choice.candidates]
    assert names(choice) == ["largest"]
    assert tried.count("largest") == 1
    assert tried.count("fill_holes") == 2


def test_holes_are_filled():
    masks = discs(8)
    red = np.where(masks, 0.9, 0.1)
    for i, mask in enumerate(masks):
        y, x = (int(np.round(where.mean())) for where in np.nonzero(mask))
        red[i, y - 2 : y + 2, x - 2 : x + 1 + i % 2] = 0.1
    choice = select_inference(Red(), pictures(red), masks.astype(np.uint8), device=CPU)
    assert set(names(choice)) & {"fill_holes", "closing"}
    assert choice.dice == pytest.approx(1.0)


def test_crf_is_selected_for_soft_boundaries():
    masks = discs(6)
    soft = [
        cv2.GaussianBlur(cv2.dilate(m.astype(np.float32), np.ones((3, 3))), (0, 0), 2.5)
        for m in masks
    ]
    images = pictures(np.clip(soft, 0.05, 0.95), green=0)
    images[..., 1:] = np.where(masks, 40, 200)[..., None]
    choice = select_inference(Red(), images, masks.astype(np.uint8), device=CPU)
    assert "crf" in names(choice)
    assert choice.dice > choice.default_dice + 0.01


def test_perfect_network_keeps_the_default():
    masks = discs(8)
    choice = select_inference(Red(), perfect(masks), masks.astype(np.uint8), device=CPU)
    assert choice.inference == DEFAULT_INFERENCE
    assert choice.dice == choice.default_dice == 1
    assert [row.name for row in choice.candidates if row.selected] == ["default"]


def test_asymmetric_network_gets_flips():
    masks = discs(10)
    images = pictures(np.where(masks, 0.85, 0.15))
    choice = select_inference(
        Shaded(), images, masks.astype(np.uint8), device=CPU, postprocess=False
    )
    assert choice.inference == Inference("flips")
    assert choice.dice > choice.default_dice + 0.05


@pytest.mark.parametrize(("tta", "evaluated"), [(True, ["tta flips", "tta d4"]), (False, [])])
def test_only_the_given_steps_are_evaluated(tta, evaluated):
    masks = discs(4)
    images = pictures(np.where(masks, 0.85, 0.15))
    choice = select_inference(
        Shaded(), images, masks.astype(np.uint8), device=CPU, tta=tta, postprocess=False
    )
    assert [row.name for row in choice.candidates] == ["default", *evaluated]


CASES = {
    "shy": (Red, uncertain),
    "specked": (Red, specked),
    "shaded": (Shaded, specked),
    "untrained": (
        lambda: nn.Conv2d(3, 1, 3, padding=1),
        lambda: (
            np.random.default_rng(2).integers(0, 256, (6, SIDE, SIDE, 3)).astype(np.uint8),
            discs(6).astype(np.uint8),
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_reported_dice_is_reproduced(name):
    torch.manual_seed(0)
    make, data = CASES[name]
    model, (images, masks) = make(), data()
    choice = select_inference(model, images, masks, device=CPU)
    assert choice.dice == pytest.approx(apply(model, images, masks, choice.inference), abs=1e-12)
    assert choice.default_dice == pytest.approx(
        apply(model, images, masks, DEFAULT_INFERENCE), abs=1e-12
    )
    assert choice.dice >= choice.default_dice


@pytest.mark.parametrize("name", CASES)
def test_gains_add_up_and_exceed_their_error(name):
    torch.manual_seed(0)
    make, data = CASES[name]
    choice = select_inference(make(), *data(), device=CPU)
    here = choice.candidates[0].dice
    for row in choice.candidates[1:]:
        if row.selected:
            assert row.gain > max(row.standard_error, 0.0005)
            assert row.dice == pytest.approx(here + row.gain)
            here = row.dice
    assert here == pytest.approx(choice.dice)
    picture = [row.name.split()[0] for row in choice.candidates if row.selected]
    assert [what for what in picture if what not in ("default", "tta")] == names(choice)
    assert ("tta" in picture) == (choice.inference.tta != "none")
    json.dumps([asdict(c) for c in choice.candidates], allow_nan=False)


def test_gain_within_its_error_is_not_selected():
    """One image gains 0.2 by a low threshold, the other five nothing."""
    masks = discs(6)
    red = np.where(masks, 0.9, 0.1)
    red[0] = np.where(masks[0], 0.4, 0.1)
    red[0][masks[0] & (np.arange(SIDE) < 18)] = 0.9
    choice = select_inference(Red(), pictures(red), masks.astype(np.uint8), device=CPU)
    row = next(row for row in choice.candidates if row.name == "threshold value 0.35")
    assert 0.0005 < row.gain <= row.standard_error * (1 + 1e-9)
    assert choice.inference == DEFAULT_INFERENCE


def test_tiny_gain_is_not_selected(monkeypatch):
    images, masks = specked()
    before = select_inference(Red(), images, masks, device=CPU)
    assert names(before)
    monkeypatch.setattr(module, "MIN_GAIN", 0.5)
    assert select_inference(Red(), images, masks, device=CPU).inference == DEFAULT_INFERENCE


def test_nothing_is_selected_for_one_image():
    images, masks = uncertain(1)
    choice = select_inference(Red(), images, masks, device=CPU)
    assert choice.inference == DEFAULT_INFERENCE
    assert all(row.standard_error is None for row in choice.candidates)
    assert max(row.dice for row in choice.candidates) == 1  # it was seen, and not believed
    json.dumps([asdict(c) for c in choice.candidates], allow_nan=False)


@pytest.mark.parametrize(("level", "dice"), [(0, 1.0), (1, 0.0)])
def test_empty_masks_score_one(level, dice):
    masks = np.zeros((3, SIDE, SIDE), np.uint8)
    images = pictures(np.full(masks.shape, 0.1 + 0.85 * level))
    choice = select_inference(Red(), images, masks, device=CPU)
    assert choice.default_dice == dice
    assert choice.inference == DEFAULT_INFERENCE


def test_network_with_nan_outputs_keeps_the_default():
    class Broken(Red):
        def forward(self, x):
            return super().forward(x) * float("nan")

    images, masks = specked(4)
    choice = select_inference(Broken(), images, masks, device=CPU)
    assert choice.inference == DEFAULT_INFERENCE
    assert choice.dice == 0


def test_masks_may_hold_255_or_1():
    images, masks = specked()
    one, other = (select_inference(Red(), images, m, device=CPU) for m in (masks, masks * 255))
    assert one == other


def test_deterministic_for_any_batch_size():
    images, masks = specked()
    found = [
        select_inference(Shaded(), images, masks, device=CPU, batch_size=n) for n in (16, 16, 3, 1)
    ]
    assert found[0] == found[1]
    assert len({json.dumps(choice.inference.to_dict()) for choice in found}) == 1


def test_each_view_is_computed_once():
    images, masks = specked(5)
    kept = images.copy(), masks.copy()
    seen = []

    class Spy(Red):
        def forward(self, x):
            assert not self.training
            seen.extend(view.numpy().tobytes() for view in x.contiguous())
            return super().forward(x)

    images.flags.writeable = masks.flags.writeable = False
    model = Spy()
    select_inference(model, images, masks, device=CPU, batch_size=2)
    x = normalise(torch.from_numpy(kept[0])).contiguous().numpy()
    wanted = []
    for picture in x:
        for side in (picture, picture[..., ::-1]):
            wanted += [np.rot90(side, k, (1, 2)).tobytes() for k in range(4)]
    assert sorted(seen) == sorted(wanted)
    assert (images == kept[0]).all()
    assert (masks == kept[1]).all()


def test_predictions_do_not_depend_on_masks():
    """With permuted masks the Dice differs and the candidates are the same."""
    images, masks = specked()
    right = select_inference(Red(), images, masks, device=CPU, postprocess=False)
    wrong = select_inference(Red(), images, np.roll(masks, 1, 0), device=CPU, postprocess=False)
    assert [row.name for row in right.candidates] == [row.name for row in wrong.candidates]
    assert wrong.default_dice < right.default_dice


def test_half_precision_storage_selects_the_same(monkeypatch):
    images, masks = specked()
    full = select_inference(Shaded(), images, masks, device=CPU)
    monkeypatch.setattr(module, "MAX_FLOAT32_VALUES", 10)
    half = select_inference(Shaded(), images, masks, device=CPU)
    assert half.inference == full.inference
    assert half.dice == pytest.approx(full.dice, abs=2e-3)


def test_thresholds_are_valid_parameters():
    values = sorted(component.params["value"] for component in THRESHOLDS)
    assert values == [round(0.05 * i, 2) for i in range(1, 20) if i != 10]
    for component in (*THRESHOLDS, *module.CRFS, *module.OPERATIONS):
        POSTPROCESS[component.name].resolve(component.params)


@pytest.mark.parametrize("n", [(0, 0), (2, 3)])
def test_no_image_or_too_few_masks_is_refused(n):
    images = np.zeros((n[0], 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="a mask for each image"):
        select_inference(Red(), images, np.zeros((n[1], 8, 8), np.uint8), device=CPU)


def test_inference_round_trip():
    chain = tuple(ComponentConfig(name) for name in POSTPROCESS)
    for one in (DEFAULT_INFERENCE, Inference("d4"), Inference("flips", chain)):
        assert Inference.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert Inference.from_dict({}) == DEFAULT_INFERENCE
    written = Inference(
        "flips", (ComponentConfig("threshold", {"value": 0.3}), ComponentConfig("largest"))
    ).to_dict()
    assert written == {"tta": "flips", "chain": [{"threshold": {"value": 0.3}}, {"largest": {}}]}


def test_defaults_are_written_out():
    """So a file means the same after a default has changed."""
    written = Inference(chain=(ComponentConfig("opening"),)).to_dict()
    assert written["chain"] == [{"opening": {"radius": 1.0}}]
    chain = Inference(chain=tuple(ComponentConfig(name) for name in POSTPROCESS)).chain
    assert [component.name for component in chain] == list(POSTPROCESS)
    for component in chain:
        assert component.params == {
            n: d.default for n, d in POSTPROCESS[component.name].space.items()
        }
    assert Inference(chain=chain).chain == chain


def test_operations_may_be_repeated():
    chain = (ComponentConfig("opening"), ComponentConfig("largest"), ComponentConfig("opening"))
    assert [c.name for c in Inference(chain=chain).chain] == ["opening", "largest", "opening"]


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        ({"tta": "flip"}, "did you mean 'flips'"),
        ({"tta": ""}, "unknown tta ''"),
        ({"chain": [3]}, "must be a name or {name: parameters}"),
        ({"chain": [{"largest": {}, "fill_holes": {}}]}, "must be a name or {name: parameters}"),
        ({"chain": [{"biggest": {}}]}, "unknown postprocess 'biggest'"),
        ({"chain": ["large"]}, "did you mean 'largest'"),
        ({"chain": [{"opening": {"radius": 50}}]}, "radius must lie in"),
        ({"chain": [{"opening": {"radius": "wide"}}]}, "radius must be a number"),
        ({"chain": [{"closing": {"size": 3}}]}, "unknown parameter 'size'"),
        ({"chain": [{"crf": {"weight": float("nan")}}]}, "weight must be finite"),
        ({"chain": [{"threshold": {"value": 0.0}}]}, r"postprocess.threshold: value must lie in"),
    ],
)
def test_invalid_inference_is_refused(data, rule):
    with pytest.raises(InputError, match=rule) as caught:
        Inference.from_dict(data)
    assert "\n" not in str(caught.value)
