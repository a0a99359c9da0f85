"""TTA: the views of an image whose predictions are averaged at test time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lesionseg.errors import InputError, nearest


class Symmetry(NamedTuple):
    """One symmetry of the square: mirrored left to right or not, then quarter turns."""

    mirrored: bool
    turns: int

    def apply(self, x: Tensor) -> Tensor:
        """The transformed images; [..., S, S]."""
        mirrored = torch.flip(x, (-1,)) if self.mirrored else x
        return torch.rot90(mirrored, self.turns, (-2, -1)) if self.turns else mirrored

    def undo(self, x: Tensor) -> Tensor:
        """The images that ``apply`` was given; [..., S, S]."""
        turned = torch.rot90(x, -self.turns, (-2, -1)) if self.turns else x
        return torch.flip(turned, (-1,)) if self.mirrored else turned


#: All symmetries of the square, the dihedral group of eight; half turns first.
SYMMETRIES = tuple(Symmetry(m, t) for t in (0, 2, 1, 3) for m in (False, True))

#: The symmetries that are averaged over, by name. Each is a group, which is what makes the mean
#: equivariant; each keeps the order above, so that sums do not depend on what else is computed.
TTA: dict[str, tuple[Symmetry, ...]] = {
    "none": SYMMETRIES[:1],
    "flips": SYMMETRIES[:4],  # mirrored and turned by half is upside down
    "d4": SYMMETRIES,
}


def predict_with_tta(model: nn.Module, images: Tensor, name: str) -> Tensor:
    """The mean probability over the views of one row of TTA, each turned back.

    Args:
        model: logits [N, 1, S, S] from images; its training or evaluation mode is the caller's.
        images: normalised floats [N, 3, S, S].
        name: a row of TTA.

    Returns:
        Probabilities [N, 1, S, S] in [0, 1], float32.

    Raises:
        InputError: there is no such row, or the images are not square.
    """
    return predict_with_ttas(model, images, (name,))[name]


@torch.inference_mode()
def predict_with_ttas(model: nn.Module, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """``averaged`` for several rows at once; a view that rows share is computed once."""
    wanted = {name: TTA[check_tta(name)] for name in names}
    if images.shape[-1] != images.shape[-2]:
        raise InputError(
            f"test-time augmentation needs square images, got {tuple(images.shape[-2:])}"
        )
    sums: dict[str, Tensor] = {}
    for symmetry in SYMMETRIES:
        rows = [name for name, views in wanted.items() if symmetry in views]
        if rows:
            view = symmetry.undo(model(symmetry.apply(images)).float().sigmoid())
            for name in rows:
                sums[name] = sums[name] + view if name in sums else view
    return {name: sums[name] / len(views) for name, views in wanted.items()}


def check_tta(name: object) -> str:
    """The name itself; InputError if it is no row of TTA."""
    if not isinstance(name, str) or name not in TTA:
        raise InputError(f"unknown tta {name!r} ({nearest(name, TTA)})")
    return name
