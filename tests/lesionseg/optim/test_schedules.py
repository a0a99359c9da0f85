"""Every schedule follows its curve, lasts for any training and moves the learning rate alone."""

import itertools
import math
import warnings

import pytest
import torch
from torch.nn import Parameter

from lesionseg.errors import InputError
from lesionseg.optim import OPTIMIZERS, SCHEDULES, build_optimizer, build_schedule
from lesionseg.space import ComponentConfig

FIRST = 0.1
LENGTHS = [(1, 1), (1, 2), (1, 3), (3, 1), (1, 7), (4, 5), (7, 13), (50, 1)]


def components(name):
    """The defaults and every corner."""
    space = SCHEDULES[name].space
    for values in itertools.product(*(d.extremes() for d in space.values())):
        yield ComponentConfig(name, dict(zip(space, values, strict=True)))
    yield ComponentConfig(name, {key: domain.default for key, domain in space.items()})


def sgd(lr=FIRST):
    return torch.optim.SGD([Parameter(torch.ones(1))], lr=lr, momentum=0.9)


def curve(component, epochs, steps, dice=lambda epoch: 0.0, lr=FIRST):
    """The learning rate of every optimizer step, as a training would call the schedule."""
    optimizer = sgd(lr)
    schedule = build_schedule(component, optimizer, epochs, steps)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where the order of calls is wrong
        for epoch in range(1, epochs + 1):
            for _ in range(steps):
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                schedule.after_step()
            schedule.after_epoch(dice(epoch))
    return rates


def onecycle(t, total, rise):
    """Half a cosine from a 25th up to the peak, and one from there to a 250000th at the end."""
    peak = max(1, round(rise * total))
    if t <= peak:
        return 1 + (1 / 25 - 1) * (1 + math.cos(math.pi * t / peak)) / 2
    low = 1 / 250000
    return low + (1 - low) * (1 + math.cos(math.pi * (t - peak) / (total - peak))) / 2


def cosine(t, total, warmup):
    rising = round(warmup * total)
    if t < rising:
        return (t + 1) / rising
    return math.cos(math.pi / 2 * (t - rising) / (total - rising)) ** 2


