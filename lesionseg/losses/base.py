"""What every loss is, and the weighted sum of two."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def blend(weight: float, first: Loss, second: Loss) -> Loss:
    """``weight`` x ``first`` + (1 - ``weight``) x ``second``."""
    return lambda logits, target: (
        weight * first(logits, target) + (1 - weight) * second(logits, target)
    )
