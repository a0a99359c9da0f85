"""The Markdown text of trials' notes."""

from __future__ import annotations

import re
from html import escape

import pytest
from markdown_it import MarkdownIt
from optuna.trial import TrialState, create_trial

from lesionseg.config import TrialConfig
from lesionseg.space import ComponentConfig
from search.monitoring import notes

EVIL = "<img src=x onerror=alert(1)> [a](javascript:alert(1)) `b` *c* | d \\ # http://e.example"


def trial(state=TrialState.COMPLETE, value=0.8125, steps=(0.5, 0.8125), **attrs):
    return create_trial(
        state=state,
        value=value if state == TrialState.COMPLETE else None,
        intermediate_values=dict(enumerate(steps, 1)),
        user_attrs=attrs,
    )


@pytest.mark.parametrize(
    "text",
    [EVIL, "![p](http://e.example/x.png)", "- a", "1. b", "# c", "~~d~~", "www.e.example", "a|b",
     "&lt;", "<!-- x -->", "    code", "[x]: http://e", "\\", "me@e.example", "[^1]", "---", "$x$"],
)  # fmt: skip
def test_escaped_text_is_shown_literally(text):
    """Checked with the Markdown parser of rich, with tables, strike-through and links."""
    reader = MarkdownIt("gfm-like", {"linkify": False}).enable("table")
    html = reader.render(notes.escape_markdown(text))
    assert (
        html == f"<p>{escape(' '.join(text.split()), quote=True).replace('&#x27;', chr(39))}</p>\n"
    )
    cell = reader.render(notes.markdown_table(("a",), [(text,)]))
    assert cell.count("<td") == 1
    assert not re.search(r"<(img|a|code|em|script|del)", cell)


def test_lines_are_joined():
    assert notes.escape_markdown("a\n\n# b\tc") == r"a \# b c"


def test_note_of_a_complete_trial():
    config = TrialConfig(model=ComponentConfig("unet", {"width": 16, "depth": 4})).to_dict()
    text = notes.format_trial_note(
        trial(config=config, val={"dice": 0.8125, "jaccard": 0.7}, best_epoch=2, epochs=2,
              params=1_234_567, macs=2_500_000_000, seconds=61.2, peak_memory=2**30,
              owner={"device": "cpu", "host": "lab"})
    )  # fmt: skip
    lines = text.splitlines()
    assert lines[0] == "**complete**, validation Dice **0.8125**"
    assert r"| jaccard | 0\.7000 |" in lines
    assert any(line == r"| model | unet\(width\=16\, depth\=4\) |" for line in lines)
    assert r"| parameters | 1\.23 million |" in lines
    assert "| training | 61 s |" in lines
    assert "| trained on | cpu of lab |" in lines


def test_note_of_a_failed_trial_ends_with_its_traceback():
    trace = "\n".join(f"line {i}" for i in range(30))
    text = notes.format_trial_note(
        trial(TrialState.FAIL, steps=(0.5,), reason="crash", message=EVIL, trace=trace)
    )
    assert text.startswith("**failed**: crash, validation Dice 0.5000 in its last epoch (1)")
    assert not re.search(r"(?<!\\)<", text)
    assert text.rstrip().endswith("    line 29")
    assert "    line 22\n" in text
    assert "line 21" not in text


@pytest.mark.parametrize("state", [TrialState.PRUNED, TrialState.FAIL])
def test_note_of_a_trial_without_attributes(state):
    assert notes.format_trial_note(trial(state, steps=())).startswith("**")


def test_note_of_a_requeued_trial_names_its_successor():
    text = notes.format_trial_note(
        trial(TrialState.FAIL, steps=(), reason="interrupted", requeued_as=3)
    )
    assert text.startswith("**interrupted, requeued as trial 3**\n")
