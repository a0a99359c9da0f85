"""Inference: how a trained network is used, and its choice on validation images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lesionseg import metrics
from lesionseg.data.loader import normalise
from lesionseg.errors import InputError, nearest
from lesionseg.inference.postprocess import (
    Chain,
    Mask,
    Probability,
    check_chain,
    to_mask,
    apply_operations,
    refine_probability,
)
from lesionseg.inference.tta import predict_with_ttas, check_tta
from lesionseg.space import ComponentConfig

T = TypeVar("T", str, ComponentConfig)
#: A gain in mean Dice that is worth a step, however sure it is.
WORTH = 0.0005

#: More values than this are kept as float16: a gigabyte per three rows of TTA.
LARGE = 2**27

#: Of equals the first is taken: so those nearest to one half come first.
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
    *(ComponentConfig(name, {"radius": r}) for name in ("opening", "closing") for r in (0.5, 1.0, 2.0)),
)

_KEYS = ("tta", "chain")


@dataclass(frozen=True)
class Inference:
    """How a network's logits become a mask.

    tta: a row of TTA. chain: rows of POSTPROCESS; their defaults are written out, so that what
    is kept in a file means the same when a default changes.
    Raises InputError for what is not in the tables.
    """

    tta: str = "none"
    chain: Chain = ()

    def __post_init__(self) -> None:
        check_tta(self.tta)
        object.__setattr__(self, "chain", check_chain(tuple(self.chain)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: ``{"tta": name, "chain": [{row: {parameter: value}}]}``."""
        return {"tta": self.tta, "chain": [{p.name: dict(p.params)} for p in self.chain]}

    @classmethod
    def from_dict(cls, data: object) -> Inference:
        """What ``to_dict`` gave; a missing key has its default. InputError for anything else."""
        if not isinstance(data, Mapping):
            raise InputError(f"inference must be a mapping of tta and chain, got {data!r}")
        for key in data:
            if key not in _KEYS:
                raise InputError(f"inference: unknown key {key!r} ({nearest(key, _KEYS)})")
        chain = data.get("chain", [])
        if not isinstance(chain, Sequence) or isinstance(chain, str):
            raise InputError(
                f"inference: chain must be a list of {{row: parameters}}, got {chain!r}"
            )
        return cls(check_tta(data.get("tta", "none")), tuple(_pick(row) for row in chain))


#: One view, cut at one half.
DEFAULT_INFERENCE = Inference()


@dataclass(frozen=True)
class InferenceChoice:
    """What ``choose`` found.

    inference: the choice. dice: its mean Dice over the images, at the network's size.
    default_dice: that of DEFAULT_INFERENCE. rows: DEFAULT_INFERENCE and each trial, in order: ``what``, its mean ``dice``,
    the mean ``gain`` over what was there, its standard error ``se`` (None for one image) and
    whether it was ``taken``.
    """

    inference: Inference
    dice: float
    default_dice: float
    rows: list[dict[str, Any]]


def select_inference(
    model: nn.Module,
    images: NDArray[np.uint8],
    masks: NDArray[np.uint8],
    *,
    device: torch.device,
    ttas: Sequence[str] = ("none", "flips", "d4"),
    postprocess: bool = True,
    batch_size: int = 16,
) -> InferenceChoice:
    """Chooses test-time augmentation and postprocessing on validation images.

    In turn: each row of TTA, the best threshold, the best random field, and as long as one helps
    the best operation on masks. A step is taken only where its mean gain in Dice, image by
    image, is above its own standard error and above WORTH. So a few images or an untrained
    network lead to nothing odd. Nothing is drawn.

    Args:
        model: logits [N, 1, S, S] from normalised images; is moved to the device and left in
            evaluation mode.
        images: [N, S, S, 3], RGB; N of 1 or more.
        masks: [N, S, S]; what is above 0 is lesion.
        device: where the network runs; the rest is the processor's work.
        ttas: rows of TTA to try, the cheapest first.
        postprocess: whether a chain is looked for as well.
        batch_size: images per forward pass.

    Raises:
        InputError: an unknown row of TTA.
        ValueError: no image, or another number of masks than of images.
    """
    if len(images) != len(masks) or not len(images):
        raise ValueError(f"needs a mask for each image, got {len(masks)} for {len(images)}")
    names = tuple(dict.fromkeys(("none", *map(check_tta, ttas))))
    kept = _probabilities(model, images, names, device, batch_size)
    search = _Search(masks > 0, _predictions(kept["none"], images, ()))
    tta = "none"
    for name in names[1:]:
        tta = search.best((name,), lambda name: _predictions(kept[name], images, ())) or tta
    chain = _chain(search, kept[tta], images) if postprocess else ()
    return InferenceChoice(
        Inference(tta, chain),
        float(search.dice.mean()),
        search.rows[0]["dice"],
        search.rows,
    )


