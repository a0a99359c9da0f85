"""TTA: test-time augmentation, the mean prediction over symmetric views of an image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lesionseg.data.loader import normalise
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


@torch.inference_mode()
def predict_images(
    model: nn.Module,
    images: NDArray[np.uint8],
    names: Sequence[str],
    device: torch.device,
    amp: str = "auto",
) -> dict[str, NDArray[np.float32]]:
    """Return the lesion's probability for images as they are stored.

    The selection of inference settings, the test and ``predict`` all use this function, so that
    they compute the same.

    Args:
        model: logits [N, 1, S, S] from normalised images; on ``device`` and in evaluation mode.
        images: uint8 [N, S, S, 3], RGB.
        names: names in TTA.
        device: device of the network.
        amp: ``off``, or ``auto`` for the half precision of the device's trainings.

    Returns:
        float32 [N, S, S] in [0, 1] by name.
    """
    # require: a copy if the images are a file that is mapped read-only.
    batch = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(device)
    with autocast(device, amp_dtype(device, amp)):
        outputs = predict_with_ttas(model, normalise(batch), names)
    return {name: output.squeeze(1).cpu().numpy() for name, output in outputs.items()}


@torch.inference_mode()
def predict_with_ttas(model: nn.Module, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the mean probability over the views of each entry of TTA.

    Args:
        model: logits [N, 1, S, S] from images; in the mode that the caller has set.
        images: normalised floats [N, 3, S, S].
        names: names in TTA; shared views are computed once.

    Returns:
        float32 [N, 1, S, S] in [0, 1] by name.
    """
    views_by_name = {name: TTA[name] for name in names}
    sums: dict[str, Tensor] = {}
    for symmetry in SYMMETRIES:
        users = [name for name, views in views_by_name.items() if symmetry in views]
        if users:
            view = symmetry.undo(model(symmetry.apply(images)).float().sigmoid())
            for name in users:
                sums[name] = sums[name] + view if name in sums else view
    return {name: sums[name] / len(views) for name, views in views_by_name.items()}
