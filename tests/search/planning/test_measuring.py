"""Measurement of this machine with real training processes."""

import json
from dataclasses import replace

import pytest

from search.planning import measuring, policy
from search.planning.policy import Anchor
from search.trial_process.slot import Slot
from tests.search.helpers import refusal

TINY = Anchor("unet", {"width": 4, "depth": 1}, 1000)


@pytest.fixture
def anchors(monkeypatch, tmp_path):
    """Tiny anchors, and a cache of their own."""
    monkeypatch.setenv("LESIONSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(policy, "CPU_SIZES", (16, 32))
    monkeypatch.setattr(policy, "CPU_ANCHORS", ("tiny", "other"))
    table = {"tiny": TINY, "other": replace(TINY, params={"width": 6, "depth": 1})}
    monkeypatch.setattr(measuring, "ANCHORS", table)
    return table


def measure(limit_s=60.0):
    """Return the speeds and the names of the anchors that were measured."""
    names = []
    speeds = measuring.measure_machine(Slot("cpu", 1), limit_s, names.append)
    return speeds, names


def test_measurements_are_stored_and_checked(anchors, tmp_path):
    speeds, names = measure()
    assert (list(speeds.anchors), names) == (["tiny", "other"], ["tiny", "other"])
    for speed in speeds.anchors.values():
        assert 0 < speed.image_s.at(16) <= speed.image_s.at(32) < 1
        assert speed.macs_per_pixel > 0
    (path,) = (tmp_path / "cache" / "speeds").iterdir()
    stored = json.loads(path.read_text())
    # As if the machine had been a thousand times as fast then: all are measured again.
    for speed in stored.values():
        speed["image_s"] = {"fixed": 1e-9, "per_pixel": 0.0}
    path.write_text(json.dumps(stored))
    assert measure()[1] == ["tiny", "other"]
    path.write_text("{")
    assert measure()[0].of("tiny").image_s.at(32) > 1e-6


def test_stored_measurements_of_the_same_speed_are_used(anchors, monkeypatch):
    monkeypatch.setattr(measuring, "SPEED_TOLERANCE", 1e6)
    first, _ = measure()
    again, names = measure()
    assert again == first
    assert names == ["tiny"]  # the check


def test_an_anchor_that_is_too_slow_is_left_out(anchors):
    speeds, names = measure(limit_s=0.0)
    assert (list(speeds.anchors), names) == (["tiny"], ["tiny"])


def test_a_device_that_cannot_be_measured_is_one_line(anchors, monkeypatch):
    monkeypatch.setattr(policy, "MAX_MEASURE_S", 0.001)
    message = refusal(measure)
    assert message.startswith("cpu: its speed cannot be measured: it took longer than")
