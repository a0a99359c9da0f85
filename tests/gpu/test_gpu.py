"""Training and inference on a real GPU.

Skipped without one. LESIONSEARCH_GPU_TESTS=cpu runs those that a CPU can run, to test the tests.
"""

import copy
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from lesionseg.config import TrialConfig
from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.inference.evaluate import predict_probabilities
from lesionseg.losses import LOSSES, build_loss
from lesionseg.losses.distance import opencv_distance, torch_distance
from lesionseg.models import MODELS, build_model
from lesionseg.runtime.device import pick_device
from lesionseg.space import ComponentConfig
from lesionseg.training import train_step
from lesionseg.training.train import train
from lesionseg.training.train_step import TrainStep
from lesionseg.training.types import EpochRecord, Suspended, TrainData, TrainOptions
from search.trial_process import protocol
from search.trial_process.process import TrialProcess
from search.trial_process.slot import Slot

HAS_GPU = torch.cuda.is_available()
DEVICE = os.environ.get("LESIONSEARCH_GPU_TESTS", "cuda:0")
CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_GPU and DEVICE.startswith("cuda"), reason="no CUDA GPU"),
]
needs_cuda = pytest.mark.skipif(not HAS_GPU, reason="no CUDA GPU")

SMALL = TrialConfig(
    model=ComponentConfig("unet", {"width": 8, "depth": 3}),
    augment=ComponentConfig("full"),
    optimizer=ComponentConfig("adamw", {"lr": 1e-2}),
    image_size=32,
    batch_size=8,
    epochs=3,
    amp="off",
)


@pytest.fixture(scope="module")
def data(tiny_data, tmp_path_factory):
    cache = build_cache(DatasetIndex.read(tiny_data), 32, tmp_path_factory.mktemp("cache"))
    return TrainData(cache, np.arange(24), np.arange(24, 30))


def run(data, config=SMALL, device=DEVICE, **options):
    return train(config, data, options=TrainOptions(device=torch.device(device), **options))


