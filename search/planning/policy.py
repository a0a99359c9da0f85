"""The numbers that plans are made with. Each is a judgement; change them here only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lesionseg.errors import InputError, suggest_name

#: The encoder whose ImageNet weights need no network.
LITE0 = "tu-tf_efficientnet_lite0"


@dataclass(frozen=True)
class Quality:
    """What the user wants: the largest numbers of finalists, of seeds of each, and of members."""

    finalists: int
    seeds: int
    ensemble: int


#: fast: one network, which predicts fastest. best: more candidates and a larger ensemble.
QUALITIES: Mapping[str, Quality] = {
    "fast": Quality(finalists=1, seeds=1, ensemble=1),
    "balanced": Quality(finalists=3, seeds=1, ensemble=3),
    "best": Quality(finalists=5, seeds=2, ensemble=5),
}


def find_quality(name: str) -> Quality:
    """Return the quality of a name; InputError for an unknown one."""
    if name not in QUALITIES:
        raise InputError(
            f"--quality: must be one of {', '.join(QUALITIES)} ({suggest_name(name, QUALITIES)})"
        )
    return QUALITIES[name]


# --- the final ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """A final: image size in pixels, epochs, and number of trainings where the quality allows it.

    epochs: for TYPICAL_IMAGES training images or fewer down to FEW_IMAGES; see ``scale_epochs``.
    """

    image_size: int
    epochs: int
    trainings: int = 1


#: The finals from small to large. The last one that fits is planned. A pretrained network gains
#: from a larger image once it sees it for about 8 epochs of 1,750 images; beyond 192 px the gain in
#: Dice is small, so that more epochs and several trainings come before it. From one level to the
#: next, size times epochs must not fall: then more time never means a smaller final.
LEVELS = (
    Level(96, 2),
    Level(128, 8),
    Level(160, 8),
    Level(192, 8),
    Level(192, 12, 2),
    Level(192, 12, 3),
    Level(224, 12, 3),
    Level(256, 14, 3),
    Level(256, 20, 5),
    Level(320, 24, 6),
    Level(384, 30, 8),
    Level(384, 45, 10),
    Level(384, 60, 10),
)
#: Number of the level that a tier of larger networks must reach to be used.
TIER_LEVEL = 10
#: A network needs a number of steps, however few the images are, and large data need fewer epochs.
FEW_IMAGES, TYPICAL_IMAGES = 500, 1750
#: Least and most epochs of a final. With less than the least, a part of the images is used.
MIN_FINAL_EPOCHS, MAX_EPOCHS = 2, 400
#: The final's share of the time, plus its share of the first SHORT_IMAGES, a time in which the
#: reference network trains this number of images of SPEED_SIZE: three quarters of a short time,
#: half of a long one. In 15 minutes on two cores, epochs of the final gain more than further trials
#: (bench/results/peers-cpu.md).
FINAL_SHARE, SHORT_SHARE, SHORT_IMAGES, SPEED_SIZE = 1 / 2, 1 / 4, 50_000, 128
#: Part of the time that is not planned, for errors of the forecast.
MARGIN = 0.04
#: Seconds to create the study, and per image to look for near-duplicates. Times that the images are
#: read before the search: once for it, and once reduced to thumbnails, without masks.
START_S, AUDIT_S, READINGS = 6.0, 0.008, 1.5

# --- the search --------------------------------------------------------------------------------

#: Image sizes of the search in pixels.
SEARCH_SIZES = (64, 96, 128, 160, 192, 224, 256, 320, 384)


@dataclass(frozen=True)
class Fidelity:
    """How much of a final's training a trial does.

    steps: number of sizes in SEARCH_SIZES below the final's.
    share: part of the images that a training of the final sees.
    trials: number of trials from which on it is used.
    """

    steps: int
    share: float
    trials: int


#: The first that enough trials fit with is used; small ones keep the ranking well enough.
FIDELITIES = (
    Fidelity(0, 1.0, 200),
    Fidelity(1, 0.30, 60),
    Fidelity(1, 0.25, 30),
    Fidelity(2, 0.25, 6),
    Fidelity(3, 0.25, 5),
    Fidelity(2, 0.15, 3),
)
#: Fewer trials than these are no search; more are not planned.
MIN_TRIALS, MAX_TRIALS = 3, 600
#: Time of a mean trial, relative to a whole one of the reference network: others cost more, and
#: halving stops most trials early where they have several epochs.
MEAN_COST, PRUNED_COST, PRUNED_EPOCHS = 1.3, 0.6, 4
#: ``budget.trials`` relative to the forecast: the time should end the search, not the number.
TRIALS_RESERVE = 1.5

# --- networks ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Anchor:
    """A network whose speed is measured, with random weights.

    macs_per_pixel: multiply-adds, for estimates where it was not measured.
    """

    model: str
    params: Mapping[str, str | int | float]
    macs_per_pixel: float


_RANDOM = {"weights": "none"}
#: By name, in the order of the measurement; the first is the reference of the smallest tier.
ANCHORS: Mapping[str, Anchor] = {
    "fpn-lite0": Anchor("smp_fpn", {"encoder": LITE0, "decoder_width": 0.5, **_RANDOM}, 15_000),
    "unet-lite0": Anchor("smp_unet", {"encoder": LITE0, **_RANDOM}, 44_000),
    "unet-resnet34": Anchor("smp_unet", {"encoder": "resnet34", **_RANDOM}, 119_000),
    "unet-convnext_tiny": Anchor("smp_unet", {"encoder": "tu-convnext_tiny", **_RANDOM}, 136_000),
}
#: Anchors that are measured on a CPU, and on a GPU.
CPU_ANCHORS = ("fpn-lite0", "unet-lite0")
GPU_ANCHORS = tuple(ANCHORS)
#: Sizes in pixels of the measurement, on a CPU and on a GPU.
CPU_SIZES, GPU_SIZES = (96, 192), (128, 384)
#: Images of a step, and part of the time that the measurement may take, in seconds at most.
BATCH_SIZE, MEASURE_SHARE, MAX_MEASURE_S = 16, 0.05, 60.0


@dataclass(frozen=True)
class Tier:
    """Networks of a similar cost.

    anchor: the reference network. encoders: by preference; those without weights are left out.
    scratch: search sections of networks without an encoder, for many trials.
    """

    anchor: str
    encoders: tuple[str, ...]
    scratch: Mapping[str, object]


#: From small to large.
TIERS = (
    Tier("fpn-lite0", (LITE0, "tu-tf_efficientnet_lite1", "tu-tf_efficientnet_lite2"), {}),
    Tier(
        "unet-resnet34",
        (
            "resnet34", "tu-convnextv2_nano", "mit_b1", "efficientnet-b2", "tu-pvt_v2_b1",
            "tu-mobilenetv4_conv_medium", "tu-tf_efficientnet_lite2", LITE0,
        ),
        {},
    ),
    Tier(
        "unet-convnext_tiny",
        (
            "tu-convnext_tiny", "tu-convnextv2_tiny", "mit_b2", "mit_b3", "tu-pvt_v2_b2",
            "resnet50", "se_resnet50", "resnet34", "efficientnet-b4", "tu-convnextv2_nano", LITE0,
        ),
        {
            "unet": {"width": [16, 64], "depth": [4, 5], "residual": [False, True]},
            "dynunet": {"width": [16, 48]},
        },
    ),
)  # fmt: skip
#: Plain transformers for smp_dpt in the largest tier.
TRANSFORMERS = ("tu-vit_small_patch16_dinov3", "tu-vit_small_patch16_224")
#: Trials may cost this many times the reference network's multiply-adds.
MAX_COST = 4.0
