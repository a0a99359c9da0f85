"""The forecast of the final."""

import pytest

from search.study import forecast
from search.study.forecast import (
    FinalWork,
    estimate_reading_s,
    fixed_final_s,
    forecast_final_s,
    forecast_from_trials,
    image_seconds,
)
from tests.search.helpers import open_tiny, tiny_spec
from tests.search.study.trials import finished_trial

WORK = FinalWork(
    fit=90,
    val=20,
    test=10,
    test_megapixels=0.0,
    image_size=64,
    epochs=4,
    tta=False,
    postprocess=False,
)


@pytest.fixture
def simple(monkeypatch):
    """Only the trainings take time."""
    for name in ("START_S", "EPOCH_S", "REPORT_S"):
        monkeypatch.setattr(forecast, name, 0.0)
    monkeypatch.setattr(forecast, "VAL_COST", 0.5)
    monkeypatch.setattr(forecast, "THREADS_POWER", 0.5)


def test_epochs_rounds_and_passes_add_up(simple):
    # 4 epochs of 90 + 20 / 2 images, and (20 + 10) / 2 images after them, at 0.1 s each.
    assert forecast_final_s(WORK, 0.1) == pytest.approx(4 * 10 + 1.5)
    three = FinalWork(**{**vars(WORK), "trainings": 3, "slots": 2})
    assert forecast_final_s(three, 0.1) == pytest.approx(2 * 4 * 10 + 1.5)
    # A task that has all threads of four slots is twice as fast.
    alone = FinalWork(**{**vars(WORK), "slots": 4, "is_cpu": True})
    assert forecast_final_s(alone, 0.1) == pytest.approx((4 * 10 + 1.5) / 2)
    more = FinalWork(**{**vars(alone), "trainings": 4})
    assert forecast_final_s(more, 0.1) == pytest.approx(4 * 10 + 1.5 / 2)


def test_a_selection_on_smaller_images_costs_less(simple, monkeypatch):
    monkeypatch.setattr(forecast, "PIXEL_POWER", 1.0)
    whole = FinalWork(**{**vars(WORK), "tta": True, "postprocess": True})
    half = FinalWork(**{**vars(whole), "selection_size": 32})
    # Nine passes over 20 images at 0.05 s, and 20 images of 64 or 32 px for post-processing.
    saved_s = 9 * 20 * 0.05 * 3 / 4 + 20 * 64**2 * 3 / 4 * forecast.POSTPROCESS_PIXEL_S
    assert fixed_final_s(whole, 0.1) - fixed_final_s(half, 0.1) == pytest.approx(saved_s)


def test_selections_and_members_cost_time():
    def fixed(**changes):
        return fixed_final_s(FinalWork(**{**vars(WORK), **changes}), 0.1)

    assert fixed() < fixed(tta=True) < fixed(tta=True, members=3)
    assert fixed() < fixed(postprocess=True)
    assert fixed() + 7 == pytest.approx(fixed(reading_s=7.0))


def test_the_speed_of_the_best_trials_is_scaled_by_the_pixels(simple):
    spec = tiny_spec({"data.image_size": 32, "final.finalists": 2})
    # 30 s for 3 epochs of 40 + 20 / 2 images: 0.2 s an image; 0.4 s in the other one.
    best = finished_trial(0, 0.9, {"seconds": 30.0, "epochs": 3})
    second = finished_trial(1, 0.8, {"seconds": 60.0, "epochs": 3})
    worst = finished_trial(2, 0.1, {"seconds": 999.0, "epochs": 3})
    assert image_seconds(best, 40, 20) == pytest.approx(0.2)
    # At 64 px an image has four times the pixels, and takes 3.48 times as long.
    expected = forecast_final_s(WORK, 3.4822 * 0.3)
    found = forecast_from_trials(spec, [worst, second, best], WORK, 40)
    assert found == pytest.approx(expected, rel=1e-3)
    assert forecast_from_trials(spec, [], WORK, 40) is None


def test_reading_is_estimated_from_a_sample(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "study")
    records = opened.index.records
    few, many = estimate_reading_s(records[:4], 32), estimate_reading_s(records * 50, 32)
    assert 0 < few < many < 60
