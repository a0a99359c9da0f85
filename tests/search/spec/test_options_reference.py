"""docs/options.md and the tables."""

import re

import pytest

from lesionseg.config import SETTINGS
from lesionseg.inference.postprocess import POSTPROCESS
from lesionseg.inference.tta import TTA
from lesionseg.registry import FAMILIES
from search.spec.formatting import options_markdown
from tests.conftest import ROOT


def cells(line):
    """Split a row into cells; bars within a cell are escaped."""
    return [c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_docs_are_up_to_date():
    told = "run `make docs` after a change of a table"
    assert (ROOT / "docs" / "options.md").read_text() == options_markdown(FAMILIES), told


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_family(family):
    text = options_markdown({family: FAMILIES[family]})
    rows = {r[0].strip("`"): r for r in map(cells, re.findall(r"^\| `.*$", text, re.MULTILINE))}
    assert list(rows) == list(FAMILIES[family])
    for name, option in FAMILIES[family].items():
        assert rows[name][1] == option.description
        for key, domain in option.space.items():
            star = "*" if key in option.fixed_by_default else ""
            assert f"`{key}`{star} {domain} (" in rows[name][2]
    assert "## settings" not in text


def test_rows_have_equal_lengths():
    widths = None
    for line in options_markdown(FAMILIES).splitlines():
        if not line.startswith("|"):
            widths = None
            continue
        widths = widths or len(cells(line))
        assert len(cells(line)) == widths, line


def test_settings_and_post_processing():
    text = options_markdown(FAMILIES)
    assert all(f"| `{name}` |" in text for name in [*SETTINGS, *POSTPROCESS])
    assert all(f"`{name}`" in text for name in TTA)
