"""Training and inference on a CUDA device that computes shapes and types only (tests.fake_cuda)."""

import collections
import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from lesionseg.augment.mix import MIXES
from lesionseg.config import TrialConfig
from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.inference.ensemble import Ensemble
from lesionseg.inference.evaluate import evaluate
from lesionseg.inference.selection import select_inference
from lesionseg.inference.tta import predict_images
from lesionseg.losses import LOSSES, build_loss
from lesionseg.models import MODELS, build_model
from lesionseg.models.smp import ENCODERS, TRANSFORMERS
from lesionseg.optim.optimizers import FUSED, OPTIMIZERS
from lesionseg.optim.schedules import SCHEDULES
from lesionseg.runtime.throughput import images_per_second
from lesionseg.space import ComponentConfig
from lesionseg.training import batches
from lesionseg.training.train import train
from lesionseg.training.train_step import TrainStep
from lesionseg.training.types import TrainData, TrainingEnd, TrainOptions
from tests.fake_cuda import fake_cuda, in_fork

pytestmark = pytest.mark.fake_cuda

DEVICES = ["cuda", "cuda:0"]
SMALL = TrialConfig(
    model=ComponentConfig("unet", {"width": 4, "depth": 2}),
    augment=ComponentConfig("full"),
    image_size=32,
    batch_size=4,
    epochs=2,
)
#: Where the host may wait for the device: once per epoch, and for results.
ALLOWED_SYNCS = {
    "lesionseg/training/train.py:Trainer.run_steps": "the loss, once per epoch",
    "lesionseg/training/validation.py:Validator.evaluate": "loss and metrics, once per epoch",
    "lesionseg/inference/tta.py:predict_images": "probabilities of a batch",
    "lesionseg/training/training_state.py:save_state": "a saved state",
    "lesionseg/training/checkpoint.py:_write": "the kept weights",
    "lesionseg/training/training_state.py:random_state": "the generators' states",
}


def check_syncs(cuda, extra=()):
    assert set(cuda.syncs) <= {*ALLOWED_SYNCS, *extra}, collections.Counter(cuda.syncs)


def size_of(name):
    entry = MODELS[name]
    defaults = {key: domain.default for key, domain in entry.space.items()}
    stride = entry.stride(**defaults)
    return -(-max(stride, entry.min_image_size, 32) // stride) * stride


def run_step(config, device, steps=1, epochs=1):
    """Build on the CPU, train some steps on the device, and predict."""
    torch.manual_seed(0)
    model = build_model(config.model, image_size=config.image_size)
    n, size = config.batch_size, config.image_size
    pixels = np.zeros((n, size, size, 3), np.uint8)
    with fake_cuda() as cuda:
        device = torch.device(device)
        images = torch.zeros(n, 3, size, size, device=device)
        masks = torch.zeros(n, 1, size, size, device=device)
        step = TrainStep(config, model.train(), device, steps)
        for _ in range(steps):
            loss = step(images, masks)
        assert loss.shape == () and loss.dtype == torch.float32 and loss.device.type == "cuda"
        assert all(p.device.type == "cuda" and p.grad is not None for p in step.model.parameters())
        assert not cuda.syncs, cuda.syncs
        outputs = predict_images(step.eval_model.eval(), pixels, ("none",), device)["none"]
        maps = np.stack([output.probability for output in outputs])
        assert maps.shape == (n, size, size) and maps.dtype == np.float32
        check_syncs(cuda)
    return step


# --- every entry of every table -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODELS)
@in_fork
def test_step_and_inference_of_every_model(name, device):
    config = replace(SMALL, model=ComponentConfig(name), image_size=size_of(name), batch_size=2)
    run_step(config, device)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [*ENCODERS, *TRANSFORMERS])
@in_fork
def test_step_of_every_encoder(encoder):
    name = "smp_dpt" if encoder in TRANSFORMERS else "smp_fpn"
    model = ComponentConfig(name, {"encoder": encoder, "weights": "none"})
    run_step(replace(SMALL, model=model, image_size=64, batch_size=2), "cuda:0")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", LOSSES)
@in_fork
def test_no_loss_waits_for_the_device(name, device):
    with fake_cuda() as cuda:
        logits = torch.zeros(2, 1, 24, 24, device=device, dtype=torch.bfloat16, requires_grad=True)
        masks = torch.zeros(2, 1, 24, 24, device=device)
        value = build_loss(ComponentConfig(name))((logits, logits), masks)
        assert value.dtype == torch.float32 and value.requires_grad
        assert not cuda.syncs


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OPTIMIZERS)
@in_fork
def test_step_of_every_optimizer(name, device, monkeypatch):
    # torch asks the driver whether a fused kernel exists; the fake device has none.
    monkeypatch.setattr("lesionseg.optim.optimizers.FUSED", ())
    run_step(replace(SMALL, optimizer=ComponentConfig(name), clip_norm=1.0), device, steps=2)


