"""The words of an InputError: hints and shortened lists."""

import pytest

from lesionseg.errors import format_some, suggest_name


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("unte", ["unet", "segnet"], "did you mean 'unet'?"),
        ("focall", {"focal": 1, "dice": 2}, "did you mean 'focal'?"),
        ("xyz", ["unet", "segnet"], "known: segnet, unet"),
        ("xyz", [], "known: "),
        (7, [], "known: "),
        (7, [30, 4], "known: 30, 4"),
    ],
)
def test_suggest_name(name, known, hint):
    assert suggest_name(name, known) == hint


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b", "c"], "a, b, c"),
        (["a", "b", "c", "d"], "a, b, c and 1 more"),
        (range(10), "0, 1, 2 and 7 more"),
    ],
)
def test_format_some(names, text):
    assert format_some(names) == text


def test_format_some_with_limit():
    assert format_some("abc", limit=1) == "a and 2 more"