class _Search:
    """The Dice so far, image by image, and what was tried."""

    def __init__(self, truth: Mask, plain: Iterable[Mask]) -> None:
        self.truth = truth
        self.dice = _dice(plain, truth)
        self.rows = [{**_row("plain", self.dice, self.dice), "taken": True}]

    def best(self, trials: Iterable[T], predict: Callable[[T], Iterable[Mask]]) -> T | None:
        """Tries all; the best becomes the state and is returned if it passes."""
        found = [(trial, _dice(predict(trial), self.truth)) for trial in trials]
        rows = [_row(_label(trial), dice, self.dice) for trial, dice in found]
        self.rows += rows
        if not rows:
            return None
        i = max(range(len(rows)), key=lambda i: float(rows[i]["gain"]))
        gain, se = rows[i]["gain"], rows[i]["se"]
        if se is None or gain <= max(se, WORTH):
            return None
        rows[i]["taken"] = True
        trial, self.dice = found[i]
        return trial


def _chain(search: _Search, probabilities: NDArray[Any], images: NDArray[np.uint8]) -> Chain:
    def after(chain: Chain, component: ComponentConfig) -> Iterator[Mask]:
        return _predictions(probabilities, images, (*chain, component))

    chain: Chain = ()
    for components in (THRESHOLDS, CRFS):
        step = search.best(components, partial(after, chain))
        chain = (*chain, step) if step else chain
    masks, left = list(_predictions(probabilities, images, chain)), OPERATIONS
    while step := search.best(left, partial(_operated, masks)):
        chain, masks = (*chain, step), list(_operated(masks, step))
        left = tuple(component for component in left if component.name != step.name)
    return chain


def _predictions(
    probabilities: NDArray[Any], images: NDArray[np.uint8], chain: Chain
) -> Iterator[Mask]:
    for kept, image in zip(probabilities, images, strict=True):
        probability: Probability = kept.astype(np.float32)
        yield to_mask(chain, refine_probability(chain, probability, image), image.shape[:2])


def _operated(masks: Iterable[Mask], component: ComponentConfig) -> Iterator[Mask]:
    return (apply_operations((component,), mask) for mask in masks)


def _probabilities(
    model: nn.Module,
    images: NDArray[np.uint8],
    names: Sequence[str],
    device: torch.device,
    batch_size: int,
) -> dict[str, NDArray[Any]]:
    """The lesion's probability [N, S, S] under each row of TTA."""
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    kind = np.float16 if images[..., 0].size > LARGE else np.float32
    kept: dict[str, NDArray[Any]] = {name: np.empty(images.shape[:3], kind) for name in names}
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        # A copy: the images may be a file that is mapped to be read only.
        batch = torch.from_numpy(images[part].copy()).to(device)
        for name, probability in predict_with_ttas(model, normalise(batch), names).items():
            kept[name][part] = probability.squeeze(1).cpu().numpy()
    return kept


def _dice(predicted: Iterable[Mask], truth: Mask) -> metrics.Floats:
    """Of each image, float64 [N]; 1 where both are empty."""
    counts = []
    for p, t in zip(predicted, truth, strict=True):
        hits, claimed, real = (int(np.count_nonzero(m)) for m in (p & t, p, t))
        counts.append((hits, claimed - hits, real - hits, t.size - claimed - real + hits))
    return metrics.score_images(np.array(counts, dtype=np.int64))["dice"]


def _row(what: str, dice: metrics.Floats, before: metrics.Floats) -> dict[str, Any]:
    gain = dice - before
    means = {"dice": float(dice.mean()), "gain": float(gain.mean())}
    se = float(gain.std(ddof=1) / len(gain) ** 0.5) if len(gain) > 1 else None
    return {"what": what, **means, "se": se, "taken": False}


def _label(trial: str | ComponentConfig) -> str:
    if isinstance(trial, str):
        return f"tta {trial}"
    return " ".join([trial.name, *(f"{key} {value}" for key, value in trial.params.items())])


def _pick(row: object) -> ComponentConfig:
    if isinstance(row, Mapping) and len(row) == 1:
        ((name, params),) = row.items()
        if isinstance(name, str) and isinstance(params, Mapping):
            return ComponentConfig(name, dict(params))
    raise InputError(f"inference: a row of the chain must be {{name: parameters}}, got {row!r}")
