"""Tables of options, baselines and audits, and progress bars without a terminal."""

import io

import pytest
from rich.console import Console

from lesionseg.config import SETTINGS
from lesionseg.data.duplicates.audit import audit_dataset
from lesionseg.registry import FAMILIES
from search.monitoring import tables
from search.monitoring.console import download_bars, progress_bar
from search.spec import baselines
from tests.conftest import write_pair


@pytest.fixture
def console():
    return Console(file=io.StringIO(), highlight=False, width=240, soft_wrap=True)


def text_of(console):
    return console.file.getvalue()


def test_options_table_contains_every_option_parameter_and_setting(console):
    tables.print_options(console, FAMILIES)
    text = text_of(console)
    for family, entries in FAMILIES.items():
        assert f"\n{family}" in f"\n{text}"
        for name, entry in entries.items():
            lines = [line for line in text.splitlines() if line.split()[:1] == [name]]
            assert any(entry.description in line for line in lines)
            for key, domain in entry.space.items():
                star = "*" if key in entry.fixed_by_default else ""
                # A long list of choices is wrapped within its cell.
                first, *others = str(domain).split(" | ")
                assert f"{key}{star}: {first}" in text
                assert all(other in text for other in others)
    for name, domain in SETTINGS.items():
        assert f"{name} " in text
        assert str(domain) in text


def test_baselines_table_contains_every_baseline(console):
    known = baselines.load_baselines()
    tables.print_baselines(console, known.values())
    assert all(f"\n{name} " in text_of(console) for name in known)


def test_names_that_look_like_markup_are_printed_literally(console, tmp_path):
    write_pair(tmp_path, "a[red]b")
    (tmp_path / "masks" / "a[red]b.png").write_bytes(b"not an image")
    tables.print_audit(console, audit_dataset(tmp_path))
    assert "a[red]b.png: not an image" in text_of(console)


def test_without_a_terminal_only_finished_downloads_are_printed(console):
    with progress_bar(console, "reading") as update:
        update(1, 2)
        update(2, 2)
    assert text_of(console).strip() == ""
    with download_bars(console) as update_file:
        update_file("[a].zip", 1_000_000, 2_000_000)
        update_file("[a].zip", 2_000_000, 2_000_000)
    assert text_of(console).strip() == "[a].zip: 2 MB"
