"""Batches of which only the plan travels, on the CPU, which computes them as a GPU would."""

import collections
import pickle

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data._utils.pin_memory import pin_memory

from lesionseg.augment import build_augment
from lesionseg.data import device_cache
from lesionseg.data.cache import build_cache
from lesionseg.data.device_cache import DeviceCache, PlanDataset, choose_augment_device
from lesionseg.data.index import DatasetIndex
from lesionseg.data.loader import (
    BatchDataset,
    BatchKey,
    make_train_loader,
    normalise,
    to_device,
    transfer_batches,
)
from lesionseg.errors import InputError
from lesionseg.runtime.device import AUGMENT
from lesionseg.space import ComponentConfig

CPU, CUDA, META = (torch.device(name) for name in ("cpu", "cuda", "meta"))
FULL = build_augment(ComponentConfig("full"))


@pytest.fixture(scope="module")
def cache(tiny_data, tmp_path_factory):
    """30 images of 32 x 32."""
    return build_cache(DatasetIndex.read(tiny_data), 32, tmp_path_factory.mktemp("cache"))


def epoch(cache, *, on_device, members=range(30), workers=0, start=0):
    """Return the batches of the second epoch."""
    members, pipeline = (
        np.asarray(members),
        build_augment(ComponentConfig("full", {"strength": 1.0})),
    )
    if on_device:
        device_images = DeviceCache(cache, members, CPU)
        dataset, transfer = PlanDataset(device_images, pipeline, 7), device_images.make_batch
    else:
        dataset = BatchDataset(cache, pipeline, 7)

        def transfer(batch):
            return to_device(batch, CPU)

    loader, plan = make_train_loader(dataset, members, 4, seed=7, workers=workers)
    plan.epoch, plan.start = 2, start
    return list(transfer_batches(loader, transfer, CPU))


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for p, q in zip(one, other, strict=True)
        for a, b in zip(p, q, strict=True)
    )


