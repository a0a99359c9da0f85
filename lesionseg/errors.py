"""The one error that is the user's to mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line: what, where, the rule, the value got, and how to mend it.
    The command line prints it and exits with code 2.
    """


def nearest(name: object, known: Iterable[str]) -> str:
    """A hint such as ``did you mean 'unet'?``, or the list of what is known."""
    names = sorted(str(k) for k in known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def some(names: Iterable[object], limit: int = 3) -> str:
    """The first few names of many: ``a, b, c and 7 more``."""
    listed = [str(n) for n in names]
    shown = ", ".join(listed[:limit])
    rest = len(listed) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown
