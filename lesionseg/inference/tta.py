"""TTA: test-time augmentation, the mean prediction over symmetric views of an image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn


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


def predict_with_tta(model: nn.Module, images: Tensor, name: str) -> Tensor:
    """Return ``predict_with_ttas`` for one name."""
    return predict_with_ttas(model, images, (name,))[name]


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
