"""Speeds of networks, and estimates for those that were not measured."""

import pytest

from search.planning.policy import ANCHORS
from search.planning.speeds import AnchorSpeed, Line, MachineSpeeds
from search.trial_process.protocol import Measured


def test_a_line_goes_through_both_values():
    line = Line.through({100: 3.0, 200: 9.0})  # 1 + 2 (size / 100)^2
    assert (line.fixed, line.per_pixel) == pytest.approx((1.0, 2e-4))
    assert line.at(300) == pytest.approx(19.0)


@pytest.mark.parametrize("values", [{100: 4.0}, {50: 5.0, 100: 4.0}, {50: 0.5, 100: 4.0}])
def test_other_values_are_proportional_to_the_pixels(values):
    assert Line.through(values).at(200) == pytest.approx(16.0)


def test_speeds_are_fitted_per_image():
    small = Measured(0.16, 0.001, 10**9, 1, 15_000 * 96**2)
    large = Measured(0.64, 0.004, 4 * 10**9, 1, 15_000 * 192**2)
    speed = AnchorSpeed.from_measured({96: small, 192: large})
    assert speed.image_s.at(96) == pytest.approx(0.01)  # of 16 images
    assert speed.macs_per_pixel == 15_000


def test_an_anchor_that_was_not_measured_is_estimated_from_the_nearest_by_multiply_adds():
    light = AnchorSpeed(Line(0.001, 1e-6), Line(1e9, 1e4), 15_000)
    heavy = AnchorSpeed(Line(0.002, 4e-6), Line(1e9, 4e4), 60_000)
    speeds = MachineSpeeds({"fpn-lite0": light, "unet-lite0": heavy}, memory_bytes=2e9)
    estimate = speeds.of("unet-resnet34")
    factor = ANCHORS["unet-resnet34"].macs_per_pixel / 60_000
    assert estimate.image_s == Line(0.002, pytest.approx(4e-6 * factor))
    assert speeds.of("fpn-lite0") is light


def test_a_quarter_of_a_batch_must_fit_into_memory():
    speeds = MachineSpeeds({"fpn-lite0": AnchorSpeed(Line(0, 0), Line(0, 1e5), 1)}, 1e9)
    assert speeds.fits("fpn-lite0", 180)  # 3.2 GB, 0.8 GB in parts
    assert not speeds.fits("fpn-lite0", 200)
    assert MachineSpeeds(speeds.anchors).fits("fpn-lite0", 4000)
