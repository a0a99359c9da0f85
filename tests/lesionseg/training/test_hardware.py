"""What a training does for the device's sake leaves what it gives as it was."""

import copy
import warnings

import pytest
import torch
from torch.optim import SGD, Adam, AdamW

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError
from lesionseg.optim import optimizers
from lesionseg.runtime import compilation, env
from lesionseg.space import ComponentConfig
from lesionseg.training import batches
from lesionseg.training.types import Suspended
from lesionseg.training.training_state import load_optimizer_state
from tests.lesionseg.small import run_training, without_seconds

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CONFIG = TrialConfig(
    model=ComponentConfig("unet", {"width": 4, "depth": 2}),
    augment=ComponentConfig("full"),
    optimizer=ComponentConfig("adam", {"lr": 1e-2}),
    image_size=16,
    batch_size=4,
    epochs=3,
)


def records(data, **options):
    return without_seconds(run_training(CONFIG, data, **options).history)


# --- augmentation on the device ------------------------------------------------------------------


def test_a_training_augmented_by_torch_repeats_and_is_close_to_the_hosts(data, monkeypatch):
    host = records(data)
    monkeypatch.setenv(env.AUGMENT, "device")
    one, other = records(data), records(data)
    assert one == other
    assert one != host
    # The first epoch's losses, before rounding has led the two apart.
    assert one[0].train_loss == pytest.approx(host[0].train_loss, rel=0.05)


def test_it_goes_on_from_a_break_to_the_last_digit(data, monkeypatch, tmp_path):
    monkeypatch.setenv(env.AUGMENT, "device")
    whole, asked = records(data), iter([False] * 6 + [True])
    with pytest.raises(Suspended):
        records(data, state_path=tmp_path / "s.pt", should_suspend=lambda: next(asked))
    assert records(data, state_path=tmp_path / "s.pt") == whole


def test_images_that_do_not_fit_after_all_are_augmented_by_the_host(data, monkeypatch):
    """Somebody else took the memory between the look at it and the taking."""
    host = records(data)

    def short(*given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setenv(env.AUGMENT, "device")
    assert records(data) != host
    monkeypatch.setattr(batches, "Resident", short)
    assert records(data) == host


def test_another_error_of_bringing_them_there_ends_it(data, monkeypatch):
    def broken(*given):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setenv(env.AUGMENT, "device")
    monkeypatch.setattr(batches, "Resident", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        records(data)


# --- compiling -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "device", "left", "does"),
    [
        (None, CUDA, 0.0, False),
        (None, CUDA, 1799.0, False),
        (None, CUDA, 1800.0, True),
        ("auto", CPU, 1e6, False),
        ("on", CPU, 0.0, True),
        ("off", CUDA, 1e6, False),
    ],
)
def test_only_long_trainings_on_cuda_are_compiled_unless_told(
    monkeypatch, asked, device, left, does
):
    monkeypatch.delenv(env.COMPILE, raising=False)
    if asked:
        monkeypatch.setenv(env.COMPILE, asked)
    assert compilation.is_worthwhile(device, left) == does


def test_what_is_to_come_is_told_by_no_first_epoch_of_a_process(data, monkeypatch, tmp_path):
    asked = []

    def pays(device, seconds_left=0.0):
        asked.append(seconds_left)
        return False

    monkeypatch.setattr(compilation, "is_worthwhile", pays)
    suspended = iter([False] * 8 + [True])  # at the first step of the second epoch
    with pytest.raises(Suspended):
        run_training(CONFIG, data, state_path=tmp_path / "s.pt", should_suspend=lambda: next(suspended))
    assert asked == [0.0]
    history = run_training(CONFIG, data, state_path=tmp_path / "s.pt").history
    # Once more before the first step, and after the third epoch; the second was this one's first.
    assert len(history) == 3 and asked == [0.0, 0.0, 0.0]
    run_training(CONFIG, data)
    assert asked[3] == 0.0 and asked[4] > 0.0 and len(asked) == 6


def test_another_word_is_refused_before_the_training(data, monkeypatch):
    monkeypatch.setenv(env.COMPILE, "yes")
    with pytest.raises(InputError, match="LESIONSEARCH_COMPILE: must be auto, off, on, got 'yes'"):
        records(data)


def test_the_compiled_network_is_what_trains_and_the_plain_one_what_is_judged(data, monkeypatch):
    calls = []

    def compile(model, **options):
        def forward(images):
            calls.append(model.training)
            return model(images)

        return forward

    plain = records(data)
    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setenv(env.COMPILE, "on")
    assert records(data) == plain
    assert calls == [True] * 15  # three epochs of five steps


@pytest.mark.parametrize("when", ["at once", "first step", "later"])
def test_a_compiler_that_fails_costs_a_warning(data, monkeypatch, when):
    def compile(model, **options):
        if when == "at once":
            raise RuntimeError("no compiler here")
        steps = []

        def forward(images):
            steps.append(1)
            found = model(images)  # with all that it changes
            if when == "first step" or len(steps) == 4:
                raise RuntimeError("no compiler here")
            return found

        return forward

    plain = records(data)
    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setenv(env.COMPILE, "on")
    with pytest.warns(RuntimeWarning, match="could not be compiled .RuntimeError: no compiler"):
        found = records(data)
    assert found == plain


def test_an_error_of_the_networks_own_is_no_failure_to_compile(data, monkeypatch):
    """Compiled or not it fails; that of the plain network is what is told."""

    class Wrong(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images):
            raise ValueError("the network's own")

    monkeypatch.setattr(torch, "compile", lambda model, **options: lambda images: model(images))
    monkeypatch.setenv(env.COMPILE, "on")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="the network's own"):
            records(data, model=Wrong())


# --- fused optimizers ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", optimizers.FUSED, ids=lambda k: k.__name__)
def test_one_kernel_does_what_several_do(kind):
    """On the CPU, where torch has the same kernels."""
    options = {"momentum": 0.9, "nesterov": True} if kind is SGD else {}
    ends = []
    for fuse in (False, True):
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(7))]
        optimizer = kind(weights, lr=0.1, **options)
        if fuse:
            optimizers._fuse(optimizer)
        for _ in range(4):
            optimizer.zero_grad()
            sum((w**4).sum() for w in weights).backward()
            optimizer.step()
        ends.append(torch.cat([w.detach().flatten() for w in weights]))
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize(("was", "now"), [(False, True), (True, False)])
def test_a_state_is_taken_up_by_an_optimizer_that_is_fused_or_not(was, now):
    def built(fuse):
        weight = torch.nn.Parameter(torch.ones(4))
        optimizer = AdamW([weight], lr=0.1)
        if fuse:
            optimizers._fuse(optimizer)
        return weight, optimizer

    def step(weight, optimizer):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()

    weight, optimizer = built(was)
    other, its = built(now)
    step(weight, optimizer)
    with torch.no_grad():
        other.copy_(weight)
    load_optimizer_state(its, copy.deepcopy(optimizer.state_dict()))  # which holds the live tensors
    assert bool(its.param_groups[0]["fused"]) == now
    for each in ((weight, optimizer), (other, its)):
        step(*each)
    torch.testing.assert_close(weight, other)


def test_on_a_cpu_nothing_is_fused():
    weight = torch.nn.Parameter(torch.ones(4))
    built = optimizers.build_optimizer(ComponentConfig("adam"), [weight])
    assert isinstance(built, Adam) and not built.param_groups[0]["fused"]
