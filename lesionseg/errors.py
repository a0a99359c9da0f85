"""InputError, and helpers for its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The user's input cannot be used.

    The message is one line: what, where, the rule, the value, and how to correct it. The command
    line prints it and exits with code 2.
    """


def suggest_name(name: object, known: Iterable[str]) -> str:
    """Return a hint such as ``did you mean 'unet'?``, or the list of known names."""
    names = sorted(str(k) for k in known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def format_some(names: Iterable[object], limit: int = 3) -> str:
    """Format the first ``limit`` names: ``a, b, c and 7 more``."""
    texts = [str(n) for n in names]
    text, hidden = ", ".join(texts[:limit]), len(texts) - limit
    return f"{text} and {hidden} more" if hidden > 0 else text


def one_line(error: BaseException) -> str:
    """Return an error's message as one line of at most 300 characters, or the error's type."""
    return " ".join(str(error).split())[:300] or type(error).__name__
