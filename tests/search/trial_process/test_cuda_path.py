"""Jobs on a CUDA device that computes shapes and types only (tests.fake_cuda)."""

import multiprocessing
import threading

import numpy as np
import pytest

from lesionseg.config import TrialConfig
from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.models import build_model
from lesionseg.space import ComponentConfig
from lesionseg.training import batches, checkpoint
from lesionseg.training.types import EpochRecord
from search.trial_process import child_main
from search.trial_process.protocol import (
    Evaluated,
    EvaluateJob,
    InferenceSelected,
    ModelBuilt,
    Reply,
    SelectInferenceJob,
    Trained,
    TrainJob,
)
from search.trial_process.slot import Slot
from tests.fake_cuda import fake_cuda, in_fork

pytestmark = pytest.mark.fake_cuda

CONFIG = TrialConfig(
    model=ComponentConfig("unet", {"width": 4, "depth": 2}), image_size=32, batch_size=4, epochs=2
)
DEVICES = [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)]


@pytest.fixture(scope="module")
def cache(tiny_data, tmp_path_factory):
    return build_cache(DatasetIndex.read(tiny_data), 32, tmp_path_factory.mktemp("cache"))


def run(job):
    """Run a job with two devices; return its messages, its outcome and the fake driver's state."""
    ours, theirs = multiprocessing.Pipe()
    messages = []

    def answer():
        while (message := ours.recv()) is not None:
            messages.append(message)
            if isinstance(message, ModelBuilt | EpochRecord):
                ours.send(Reply.CONTINUE)

    worker = threading.Thread(target=answer)
    worker.start()
    with pytest.MonkeyPatch.context() as patch, fake_cuda(count=2) as cuda:
        patch.setattr(batches, "loader_workers", lambda device, n_bytes: 0)
        patch.setattr("lesionseg.runtime.throughput.MIN_SECONDS", 0.0)
        outcome = child_main.run_job(job, theirs)
    theirs.send(None)
    worker.join()
    return messages, outcome, cuda


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize(("device", "index"), DEVICES)
@in_fork
def test_training(cache, tmp_path, device, index, share):
    job = TrainJob(
        CONFIG.to_dict(), cache.path, np.arange(8), np.arange(8, 12), Slot(device, 1, share),
        weights_path=tmp_path / "m.safetensors", picture_path=tmp_path / "p.jpg",
    )  # fmt: skip
    messages, outcome, cuda = run(job)
    assert isinstance(outcome, Trained) and isinstance(messages[0], ModelBuilt)
    assert [m.epoch for m in messages[1:]] == [1, 2]
    assert job.weights_path.is_file() and job.picture_path.is_file()
    # The whole job is on its own device, with its own share of the memory.
    assert cuda.current == index and cuda.used == {index}
    assert cuda.fractions == ({} if share == 1 else {index: share})


@pytest.mark.parametrize(("device", "index"), DEVICES)
@in_fork
def test_selection_and_evaluation(cache, tmp_path, tiny_data, device, index):
    weights = tmp_path / "m.safetensors"
    checkpoint.save(weights, build_model(CONFIG.model, image_size=32).state_dict(), CONFIG)
    job = SelectInferenceJob(weights, cache.path, np.arange(4), Slot(device), postprocess=False)
    _, outcome, cuda = run(job)
    assert isinstance(outcome, InferenceSelected) and cuda.used == {index}
    records = DatasetIndex.read(tiny_data).records[:3]
    job = EvaluateJob(weights, cache.path, records, Slot(device), tmp_path / "overlays")
    _, outcome, cuda = run(job)
    assert isinstance(outcome, Evaluated) and cuda.used == {index}
    assert min(outcome.speed.values()) > 0
