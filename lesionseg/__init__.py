"""Skin-lesion segmentation: data, models, training, evaluation.

    import lesionseg
    prediction = lesionseg.load("runs/isic").predict("photograph.jpg")

torch and NumPy are imported on the first use of a name, not with the package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lesionseg.inference.prediction import Prediction
    from lesionseg.inference.predictor import Segmenter, load

__all__ = ["Prediction", "Segmenter", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("lesionseg.inference.predictor"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
