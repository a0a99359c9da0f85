"""Weighted sums of a loss of pixels and soft Dice."""

from __future__ import annotations

from lesionseg.losses.base import Loss, blend
from lesionseg.losses.overlap import build_dice
from lesionseg.losses.pixel import build_bce, build_focal


def build_bce_dice(pooled: bool, weight: float) -> Loss:
    """``weight`` x cross-entropy + (1 - ``weight``) x soft Dice loss."""
    return blend(weight, build_bce(pooled), build_dice(pooled))


def build_focal_dice(pooled: bool, gamma: float, alpha: float, weight: float) -> Loss:
    """``weight`` x focal loss + (1 - ``weight``) x soft Dice loss."""
    return blend(weight, build_focal(pooled, gamma, alpha), build_dice(pooled))
