"""Damaged variants of a file's content, at random with a seed: of its bytes, and of its JSON."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

#: Replacement values for keys.
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 3, 10**30, 10**4000, 2**63, -(2**63) - 1, 0.5, -0.0, 1e308, math.nan,
    math.inf, -math.inf, "", "x", "\0", "\ud800", "\udcff", "a\nb", "\x1b[2J", "../../x",
    "/etc/passwd", "x" * 5000, "2026-02-30", [], {}, [[]], [None], {"": None}, {"x": {"x": 1}},
    [1, "a", None],
)  # fmt: skip
#: No character, byte order marks, ends of lines and fields, half a character and half a pair.
INSERTED = (b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b'"', b",", b"\xc3", b"\xed\xa0\x80")


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return the content with bits flipped, or with bytes left out, repeated or inserted."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        to = min(len(data), at + rng.choice((1, 1, 2, 10, 200)))
        match rng.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                del data[at:to]
            case 3:
                data[at:at] = data[at:to] * rng.choice((1, 2, 30))
            case 4:
                data[at:at] = rng.choice(INSERTED)
            case _:
                data[at:to] = rng.randbytes(to - at)
    return bytes(data)


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Return JSON with values replaced, keys left out or renamed, or deep nesting."""
    plain = copy.deepcopy(json.loads(content))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(plain))
        if not places:
            break
        container, key = rng.choice(places)
        match rng.randrange(8):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[rng.choice(("", "x", "\0", "\ud800", "n" * 600))] = container.pop(key)
            case 2 if isinstance(container, list):
                container.extend(copy.deepcopy(container))
            case 3:
                container[key] = rng.choice(([container[key]], {"x": container[key]}))
            case 4:  # the value of another place
                other, name = rng.choice(places)
                taken = other.get(name) if isinstance(other, dict) else other
                container[key] = copy.deepcopy(taken)
            case _:
                container[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    text = json.dumps(plain)
    if rng.random() < 0.03:  # deeper than any stack
        value = json.dumps(rng.choice(("x", 1)))
        text = text.replace(value, "[" * 20_000 + value + "]" * 20_000, 1)
    return text.encode()


def _places(plain: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(plain, dict | list):
        for key in list(plain) if isinstance(plain, dict) else range(len(plain)):
            yield plain, key
            yield from _places(plain[key])


def mutations(
    content: bytes, n: int, seed: int = 0, *kinds: Callable[[bytes, random.Random], bytes]
) -> Iterator[bytes]:
    """Return damaged variants; kinds: of ``mutate_bytes`` and the like, in turn."""
    yield from (b"", b"\0" * 40, b"[1]", b"{}", b"null", b"\xef\xbb\xbf" + content, b"[" * 100_000)
    for i in range(n):
        yield kinds[i % len(kinds)](content, random.Random(f"{seed} {i}"))
