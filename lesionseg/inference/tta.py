"""TTA: test-time augmentation, the mean prediction over symmetric views of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lesionseg.data.loader import normalise
from lesionseg.inference.ensemble import Ensemble, disagreement, mean_and_deviation
from lesionseg.inference.postprocess import Probability
from lesionseg.runtime.device import amp_dtype, autocast


class Symmetry(NamedTuple):
    """A symmetry of the square: optional horizontal flip, then quarter turns."""

    mirrored: bool
    turns: int

    def apply(self, x: Tensor) -> Tensor:
        """Transform images [..., S, S]."""
        mirrored = torch.flip(x, (-1,)) if self.mirrored else x
        return torch.rot90(mirrored, self.turns, (-2, -1)) if self.turns else mirrored

    def undo(self, x: Tensor) -> Tensor:
        """Invert ``apply``; [..., S, S]."""
        rotated = torch.rot90(x, -self.turns, (-2, -1)) if self.turns else x
        return torch.flip(rotated, (-1,)) if self.mirrored else rotated


#: All symmetries of the square, the dihedral group of eight; half turns first.
SYMMETRIES = tuple(Symmetry(m, t) for t in (0, 2, 1, 3) for m in (False, True))

#: The symmetries to average over, by name, the cheapest first. Each entry is a group, which makes
#: the mean equivariant; each is in the order above, so that sums do not depend on other entries.
TTA: dict[str, tuple[Symmetry, ...]] = {
    "none": SYMMETRIES[:1],
    "flips": SYMMETRIES[:4],  # the vertical flip is the horizontal one and a half turn
    "d4": SYMMETRIES,
}


@dataclass(frozen=True, eq=False)
class NetworkOutput:
    """Output for one image, averaged over the views of test-time augmentation.

    probability: of the lesion, float32 [S, S] in [0, 1].
    uncertainty: standard deviation over the members of an ensemble, float32 [S, S] in [0, 0.5];
        None for a single network.
    disagreement: of the members' masks, in [0, 1], see ``ensemble.disagreement``; None for a single
        network.
    """

    probability: Probability
    uncertainty: Probability | None = None
    disagreement: float | None = None


@torch.inference_mode()
def predict_images(
    model: nn.Module,
    images: NDArray[np.uint8],
    names: Sequence[str],
    device: torch.device,
    amp: str = "auto",
) -> dict[str, list[NetworkOutput]]:
    """Return the output for images as they are stored.

    The selection of inference settings, the test and ``predict`` all use this function, so that
    they compute the same. The members of an ensemble are averaged over the views before they are
    compared, so that they do not seem to disagree where a view does.

    Args:
        model: logits [N, 1, S, S] from normalised images; on ``device`` and in evaluation mode.
        images: uint8 [N, S, S, 3], RGB.
        names: names in TTA.
        device: device of the network.
        amp: ``off``, or ``auto`` for the half precision of the device's trainings.

    Returns:
        The output for each image, by name.
    """
    # require: a copy if the images are a file that is mapped read-only.
    batch = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(device)
    with autocast(device, amp_dtype(device, amp)):
        if isinstance(model, Ensemble):
            members = average_views(model.member_probabilities, normalise(batch), names)
            outputs = {n: _compare_members(each, model.weights) for n, each in members.items()}
        else:
            means = predict_with_ttas(model, normalise(batch), names)
            outputs = {name: (mean.squeeze(1),) for name, mean in means.items()}
    arrays = {name: [part.cpu().numpy() for part in output] for name, output in outputs.items()}
    return {name: _split_images(*each) for name, each in arrays.items()}


def predict_with_ttas(model: nn.Module, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the mean probability over the views of each entry of TTA.

    Args:
        model: logits [N, 1, S, S] from images; in the mode that the caller has set.
        images: normalised floats [N, 3, S, S].
        names: names in TTA; shared views are computed once.

    Returns:
        float32 [N, 1, S, S] in [0, 1] by name.
    """
    return average_views(lambda view: model(view).float().sigmoid(), images, names)


@torch.inference_mode()
def average_views(
    predict: Callable[[Tensor], Tensor], images: Tensor, names: Iterable[str]
) -> dict[str, Tensor]:
    """Return the mean of a prediction over the views of each entry of TTA.

    Args:
        predict: probabilities [..., S, S] from images [N, 3, S, S].
        images: normalised floats [N, 3, S, S].
        names: names in TTA; shared views are computed once.

    Returns:
        The means [..., S, S] by name.
    """
    views_by_name = {name: TTA[name] for name in names}
    sums: dict[str, Tensor] = {}
    for symmetry in SYMMETRIES:
        users = [name for name, views in views_by_name.items() if symmetry in views]
        if users:
            view = symmetry.undo(predict(symmetry.apply(images)))
            for name in users:
                sums[name] = sums[name] + view if name in sums else view
    return {name: sums[name] / len(views) for name, views in views_by_name.items()}


def _compare_members(members: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    """Return mean and deviation, [N, S, S] each, and disagreement, [N], of [M, N, 1, S, S]."""
    mean, deviation = mean_and_deviation(members.squeeze(2), weights)
    return mean, deviation, disagreement(members.squeeze(2), mean, weights)


def _split_images(
    mean: Probability,
    deviation: Probability | None = None,
    disagreement: Probability | None = None,
) -> list[NetworkOutput]:
    """Return the output for each image from those of a batch."""
    if deviation is None or disagreement is None:
        return list(map(NetworkOutput, mean))
    return list(map(NetworkOutput, mean, deviation, disagreement.tolist()))
