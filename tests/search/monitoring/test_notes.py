"""Notes: what is said, that it is seen as it is meant, and that optuna-dashboard finds it."""

from __future__ import annotations

import re
from html import escape

import optuna_dashboard
import pytest
from markdown_it import MarkdownIt
from optuna.trial import TrialState, create_trial
from optuna_dashboard._note import get_note_from_system_attrs

from lesionseg.config import TrialConfig
from lesionseg.space import ComponentConfig
from search.monitoring import notes
from tests.search.helpers import in_memory
from tests.search.study.test_transfer import exported, fill, imported

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
def test_plain_text_is_seen_as_it_is(text):
    """By the Markdown parser that rich uses, tables, strike-through and links included."""
    reader = MarkdownIt("gfm-like", {"linkify": False}).enable("table")
    html = reader.render(notes.escape_markdown(text))
    assert (
        html == f"<p>{escape(' '.join(text.split()), quote=True).replace('&#x27;', chr(39))}</p>\n"
    )
    cell = reader.render(notes.markdown_table(("a",), [(text,)]))
    assert cell.count("<td") == 1
    assert not re.search(r"<(img|a|code|em|script|del)", cell)


def test_several_lines_become_one():
    assert notes.escape_markdown("a\n\n# b\tc") == r"a \# b c"


def test_a_complete_trial_tells_how_it_ended_what_it_trained_and_what_it_cost():
    config = TrialConfig(model=ComponentConfig("unet", {"width": 16, "depth": 4})).to_dict()
    text = notes.format_trial_note(
        trial(config=config, val={"dice": 0.8125, "jaccard": 0.7}, best_epoch=2, epochs=2,
              params=1_234_567, macs=2_500_000_000, seconds=61.2, peak_memory=2**30,
              owner={"device": "cpu", "host": "lab"})
    )  # fmt: skip
    lines = text.splitlines()
    assert lines[0] == "**complete**, validation Dice **0.8125**"
    assert r"| jaccard | 0\.7000 |" in lines
    assert any(line == r"| model | unet\, width 16\, depth 4 |" for line in lines)
    assert r"| parameters | 1\.23 million |" in lines
    assert "| training | 61 s |" in lines
    assert "| trained on | cpu of lab |" in lines


def test_a_failed_trial_tells_why_with_the_end_of_its_trace():
    trace = "\n".join(f"line {i}" for i in range(30))
    text = notes.format_trial_note(
        trial(TrialState.FAIL, steps=(0.5,), reason="crash", message=EVIL, trace=trace)
    )
    assert text.startswith("**failed**: crash, validation Dice 0.5000 in epoch 1, its last")
    assert not re.search(r"(?<!\\)<", text)
    assert text.rstrip().endswith("    line 29")
    assert "    line 22\n" in text
    assert "line 21" not in text


@pytest.mark.parametrize("state", [TrialState.PRUNED, TrialState.FAIL])
def test_a_trial_of_which_nothing_is_known_has_a_note_too(state):
    assert notes.format_trial_note(trial(state, steps=())).startswith("**")


def test_optuna_dashboard_reads_what_is_kept():
    study = in_memory()
    study.add_trial(trial(config=TrialConfig().to_dict(), message="x" * 5000))
    done = study.trials[0]
    attrs = notes.trial_note_attrs(done)
    assert sum(len(v) for v in attrs.values() if isinstance(v, str)) > 5000
    for key, value in attrs.items():
        study._storage.set_study_system_attr(study._study_id, key, value)
    told = study._storage.get_study_system_attrs(study._study_id)
    assert optuna_dashboard.get_note(study) == ""
    mine = get_note_from_system_attrs(told, done._trial_id)
    assert mine == {"version": 1, "body": notes.format_trial_note(done)}
    assert find_trials_without_note(told, study.trials) == []
    assert group_notes(told) == {done._trial_id: attrs}


def test_only_trials_that_ended_lack_a_note():
    study = in_memory()
    study.add_trial(trial())
    study.ask()
    assert [t.number for t in find_trials_without_note({}, study.trials)] == [0]
    assert notes.trial_note_attrs(study.trials[1]) == {}


def test_notes_move_with_their_trials_and_others_are_left_out():
    attrs = {**note_attrs(7, "seven"), **note_attrs(8, "eight"), "other": 1}
    attrs |= note_attrs(None, "the study's")
    moved = renumber_notes(attrs, {7: 0})
    assert moved == {
        **note_attrs(0, "seven"), **note_attrs(None, "the study's"), "other": 1
    }  # fmt: skip


def test_a_trial_may_be_called_as_another_was():
    attrs = {**note_attrs(1, "one"), **note_attrs(2, "two")}
    assert renumber_notes(attrs, {1: 2, 2: 1}) == {
        **note_attrs(2, "one"), **note_attrs(1, "two")
    }  # fmt: skip


def test_a_study_from_a_file_has_the_notes_of_its_trials(tmp_path):
    a = fill(f"sqlite:///{tmp_path}/a.db")
    for t in a.trials:
        for key, value in note_attrs(t._trial_id, f"note of {t.number}").items():
            a._storage.set_study_system_attr(a._study_id, key, value)
    there = f"sqlite:///{tmp_path}/b.db"
    fill(there, "another").ask()
    b = imported(exported(a), there, "one")
    assert [t._trial_id for t in b.trials] != [t._trial_id for t in a.trials]
    told = b._storage.get_study_system_attrs(b._study_id)
    for t in b.trials:
        note = get_note_from_system_attrs(told, t._trial_id)
        assert note["body"] == f"note of {t.number}"
