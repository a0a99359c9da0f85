"""The stages of encoders, the factors of their learning rates, and what is frozen."""

import re

import pytest
import torch
from torch import nn

from lesionseg.models.fine_tuning import (
    EncoderFreezing,
    FineTuning,
    find_stages,
    fine_tuning_of,
    lr_factors,
)
from lesionseg.models.smp import build_smp
from lesionseg.optim import build_optimizer
from lesionseg.space import ComponentConfig

# An encoder of smp, one of timm as a feature extractor, and a plain transformer; with the stage of
# a parameter, read from its name.
ENCODERS = {
    "resnet18": (
        "unet",
        lambda name: int(found[1]) if (found := re.match(r"layer(\d)", name)) else 0,
    ),
    "tu-tf_efficientnet_lite0": (
        "unet",
        lambda name: (
            [0, 1, 2, 3, 3, 4, 4][int(found[1])]
            if (found := re.match(r"model\.blocks\.(\d+)", name))
            else 0
        ),
    ),
    # Its four feature maps are the outputs of every third block.
    "tu-vit_tiny_patch16_224": (
        "dpt",
        lambda name: (
            int(found[1]) // 3 if (found := re.match(r"model\.blocks\.(\d+)", name)) else 0
        ),
    ),
}


@pytest.fixture(scope="module")
def networks():
    return {name: build_smp(row[0], encoder=name) for name, row in ENCODERS.items()}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_stages_of_encoders(networks, encoder):
    model, stage_of = networks[encoder], ENCODERS[encoder][1]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    stages = find_stages(model.encoder.train(), 64)
    found = {id(p): i for i, stage in enumerate(stages) for p in stage}
    names = {n: p for n, p in model.encoder.named_parameters() if p.requires_grad}
    assert {n: found.pop(id(p)) for n, p in names.items()} == {n: stage_of(n) for n in names}
    assert not found
    # Nothing else has changed.
    assert all(module.training for module in model.encoder.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_learning_rates_of_stages(networks, encoder, monkeypatch):
    model, stage_of = networks[encoder], ENCODERS[encoder][1]
    monkeypatch.setattr(model, "fine_tuning", FineTuning(0.1, 0, 0.5))
    factors = lr_factors(model, 64)
    names = {n: p for n, p in model.encoder.named_parameters() if p.requires_grad}
    deepest = max(map(stage_of, names))
    assert factors == {p: 0.1 * 0.5 ** (deepest - stage_of(n)) for n, p in names.items()}
    component = ComponentConfig("adamw", {"lr": 0.01, "weight_decay": 0.1})
    groups = build_optimizer(component, model.parameters(), factors).param_groups
    assert groups[0]["lr"] == 0.01
    ours = {
        id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]
    }
    assert ours == {
        id(p): (pytest.approx(0.01 * factors.get(p, 1.0)), 0.1 if p.ndim >= 2 else 0.0)
        for p in model.parameters()
    }


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_default_has_the_optimizer_of_plain_parameters(networks, optimizer):
    model = networks["resnet18"]
    assert fine_tuning_of(model) == fine_tuning_of(nn.Linear(1, 1)) == FineTuning()
    assert lr_factors(model, 64) == {}
    groups = build_optimizer(ComponentConfig(optimizer), model.parameters(), {}).param_groups
    everything = list(model.parameters())
    expected = [everything]
    if optimizer == "adamw":
        expected = [[p for p in everything if p.ndim > 1], [p for p in everything if p.ndim < 2]]
    assert [list(map(id, g["params"])) for g in groups] == [list(map(id, e)) for e in expected]
    assert {g["lr"] for g in groups} == {1e-3}


def test_a_factor_for_the_whole_encoder(networks, monkeypatch):
    model = networks["resnet18"]
    monkeypatch.setattr(model, "fine_tuning", FineTuning(encoder_lr_factor=0.2))
    factors = lr_factors(model, 64)
    assert factors == dict.fromkeys(model.encoder.parameters(), 0.2)
    groups = build_optimizer(ComponentConfig("adam"), model.parameters(), factors).param_groups
    assert [g["lr"] for g in groups] == pytest.approx([1e-3, 2e-4])
    # A frozen encoder has groups of its own.
    monkeypatch.setattr(model, "fine_tuning", FineTuning(frozen_epochs=1))
    assert lr_factors(model, 64) == dict.fromkeys(model.encoder.parameters(), 1.0)
    heads = [p for n, p in model.named_parameters() if not n.startswith("encoder.")]
    assert [id(p) for p in groups[0]["params"]] == [id(p) for p in heads]


def test_frozen_encoder(networks, monkeypatch):
    model = networks["resnet18"]
    monkeypatch.setattr(model, "fine_tuning", FineTuning(frozen_epochs=2))
    dropped = {n for n, p in model.named_parameters() if not p.requires_grad}
    freezing = EncoderFreezing(model)
    for epoch, is_frozen in ((1, True), (2, True), (3, False), (1, True), (4, False)):
        model.eval()  # as after a validation
        freezing.start_epoch(epoch)
        assert model.decoder.training and model.training
        assert model.encoder.training != is_frozen
        assert model.encoder.bn1.training != is_frozen
        with_gradient = {n for n, p in model.named_parameters() if p.requires_grad}
        assert any(n.startswith("encoder.") for n in with_gradient) != is_frozen
        assert not dropped & with_gradient
        assert len({n for n in with_gradient if n.startswith("decoder.")}) > 10
