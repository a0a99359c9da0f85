"""The average is the formula's, is a network of its own, and resumes exactly."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lesionseg.training.ema import ModelEma


class Lone(nn.Module):
    """A single parameter."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))


class Tied(nn.Module):
    """A weight with two names."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        self.b.weight = self.a.weight


class Buffered(nn.Module):
    """Buffers of several dtypes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.0, 10.0]))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("seen", torch.tensor(False))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]), persistent=False)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1))


def go(model, steps, *averages, seed=1):
    """Train for some steps and update the averages after each."""
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(2, 1, 8, 8, generator=draws)).square().mean().backward()
        optimizer.step()
        for average in averages:
            average(model)


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def put(model, value):
    with torch.no_grad():
        model.value.fill_(value)


def warmed_up(model, decay):
    """An average whose decay has reached its final value."""
    average = ModelEma(model, decay)
    average.load_state_dict(average.state_dict() | {"steps": 10**6})
    return average


def test_three_steps_computed_by_hand():
    model = Lone(0.0)
    average = ModelEma(model, decay=0.15)
    seen = []
    for value in (10.0, 20.0, 30.0):
        put(model, value)
        average.update(model)
        seen.append(average.model.value.item())
    # The decays are 1/10, then 2/11 and 3/12, which 0.15 is below.
    first = 0.1 * 0 + 0.9 * 10
    second = 0.15 * first + 0.85 * 20
    assert (first, second) == (9.0, pytest.approx(18.35))
    assert seen == pytest.approx([first, second, 0.15 * second + 0.85 * 30])


def test_warm_up_decay_schedule():
    """For a weight that is constantly 0, an initial 1 becomes the product of the decays."""
    model = Lone(1.0)
    average = ModelEma(model, decay=0.9)
    put(model, 0.0)
    product = 1.0
    for t in range(100):
        average.update(model)
        product *= min(0.9, (1 + t) / (10 + t))
        assert average.model.value.item() == pytest.approx(product, rel=1e-4)
    assert (1 + 79) / (10 + 79) < 0.9 < (1 + 81) / (10 + 81)  # both kinds of step were taken


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_equals_torchs_ema_without_warm_up(decay):
    model = network()
    ours = warmed_up(model, decay)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    theirs.update_parameters(model)  # its first is a copy: the same start
    start = state(ours.model)
    go(model, 5, ours.update, theirs.update_parameters)
    assert not same(start, state(ours.model))
    ends = state(ours.model), state(theirs.module)
    for end in ends:
        del end["1.num_batches_tracked"]  # torch's averages it and cuts the rest off
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-7)


def test_float_buffers_are_averaged_and_others_copied():
    model = Buffered()
    average = warmed_up(model, decay=0.5)
    for step in (1, 2, 3):
        model.mean.add_(4.0)
        model.count.fill_(step)
        model.seen.fill_(True)
        average.update(model)
    # From 0 to 4, 8 and 12: 2, 5, 8.5.
    assert average.model.mean.tolist() == [8.5, 18.5]
    assert average.model.count.item() == 3 and average.model.count.dtype == torch.int64
    assert average.model.seen.item() is True


def test_infinite_mask_is_unchanged():
    model = Buffered()
    average = ModelEma(model, decay=0.5)
    average.update(model)
    assert average.model.mask.tolist() == [0.0, -torch.inf]


def test_batch_norm_statistics_are_averaged_and_counters_copied():
    model = network()
    average = warmed_up(model, decay=0.5)
    means = [model[1].running_mean.clone()]
    go(model, 3, average.update, lambda m: means.append(m[1].running_mean.clone()))
    expected = means[0] / 8 + means[1] / 8 + means[2] / 4 + means[3] / 2
    torch.testing.assert_close(average.model[1].running_mean, expected)
    assert average.model[1].num_batches_tracked == 3


def test_original_network_is_unchanged():
    alone, watched = network(), network()
    average = ModelEma(watched, decay=0.9)
    go(alone, 4)
    go(watched, 4, average.update)
    assert same(state(alone), state(watched))
    assert watched.training and all(m.training for m in watched.modules())
    assert all(p.requires_grad for p in watched.parameters())


def test_average_is_a_copy_in_evaluation_mode_without_gradients():
    model = network()
    average = ModelEma(model, decay=0.9)
    held = average.model
    go(model, 2, average.update)
    assert average.model is held
    assert not any(m.training for m in held.modules())
    assert all(not p.requires_grad and p.grad is None for p in held.parameters())
    assert not held(torch.ones(1, 1, 8, 8)).requires_grad
    storages = {t.data_ptr() for t in model.state_dict().values()}
    assert not storages & {t.data_ptr() for t in held.state_dict().values()}


def test_initial_average_equals_the_network():
    model = network()
    assert same(state(ModelEma(model, decay=0.9).model), state(model))


def test_state_resumes_bit_exactly():
    model = network()
    whole = ModelEma(model, 0.99)
    go(model, 3, whole.update)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    resumed, forgetful = (ModelEma(network(seed=5), 0.99) for _ in range(2))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed.load_state_dict(saved)
    assert same(state(resumed.model), state(whole.model))
    forgetful.load_state_dict({**saved, "steps": 0})
    go(model, 3, whole.update, resumed.update, forgetful.update, seed=2)
    assert same(state(resumed.model), state(whole.model))
    assert not same(state(forgetful.model), state(whole.model))
    assert not any(p.requires_grad for p in resumed.model.parameters())


def test_tied_weight_is_averaged_once():
    model = Tied()
    nn.init.zeros_(model.a.weight)
    average = warmed_up(model, decay=0.75)
    nn.init.ones_(model.a.weight)
    average.update(model)
    assert average.model.a.weight is average.model.b.weight
    assert average.model.b.weight.item() == 0.25


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Sequential(), Buffered()], ids=["relu", "no", "b"])
def test_network_without_parameters(model):
    average = ModelEma(model, decay=0.9)
    average.update(model)
    other = ModelEma(copy.deepcopy(model), decay=0.9)
    other.load_state_dict(average.state_dict())
    assert same(state(other.model), state(model))


def test_constant_weights_are_bit_identical():
    """As in a frozen encoder."""
    model = network().requires_grad_(False)
    before = state(model)
    average = ModelEma(model, decay=0.9)
    for _ in range(20):
        average.update(model)
    assert same(state(average.model), before)


def test_mixed_dtypes_are_kept():
    model = nn.Sequential(nn.Linear(2, 2).to(torch.bfloat16), nn.Linear(2, 2))
    average = warmed_up(model, decay=0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    average.update(model)
    assert average.model[0].weight.dtype == torch.bfloat16
    assert average.model[1].weight.dtype == torch.float32


def test_update_does_not_synchronise():
    """Reading a value of a meta tensor raises an error."""
    model = network().to("meta")
    average = ModelEma(model, decay=0.9)
    with pytest.raises(RuntimeError):
        model[1].num_batches_tracked.item()
    average.update(model)
    assert average.state_dict()["steps"] == 1
