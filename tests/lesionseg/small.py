"""Helpers for short trainings."""

import dataclasses

from lesionseg.training.train import train
from lesionseg.training.types import TrainOptions


def run_training(config, data, on_epoch=lambda record: False, **options):
    """``train`` with the fields of TrainOptions as keywords."""
    return train(config, data, on_epoch, TrainOptions(**options))


def without_seconds(history):
    """Records without their durations, for comparison."""
    return [dataclasses.replace(record, seconds=0.0) for record in history]
