"""What absorbs light in skin, as optical densities per RGB channel.

A layer of pigment of amount d multiplies what lies beneath it by exp(-d * density). The vectors
are unit amounts in display space: melanin near the surface is brown, melanin deep in the dermis
is blue-grey, blood is pink, and keratin is yellow.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from lesionseg.data.synthetic._fields import Field, Frame, as_field

_MELANIN = (0.44, 1.00, 1.48)
_BLOOD = (0.14, 1.00, 0.80)
_DEEP_MELANIN = (1.06, 0.98, 0.68)
_KERATIN = (0.02, 0.22, 1.00)
_DENSITIES = np.array([_MELANIN, _BLOOD, _DEEP_MELANIN, _KERATIN], dtype=np.float32)


@dataclass
class Pigments:
    """Amounts of each absorber, (H, W) float32 each; layers add to them."""

    melanin: Field
    blood: Field
    deep: Field
    keratin: Field

    @classmethod
    def none(cls, frame: Frame) -> Self:
        """No pigment anywhere."""
        return cls(*(np.zeros(frame.shape, dtype=np.float32) for _ in range(4)))

    def add(self, other: "Pigments", coverage: Field) -> None:
        """Add another layer's amounts where it covers this one."""
        self.melanin += coverage * other.melanin
        self.blood += coverage * other.blood
        self.deep += coverage * other.deep
        self.keratin += coverage * other.keratin

    def thin(self, share: float) -> None:
        """Keep only a share of every amount."""
        self.melanin *= share
        self.blood *= share
        self.deep *= share
        self.keratin *= share

    def transmitted(self) -> Field:
        """The share of light that passes, (H, W, 3); above 1 where amounts are negative."""
        amounts = np.stack([self.melanin, self.blood, self.deep, self.keratin], axis=-1)
        return as_field(np.exp(-(amounts @ _DENSITIES)))