# The rate of step t of so many as a share of the optimizer's own.
FORMULAS = {
    "constant": lambda t, total, steps: 1.0,
    "step": lambda t, total, steps, factor, drops: factor ** (t * (drops + 1) // total),
    "exponential": lambda t, total, steps, end: math.exp(math.log(end) * t / total),
    "cosine": lambda t, total, steps, warmup: cosine(t, total, warmup),
    "onecycle": lambda t, total, steps, rise: onecycle(t, total, rise),
    "polynomial": lambda t, total, steps, power: ((total - t) / total) ** power,
    # No epoch is better than the first, so the count begins with the second.
    "plateau": lambda t, total, steps, factor, patience: (
        factor ** (max(0, t // steps - 1) // (patience + 1))
    ),
}


def test_table_order():
    assert list(SCHEDULES) == [
        "constant",
        "step",
        "exponential",
        "cosine",
        "onecycle",
        "polynomial",
        "plateau",
    ]


@pytest.mark.parametrize("name", SCHEDULES)
def test_curve_equals_the_formula(name):
    for component, (epochs, steps) in itertools.product(components(name), LENGTHS):
        rates = curve(component, epochs, steps)
        total = epochs * steps
        shares = [FORMULAS[name](t, total, steps, **component.params) for t in range(total)]
        # torch leaves rates alone that would fall by less than 1e-8.
        expected = [FIRST * share for share in shares]
        assert rates == pytest.approx(expected, rel=1e-9, abs=1.2e-8), (component, epochs, steps)


@pytest.mark.parametrize(
    ("component", "last", "after"),
    [
        (ComponentConfig("constant"), 1.0, 1.0),
        (ComponentConfig("step", {"factor": 0.5, "drops": 4}), 1 / 16, 1 / 16),
        (ComponentConfig("exponential", {"end": 0.01}), 0.01**0.95, 0.01),
        (ComponentConfig("cosine", {"warmup": 0.0}), (1 - math.cos(math.pi / 20)) / 2, 0.0),
        (ComponentConfig("cosine", {"warmup": 0.5}), (1 - math.cos(math.pi / 10)) / 2, 0.0),
        (ComponentConfig("onecycle", {"rise": 0.5}), (1 - math.cos(math.pi / 10)) / 2, 0.0),
        (ComponentConfig("polynomial", {"power": 2.0}), 1 / 400, 0.0),
        (ComponentConfig("polynomial", {"power": 0.5}), math.sqrt(1 / 20), 0.0),
    ],
    ids=str,
)
def test_rate_of_the_last_step(component, last, after):
    """Of twenty steps."""
    optimizer = sgd(1.0)
    schedule = build_schedule(component, optimizer, 4, 5)
    for _ in range(20):
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.after_step()
    assert rate == pytest.approx(last, abs=1e-5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(after, abs=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_changes_only_learning_rates(name):
    """Momentum and decay are parameters of their own in the search."""
    for optimizer in OPTIMIZERS:
        built = build_optimizer(
            ComponentConfig(optimizer), [Parameter(torch.ones(2, 2)), Parameter(torch.ones(2))]
        )
        schedule = build_schedule(ComponentConfig(name), built, 2, 3)
        given = without_rates(built)
        for _ in range(2):
            for _ in range(3):
                built.step()
                schedule.after_step()
                assert without_rates(built) == given, optimizer
                assert len({g["lr"] for g in built.param_groups}) == 1, optimizer
            schedule.after_epoch(0.0)


def without_rates(optimizer):
    return [
        {k: v for k, v in group.items() if k not in ("params", "lr")}
        for group in optimizer.param_groups
    ]


def test_cosine_by_hand():
    # Ten steps, two of them warm-up; then eight along half a cosine.
    half = [math.cos(k * math.pi / 8) / 2 + 0.5 for k in range(8)]
    assert half[4] == pytest.approx(0.5) and half[2] == pytest.approx(0.853553, abs=1e-6)
    rates = curve(ComponentConfig("cosine", {"warmup": 0.2}), 2, 5, lr=1.0)
    assert rates == pytest.approx([0.5, 1.0, *half])


def test_step_by_hand():
    rates = curve(ComponentConfig("step", {"factor": 0.5, "drops": 2}), 2, 4, lr=1.0)
    # Thirds of eight steps end at 2.67 and 5.33: the next whole steps are lower.
    assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_step_with_more_drops_than_steps():
    rates = curve(ComponentConfig("step", {"factor": 0.5, "drops": 7}), 1, 4, lr=1.0)
    assert rates == [1, 0.25, 0.0625, 0.015625]


def plateau(dice, **params):
    """The learning rate in each epoch for the validation Dice that each gave."""
    return curve(
        ComponentConfig("plateau", params), len(dice), 1, lambda epoch: dice[epoch - 1], lr=1.0
    )


@pytest.mark.parametrize(
    ("dice", "patience", "rates"),
    [
        # Epochs 2, 3 and 4 are no better than the first: the fifth goes on at half the rate.
        ([0.5] * 9, 2, [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]),
        ([0.5] * 5, 0, [1, 1, 0.5, 0.25, 0.125]),
        # A better epoch starts the count anew.
        ([0.5, 0.4, 0.6, 0.4, 0.4, 0.4], 1, [1, 1, 1, 1, 1, 0.5]),
        # Better by very little is better.
        ([0.5, 0.50001, 0.50002, 0.50003], 0, [1, 1, 1, 1]),
        ([0.0, 0.0, 0.0], 1, [1, 1, 1]),
        ([0.1, 0.2, 0.3, 0.4], 0, [1, 1, 1, 1]),
    ],
)
def test_plateau_patience(dice, patience, rates):
    assert plateau(dice, factor=0.5, patience=patience) == rates


def test_plateau_multiplies_by_its_factor():
    assert plateau([0.5] * 4, factor=0.1, patience=0) == pytest.approx([1, 1, 0.1, 0.01])


def test_unknown_entry_is_refused():
    with pytest.raises(InputError, match=r"^unknown schedule 'cosin' \(did you mean 'cosine'\?\)$"):
        build_schedule(ComponentConfig("cosin"), sgd(), 1, 1)
    with pytest.raises(InputError, match=r"^schedule\.step: drops must lie in \[1, 10\], got 11$"):
        build_schedule(ComponentConfig("step", {"drops": 11}), sgd(), 1, 1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_groups_keep_the_ratios_of_their_rates(name):
    """Down to rates at which torch would no longer change them by default."""
    slow, fast = Parameter(torch.ones(2)), Parameter(torch.ones(2))
    for component in components(name):
        optimizer = build_optimizer(
            ComponentConfig("adam", {"lr": 1e-5}), [slow, fast], {slow: 1e-3}
        )
        schedule = build_schedule(component, optimizer, 30, 2)
        rates = []
        for _ in range(30):
            for _ in range(2):
                rates.append([group["lr"] for group in optimizer.param_groups])
                optimizer.step()
                schedule.after_step()
            schedule.after_epoch(0.0)
        assert [low for _, low in rates] == pytest.approx([1e-3 * high for high, _ in rates])
