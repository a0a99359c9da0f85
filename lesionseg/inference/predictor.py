"""Segmenter: a trained model for prediction, ``load(run).predict(image)``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from lesionseg.config import TrialConfig
from lesionseg.data.image_io import (
    Pixels,
    read_image_and_size,
    resize_square,
    to_upright_rgb,
)
from lesionseg.errors import InputError
from lesionseg.inference.postprocess import (
    Probability,
    probability_to_mask,
    refine_probability,
    resize_probability,
)
from lesionseg.inference.prediction import Prediction, measure_mask
from lesionseg.inference.selection import DEFAULT_INFERENCE, Inference
from lesionseg.inference.tta import NetworkOutput, predict_images
from lesionseg.runtime.device import pick_device, with_index
from lesionseg.training import checkpoint

#: Name of the final model's file in a study, and of its folder.
FILE, FOLDER = "model.safetensors", "final"

Picture = str | Path | Image.Image | NDArray[np.uint8]


class Segmenter:
    """A network with its preprocessing and postprocessing.

    model: logits [N, 1, S, S] from normalised images; is moved to the device.
    config: configuration of its training, see ``Ensemble.config``; ``image_size`` is S.
    inference: test-time augmentation and postprocessing, as selected by the study.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrialConfig,
        inference: Inference = DEFAULT_INFERENCE,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.inference, self.device = config, inference, with_index(device)
        moved = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model: nn.Module = moved.eval()

    @property
    def image_size(self) -> int:
        """Side S in pixels of the network's square input."""
        return self.config.image_size

    def predict(self, picture: Picture) -> Prediction:
        """Segment one image.

        Args:
            picture: a file, a PIL image, or uint8 [H, W, 3], RGB. The EXIF orientation of files
                and PIL images is applied.

        Raises:
            InputError: not an image, damaged, too large, or an invalid array.
        """
        resized, shape = self._preprocess(picture)
        return self.build_prediction(resized, self.predict_outputs(resized[None])[0], shape)

    def predict_probabilities(self, images: Pixels) -> Probability:
        """Return the lesion's probability, float32 [N, S, S]; see ``predict_outputs``."""
        return np.stack([output.probability for output in self.predict_outputs(images)])

    def predict_outputs(self, images: Pixels) -> list[NetworkOutput]:
        """Return the output for each image, averaged over the views of test-time augmentation.

        In half precision if the network was trained in it and the device supports it.

        Args:
            images: uint8 [N, S, S, 3], RGB.
        """
        name = self.inference.tta
        return predict_images(self.model, images, (name,), self.device, self.config.amp)[name]

    def build_prediction(
        self, resized: Pixels, output: NetworkOutput, shape: tuple[int, int]
    ) -> Prediction:
        """Postprocess the network's output at the image's own size.

        Args:
            resized: the network's input, uint8 [S, S, 3].
            output: of ``predict_outputs``.
            shape: height and width of the image.
        """
        chain, uncertainty = self.inference.chain, output.uncertainty
        full = resize_probability(refine_probability(chain, output.probability, resized), shape)
        return replace(
            measure_mask(probability_to_mask(chain, full), full),
            disagreement=output.disagreement,
            uncertainty=None if uncertainty is None else resize_probability(uncertainty, shape),
        )

    def _preprocess(self, picture: Picture) -> tuple[Pixels, tuple[int, int]]:
        """Return the network's input, uint8 [S, S, 3], and the image's height and width."""
        size = self.image_size
        if isinstance(picture, str | Path):
            image, shape = read_image_and_size(Path(picture), size)
            return resize_square(image, size), shape
        if isinstance(picture, np.ndarray):
            dtype, array_shape = picture.dtype, list(picture.shape)
            if dtype != np.uint8 or array_shape[2:] != [3] or not picture.size:
                raise InputError(
                    f"predict: an array must be uint8 [H, W, 3], RGB, got {dtype} {array_shape}"
                )
            picture = Image.fromarray(picture)
        if not isinstance(picture, Image.Image):
            raise InputError(
                f"predict: an image must be a path, a PIL image or uint8 [H, W, 3], "
                f"got {type(picture).__name__}"
            )
        image = to_upright_rgb(picture)
        return resize_square(image, size), (image.height, image.width)


def load(run: str | Path, device: str = "auto") -> Segmenter:
    """Load the final model of a study.

    Args:
        run: a study's folder, its ``final/``, or the model's file. Only the model's file is read,
            and it cannot execute code.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        InputError: no model, a damaged or other file, or a device that is not available.
    """
    path = find_model_file(Path(run))
    torch_device = pick_device(device)
    model, config = checkpoint.load(path)
    return Segmenter(model, config, checkpoint.read_inference(path), torch_device)


def find_model_file(run: Path) -> Path:
    """Return the model's file of a study's folder or its ``final/``, or the file itself."""
    for path in (run, run / FILE, run / FOLDER / FILE):
        if path.is_file():
            return path
    if not run.exists():
        raise InputError(f"{run}: no such file or folder; give a study's folder or its final/")
    raise InputError(
        f"{run}: has no {FOLDER}/{FILE}; `lesionsearch final` creates it after the search"
    )
