"""Augmentation on the host, image by image.

``apply_pipeline`` gives the same result as the pipeline itself, without albumentations' checks
between transforms, which take a seventh of the time of an image of 96 x 96.
"""

from __future__ import annotations

from typing import Any

import albumentations as A
import numpy as np

from lesionseg.augment.drawing import Picture


def apply_pipeline(pipeline: A.Compose, image: Picture, mask: Picture) -> tuple[Picture, Picture]:
    """Apply a pipeline to copies of an image and its mask.

    Args:
        pipeline: a pipeline of AUGMENTS, seeded.
        image: uint8 [H, W, 3].
        mask: uint8 [H, W].
    """
    pipeline.py_random.random()  # drawn by Compose for its own probability, which is 1
    for transform in pipeline.transforms:
        if transform.should_apply():
            params = draw_params(transform, image.shape)
            image = np.ascontiguousarray(transform.apply(image, **params))
            if not isinstance(transform, A.ImageOnlyTransform):
                mask = np.ascontiguousarray(transform.apply_to_mask(mask, **params))
    return image, mask


def draw_params(transform: A.BasicTransform, shape: tuple[int, ...]) -> dict[str, Any]:
    """Draw a transform's parameters for an image of shape [H, W, 3]; the pixels are not used."""
    params: dict[str, Any] = {**transform.get_params(), "shape": shape}
    dependent: dict[str, Any] = transform.get_params_dependent_on_data(params=params, data={})
    return params | dependent
