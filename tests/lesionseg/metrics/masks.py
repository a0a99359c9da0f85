"""Masks of one shape: every degenerate kind, and some at random."""

import numpy as np

SHAPE = (14, 19)


def rectangle(top, left, bottom, right, shape=SHAPE):
    """The pixels of rows top..bottom - 1 and columns left..right - 1."""
    mask = np.zeros(shape, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def random(share, seed):
    return np.random.default_rng(seed).random(SHAPE) < share


MASKS = {
    "empty": rectangle(0, 0, 0, 0),
    "full": rectangle(0, 0, *SHAPE),
    "all-but-one": ~rectangle(6, 7, 7, 8),
    "one-pixel": rectangle(4, 9, 5, 10),
    "one-corner": rectangle(13, 18, 14, 19),
    "top-row": rectangle(0, 0, 1, 19),
    "left-border": rectangle(3, 0, 11, 6),
    "right-half": rectangle(0, 9, 14, 19),
    "inside": rectangle(3, 9, 9, 15),
    "two-parts": rectangle(1, 1, 4, 4) | rectangle(8, 12, 13, 17),
    "ring": rectangle(2, 4, 12, 16) & ~rectangle(5, 7, 9, 12),
    "rare": random(0.05, 0),
    "half": random(0.5, 1),
    "dense": random(0.95, 2),
}
