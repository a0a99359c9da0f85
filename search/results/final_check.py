"""Checks of the inputs of a final test before the retraining."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress

from optuna.trial import FrozenTrial

from lesionseg.config import TrialConfig
from lesionseg.data.cache import map_parallel, read_pair, restore_cache
from lesionseg.data.pairs import Record
from lesionseg.errors import InputError, format_some
from lesionseg.models.weights import ensure_weights
from search.errors import JobFailed
from search.results.evaluation import read_test_records
from search.study.opening import OpenStudy, check_data, check_storage_writable

#: Disk space in bytes for everything but weights: overlays, tables, report.
OTHER_BYTES = 64_000_000


def check_final_inputs(
    opened: OpenStudy, trial: FrozenTrial, configs: Sequence[TrialConfig]
) -> None:
    """Check what the retraining and the test evaluation of a trial need.

    Args:
        opened: the study.
        trial: the trial.
        configs: one for each retraining.

    Raises:
        InputError: a test image or its mask cannot be read or is not the study's, pretrained
            weights are missing, or the storage or the study's folder cannot be written.
        JobFailed: too little disk space.
    """
    _check_images(opened)
    if not opened.cache.is_unchanged():
        restore_cache(opened.cache, opened.index)
    model = configs[0].model.params
    ensure_weights(str(model.get("encoder")), str(model.get("weights", "none")))
    check_storage_writable(opened.study)
    _check_disk(opened, trial, len(configs))


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


def _check_disk(opened: OpenStudy, trial: FrozenTrial, n_models: int) -> None:
    folder = opened.folder
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        raise InputError(f"final: {folder}: cannot be written: {error.strerror}") from None
    # The weights of each retraining, and copies of the selected ones. States are not counted: a
    # training continues if its state does not fit on the disk.
    needed = 4 * int(trial.user_attrs["params"]) * (n_models + 2) + OTHER_BYTES
    if free < needed:
        raise JobFailed(
            f"final: {folder}: needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            f"make room, then repeat the command"
        )
