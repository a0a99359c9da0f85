"""Data sets and machines that plans are made for."""

from __future__ import annotations

from dataclasses import replace

from search.planning.fingerprint import DataFingerprint
from search.planning.plan import Plan, candidate_encoders, make_plan
from search.planning.policy import LITE0
from search.planning.speeds import AnchorSpeed, Line, MachineSpeeds

#: 2,057 images of 384 px, split by the shares of a study.
ISIC = DataFingerprint(
    images=2057,
    groups=2057,
    train=1440,
    val=309,
    test=308,
    is_official=False,
    side=384,
    megapixels=0.147,
    areas=(0.03, 0.17, 0.78),
    reading_s=3.0,
)
OFFLINE = {LITE0: "bundled"}
ONLINE = dict.fromkeys(candidate_encoders(), "imagenet")


def images(count: int) -> DataFingerprint:
    """Return the fingerprint of a data set of another size."""
    train, val = round(0.7 * count), round(0.15 * count)
    return replace(ISIC, images=count, groups=count, train=train, val=val, test=count - train - val)


def speed(images_per_s: float, macs_per_pixel: float) -> AnchorSpeed:
    """Return a speed at 128 px, a tenth of which does not depend on the size."""
    image_s = 1 / images_per_s
    return AnchorSpeed(Line(0.1 * image_s, 0.9 * image_s / 128**2), Line(3e8, 4e4), macs_per_pixel)


#: Two cores.
CPU = MachineSpeeds(
    {"fpn-lite0": speed(31, 15_000), "unet-lite0": speed(16, 44_000)},
    memory_bytes=16e9,
    is_cpu=True,
)
GPU = MachineSpeeds(
    {
        "fpn-lite0": speed(2000, 15_000),
        "unet-lite0": speed(1600, 44_000),
        "unet-resnet34": speed(1400, 119_000),
        "unet-convnext_tiny": speed(700, 136_000),
    },
    memory_bytes=80e9,
)


def plan(
    hours: float,
    quality: str = "balanced",
    *,
    data: DataFingerprint = ISIC,
    speeds: MachineSpeeds = CPU,
    slots: int = 1,
    weights: dict[str, str] = OFFLINE,
) -> Plan:
    return make_plan(
        data, speeds, slots=slots, hours=hours, quality=quality, weights=weights, spent_s=15
    )
