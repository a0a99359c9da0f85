"""Delta debugging: minimize a failing list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def shrink(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> list[T]:
    """Return a failing part of the items from which no single item can be removed.

    This is delta debugging (Zeller and Hildebrandt, 2002): parts and their complements are tried,
    then smaller parts. Nothing is tried twice.

    Args:
        items: a list that fails.
        fails: whether a part of the items, in their order, fails.
    """
    known: dict[tuple[int, ...], bool] = {}

    def test(positions: Sequence[int]) -> bool:
        key = tuple(positions)
        if key not in known:
            known[key] = fails([items[i] for i in positions])
        return known[key]

    left = list(range(len(items)))
    if not left or test([]):
        return []
    parts = 2
    while len(left) > 1:
        size = -(-len(left) // parts)
        chunks = [left[i : i + size] for i in range(0, len(left), size)]
        complements = [[i for i in left if i not in chunk] for chunk in chunks]
        for candidate in [*chunks, *complements]:
            if len(candidate) < len(left) and test(candidate):
                left, parts = candidate, 2 if candidate in chunks else max(2, parts - 1)
                break
        else:
            if parts >= len(left):
                break
            parts = min(len(left), 2 * parts)
    return [items[i] for i in left]