@pytest.mark.parametrize("device", [DEVICE, DEVICE.partition(":")[0]])
@pytest.mark.parametrize("amp", ["auto", "off"])
def test_training_is_close_to_the_cpus(data, device, amp):
    """The first epoch, before rounding has led the two apart."""
    expected = run(data, device="cpu").history[0]
    first = run(data, replace(SMALL, amp=amp), device).history[0]
    assert first.train_loss == pytest.approx(expected.train_loss, rel=0.05)
    assert np.isfinite(first.val_loss)


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_step_of_every_model(name):
    torch.manual_seed(0)
    entry = MODELS[name]
    stride = entry.stride(**{key: domain.default for key, domain in entry.space.items()})
    size = -(-max(stride, entry.min_image_size, 128) // stride) * stride
    config = replace(SMALL, model=ComponentConfig(name), image_size=size, batch_size=4, amp="auto")
    model = build_model(config.model, image_size=size)
    step = TrainStep(config, model, torch.device(DEVICE), 1)
    images = torch.randn(4, 3, size, size, device=DEVICE)
    masks = (torch.rand(4, 1, size, size, device=DEVICE) > 0.5).float()
    before = [p.detach().clone() for p in step.model.parameters()]
    assert torch.isfinite(step(images, masks))
    after = list(step.model.parameters())
    assert all(torch.isfinite(p).all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@needs_cuda
def test_no_step_waits_for_the_device():
    config = replace(SMALL, ema=0.9, clip_norm=1.0, amp="auto")
    model = build_model(config.model, image_size=32)
    step = TrainStep(config, model, torch.device(DEVICE), 4)
    images, masks = torch.randn(8, 3, 32, 32, device=DEVICE), torch.ones(8, 1, 32, 32).to(DEVICE)
    step(images, masks)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(images, masks)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_equal_float64(name):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 1, 48, 48, generator=rng)
    masks = torch.zeros(4, 1, 48, 48)
    masks[:2, :, 10:30, 12:40], masks[2] = 1, 1
    results = []
    for device, dtype in ((DEVICE, torch.float32), ("cpu", torch.float64)):
        inputs = logits.to(device, dtype, copy=True).requires_grad_()
        value = build_loss(ComponentConfig(name))(inputs, masks.to(device))
        value.backward()
        results.append((value.item(), inputs.grad.double().cpu()))
    (value, gradient), (expected, expected_gradient) = results
    assert value == pytest.approx(expected, rel=1e-4, abs=1e-5)
    scale = expected_gradient.abs().max()
    assert (gradient - expected_gradient).abs().max() < 1e-3 * scale + 1e-8


def test_distances_equal_opencv():
    masks = torch.rand(6, 1, 64, 96) > torch.tensor([0.5, 0.99, 0.01, 2, -1, 0.9]).view(6, 1, 1, 1)
    on_device = torch_distance(masks[:, 0].to(DEVICE)).cpu()
    assert (on_device - opencv_distance(masks[:, 0])).abs().max() < 1e-4


def test_out_of_memory_equals_parts():
    """A step that runs out of memory is that of twice as many parts."""
    model = build_model(SMALL.model, image_size=32)
    images, masks = torch.randn(8, 3, 32, 32).to(DEVICE), torch.ones(8, 1, 32, 32).to(DEVICE)

    class Limited(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            if len(x) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return self.inner(x)

    ends = []
    for network, parts in ((Limited(copy.deepcopy(model)), 1), (copy.deepcopy(model), 2)):
        step = TrainStep(SMALL, network, torch.device(DEVICE), 1, parts)
        step(images, masks)
        assert step.accumulation_steps == 2
        ends.append(torch.cat([p.detach().flatten().cpu() for p in network.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-5)


@needs_cuda
def test_float16_with_clipping_and_average(data, monkeypatch):
    monkeypatch.setattr(train_step, "amp_dtype", lambda device, amp: torch.float16)
    result = run(data, replace(SMALL, clip_norm=1.0, ema=0.9, epochs=4))
    losses = [record.train_loss for record in result.history]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


@pytest.mark.parametrize(("first", "then"), [("cpu", DEVICE), (DEVICE, "cpu")])
def test_state_moves_between_cpu_and_gpu(data, tmp_path, first, then):
    config, path = replace(SMALL, ema=0.9), tmp_path / "state.pt"
    asked = iter([False] * 4 + [True])  # within the second epoch
    with pytest.raises(Suspended):
        run(data, config, first, state_path=path, should_suspend=lambda: next(asked))
    resumed = []
    result = run(data, config, then, state_path=path, on_resume=resumed.append)
    assert resumed and len(result.history) == 3
    whole = run(data, config, then)
    assert result.history[-1].train_loss == pytest.approx(
        whole.history[-1].train_loss, rel=0.3, abs=0.05
    )


def test_inference_is_close_to_the_cpus(data, tmp_path):
    path = tmp_path / "m.safetensors"
    model = build_model(SMALL.model, image_size=32)
    run(data, model=model, weights_path=path)
    on_device, on_cpu = (
        np.stack(list(predict_probabilities(model, data.cache, data.val, device=device)))
        for device in (torch.device(DEVICE), CPU)
    )
    assert np.abs(on_device - on_cpu).max() < 0.05  # half precision


def job_of(data, tmp_path, share=1.0, epochs=3):
    return protocol.TrainJob(
        replace(SMALL, epochs=epochs, amp="auto").to_dict(), data.cache.path, data.train, data.val,
        Slot(DEVICE, 2, share), weights_path=tmp_path / "m.safetensors",
        state_path=tmp_path / "state.pt", picture_path=tmp_path / "p.jpg",
    )  # fmt: skip


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_trial_process(data, tmp_path, share):
    job = job_of(data, tmp_path, share)
    with TrialProcess(job) as process:
        for message in process.messages():
            if isinstance(message, protocol.ModelBuilt | EpochRecord):
                process.reply(stop=False)
    assert isinstance(message, protocol.Trained), message
    assert job.weights_path.is_file() and job.picture_path.is_file()


def test_trial_process_is_suspended(data, tmp_path):
    job = job_of(data, tmp_path, epochs=2000)
    with TrialProcess(job) as process:
        for message in process.messages():
            if isinstance(message, EpochRecord) and message.epoch == 2:
                process.suspend()
            elif isinstance(message, protocol.ModelBuilt | EpochRecord):
                process.reply(stop=False)
    assert isinstance(message, protocol.Suspended) and message.saved
    assert job.state_path.is_file()


@needs_cuda
def test_share_limits_the_memory():
    device = pick_device("cuda")
    torch.cuda.set_per_process_memory_fraction(0.01, device)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(int(0.02 * torch.cuda.mem_get_info(device)[1]), dtype=torch.uint8).to(
                device
            )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.empty_cache()
