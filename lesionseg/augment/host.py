"""A pipeline's executor on the host: image by image, by albumentations and OpenCV.

``apply_pipeline(pipeline, ...)`` is ``pipeline(...)`` for one image and its mask, with the same draws and
the same result, without what albumentations does between two transforms to check its targets and
look for boxes and points: a seventh of the time of a picture of 96 x 96.
"""

from __future__ import annotations

from typing import Any

import albumentations as A
import numpy as np

from lesionseg.augment.drawing import Picture


def apply_pipeline(pipeline: A.Compose, image: Picture, mask: Picture) -> tuple[Picture, Picture]:
    """What the pipeline makes of an image [H, W, 3] and its mask [H, W]; they are left alone."""
    pipeline.py_random.random()  # whether the pipeline is run at all: it always is
    for transform in pipeline.transforms:
        if transform.should_apply():
            params = draw_params(transform, image.shape)
            image = np.ascontiguousarray(transform.apply(image, **params))
            if not isinstance(transform, A.ImageOnlyTransform):
                mask = np.ascontiguousarray(transform.apply_to_mask(mask, **params))
    return image, mask


def draw_params(transform: A.BasicTransform, shape: tuple[int, ...]) -> dict[str, Any]:
    """What a transform draws for an image of that shape, [H, W, 3].

    No transform of ours looks at more of an image.
    """
    params: dict[str, Any] = {**transform.get_params(), "shape": shape}
    more: dict[str, Any] = transform.get_params_dependent_on_data(params=params, data={})
    return params | more
