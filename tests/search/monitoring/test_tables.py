"""Tables of audits, and progress bars without a terminal."""

import io

import pytest
from rich.console import Console

from lesionseg.data.duplicates.audit import audit_dataset
from lesionseg.data.index import DatasetIndex
from search.monitoring import tables
from search.monitoring.console import download_bars, progress_bar
from tests.conftest import write_pair


@pytest.fixture
def console():
    return Console(file=io.StringIO(), highlight=False, width=240, soft_wrap=True)


def text_of(console):
    return console.file.getvalue()


def test_names_that_look_like_markup_are_printed_literally(console, tmp_path):
    write_pair(tmp_path, "a[red]b")
    (tmp_path / "masks" / "a[red]b.png").write_bytes(b"not an image")
    tables.print_audit(console, audit_dataset(DatasetIndex.read(tmp_path)))
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
