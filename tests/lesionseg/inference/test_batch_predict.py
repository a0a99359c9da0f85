"""Many pictures: all of them, in order, few at a time."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError
from lesionseg.inference import batch_predict
from lesionseg.inference.batch_predict import (
    PixelBudget,
    default_batch_size,
    predict_files,
    prefetch,
)
from lesionseg.inference.predictor import Segmenter


class Redness(nn.Module):
    """The logit is the normalised red channel; records batch sizes."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, images):
        self.batches.append(len(images))
        return images[:, :1]


@pytest.fixture
def segmenter():
    return Segmenter(Redness(), TrialConfig(image_size=16))


@pytest.fixture
def paths(tmp_path):
    """Eleven grey images of different sizes, the i-th with grey value 20 * i."""
    for i in range(11):
        Image.new("RGB", (20 + i, 30 - i), (20 * i,) * 3).save(tmp_path / f"{i:02}.png")
    return sorted(tmp_path.glob("*.png"))


def grey_of(image, output):
    grey, probability = image.resized[0, 0, 0], output.probability[0, 0]
    return image.path.name, image.shape, int(grey), float(probability)


@pytest.mark.parametrize("batch_size", [1, 3, 11, 50, None])
def test_results_are_in_order(segmenter, paths, batch_size):
    found = list(predict_files(segmenter, paths, grey_of, batch_size=batch_size))
    for i, (name, shape, grey, probability) in enumerate(found):
        assert (name, shape, grey) == (paths[i].name, (30 - i, 20 + i), 20 * i)
        logit = (20 * i - 123.675) / 58.395
        assert probability == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)
    assert len(found) == 11
    size = batch_size or 16
    assert segmenter.model.batches == [size] * (11 // size) + ([11 % size] if 11 % size else [])


def test_unusable_images_yield_their_error_in_order(segmenter, paths):
    paths[2].write_bytes(b"no image")
    paths[3].unlink()
    found = list(predict_files(segmenter, paths, grey_of, batch_size=2))
    broken = [i for i, each in enumerate(found) if isinstance(each, InputError)]
    assert broken == [2, 3]
    assert "not an image" in str(found[2]) and "no such file" in str(found[3])
    assert [f[0] for f in found if not isinstance(f, InputError)] == [
        p.name for i, p in enumerate(paths) if i not in broken
    ]
    # Two of two could not be read: no empty batch went through the network.
    assert segmenter.model.batches == [2, 2, 2, 2, 1]


def test_image_too_large_for_memory_yields_an_error(segmenter, paths, monkeypatch):
    real = batch_predict._read

    def read(path, size, view):
        if path == paths[0]:
            raise MemoryError
        return real(path, size, view)

    monkeypatch.setattr(batch_predict, "_read", read)
    found = list(predict_files(segmenter, paths, grey_of))
    assert str(found[0]).startswith(f"{paths[0]}: too large for the available memory")
    assert len(found) == 11 and found[1][0] == "01.png"


def test_no_images(segmenter):
    assert list(predict_files(segmenter, [], grey_of)) == []


def test_input_errors_are_yielded_and_others_raised(segmenter, paths):
    def use(image, _):
        if image.path == paths[1]:
            raise InputError("a mask of another size")
        if image.path == paths[8]:
            raise OSError("no space left")
        return image.path.name

    running = predict_files(segmenter, paths, use, batch_size=2)
    assert [str(next(running)) for _ in range(3)] == ["00.png", "a mask of another size", "02.png"]
    with pytest.raises(OSError, match="no space"):
        list(running)


def test_prefetching_is_limited(segmenter, paths):
    begun = []

    def endless():
        while True:
            begun.append(1)
            yield paths[len(begun) % 11]

    running = predict_files(segmenter, endless(), grey_of, batch_size=4)
    for _ in range(40):
        next(running)
    # Behind the network as many as ahead of it, and the batch in it.
    assert len(begun) - 40 <= 5 * 4 + 1
    running.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


def test_large_images_are_decoded_one_at_a_time(segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_predict, "FULL_SIZE_PIXELS", 1000)
    inside, most = [], []
    real = batch_predict._read

    def read(path, size, view):
        inside.append(path)
        most.append(len(inside))
        time.sleep(0.01)
        try:
            return real(path, size, view)
        finally:
            inside.remove(path)

    monkeypatch.setattr(batch_predict, "_read", read)
    for i in range(6):
        Image.new("RGB", (40, 40)).save(tmp_path / f"large{i}.png")
        Image.new("RGB", (10, 10)).save(tmp_path / f"small{i}.png")
    large = sorted(tmp_path.glob("large*"))
    assert len(list(predict_files(segmenter, large, grey_of, threads=6))) == 6
    assert max(most) == 1
    most.clear()
    assert (
        len(list(predict_files(segmenter, sorted(tmp_path.glob("small*")), grey_of, threads=6)))
        == 6
    )
    assert max(most) > 1


@pytest.mark.parametrize(("size", "view"), [((900, 600), (480, 320)), ((30, 60), (30, 60))])
def test_preview_has_the_requested_side(segmenter, tmp_path, size, view):
    """For a network of 16 pixels a JPEG is decoded at an eighth, too coarse for a preview."""
    Image.effect_noise(size, 60).convert("RGB").save(tmp_path / "a.jpg")
    (seen,) = predict_files(
        segmenter, [tmp_path / "a.jpg"], lambda image, _: image.preview, preview_px=480
    )
    assert seen.shape == (view[1], view[0], 3)
    (none,) = predict_files(segmenter, [tmp_path / "a.jpg"], lambda image, _: image.preview)
    assert none is None


def test_pixel_budget_limits_threads():
    budget, order = PixelBudget(10), []

    def work(size):
        with budget.reserve(size):
            order.append(size)
            time.sleep(0.05)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, [99, 4, 6, 10]))
    assert sorted(order) == [4, 6, 10, 99]
    assert budget._used == 0


def test_prefetch_keeps_the_order_and_its_limit():
    begun = []
    with ThreadPoolExecutor(2) as pool:
        running = prefetch(pool, lambda i: i * i, (begun.append(i) or i for i in range(100)), 5)
        assert [next(running) for _ in range(4)] == [0, 1, 4, 9]
        assert len(begun) == 9
        assert list(running) == [i * i for i in range(4, 100)]


@pytest.mark.parametrize(("size", "n"), [(16, 16), (256, 16), (512, 4), (1024, 1), (4096, 1)])
def test_batches_of_large_images_are_small(size, n):
    assert default_batch_size(size) == n


def test_the_network_runs_without_gradients(segmenter, paths):
    seen = []
    segmenter.model.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    list(predict_files(segmenter, paths, grey_of))
    assert seen and not any(seen)
