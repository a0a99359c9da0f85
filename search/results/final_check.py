"""Checks of the inputs of a final test before the retraining, and the images at its size."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from optuna.trial import FrozenTrial

from lesionseg.data.cache import Progress, build_cache, map_parallel, read_pair, restore_cache
from lesionseg.data.pairs import Record
from lesionseg.errors import InputError, format_some
from lesionseg.models.weights import ensure_weights
from search.errors import JobFailed
from search.results.evaluation import read_test_records
from search.storage import trial_records
from search.storage.retention import kept_weights
from search.study.opening import OpenStudy, check_data, check_storage_writable

#: Disk space in bytes for everything but weights: overlays, tables, report.
OTHER_BYTES = 64_000_000


def prepare_final(
    opened: OpenStudy,
    trials: Sequence[FrozenTrial],
    on_progress: Progress = lambda done, total: None,
) -> OpenStudy:
    """Check what the final test of some trials needs; return the study with the final's images.

    Args:
        opened: the study.
        trials: the finalists.
        on_progress: called with the number of images that were read at the final's size, and of
            all images.

    Raises:
        InputError: a test image or its mask cannot be read or is not the study's, pretrained
            weights are missing, the storage or the study's folder cannot be written, or the images
            at the final's size cannot be.
        JobFailed: too little disk space.
    """
    _check_images(opened)
    if not opened.cache.is_unchanged():
        restore_cache(opened.cache, opened.index)
    for trial in trials:
        (model,) = trial_records.config_of(trial)["model"].values()
        ensure_weights(str(model.get("encoder")), str(model.get("weights", "none")))
    check_storage_writable(opened.study)
    size = opened.spec.final.image_size or opened.spec.data.image_size
    if size != opened.cache.image_size:
        # It takes its disk space before the first image is read.
        opened = replace(
            opened, cache=build_cache(opened.read_index, size, on_progress=on_progress)
        )
    _check_disk(opened, trials)
    return opened


def _check_images(opened: OpenStudy) -> None:
    """Read all test images, from the files that the evaluation reads."""
    size, records = opened.spec.data.image_size, read_test_records(opened)
    shapes = dict(zip(opened.cache.names, opened.cache.shapes, strict=True))

    def find_problem(record: Record) -> str | None:
        try:
            height, width = read_pair(record, size).shape
        except InputError as error:
            return str(error)
        if (height, width) == shapes[record.name]:
            return None
        old_height, old_width = shapes[record.name]
        return (
            f"{record.image}: has {width}x{height} pixels, {old_width}x{old_height} when the "
            f"study was created"
        )

    problems = [problem for problem in map_parallel(find_problem, records) if problem]
    if problems:
        raise InputError(
            f"final: {format_some(problems, 1)}; {len(problems)} of {len(records)} test images "
            f"cannot be used: restore them, then repeat the command"
        )
    with suppress(FileNotFoundError):  # training images are in the cache
        check_data(opened.study, opened.read_index)


def _check_disk(opened: OpenStudy, trials: Sequence[FrozenTrial]) -> None:
    folder, final = opened.folder, opened.spec.final
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        raise InputError(f"final: {folder}: cannot be written: {error.strerror}") from None
    params = [int(trial.user_attrs["params"]) for trial in trials]
    # The weights of each retraining, on train and val a second time; and of the tested network, in
    # two copies while its inference steps are written. States are not counted: a training continues
    # if its state does not fit on the disk.
    trained = final.seeds * (sum(params) + max(params) * (final.fit_on == "train_val"))
    members = min(final.ensemble, final.seeds * len(trials) + kept_weights(final))
    needed = 4 * (trained + 2 * members * max(params)) + OTHER_BYTES
    if free < needed:
        raise JobFailed(
            f"final: {folder}: needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            f"make room, then repeat the command"
        )