@in_fork
def test_fused_optimizers_are_used_on_cuda():
    from lesionseg.optim import build_optimizer

    with fake_cuda():
        weight = torch.nn.Parameter(torch.zeros(3, device="cuda"))
        built = [build_optimizer(ComponentConfig(name), [weight]) for name in OPTIMIZERS]
    assert [o.defaults.get("fused") for o in built if isinstance(o, FUSED)] == [True] * 3


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("family", "name"),
    [(f, n) for f, names in (("schedule", SCHEDULES), ("mix", MIXES)) for n in names],
)
@in_fork
def test_training_with_every_schedule_and_mix(data, family, name, device):
    records, cuda = run_training(data, device, **{family: ComponentConfig(name)})
    assert len(records) == 2
    check_syncs(cuda)


# --- the whole training ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tiny_data, tmp_path_factory):
    """30 images of 32 x 32."""
    cache = build_cache(DatasetIndex.read(tiny_data), 32, tmp_path_factory.mktemp("cache"))
    return TrainData(cache, np.arange(10), np.arange(10, 14))


def run_training(data, device, options=None, capability=(9, 0), **settings):
    """Train on the fake device; return the records and the fake driver's state."""
    records = []
    with pytest.MonkeyPatch.context() as patch, fake_cuda(capability=capability) as cuda:
        # Loader processes would inherit the fake tensors.
        patch.setattr(batches, "loader_workers", lambda device, n_bytes: 0)
        options = replace(options or TrainOptions(), device=torch.device(device))
        result = train(replace(SMALL, **settings), data, records.append, options)
        assert result.stopped == TrainingEnd.FINISHED and result.peak_memory == 2**20
    return records, cuda


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "settings",
    [
        {"ema": 0.9, "clip_norm": 1.0, "accumulate": 2},
        {"model": ComponentConfig("unet", {"width": 4, "depth": 3, "deep_supervision": True})},
        {"amp": "off", "label_smoothing": 0.1, "flooding": 0.1},
        {"loss": ComponentConfig("hausdorff"), "overlap": "batch"},
    ],
    ids=["ema, clip, parts", "deep supervision", "float32", "hausdorff"],
)
@in_fork
def test_training(data, device, settings, tmp_path):
    weights = tmp_path / "m.safetensors"
    records, cuda = run_training(data, device, TrainOptions(weights_path=weights), **settings)
    assert [record.epoch for record in records] == [1, 2] and weights.is_file()
    check_syncs(cuda)
    # Per epoch: the training loss, the validation loss and the pixel counts.
    epochs = [place for place in cuda.syncs if "training_state" not in place]
    assert sum("train.py" in p or "validation.py" in p for p in epochs) == 2 * 3


@pytest.mark.parametrize("device", DEVICES)
@in_fork
def test_float16_on_gpus_without_bfloat16(data, device):
    """Scaled gradients: torch's scaler reads one value of the device per step."""
    records, cuda = run_training(data, device, capability=(7, 0), clip_norm=1.0, ema=0.9)
    assert len(records) == 2
    check_syncs(cuda, extra=["lesionseg/training/train_step.py:TrainStep.__call__"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop", "nadam", "lion"])
@in_fork
def test_state_of_a_cpu_is_loaded_on_cuda(optimizer, device):
    config = replace(SMALL, optimizer=ComponentConfig(optimizer), ema=0.9)
    model = build_model(config.model, image_size=32)
    on_cpu = TrainStep(config, copy.deepcopy(model), torch.device("cpu"), 1)
    on_cpu(torch.zeros(2, 3, 32, 32), torch.zeros(2, 1, 32, 32))
    with fake_cuda() as cuda:
        step = TrainStep(config, model, torch.device(device), 1)
        step.load_state_dict(on_cpu.state_dict())
        tensors = [
            (name, value)
            for state in step._optimizer.state.values()
            for name, value in state.items()
            if isinstance(value, torch.Tensor)
        ]
        # Fused kernels count steps on the device; the others would wait for such a counter.
        counters = "cuda" if optimizer in {"adam", "adamw"} else "cpu"
        assert {v.device.type for n, v in tensors if v.ndim} == {"cuda"}
        assert {v.device.type for n, v in tensors if n == "step"} <= {counters}
        # Counters that torch moved to the device are moved back, once.
        assert set(cuda.syncs) <= {"lesionseg/training/training_state.py:load_optimizer_state"}


# --- after the training ---------------------------------------------------------------------------


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("device", DEVICES)
@in_fork
def test_selection_evaluation_and_speed(data, device, tiny_data, members):
    model = build_model(SMALL.model, image_size=32)
    if members > 1:
        model = Ensemble([model, copy.deepcopy(model)], [SMALL] * 2, (0.5, 0.5))
    records = DatasetIndex.read(tiny_data).records[:3]
    images, masks = data.cache.images[:6], data.cache.masks[:6]
    with pytest.MonkeyPatch.context() as patch, fake_cuda() as cuda:
        patch.setattr("lesionseg.runtime.throughput.MIN_SECONDS", 0.0)
        # Postprocessing is the CPU's, and its tensors would be fake too.
        select_inference(
            model, images, masks, device=torch.device(device), postprocess=False, amp="auto"
        )
        evaluation = evaluate(model, data.cache, records, device=torch.device(device))
        assert images_per_second(model, 32, torch.device(device), 4) > 0
    assert len(evaluation.counts) == 3
    check_syncs(cuda)