@pytest.mark.parametrize("members", [range(30), [28, 3, 5, 11, 2, 17, 9, 4, 21]])
def test_device_batches_equal_host_batches(cache, members):
    host = epoch(cache, on_device=False, members=members)
    ours = epoch(cache, on_device=True, members=members)
    assert len(host) == len(ours)
    for (images, masks), (others, other_masks) in zip(host, ours, strict=True):
        assert others.shape == images.shape and others.dtype == images.dtype
        assert others.is_contiguous(memory_format=torch.channels_last)
        # In deviations of ImageNet's pixels: a tenth is six grey levels.
        assert (images - others).abs().mean() < 0.1
        assert masks.shape == other_masks.shape and (masks != other_masks).float().mean() < 0.02
        assert set(other_masks.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_workers(cache, workers):
    assert same(epoch(cache, on_device=True), epoch(cache, on_device=True, workers=workers))


def test_resuming_within_an_epoch(cache):
    assert same(epoch(cache, on_device=True)[3:], epoch(cache, on_device=True, start=3))


def test_device_cache_holds_the_members(cache):
    members = np.array([9, 2, 9, 25])
    device_images = DeviceCache(cache, members, CPU)
    assert device_images.images.shape == (3, 32, 32, 3)
    rows = device_images.positions(members)
    assert np.array_equal(device_images.images[rows].numpy(), cache.images[members])
    assert np.array_equal(device_images.masks[rows].numpy(), cache.masks[members])


def test_images_are_copied_in_chunks(cache, monkeypatch):
    monkeypatch.setattr(device_cache, "UPLOAD_CHUNK", 7)
    device_images = DeviceCache(cache, np.arange(30), CPU)
    assert np.array_equal(device_images.images.numpy(), cache.images)
    assert np.array_equal(device_images.masks.numpy(), cache.masks)


def test_a_pickled_plan_dataset_has_no_images(cache):
    sent = pickle.dumps(PlanDataset(DeviceCache(cache, np.arange(30), CPU), FULL, 0))
    assert len(sent) - len(pickle.dumps(FULL)) < 2000


class Counted(TorchDispatchMode):
    """Records operations, and copies from the host to the device (here meta)."""

    def __init__(self):
        super().__init__()
        self.names, self.brought = collections.Counter(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **kwargs or {})
        self.names[function.__name__] += 1
        if isinstance(found, torch.Tensor) and found.is_meta:
            given = [a for a in args if isinstance(a, torch.Tensor) and not a.is_meta and a.ndim]
            self.brought += [(function.__name__, a.dtype, a.shape) for a in given]
        return found


def test_one_copy_per_batch_and_no_read_back(cache):
    """A device that can be setting for nothing: on it no number has a value."""
    device_images = DeviceCache(cache, np.arange(30), META)
    loader, plan = make_train_loader(
        PlanDataset(device_images, build_augment(ComponentConfig("full", {"strength": 1.0})), 7),
        np.arange(30),
        15,
        seed=7,
    )
    plan.epoch = 1
    normalise(device_images.images)  # which brings the mean and deviation, once
    for packed in loader:
        with Counted() as counted:
            images, masks = device_images.make_batch(packed)
        assert images.shape == (15, 3, 32, 32) and masks.shape == (15, 1, 32, 32)
        assert [(kind, shape) for _, kind, shape in counted.brought] == [
            (torch.uint8, packed.content.shape)
        ]


def test_a_packed_batch_is_pinned_as_one_tensor(cache, monkeypatch):
    pinned = []

    def pin(tensor, device=None):
        pinned.append(tensor)
        return tensor.clone()

    packed = PlanDataset(DeviceCache(cache, np.arange(30), CPU), FULL, 0)[BatchKey(1, 0, (3, 5))]
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    ours = pin_memory(packed)
    assert len(pinned) == 1 and torch.equal(ours.content, packed.content)
    assert ours.layout == packed.layout


# --- who augments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "device", "free", "who"),
    [
        (None, CUDA, 4 * 10 * 64 * 64 * 4, "device"),
        (None, CUDA, 4 * 10 * 64 * 64 * 4 - 4, "host"),  # they would take more than a quarter
        (None, CPU, 2**40, "host"),
        ("auto", CPU, 2**40, "host"),
        ("device", CPU, 0, "device"),
        ("device", CUDA, 0, "device"),
        ("host", CUDA, 2**40, "host"),
    ],
)
def test_choice_of_the_augmenting_device(monkeypatch, setting, device, free, who):
    monkeypatch.setattr(device_cache, "_free_bytes", lambda device: free)
    monkeypatch.delenv(AUGMENT, raising=False)
    if setting:
        monkeypatch.setenv(AUGMENT, setting)
    assert choose_augment_device(FULL, 64, 10, device) == who


@pytest.mark.parametrize(
    ("free", "share", "reserved", "left"),
    [
        (60, 1.0, 0, 60),
        (60, 0.5, 10, 40),  # of its half it has taken ten
        (30, 0.5, 10, 30),  # others have taken more than theirs
        (60, 0.1, 25, -15),
    ],
)
def test_free_bytes_respect_the_memory_fraction(monkeypatch, free, share, reserved, left):
    """The device has 100 bytes."""
    setting = {
        "mem_get_info": (free, 100),
        "get_per_process_memory_fraction": share,
        "memory_reserved": reserved,
    }
    for name, answer in setting.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    assert device_cache._free_bytes(CUDA) == left


def test_unsupported_pipelines_run_on_the_host(monkeypatch):
    import albumentations as A

    unknown = A.Compose([A.Solarize()])
    monkeypatch.setattr(device_cache, "_free_bytes", lambda device: 2**40)
    monkeypatch.delenv(AUGMENT, raising=False)
    assert choose_augment_device(unknown, 64, 10, CUDA) == "host"
    monkeypatch.setenv(AUGMENT, "device")
    with pytest.raises(InputError, match="on the host only"):
        choose_augment_device(unknown, 64, 10, CUDA)


def test_an_invalid_setting_is_refused(monkeypatch):
    monkeypatch.setenv(AUGMENT, "gpu")
    with pytest.raises(InputError, match="LESIONSEARCH_AUGMENT: must be auto, host, device, got"):
        choose_augment_device(FULL, 64, 10, CPU)
