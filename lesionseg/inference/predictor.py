"""A trained model in use: ``load(run).predict(picture)``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from lesionseg.config import TrialConfig
from lesionseg.data.image_io import Pixels, enough, read_image_and_size, squeeze, upright
from lesionseg.data.loader import normalise
from lesionseg.errors import InputError
from lesionseg.inference.mask_stats import Mask, MaskStats, Probability, measure_mask
from lesionseg.inference.postprocess import probability_to_mask, resize_probability, refine_probability
from lesionseg.inference.selection import DEFAULT_INFERENCE, Inference
from lesionseg.inference.tta import predict_with_tta
from lesionseg.runtime.device import amp_dtype, autocast, pick_device
from lesionseg.training import checkpoint

#: What a study calls the file of its final model, and the folder of it.
FILE, FOLDER = "model.safetensors", "final"

Picture = str | Path | Image.Image | NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Prediction(MaskStats):
    """What was found in one picture, beside the numbers of Findings.

    mask: bool [H, W], True on the lesion, at the picture's own size (upright).
    probability: float32 [H, W] in [0, 1], what the mask was cut from.
    """

    mask: Mask
    probability: Probability


class Segmenter:
    """A network together with what is done to pictures before it and to its output after it.

    model: logits [N, 1, S, S] from normalised images; it is moved to the device.
    config: what it was trained with; its ``image_size`` is S.
    inference: test-time augmentation and the chain after it, as the study chose them.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrialConfig,
        inference: Inference = DEFAULT_INFERENCE,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.inference, self.device = config, inference, torch.device(device)
        moved = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model: nn.Module = moved.eval()

    @property
    def image_size(self) -> int:
        """The side S in pixels of the squares that the network sees."""
        return self.config.image_size

    def predict(self, picture: Picture) -> Prediction:
        """The lesion in one picture.

        Args:
            picture: a file, an image of PIL, or uint8 [H, W, 3], RGB. Files and images are turned
                upright by their EXIF orientation.

        Raises:
            InputError: it is no picture, damaged, too large, or an array of another kind.
        """
        small, shape = self._take(picture)
        probability = self.probabilities(small[None])[0]
        return self.build_prediction(small, probability, shape)

    def probabilities(self, images: Pixels) -> Probability:
        """The lesion's probability [N, S, S] in [0, 1] for uint8 [N, S, S, 3], RGB.

        The mean over the views of test-time augmentation; in half precision where the network was
        trained in it and the device has it.
        """
        batch = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(self.device)
        precision = autocast(self.device, amp_dtype(self.device, self.config.amp))
        with torch.inference_mode(), precision:
            found = predict_with_tta(self.model, normalise(batch), self.inference.tta)
        probability: Probability = found.float().squeeze(1).cpu().numpy()
        return probability

    def build_prediction(self, small: Pixels, probability: Probability, shape: tuple[int, int]) -> Prediction:
        """The prediction at a picture's own height and width.

        small: the picture as the network saw it, uint8 [S, S, 3]. probability: [S, S].
        """
        chain = self.inference.chain
        full = resize_probability(refine_probability(chain, probability, small), shape)
        mask = probability_to_mask(chain, full)
        return Prediction(**asdict(measure_mask(mask, full)), mask=mask, probability=full)

    def _take(self, picture: Picture) -> tuple[Pixels, tuple[int, int]]:
        """As the network sees it, uint8 [S, S, 3], and its height and width."""
        size = self.image_size
        if isinstance(picture, str | Path):
            image, shape = read_image_and_size(Path(picture), draft=enough(size))
            return squeeze(image, size), shape
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(_checked(picture))
        if not isinstance(picture, Image.Image):
            raise InputError(
                f"predict: a picture must be a path, an image of PIL or uint8 [H, W, 3], "
                f"got {type(picture).__name__}"
            )
        image = upright(picture)
        return squeeze(image, size), (image.height, image.width)


def load(run: str | Path, device: str = "auto") -> Segmenter:
    """The final model of a study.

    Args:
        run: a study's folder, its ``final/``, or the model's file. Nothing but that file is read,
            and nothing in it can run.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        InputError: no model there, a file that is damaged or no model, a device that is not here.
    """
    path = find_model_file(Path(run))
    where = pick_device(device)
    model, config = checkpoint.load(path)
    return Segmenter(model, config, checkpoint.read_inference(path), where)


def find_model_file(run: Path) -> Path:
    """The final model's file of a study's folder, of its ``final/``, or that file itself.

    Raises InputError where there is none.
    """
    for path in (run, run / FILE, run / FOLDER / FILE):
        if path.is_file():
            return path
    if not run.exists():
        raise InputError(f"{run}: no such file or folder; give a study's folder or its final/")
    raise InputError(
        f"{run}: no {FOLDER}/{FILE} here; `lesionsearch final` makes it when the search is done"
    )


def _checked(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise InputError(
            f"predict: an array must be uint8 [H, W, 3], RGB, got {array.dtype} {list(array.shape)}"
        )
    return array
