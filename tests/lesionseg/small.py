"""Trainings of a second, and how two of them are compared."""

import dataclasses


def timeless(history):
    """A training's records but for the clock."""
    return [dataclasses.replace(r, seconds=0.0) for r in history]
