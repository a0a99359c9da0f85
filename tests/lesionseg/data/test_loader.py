"""Batches depend on (seed, epoch, step) alone; loader processes; transfer to the device."""

import contextlib
import gc
import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from lesionseg.augment import build_augment
from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.data.loader import (
    MEAN,
    STD,
    BatchDataset,
    EpochSampler,
    PrefetchLoader,
    batch_seed,
    iterate_batches,
    make_train_loader,
    normalise,
    to_device,
)
from lesionseg.space import ComponentConfig
from tests.search.helpers import LONG_WAIT_S, is_gone, wait_until

CPU = torch.device("cpu")
NONE, FULL = ComponentConfig("none"), ComponentConfig("full", {"strength": 1.0})


@pytest.fixture(scope="module")
def cache(tiny_data, tmp_path_factory):
    """30 images of 16 x 16."""
    return build_cache(DatasetIndex.read(tiny_data), 16, tmp_path_factory.mktemp("cache"))


def batches(cache, members, batch_size, component, *, seed=0, workers=0, epochs=(1,), start=0):
    """Return the batches of the epochs, of the first one from step ``start`` on."""
    members = np.asarray(members, dtype=np.int64)
    dataset = BatchDataset(cache, build_augment(component), seed)
    loader, plan = make_train_loader(dataset, members, batch_size, seed=seed, workers=workers)
    drawn = []
    for epoch in epochs:
        plan.epoch, plan.start = epoch, start if epoch == epochs[0] else 0
        drawn.append([(i.clone(), m.clone()) for i, m in loader])
    return drawn


