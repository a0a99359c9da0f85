"""Every optimizer goes down, decays matrices alone, resumes exactly and equals its library's."""

import copy
import io
import itertools
import math
from functools import partial

import pytest
import timm.optim
import torch
from torch import nn
from torch.nn import Parameter

from lesionseg.errors import InputError
from lesionseg.optim import OPTIMIZERS, build_optimizer
from lesionseg.space import ComponentConfig

DECAYING = [name for name, row in OPTIMIZERS.items() if "weight_decay" in row.space]


def corners(name):
    space = OPTIMIZERS[name].space
    for values in itertools.product(*(d.extremes() for d in space.values())):
        yield ComponentConfig(name, dict(zip(space, values, strict=True)))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.PReLU(), nn.Conv2d(4, 1, 1)
    )


def go(model, optimizer, steps, seed=1):
    """Train some steps on random images of the seed."""
    draws = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(2, 2, 8, 8, generator=draws)).square().mean().backward()
        optimizer.step()


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def test_table_order():
    assert list(OPTIMIZERS) == ["adam", "adamw", "sgd", "rmsprop", "lion", "nadam"]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(3,), (3, 1)], ids=["vector", "matrix"])
def test_steps_minimise_a_quadratic(name, shape):
    where = Parameter(torch.tensor([2.0, -1.0, 0.5]).reshape(shape))
    optimizer = build_optimizer(ComponentConfig(name), [where])
    steepness = torch.tensor([1.0, 3.0, 0.3]).reshape(shape)
    heights = []
    for _ in range(200):
        optimizer.zero_grad()
        height = (steepness * where**2).sum()
        height.backward()
        optimizer.step()
        heights.append(float(height.detach()))
    assert heights[1] < heights[0]
    assert heights[50] < heights[1]
    assert heights[-1] < 0.98 * heights[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_first_step_descends_at_all_extremes(name):
    for component in [ComponentConfig(name), *corners(name)]:
        vector, matrix = Parameter(torch.tensor([1.0, -1.0])), Parameter(torch.tensor([[1.0]]))
        optimizer = build_optimizer(component, [vector, matrix])
        (vector.square().sum() + matrix.square().sum()).backward()
        optimizer.step()
        assert vector[0] < 1 and vector[1] > -1 and matrix < 1, component


@pytest.mark.parametrize(
    ("component", "expected"),
    [
        # Adam's first step is the learning rate, whatever the gradient.
        (ComponentConfig("adam", {"lr": 0.1}), 3.0 - 0.1),
        # Decoupled: the weight shrinks by lr x decay first.
        (ComponentConfig("adamw", {"lr": 0.1, "weight_decay": 0.1}), 3.0 * (1 - 0.1 * 0.1) - 0.1),
        # The gradient 6 gains decay x weight; Nesterov looks one momentum ahead.
        (
            ComponentConfig("sgd", {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.01}),
            3.0 - 0.1 * (1 + 0.5) * (6 + 0.01 * 3.0),
        ),
        # The mean square of one gradient g is (1 - alpha) g^2: g over its root is 1 / sqrt(0.1).
        (
            ComponentConfig(
                "rmsprop", {"lr": 0.01, "momentum": 0.5, "alpha": 0.9, "weight_decay": 1e-3}
            ),
            3.0 - 0.01 / math.sqrt(0.1),
        ),
        # The sign of the gradient is 1.
        (ComponentConfig("lion", {"lr": 0.01, "weight_decay": 0.5}), 3.0 * (1 - 0.01 * 0.5) - 0.01),
        # Dozat's mu(t) = 0.9 (1 - 0.96^(0.004 t) / 2): the momentum to come and this gradient,
        # each without its bias, with the square root of the squares' equal to the gradient.
        (
            ComponentConfig("nadam", {"lr": 0.1, "weight_decay": 0.1}),
            3.0 * (1 - 0.1 * 0.1)
            - 0.1
            * (
                1.0
                + (m2 := 0.9 * (1 - 0.5 * 0.96**0.008))
                * 0.1
                / (1 - 0.9 * (1 - 0.5 * 0.96**0.004) * m2)
            ),
        ),
    ],
    ids=lambda v: getattr(v, "name", None),
)
def test_first_step_by_hand(component, expected):
    where = Parameter(torch.tensor([[3.0]]))
    optimizer = build_optimizer(component, [where])
    (where**2).sum().backward()
    optimizer.step()
    assert where.item() == pytest.approx(expected, rel=1e-6)


# The bias before the batch norm has gradients of rounding errors, which each kernel makes anew.
LIBRARIES = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "sgd": partial(torch.optim.SGD, nesterov=True, fused=True),
    "rmsprop": torch.optim.RMSprop,
    "lion": timm.optim.Lion,
    "nadam": lambda groups, **params: torch.optim.NAdam(
        groups, decoupled_weight_decay=True, **params
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_the_librarys_optimizer(name):
    for component in [ComponentConfig(name), *corners(name)]:
        ours, theirs = network(), network()
        params = OPTIMIZERS[name].resolve(component.params)
        decay = params.pop("weight_decay", 0.0)
        # One group for each parameter, whose decay is told by its name.
        groups = [
            {"params": [p], "weight_decay": decay if key in ("0.weight", "3.weight") else 0.0}
            for key, p in theirs.named_parameters()
        ]
        go(ours, build_optimizer(component, ours.parameters()), 4)
        go(theirs, LIBRARIES[name](groups, **params), 4)
        torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameter_without_gradient_is_unchanged(name):
    for component in [ComponentConfig(name), *corners(name)]:
        moved, frozen, vector = (Parameter(torch.ones(s)) for s in ((2, 2), (2, 2), (2,)))
        optimizer = build_optimizer(component, [moved, frozen, vector])
        for _ in range(3):
            optimizer.zero_grad()
            moved.square().sum().backward()
            optimizer.step()
        assert (moved < 1).all(), component
        assert (frozen == 1).all() and (vector == 1).all(), component


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_saved_state_resumes_to_the_same_digits(name):
    whole, first = network(), network()
    optimizer = build_optimizer(ComponentConfig(name), whole.parameters())
    go(whole, optimizer, 3)
    go(whole, optimizer, 3, seed=2)

    optimizer = build_optimizer(ComponentConfig(name), first.parameters())
    go(first, optimizer, 3)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = network(seed=9)
    second.load_state_dict(saved["model"])
    optimizer = build_optimizer(ComponentConfig(name), second.parameters())
    without = copy.deepcopy(second)
    go(without, build_optimizer(ComponentConfig(name), without.parameters()), 3, seed=2)
    optimizer.load_state_dict(saved["optimizer"])
    go(second, optimizer, 3, seed=2)

    assert all(map(torch.equal, weights(second), weights(whole)))
    assert not all(map(torch.equal, weights(without), weights(whole)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zero_gradients_change_only_decayed_weights(name):
    for component in [ComponentConfig(name), *corners(name)]:
        parameters = [Parameter(torch.ones(s)) for s in ((2, 3), (3,), ())]
        optimizer = build_optimizer(component, parameters)
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        assert all(p.isfinite().all() for p in parameters), component
        assert (parameters[1] == 1).all() and parameters[2] == 1, component


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_acts_on_matrices_only(name):
    """With zero gradients only decay changes weights."""
    largest = {k: d.high for k, d in OPTIMIZERS[name].space.items()}
    model = network()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    optimizer = build_optimizer(ComponentConfig(name, largest), model.parameters())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    shrunk = {key for key, p in model.named_parameters() if (p < 1).all()}
    as_before = {key for key, p in model.named_parameters() if (p == 1).all()}
    matrices = {"0.weight", "3.weight"}
    rest = {"0.bias", "1.weight", "1.bias", "2.weight", "3.bias"}
    assert shrunk == (matrices if name in DECAYING else set())
    assert as_before == (rest if name in DECAYING else rest | matrices)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_partition_the_parameters(name):
    for component in [ComponentConfig(name), *corners(name)]:
        model = network()
        # An iterator, which can be gone through once only.
        groups = build_optimizer(component, iter(model.parameters())).param_groups
        params = OPTIMIZERS[name].resolve(component.params)
        assert [g["lr"] for g in groups] == [params["lr"]] * len(groups)
        assert groups[0]["weight_decay"] == params.get("weight_decay", 0.0)
        listed = [id(p) for g in groups for p in g["params"]]
        assert sorted(listed) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_empty_group(name):
    for shape in ((), (2,), (2, 2)):
        lone = Parameter(torch.ones(shape))
        optimizer = build_optimizer(ComponentConfig(name), [lone])
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(lone.square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        optimizer.load_state_dict(optimizer.state_dict())
        assert (lone < 1).all(), shape
        assert lone.grad is None


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_defaults_and_log_scales(name):
    for key, domain in OPTIMIZERS[name].space.items():
        assert domain.low < domain.default < domain.high
        assert domain.log == (key in ("lr", "weight_decay"))


def test_lion_rates_are_a_tenth_of_adamws():
    lion, adamw = OPTIMIZERS["lion"].space["lr"], OPTIMIZERS["adamw"].space["lr"]
    for end in ("low", "high", "default"):
        assert getattr(lion, end) == pytest.approx(getattr(adamw, end) / 10)


def test_unknown_entry_is_refused():
    lone = [Parameter(torch.ones(1))]
    with pytest.raises(InputError, match=r"^unknown optimizer 'sgdd' \(did you mean 'sgd'\?\)$"):
        build_optimizer(ComponentConfig("sgdd"), lone)
    with pytest.raises(InputError, match=r"^optimizer\.adam: lr must lie in \[1e-05, 0\.1\], got"):
        build_optimizer(ComponentConfig("adam", {"lr": 1.0}), lone)
