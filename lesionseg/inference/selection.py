"""Selection of inference settings on validation images, after training.

``select_inference`` chooses test-time augmentation, the threshold, a CRF and mask operations.
``Inference`` holds the chosen settings; checkpoints store it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lesionseg.config import parse_component
from lesionseg.errors import InputError, suggest_name
from lesionseg.inference.postprocess import (
    POSTPROCESS,
    Chain,
    Mask,
    Probability,
    apply_operations,
    refine_probability,
    to_mask,
)
from lesionseg.inference.tta import TTA, NetworkOutput, predict_images
from lesionseg.metrics.overlap import Floats, dice_score
from lesionseg.runtime.device import with_index
from lesionseg.runtime.oom import AdaptiveBatcher
from lesionseg.space import ComponentConfig, resolve

#: Minimum gain in mean Dice of a step, however small its standard error.
MIN_GAIN = 0.0005

#: Number of probabilities above which they are stored as float16.
MAX_FLOAT32_VALUES = 2**27

#: Candidate thresholds. Of equally good ones the first is selected: the nearest to one half.
THRESHOLDS = tuple(
    ComponentConfig("threshold", {"value": round(0.5 + sign * 0.05 * i, 2)})
    for i in range(1, 10)
    for sign in (-1, 1)
)

CRFS = tuple(
    ComponentConfig("crf", {"weight": weight, "colour": colour})
    for weight, colour in ((2.0, 10.0), (4.0, 15.0), (8.0, 30.0))
)

OPERATIONS = (
    ComponentConfig("largest"),
    ComponentConfig("fill_holes"),
    *(
        ComponentConfig(name, {"radius": radius})
        for name in ("opening", "closing")
        for radius in (0.5, 1.0, 2.0)
    ),
)


@dataclass(frozen=True)
class Inference:
    """How a network's logits become a mask.

    tta: a name in TTA.
    chain: entries of POSTPROCESS. Default parameters are written out, so that a stored chain
        keeps its meaning when a default changes.

    Raises:
        InputError: an unknown name or an invalid parameter.
    """

    tta: str = "none"
    chain: Chain = ()

    def __post_init__(self) -> None:
        if self.tta not in TTA:
            raise InputError(f"unknown tta {self.tta!r} ({suggest_name(self.tta, TTA)})")
        chain = (
            ComponentConfig(c.name, resolve("postprocess", POSTPROCESS, c)) for c in self.chain
        )
        object.__setattr__(self, "chain", tuple(chain))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data: ``{"tta": name, "chain": [{name: {parameter: value}}]}``."""
        return {"tta": self.tta, "chain": [{p.name: dict(p.params)} for p in self.chain]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Inference:
        """Create settings from the data of ``to_dict``; missing keys get their default."""
        return cls(data.get("tta", "none"), tuple(map(parse_component, data.get("chain", ()))))


#: No test-time augmentation, threshold one half.
DEFAULT_INFERENCE = Inference()


@dataclass(frozen=True)
class Candidate:
    """A step that was evaluated during the selection.

    dice: mean Dice with this step.
    gain: mean difference to the settings selected before, and its standard error (None for a
        single image).
    """

    name: str
    dice: float
    gain: float
    standard_error: float | None
    selected: bool = False


@dataclass(frozen=True)
class InferenceChoice:
    """Result of ``select_inference``.

    dice, default_dice: mean Dice over the images at the network's size, with the selected and
        with the default settings.
    candidates: the default settings and all evaluated steps, in order.
    """

    inference: Inference
    dice: float
    default_dice: float
    candidates: tuple[Candidate, ...]


def select_inference(
    model: nn.Module,
    images: NDArray[np.uint8],
    masks: NDArray[np.uint8],
    *,
    device: torch.device,
    tta: bool = True,
    postprocess: bool = True,
    scale_free: bool = False,
    batch_size: int = 16,
    amp: str = "auto",
) -> InferenceChoice:
    """Select test-time augmentation and postprocessing on validation images.

    Greedy and deterministic: the best test-time augmentation, threshold and CRF, then mask
    operations as long as one helps. A step is selected only if its mean gain in Dice over the
    images exceeds its standard error and MIN_GAIN, so that a few images or an untrained network
    do not lead to arbitrary settings.

    Args:
        model: logits [N, 1, S, S] from normalised images; is moved to the device and left in
            evaluation mode.
        images: uint8 [N, S, S, 3], RGB, with N of at least 1.
        masks: [N, S, S]; positive values are lesion.
        device: device of the network; postprocessing runs on the CPU.
        tta: whether to select test-time augmentation.
        postprocess: whether to select postprocessing.
        scale_free: whether the settings are for a network of another image size. A CRF, which
            corrects the coarse edges of small images, is not selected then.
        batch_size: images per forward pass; reduced if they do not fit into memory.
        amp: precision of the network's training; see ``predict_images``.

    Raises:
        ValueError: no image, or different numbers of masks and images.
    """
    if len(images) != len(masks) or not len(images):
        raise ValueError(f"needs a mask for each image, got {len(masks)} for {len(images)}")
    names = tuple(TTA) if tta else ("none",)
    probabilities = predict_validation(model, images, names, device, batch_size, amp)
    search = _GreedySearch(masks > 0, _postprocess(probabilities["none"], images, ()))
    selected = "none"
    for name in names[1:]:
        option = {f"tta {name}": _postprocess(probabilities[name], images, ())}
        selected = name if search.step(option) else selected
    crfs = () if scale_free else CRFS
    chain = _select_chain(search, probabilities[selected], images, crfs) if postprocess else ()
    return InferenceChoice(
        Inference(selected, chain),
        float(search.dice.mean()),
        search.candidates[0].dice,
        tuple(search.candidates),
    )


class _GreedySearch:
    """The Dice per image of the settings selected so far, and all candidates."""

    def __init__(self, truth: Mask, default: Iterable[Mask]) -> None:
        self.truth = truth
        self.dice = _dice(default, truth)
        self.candidates = [replace(self._compare("default", self.dice), selected=True)]

    def step(self, options: Mapping[str, Iterable[Mask]]) -> str | None:
        """Evaluate the masks of all options; select and return the best if it helps enough."""
        dice = {name: _dice(masks, self.truth) for name, masks in options.items()}
        candidates = {name: self._compare(name, values) for name, values in dice.items()}
        best = max(candidates.values(), key=lambda candidate: candidate.gain)
        error = best.standard_error
        is_gain = error is not None and best.gain > max(error, MIN_GAIN)
        candidates[best.name] = replace(best, selected=is_gain)
        self.candidates += candidates.values()
        if not is_gain:
            return None
        self.dice = dice[best.name]
        return best.name

    def _compare(self, name: str, dice: Floats) -> Candidate:
        gain, error = paired_gain(dice, self.dice)
        return Candidate(name, float(dice.mean()), gain, error)


def paired_gain(dice: Floats, reference: Floats) -> tuple[float, float | None]:
    """Return the mean difference per image, [N], and its standard error (None for one image)."""
    gain = dice - reference
    error = float(gain.std(ddof=1) / len(gain) ** 0.5) if len(gain) > 1 else None
    return float(gain.mean()), error


def _select_chain(
    search: _GreedySearch,
    probabilities: NDArray[Any],
    images: NDArray[np.uint8],
    crfs: Sequence[ComponentConfig],
) -> Chain:
    def named(steps: Sequence[ComponentConfig]) -> dict[str, ComponentConfig]:
        return {" ".join([s.name, *(f"{k} {v}" for k, v in s.params.items())]): s for s in steps}

    chain: Chain = ()
    for options in map(named, (THRESHOLDS, crfs)):
        masks = {n: _postprocess(probabilities, images, (*chain, s)) for n, s in options.items()}
        if masks and (best := search.step(masks)):
            chain = (*chain, options[best])
    selected, options = list(_postprocess(probabilities, images, chain)), named(OPERATIONS)
    while options and (best := search.step({n: _apply(s, selected) for n, s in options.items()})):
        step = options[best]
        chain, selected = (*chain, step), list(_apply(step, selected))
        options = {n: s for n, s in options.items() if s.name != step.name}
    return chain


def _apply(step: ComponentConfig, masks: Iterable[Mask]) -> Iterator[Mask]:
    return (apply_operations((step,), mask) for mask in masks)


def _postprocess(
    probabilities: NDArray[Any], images: NDArray[np.uint8], chain: Chain
) -> Iterator[Mask]:
    for values, image in zip(probabilities, images, strict=True):
        probability: Probability = values.astype(np.float32)
        yield to_mask(chain, refine_probability(chain, probability, image), image.shape[:2])


def predict_validation(
    model: nn.Module,
    images: NDArray[np.uint8],
    names: Sequence[str],
    device: torch.device,
    batch_size: int = 16,
    amp: str = "auto",
) -> dict[str, NDArray[Any]]:
    """Return the lesion's probability for each name in TTA; the arguments as ``select_inference``.

    Returns:
        float32 [N, S, S] by name; float16 above MAX_FLOAT32_VALUES.
    """
    device = with_index(device)
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    dtype = np.float16 if images[..., 0].size > MAX_FLOAT32_VALUES else np.float32
    probabilities: dict[str, NDArray[Any]] = {n: np.empty(images.shape[:3], dtype) for n in names}

    def predict_batch(part: slice) -> tuple[slice, dict[str, list[NetworkOutput]]]:
        return part, predict_images(model, images[part], names, device, amp)

    for part, outputs in AdaptiveBatcher(batch_size, device)(len(images), predict_batch):
        for name, batch in outputs.items():
            probabilities[name][part] = [output.probability for output in batch]
    return probabilities


def _dice(predicted: Iterable[Mask], truth: Mask) -> Floats:
    """Return the Dice of each image, float64 [N]; 1 if both masks are empty."""
    return np.array([dice_score(p, t) for p, t in zip(predicted, truth, strict=True)])
