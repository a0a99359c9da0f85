"""Pictures and masks that the tests of the pipelines share, and how they are run."""

import numpy as np

from lesionseg.augment import reseed


def marker(height=128, width=128):
    """A bright blob, off centre and longer than wide, and its mask."""
    y, x = np.mgrid[:height, :width] / min(height, width)
    mask = (((x - 0.34) * 1.4) ** 2 + (y - 0.42) ** 2 < 0.2**2).astype(np.uint8)
    image = np.full((height, width, 3), 60, np.uint8)
    image[mask > 0] = 200
    return image, mask


def noise(height, width=None, seed=0):
    """Random values, and a random mask of two fifths of the pixels."""
    rng = np.random.default_rng(seed)
    shape = (height, width or height)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    return image, (rng.random(shape) < 0.4).astype(np.uint8)


def skin(height=96, width=96):
    """Rosy skin with a smooth brown lesion, hairless, and the lesion's mask."""
    y, x = np.mgrid[:height, :width] / min(height, width)
    depth = np.exp(-((((x - 0.5) / 0.2) ** 2 + ((y - 0.45) / 0.16) ** 2) ** 2))[..., None]
    image = (1 - depth) * [205, 160, 145] + depth * [120, 80, 60]
    return np.rint(image).astype(np.uint8), (depth[..., 0] > 0.5).astype(np.uint8)


def results(pipeline, image, mask, n, seed=0):
    """What ``n`` calls of the pipeline give, from that seed on."""
    reseed(pipeline, seed)
    for _ in range(n):
        changed = pipeline(image=image, mask=mask)
        yield changed["image"], changed["mask"]


def same(some, others):
    """Whether two runs gave the same images and masks."""
    return all(
        np.array_equal(a, b)
        for one, other in zip(some, others, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def iou(a, b):
    """Intersection over union of two masks."""
    return (a & b).sum() / (a | b).sum()


def difference(image, other):
    """Mean absolute difference of two images, in grey levels."""
    return np.abs(image.astype(int) - other).mean()