def alike(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for p, q in zip(one, other, strict=True)
        for a, b in zip(p, q, strict=True)
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_workers(cache, workers):
    alone = batches(cache, range(30), 4, FULL, epochs=(1, 2, 5))
    helped = batches(cache, range(30), 4, FULL, workers=workers, epochs=(1, 2, 5))
    assert all(alike(a, b) for a, b in zip(alone, helped, strict=True))


def test_resuming_at_a_later_epoch(cache):
    (_, _, third) = batches(cache, range(30), 4, FULL, epochs=(1, 2, 3))
    (again,) = batches(cache, range(30), 4, FULL, epochs=(3,))
    assert alike(third, again)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("start", [1, 4, 6, 7])
def test_resuming_within_an_epoch(cache, workers, start):
    whole, after = batches(cache, range(30), 4, FULL, epochs=(2, 3))
    rest, again = batches(cache, range(30), 4, FULL, workers=workers, epochs=(2, 3), start=start)
    assert len(whole) == 7
    assert alike(rest, whole[start:])
    assert alike(again, after)


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_do_not_use_the_global_generator(cache, workers):
    before = torch.get_rng_state()
    batches(cache, range(30), 5, FULL, workers=workers, epochs=(1, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_differs_between_epochs_and_steps(cache):
    """With a single image, only the augmentation can differ."""
    first, second = batches(cache, [3] * 24, 4, FULL, epochs=(1, 2))
    pictures = [
        image.numpy().tobytes() for epoch in (first, second) for i, _ in epoch for image in i
    ]
    assert len(pictures) == 48
    assert len(set(pictures)) == 48


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_differs_between_epochs(cache, workers):
    epochs = batches(cache, range(30), 5, NONE, workers=workers, epochs=(1, 2, 3))
    assert not any(alike(a, b) for a, b in itertools.combinations(epochs, 2))


def test_seeds_give_different_orders_and_augmentation(cache):
    (one,), (other,) = (batches(cache, range(30), 5, NONE, seed=s) for s in (0, 1))
    assert not alike(one, other)
    (one,), (other,) = (batches(cache, [3] * 5, 5, FULL, seed=s) for s in (0, 1))
    assert not alike(one, other)


def test_images_and_masks_stay_paired(cache):
    (epoch,) = batches(cache, range(30), 7, NONE)
    known = {cache.images[i].tobytes(): cache.masks[i].tobytes() for i in range(30)}
    assert len(known) == 30
    for images, masks in epoch:
        assert images.shape == (7, 16, 16, 3) and images.dtype == torch.uint8
        assert masks.shape == (7, 16, 16) and masks.dtype == torch.uint8
        for image, mask in zip(images.numpy(), masks.numpy(), strict=True):
            assert known[image.tobytes()] == mask.tobytes()


def test_only_members_are_used(cache):
    members = [2, 3, 5, 7, 11, 13]
    (epoch,) = batches(cache, members, 2, NONE)
    drawn = [image.tobytes() for images, _ in epoch for image in images.numpy()]
    assert sorted(drawn) == sorted(cache.images[i].tobytes() for i in members)


def test_the_cache_is_not_changed(cache):
    before = cache.images.tobytes()
    batches(cache, range(30), 5, FULL, epochs=(1, 2))
    assert cache.images.tobytes() == before


def test_a_pickled_dataset_is_small(cache):
    augment = build_augment(FULL)
    assert cache.images.sum() > 0  # mapped, so that it could be sent by mistake
    sent = pickle.dumps(BatchDataset(cache, augment, 0))
    assert len(sent) - len(pickle.dumps(augment)) < 1000


class Made:
    """Records which batches were loaded by which thread; number ``broken`` fails."""

    def __init__(self, broken=None):
        self.steps, self.threads, self.broken = [], set(), broken
        self.more = threading.Event()

    def __getitem__(self, key):
        if key.step == self.broken:
            raise OSError("the disk went away")
        self.steps.append(key.step)
        self.threads.add(threading.current_thread())
        if key.step == 1:
            self.more.set()
        return key.step


def test_the_next_batch_is_prepared_during_a_step():
    made = Made()
    given = iter(PrefetchLoader(made, plan_of(range(40), 4)))
    assert next(given) == 0
    assert made.more.wait(10)  # without being asked for
    assert list(given) == list(range(1, 10)) == made.steps[1:]
    assert len(made.threads) == 1 and threading.main_thread() not in made.threads


def test_at_most_one_batch_is_prefetched():
    made = Made()
    for step in PrefetchLoader(made, plan_of(range(40), 4)):
        assert len(made.steps) <= step + 2


def test_a_loading_error_is_raised_by_the_iterator():
    given = iter(PrefetchLoader(Made(broken=2), plan_of(range(40), 4)))
    assert [next(given), next(given)] == [0, 1]
    with pytest.raises(OSError, match="went away"):
        next(given)


def test_an_interrupted_epoch_leaves_no_thread():
    made = Made()
    given = iter(PrefetchLoader(made, plan_of(range(40), 4)))
    next(given)
    del given
    gc.collect()
    assert not any(thread.is_alive() for thread in made.threads)


# --- processes that make batches ------------------------------------------------------------------


@pytest.fixture
def helped(cache):
    """Return an iterator with 28 of 30 batches left, and the ids of its two processes."""
    dataset = BatchDataset(cache, build_augment(FULL), 0)
    loader, plan = make_train_loader(dataset, np.arange(30), 1, seed=0, workers=2)
    plan.epoch = 1
    given = iter(loader)
    next(given), next(given)  # one of each: both have begun
    return given, [worker.pid for worker in loader._iterator._workers]


def test_workers_ignore_foreign_sigterm(helped):
    """Schedulers send SIGTERM to all processes."""
    given, pids = helped
    for _ in range(3):
        subprocess.run(["kill", "-TERM", *map(str, pids)], check=True)
    assert len(list(given)) == 28
    assert not any(map(is_gone, pids))


def test_the_training_can_terminate_its_workers(helped):
    """As multiprocessing does at exit."""
    _, pids = helped
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    assert wait_until(lambda: all(map(is_gone, pids)), LONG_WAIT_S)


class Stuck:
    def __getitem__(self, key):
        time.sleep(1000)


def _with_loaders(pipe):
    loader, _ = make_train_loader(Stuck(), np.arange(4), 1, seed=0, workers=2)
    iter(loader)
    pipe.send([worker.pid for worker in loader._iterator._workers])
    time.sleep(1000)


def test_workers_end_with_a_killed_training():
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    training = context.Process(target=_with_loaders, args=(theirs,))
    training.start()
    pids = ours.recv()
    time.sleep(0.5)  # until they are at it, or not yet
    assert not any(map(is_gone, pids))
    training.kill()
    training.join()
    gone = wait_until(lambda: all(map(is_gone, pids)), LONG_WAIT_S)
    for pid in pids:  # else they would sleep on behind a test that failed
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert gone


def test_workers_do_not_use_cuda(cache, monkeypatch):
    """A process forked after CUDA was initialised must not use it."""

    def touched():
        raise AssertionError("CUDA was touched")

    dataset = BatchDataset(cache, build_augment(FULL), 0)
    monkeypatch.setattr(torch.cuda, "_lazy_init", touched)
    loader, plan = make_train_loader(dataset, np.arange(30), 10, seed=0, workers=1)
    plan.epoch = 1
    assert len(list(loader)) == 3


# --- the order of an epoch -----------------------------------------------------------------------


def plan_of(members, batch_size, seed=0, epoch=1):
    plan = EpochSampler(np.asarray(members, dtype=np.int64), batch_size, seed)
    plan.epoch = epoch
    return plan


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 100), st.integers(0, 100))
def test_an_epoch_has_no_repetition_and_drops_less_than_a_batch(n, batch_size, seed, epoch):
    plan = plan_of(range(100, 100 + n), batch_size, seed, epoch)
    keys = list(plan)
    assert len(keys) == len(plan)
    assert [(k.epoch, k.step) for k in keys] == [(epoch, i) for i in range(len(keys))]
    drawn = [i for k in keys for i in k.members]
    assert len(set(drawn)) == len(drawn) and set(drawn) <= set(range(100, 100 + n))
    if n < batch_size:  # the only batch is never dropped
        assert len(keys) == 1 and len(drawn) == n
    else:
        assert {len(k.members) for k in keys} == {batch_size}
        assert n - len(drawn) == n % batch_size
    assert keys == list(plan_of(range(100, 100 + n), batch_size, seed, epoch))


def test_dropped_images_differ_between_epochs():
    plan = plan_of(range(10), 4)
    dropped = set()
    for epoch in range(40):
        plan.epoch = epoch
        dropped |= set(range(10)) - {i for key in plan for i in key.members}
    assert dropped == set(range(10))


def test_a_single_image_is_one_batch():
    assert [k.members for k in plan_of([7], 16)] == [(7,)]


def test_batch_seeds_differ():
    keys = list(itertools.product(range(3), range(20), range(20)))
    assert len({batch_seed(*key) for key in keys}) == len(keys)
    assert batch_seed(1, 2, 3) == batch_seed(1, 2, 3)


# --- in order, and to the device -----------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 7, 30, 100])
def test_iterate_batches(cache, batch_size):
    members = np.array([5, 1, 29, 0, 12, 7, 8])
    given = list(iterate_batches(cache, members, batch_size))
    assert torch.equal(torch.cat([i for i, _ in given]), torch.from_numpy(cache.images[members]))
    assert torch.equal(torch.cat([m for _, m in given]), torch.from_numpy(cache.masks[members]))
    assert [len(i) for i, _ in given[:-1]] == [batch_size] * (len(given) - 1)


def test_iterate_batches_without_members(cache):
    assert list(iterate_batches(cache, np.array([], dtype=np.int64), 4)) == []


def test_normalise_equals_torchvision(cache):
    images = torch.from_numpy(cache.images[:5].copy())
    ours = normalise(images)
    theirs = tv.normalize(
        tv.to_dtype(images.permute(0, 3, 1, 2), torch.float32, scale=True),
        mean=[0.485, 0.456, 0.406],
        std=[0.229, 0.224, 0.225],
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert ours.shape == (5, 3, 16, 16) and ours.dtype == torch.float32
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert tuple(m / 255 for m in MEAN) == pytest.approx((0.485, 0.456, 0.406))
    assert tuple(s / 255 for s in STD) == pytest.approx((0.229, 0.224, 0.225))


def test_to_device(cache):
    batch = next(iterate_batches(cache, np.arange(3), 3))
    images, masks = to_device(batch, CPU)
    assert torch.equal(images, normalise(batch[0]))
    assert masks.shape == (3, 1, 16, 16) and masks.dtype == torch.float32
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(masks[:, 0], batch[1].float())


def test_training_after_an_evaluation(cache):
    """Constants cached in inference mode must be usable with gradients."""
    batch = next(iterate_batches(cache, np.arange(2), 2))
    with torch.inference_mode():
        normalise(batch[0])
    layer = torch.nn.Conv2d(3, 1, 1)
    layer(normalise(batch[0])).sum().backward()
    assert layer.weight.grad.isfinite().all()
