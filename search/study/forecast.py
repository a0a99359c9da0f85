"""How long the final will take: from the work and from the speed of one training."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial

from lesionseg.data.cache import read_pair
from lesionseg.data.pairs import Record
from search.spec.study_spec import StudySpec
from search.storage import trial_records
from search.trial_process.resources import count_cores

#: Time to validate an image, relative to the time to train one: no backward pass.
VAL_COST = 0.35
#: Forward passes per image while test-time augmentation is selected, and in the test at most.
SELECTION_PASSES, TEST_PASSES = 9, 8
#: CPU seconds to select post-processing, per pixel of the network's size and image of val, and to
#: score the test images, per million of their own pixels.
POSTPROCESS_PIXEL_S, SCORE_S = 5e-6, 0.5
#: Seconds to start a training process and to build its network, and per epoch to save its state.
START_S, EPOCH_S = 3.0, 0.2
#: Seconds of the report, of drawings and of the ends of processes.
REPORT_S = 8.0
#: The time of an image grows with this power of its pixels, because a part of it does not depend on
#: them. Measured on two cores: 3.3 times from 96 to 192 px.
PIXEL_POWER = 0.9
#: The speed of a training grows with this power of its CPU threads. From one to two threads it is
#: 1.5 times as fast at 64 and 96 px, 1.6 times at 128 px, 1.7 times from 160 px on.
THREADS_POWER = 0.7
#: Pairs that are read to estimate the time of all of them.
SAMPLE = 12


@dataclass(frozen=True)
class FinalWork:
    """The work of a final.

    Attributes:
        fit, val, test: numbers of images to train on, of val and of test.
        test_megapixels: pixels of all test images at their own sizes, in millions.
        image_size: side of the images in pixels.
        epochs: of one training.
        trainings: finalists times seeds.
        slots: trainings that run at once.
        members: networks that are evaluated together.
        reading_s: seconds to read the images at this size.
        tta, postprocess: whether these are selected.
        selection_size: side of the images that they are selected on; None for ``image_size``.
        is_cpu: whether slots share the threads of a CPU: a training that runs alone has all.
    """

    fit: int
    val: int
    test: int
    test_megapixels: float
    image_size: int
    epochs: int
    trainings: int = 1
    slots: int = 1
    members: int = 1
    reading_s: float = 0.0
    tta: bool = True
    postprocess: bool = True
    selection_size: int | None = None
    is_cpu: bool = False

    def speedup(self, tasks: int) -> float:
        """Return the speed of each of a number of parallel tasks, relative to that on a slot."""
        return max(1.0, self.slots / tasks) ** THREADS_POWER if self.is_cpu else 1.0

    @property
    def rounds(self) -> int:
        """Number of trainings that one slot runs one after the other."""
        return math.ceil(self.trainings / self.slots)


def forecast_final_s(work: FinalWork, image_s: float) -> float:
    """Return the seconds of a final. image_s: to train one image at its size on one slot."""
    return fixed_final_s(work, image_s) + work.epochs * final_epoch_s(work, image_s)


def final_epoch_s(work: FinalWork, image_s: float) -> float:
    """Return the seconds of one epoch of all trainings, with its validation."""
    return work.rounds * epoch_s(work, image_s / work.speedup(work.trainings))


def epoch_s(work: FinalWork, image_s: float) -> float:
    """Return the seconds of one epoch of one training on a slot, with its validation."""
    return EPOCH_S + (work.fit + VAL_COST * work.val) * image_s


def fixed_final_s(work: FinalWork, image_s: float) -> float:
    """Return the seconds of a final besides its epochs: reading, selections, test and report."""
    selection_passes = SELECTION_PASSES if work.tta else 1
    test_passes = TEST_PASSES if work.tta else 1
    selection_size = work.selection_size or work.image_size
    selected = work.val * size_cost(selection_size, work.image_size)
    passes = work.members * (selection_passes * selected + test_passes * work.test)
    start_s = START_S * (work.rounds + 2)  # the selection and the test are processes, too
    predicting_s = passes * VAL_COST * image_s / work.speedup(1)
    selecting_s = postprocess_s(work.val, selection_size) if work.postprocess else 0.0
    scoring_s = SCORE_S * work.test_megapixels / count_cores()
    return work.reading_s + start_s + predicting_s + selecting_s + scoring_s + REPORT_S


def size_cost(image_size: int, reference: int) -> float:
    """Return the time of an image relative to that of an image of the reference size."""
    return float((image_size / reference) ** (2 * PIXEL_POWER))


def postprocess_s(images: int, image_size: int) -> float:
    """Return the seconds of the selection of post-processing, which uses one thread."""
    return POSTPROCESS_PIXEL_S * image_size**2 * images


def image_seconds(trial: FrozenTrial, train: int, val: int) -> float | None:
    """Return the seconds in which a finished trial trained one image; None if it trained none.

    train, val: numbers of images of one epoch.
    """
    seconds, epochs = trial.user_attrs.get("seconds"), trial_records.epochs_trained(trial)
    if not seconds or not epochs:
        return None
    return max(0.0, float(seconds) / epochs - EPOCH_S) / (train + VAL_COST * val)


def forecast_from_trials(
    spec: StudySpec, trials: Sequence[FrozenTrial], work: FinalWork, train: int
) -> float | None:
    """Forecast the final by the speed of the search's best trials; None without a complete one.

    Args:
        spec: of the study.
        trials: all of the study.
        work: what the final does.
        train: number of images in one epoch of a trial.
    """
    best = trial_records.rank_trials(trials)[: spec.final.finalists]
    speeds = [s for trial in best if (s := image_seconds(trial, train, work.val)) is not None]
    if not speeds:
        return None
    scale = size_cost(work.image_size, spec.data.image_size)
    return forecast_final_s(work, scale * sum(speeds) / len(speeds))


def estimate_reading_s(records: Sequence[Record], image_size: int) -> float:
    """Estimate the seconds to read all images at a size, from a sample; InputError as read_pair."""
    sample = records[:: max(1, len(records) // SAMPLE)][:SAMPLE]
    start = time.perf_counter()
    for record in sample:
        read_pair(record, image_size)
    return (time.perf_counter() - start) / len(sample) * len(records) / count_cores()
