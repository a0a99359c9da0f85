"""Every optimizer goes down; every schedule follows its curve and never breaks."""

import itertools
import math
import warnings

import pytest
import torch
from torch.nn import Parameter

from lesionseg.errors import InputError
from lesionseg.optim import OPTIMIZERS, SCHEDULES, build_optimizer, build_schedule
from lesionseg.space import Pick


def corners(table, name):
    space = table[name].space
    for values in itertools.product(*(d.corners() for d in space.values())):
        yield Pick(name, dict(zip(space, values, strict=True)))


def all_picks(table):
    picks = [Pick(name) for name in table]
    return picks + [p for name in table for p in corners(table, name) if p.params]


SCHEDULE_PICKS = all_picks(SCHEDULES)


def curve(pick, epochs, steps, dice=lambda epoch: 0.0, lr=0.1):
    """The learning rate of every optimizer step, as a training would call the schedule."""
    optimizer = torch.optim.SGD([Parameter(torch.ones(1))], lr=lr, momentum=0.9)
    schedule = build_schedule(pick, optimizer, epochs, steps)
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


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_goes_down_a_bowl(name):
    where = Parameter(torch.tensor([2.0, -1.0, 0.5]))
    optimizer = build_optimizer(Pick(name), [where])
    steepness = torch.tensor([1.0, 3.0, 0.3])
    heights = []
    for _ in range(200):
        optimizer.zero_grad()
        height = (steepness * where**2).sum()
        height.backward()
        optimizer.step()
        heights.append(float(height.detach()))
    assert heights[-1] < 0.9 * heights[0]
    assert heights[50] < heights[0]


@pytest.mark.parametrize("pick", all_picks(OPTIMIZERS), ids=str)
def test_a_first_step_at_any_corner_is_downhill(pick):
    where = Parameter(torch.tensor([1.0, -1.0]))
    optimizer = build_optimizer(pick, [where])
    (where**2).sum().backward()
    optimizer.step()
    moved = where.detach() - torch.tensor([1.0, -1.0])
    assert moved[0] < 0 < moved[1]


@pytest.mark.parametrize(
    ("pick", "expected"),
    [
        # Adam's first step is the learning rate, whatever the gradient.
        (Pick("adam", {"lr": 0.1}), 3.0 - 0.1),
        # Decoupled: the weight shrinks by lr x decay first.
        (Pick("adamw", {"lr": 0.1, "weight_decay": 0.1}), 3.0 * (1 - 0.1 * 0.1) - 0.1),
        # The gradient 6 gains decay x weight; Nesterov looks one momentum ahead.
        (
            Pick("sgd", {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.01}),
            3.0 - 0.1 * (1 + 0.5) * (6 + 0.01 * 3.0),
        ),
    ],
    ids=lambda v: getattr(v, "name", None),
)
def test_the_first_step_by_hand(pick, expected):
    where = Parameter(torch.tensor([3.0]))
    optimizer = build_optimizer(pick, [where])
    (where**2).sum().backward()
    optimizer.step()
    assert where.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("pick", SCHEDULE_PICKS, ids=str)
def test_it_lasts_for_every_step_of_any_training_and_stays_below_the_given_rate(pick):
    lengths = [(1, 1), (1, 2), (1, 3), (2, 1), (3, 1), (1, 9), (3, 3), (4, 5), (1, 100), (7, 13)]
    for epochs, steps in lengths:
        rates = curve(pick, epochs, steps)
        assert len(rates) == epochs * steps
        assert all(0 <= r <= 0.1 * (1 + 1e-9) for r in rates)
        assert max(rates) > 0


@pytest.mark.parametrize("pick", SCHEDULE_PICKS, ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_moves_the_learning_rate_and_nothing_else(pick, optimizer):
    """Momentum and decay are parameters of their own in the search."""
    built = build_optimizer(Pick(optimizer), [Parameter(torch.ones(1))])
    given = {k: v for k, v in built.param_groups[0].items() if k not in ("params", "lr")}
    schedule = build_schedule(pick, built, 2, 3)
    for _ in range(2):
        for _ in range(3):
            built.step()
            schedule.after_step()
            now = built.param_groups[0]
            assert {k: now[k] for k in given} == given
        schedule.after_epoch(0.0)


def test_constant_stays_as_given():
    assert curve(Pick("constant"), 3, 4) == [0.1] * 12


def test_cosine_by_hand():
    # Ten steps, two of them warm-up; then eight along half a cosine.
    half = [math.cos(k * math.pi / 8) / 2 + 0.5 for k in range(8)]
    expected = [0.5, 1.0, *half]
    assert half[4] == pytest.approx(0.5) and half[2] == pytest.approx(0.853553, abs=1e-6)
    rates = curve(Pick("cosine", {"warmup": 0.2}), 2, 5, lr=1.0)
    assert rates == pytest.approx(expected)


def test_cosine_without_warm_up_starts_at_the_given_rate():
    rates = curve(Pick("cosine", {"warmup": 0.0}), 1, 4, lr=1.0)
    assert rates == pytest.approx([1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])


def test_cosine_ends_at_zero_after_the_last_step():
    optimizer = torch.optim.SGD([Parameter(torch.ones(1))], lr=1.0)
    schedule = build_schedule(Pick("cosine"), optimizer, 3, 7)
    for _ in range(21):
        optimizer.step()
        schedule.after_step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


@pytest.mark.parametrize("rise", [0.1, 0.2, 0.25, 0.3, 0.5])
@pytest.mark.parametrize(("epochs", "steps"), [(1, 4), (3, 3), (4, 10), (1, 100)])
def test_onecycle_rises_to_exactly_the_given_rate_and_falls(rise, epochs, steps):
    rates = curve(Pick("onecycle", {"rise": rise}), epochs, steps)
    peak = rates.index(max(rates))
    assert peak == max(1, round(rise * epochs * steps))
    assert rates[peak] == pytest.approx(0.1, rel=1e-9)
    assert rates[0] == pytest.approx(0.1 / 25)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.1


def plateau(dice, **params):
    """The learning rate in each epoch for the validation Dice that each gave."""
    return curve(Pick("plateau", params), len(dice), 1, lambda epoch: dice[epoch - 1], lr=1.0)


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
def test_plateau_lowers_after_patience_plus_one_epochs_without_a_better_dice(dice, patience, rates):
    assert plateau(dice, factor=0.5, patience=patience) == rates


def test_plateau_multiplies_by_its_factor():
    assert plateau([0.5] * 4, factor=0.1, patience=0) == pytest.approx([1, 1, 0.1, 0.01])


def test_a_pick_outside_the_tables_is_refused():
    weights = [Parameter(torch.ones(1))]
    with pytest.raises(InputError, match=r"^unknown optimizer 'sgdd' \(did you mean 'sgd'\?\)$"):
        build_optimizer(Pick("sgdd"), weights)
    with pytest.raises(InputError, match=r"^optimizer\.adam: lr must lie in \[1e-05, 0\.1\], got"):
        build_optimizer(Pick("adam", {"lr": 1.0}), weights)
    with pytest.raises(InputError, match=r"^unknown schedule 'cosin' \(did you mean 'cosine'\?\)$"):
        build_schedule(Pick("cosin"), build_optimizer(Pick("adam"), weights), 1, 1)
