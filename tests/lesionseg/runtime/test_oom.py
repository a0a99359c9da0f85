"""What does not fit into memory is done in smaller parts, and means the same."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lesionseg.config import TrialConfig
from lesionseg.inference.evaluate import predict_probabilities
from lesionseg.inference.selection import select_inference
from lesionseg.models import build_model
from lesionseg.runtime.oom import AdaptiveBatcher, is_out_of_memory, run_unless_oom
from lesionseg.space import ComponentConfig
from lesionseg.training.types import Suspended
from tests.lesionseg.small import run_training, without_seconds

CPU = torch.device("cpu")
# With all that a step looks at or draws: statistics of the batch, dropout, an average, a mix.
CONFIG = TrialConfig(
    model=ComponentConfig("unet", {"width": 4, "depth": 2, "dropout": 0.5}),
    mix=ComponentConfig("mixup"),
    optimizer=ComponentConfig("adam", {"lr": 1e-2}),
    image_size=16,
    batch_size=4,
    epochs=2,
)


class LimitedMemory(nn.Module):
    """A network that runs out of memory after its forward pass has changed buffers.

    training, judging: the most images at once; after: how many training passes fit in any case.
    """

    def __init__(self, training=99, judging=99, after=0):
        super().__init__()
        torch.manual_seed(CONFIG.seed)
        self.inner = build_model(CONFIG.model, image_size=16)
        self.most, self.after, self.seen = {True: training, False: judging}, after, []

    def forward(self, images):
        self.after -= self.training
        found = self.inner(images)
        if len(images) > self.most[self.training] and (self.after < 0 or not self.training):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.seen.append((self.training, len(images)))
        return found


def sizes(model, training):
    return [n for kind, n in model.seen if kind == training]


def trained(data, model, ema=0.9, **options):
    torch.manual_seed(CONFIG.seed)
    config = dataclasses.replace(CONFIG, ema=ema)
    return without_seconds(run_training(config, data, model=model, **options).history)


# --- a training ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "parts"), [(2, 2), (3, 2), (1, 4)])
def test_step_that_does_not_fit_equals_one_in_more_parts(data, most, parts):
    tight = LimitedMemory(training=most)
    found = trained(data, tight)
    assert found == trained(data, LimitedMemory(), accumulation_factor=parts)
    assert found != trained(data, LimitedMemory())  # otherwise nothing was shown
    assert set(sizes(tight, True)) == {4 // parts}


def test_accumulation_steps_are_kept(data):
    tight = LimitedMemory(training=2, after=3)
    trained(data, tight)
    # Three steps of four images, and all others in halves, whose size is not tried again.
    assert sizes(tight, True) == [4] * 3 + [2] * (2 * 7)


def test_accumulation_steps_are_kept_after_resuming(data, tmp_path):
    asked = iter([False, True])
    options = {"state_path": tmp_path / "s.pt", "should_suspend": lambda: next(asked)}
    with pytest.raises(Suspended):
        trained(data, LimitedMemory(training=2), **options)
    roomy = LimitedMemory()
    found = trained(data, roomy, state_path=tmp_path / "s.pt")
    assert set(sizes(roomy, True)) == {2}
    assert found == trained(data, LimitedMemory(), accumulation_factor=2)


def test_single_image_that_does_not_fit_raises(data):
    with pytest.raises(torch.OutOfMemoryError):
        trained(data, LimitedMemory(training=0))


def test_other_errors_are_raised_at_once(data):
    class Wrong(LimitedMemory):
        def forward(self, images):
            self.seen.append((self.training, len(images)))
            raise RuntimeError("shapes do not fit")

    wrong = Wrong()
    with pytest.raises(RuntimeError, match="shapes"):
        trained(data, wrong)
    assert len(wrong.seen) == 1


def test_validation_in_smaller_batches_is_equal(data):
    tight = LimitedMemory(judging=1)
    # Without an average, which is judged in a copy of the network.
    found, whole = trained(data, tight, ema=0.0), trained(data, LimitedMemory(), ema=0.0)
    assert set(sizes(tight, False)) == {1} and len(sizes(tight, False)) == 20
    for one, other in zip(found, whole, strict=True):
        assert one.metrics.dice == pytest.approx(other.metrics.dice, abs=1e-6)
        assert one.val_loss == pytest.approx(other.val_loss, rel=1e-5)
        assert one.train_loss == other.train_loss


def test_prediction_in_smaller_batches_is_equal(data):
    whole = list(predict_probabilities(LimitedMemory(), data.cache, data.val, device=CPU))
    parted = list(predict_probabilities(LimitedMemory(judging=3), data.cache, data.val, device=CPU))
    assert len(whole) == len(parted) == 10
    np.testing.assert_allclose(whole, parted, atol=1e-6)


def test_selection_of_inference_in_smaller_batches_is_equal(data):
    arguments = data.cache.images[data.val], data.cache.masks[data.val]
    tight = LimitedMemory(judging=3)
    whole, parted = (
        select_inference(model, *arguments, device=CPU) for model in (LimitedMemory(), tight)
    )
    assert max(sizes(tight, False)) == 3  # only passes that fit are recorded
    assert parted.inference == whole.inference
    assert parted.dice == pytest.approx(whole.dice, abs=1e-6)


# --- units ---------------------------------------------------------------------------------------


@settings(max_examples=6)  # each time that memory is short all garbage is collected
@given(n=st.integers(0, 60), most=st.integers(1, 70), fits=st.integers(1, 70))
def test_adaptive_batches_cover_all_images_in_order(n, most, fits):
    def work(part):
        if part.stop - part.start > fits:
            raise MemoryError
        return list(range(n))[part]

    batcher = AdaptiveBatcher(most, CPU)
    done = list(batcher(n, work))
    assert [i for part in done for i in part] == list(range(n))
    assert all(1 <= len(part) <= fits for part in done)
    if n > fits and most > fits:
        assert fits / 2 <= batcher.batch_size <= fits


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (OSError("out of memory"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_errors_are_recognised(error, short):
    assert is_out_of_memory(error) == short


def test_memory_is_freed_before_the_retry():
    class Held:
        alive = 0

        def __init__(self):
            Held.alive += 1

        def __del__(self):
            Held.alive -= 1

    def work():
        held = Held()
        raise MemoryError(held)

    assert run_unless_oom(work, CPU) is None
    assert Held.alive == 0
