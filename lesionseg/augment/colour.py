"""Changes of colour and sharpness, as between cameras, lamps and skin types."""

from __future__ import annotations

import albumentations as A


def colours(strength: float, share: float = 1.0) -> list[A.BasicTransform]:
    """Return brightness, contrast, saturation and hue; gamma; local contrast (CLAHE).

    Args:
        strength: scales the ranges, in [0, 1].
        share: scales the probabilities, in [0, 1].
    """
    part = 0.4 * strength
    around_one = (1 - part, 1 + part)
    return [
        A.ColorJitter(
            brightness=around_one,
            contrast=around_one,
            saturation=around_one,
            # Hues far from those of skin do not occur.
            hue=(-0.08 * strength, 0.08 * strength),
            p=0.9 * share,
        ),
        A.RandomGamma(gamma_limit=(100 - 40 * strength, 100 + 40 * strength), p=0.4 * share),
        A.CLAHE(clip_limit=(1, 1 + 3 * strength), tile_grid_size=(4, 4), p=0.2 * share),
    ]


def blur(strength: float, p: float) -> A.BasicTransform:
    """Return Gaussian blur with a standard deviation of up to 2 pixels x ``strength``."""
    return A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, max(0.1, 2 * strength)), p=p)
