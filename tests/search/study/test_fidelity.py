"""Configurations of the search at the image size and the epochs of the final."""

import dataclasses

import pytest

from lesionseg.config import TrialConfig
from lesionseg.space import ComponentConfig
from search.study.fidelity import to_final
from search.study.queue import read_entries
from tests.search.helpers import refusal, tiny_spec

CONFIG = TrialConfig(
    model=ComponentConfig("smp_unet", {"encoder": "resnet18", "frozen_epochs": 2}),
    schedule=ComponentConfig("plateau", {"factor": 0.5, "patience": 3}),
    optimizer=ComponentConfig("sgd", {"lr": 0.03}),
    image_size=32,
    batch_size=12,
    epochs=10,
    patience=4,
    ema=0.99,
)


def spec(**final):
    return tiny_spec(
        {
            "data.image_size": 32,
            "budget": {"trials": 3, "epochs": 10},
            "search.model": {"smp_unet": {"encoder": "resnet18"}},
            "final": final,
        }
    )


def test_equal_fidelities_change_nothing():
    for final in ({}, {"image_size": 32, "epochs": 10}):
        assert to_final(CONFIG, spec(**final)) == CONFIG
        assert to_final(CONFIG, spec(**final)).digest() == CONFIG.digest()


def test_epochs_and_what_is_counted_in_them():
    config = to_final(CONFIG, spec(epochs=30))
    assert config.ema == pytest.approx(1 - 0.01 / 3)
    assert config == dataclasses.replace(
        CONFIG,
        epochs=30,
        patience=12,
        ema=config.ema,
        model=ComponentConfig("smp_unet", {"encoder": "resnet18", "frozen_epochs": 6}),
        schedule=ComponentConfig("plateau", {"factor": 0.5, "patience": 9}),
    )


def test_image_size_alone():
    assert to_final(CONFIG, spec(image_size=64)) == dataclasses.replace(CONFIG, image_size=64)


@pytest.mark.parametrize(
    ("epochs", "patience", "frozen", "plateau"),
    [(1, 1, 1, 1), (5, 2, 1, 2), (50, 20, 10, 15), (1000, 400, 10, 20)],
)
def test_counts_stay_positive_and_within_their_ranges(epochs, patience, frozen, plateau):
    config = to_final(CONFIG, spec(epochs=epochs))
    assert (config.epochs, config.patience) == (epochs, patience)
    assert config.model.params["frozen_epochs"] == frozen
    assert config.schedule.params["patience"] == plateau


def test_zeros_stay():
    plain = TrialConfig(
        image_size=32,
        epochs=10,
        schedule=ComponentConfig("plateau", {"patience": 0}),
        model=ComponentConfig("smp_unet", {"encoder": "resnet18", "frozen_epochs": 0}),
    )
    assert to_final(plain, spec(epochs=40)) == dataclasses.replace(plain, epochs=40)


def averaged_share(decay, steps):
    """The steps whose weight in the last average is at least 1% of the last one's."""
    count = 0
    while decay**count >= 0.01 and count < steps:
        count += 1
    return count / steps


@pytest.mark.parametrize("epochs", [30, 20, 5])
def test_the_average_covers_the_same_share_of_the_steps(epochs):
    config = to_final(CONFIG, spec(epochs=epochs))
    expected = averaged_share(CONFIG.ema, 10 * 1000)
    found = averaged_share(config.ema, epochs * 1000)
    assert found == pytest.approx(expected, rel=0.03)


def test_averages_of_all_lengths_are_valid():
    for decay in (0.5, 0.9999):
        config = dataclasses.replace(CONFIG, ema=decay)
        for epochs in (1, 10_000):
            assert 0 <= to_final(config, spec(epochs=epochs)).ema <= 0.9999


def test_a_part_of_the_epochs_stays_a_part():
    half = dataclasses.replace(CONFIG, epochs=5)
    assert to_final(half, spec()) == half
    assert to_final(half, spec(epochs=40)).epochs == 20
    assert to_final(half, spec(epochs=1)).epochs == 1


# --- image sizes that a network cannot take ------------------------------------------------------


def test_an_unusable_image_size_is_an_error_of_the_study():
    assert refusal(spec, image_size=48) == (
        "tiny: final.image_size: smp_unet takes multiples of 32 from 32 on, got 48; the nearest is "
        "32"
    )
    changes = {"warm_start": ["segnet-bce"], "data.image_size": 64, "final.image_size": 80}
    assert refusal(tiny_spec, changes) == (
        "tiny: final.image_size: segnet-bce: segnet takes multiples of 32 from 32 on, got 80; the "
        "nearest is 64"
    )


def test_both_sizes_are_checked_with_other_errors():
    message = refusal(tiny_spec, {"search.model": "segnet", "final.image_size": 40, "fixed.x": 1})
    for part in ("data.image_size: segnet", "final.image_size: segnet", "fixed.x: unknown key"):
        assert part in message


def test_a_queued_configuration_must_fit_the_final(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("{baseline: segnet-bce}")
    message = refusal(
        read_entries, path, tiny_spec({"data.image_size": 32, "final.image_size": 48})
    )
    assert "final.image_size: segnet takes multiples of 32 from 32 on, got 48" in message


def test_a_configuration_that_cannot_be_carried_over():
    config = dataclasses.replace(CONFIG, model=ComponentConfig("segnet"))
    final = tiny_spec({"data.image_size": 32, "final.image_size": 40})
    message = refusal(to_final, config, final)
    assert message.startswith("final.image_size: segnet takes multiples of 32 from 32 on, got 40")
