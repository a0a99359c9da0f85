"""The dashboard in a real browser."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from search.monitoring import notes
from search.storage import artifact_ids
from search.storage.note_attrs import note_attrs
from tests.search.dashboards import start_dashboard
from tests.search.helpers import open_tiny, search

pytestmark = pytest.mark.slow

NAME = "<img src=x onerror=alert(1)>"
EVIL = (
    "<script>alert(2)</script> <img src=x onerror=alert(3)> [click](javascript:alert(4)) "
    "<iframe srcdoc='<script>alert(5)</script>'></iframe> **evil**"
)
PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def opened(tiny_data, tmp_path_factory):
    """A finished study with a malicious note."""
    changes = {"budget.trials": 5, "budget.epochs": 3, "pruner": {"name": "median"}}
    study = open_tiny(tiny_data, tmp_path_factory.mktemp("browser") / NAME, changes)
    search(study)
    notes.refresh(study.study)
    worst = study.study.trials[1]
    for key, value in note_attrs(worst._trial_id, EVIL, version=2).items():
        study.study._storage.set_study_system_attr(study.study._study_id, key, value)
    return study


@pytest.fixture(scope="module")
def server(opened, tmp_path_factory):
    file = tmp_path_factory.mktemp("p") / "password"
    file.write_text(PASSWORD)
    with start_dashboard(opened.folder, "--password-file", file) as running:
        yield running


class PageEvents:
    """Dialogs, errors and foreign requests of a page."""

    def __init__(self, page: Page, url: str) -> None:
        self.dialogs: list[str] = []
        self.errors: list[str] = []
        self.foreign: list[str] = []
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.on("request", lambda r: self._record_request(r.url, url))

    def _record_request(self, requested: str, url: str) -> None:
        if not requested.startswith((url, "data:", "blob:")):
            self.foreign.append(requested)


@pytest.fixture
def page(browser, server) -> Iterator[Page]:
    """A page; the test fails if it opens a dialog, has an error or loads from elsewhere."""
    context = browser.new_context(
        viewport={"width": 1400, "height": 1000},
        http_credentials={"username": "me", "password": PASSWORD},
    )
    page = context.new_page()
    page.set_default_timeout(30_000)
    events = PageEvents(page, server.url)
    yield page
    context.close()
    assert events.dialogs == []
    assert events.foreign == []
    assert [e for e in events.errors if "favicon" not in e] == []


def is_blank(picture: bytes) -> bool:
    with Image.open(io.BytesIO(picture)) as image:
        return float(np.asarray(image.convert("L")).std()) < 5


def save_screenshot(page: Page, tmp_path: Path, name: str) -> None:
    """Store a screenshot, which must not be blank."""
    picture = page.screenshot(path=tmp_path / f"{name}.png")
    assert not is_blank(picture)


def test_the_list_of_studies_names_it_as_text(page, server, tmp_path):
    page.goto(f"{server.url}/")
    expect(page.get_by_text(NAME, exact=False).first).to_be_visible()
    assert page.locator("img[src='x']").count() == 0
    save_screenshot(page, tmp_path, "studies")


def test_trials_are_listed_with_a_note_a_picture_curves_and_the_history(
    page, server, opened, tmp_path
):
    study = opened.study._study_id
    page.goto(f"{server.url}/dashboard/studies/{study}/trials")
    best = opened.study.best_trial
    expect(page.get_by_text(re.compile(rf"Trial {best.number}\b")).first).to_be_visible()
    page.goto(f"{server.url}/dashboard/studies/{study}/trials?numbers={best.number}")
    expect(page.get_by_text(f"{best.value:.4f}", exact=True).first).to_be_visible()
    expect(page.locator("th", has_text="configuration")).to_be_visible()
    for name in (artifact_ids.FILES[0].name, artifact_ids.CURVES):
        shown = page.locator(f"img[alt='{name}']").first
        shown.scroll_into_view_if_needed()
        expect(shown).to_be_visible()
        page.wait_for_function(
            "e => e.complete && e.naturalWidth > 300", arg=shown.element_handle()
        )
    expect(page.get_by_text("history.csv").first).to_be_visible()
    save_screenshot(page, tmp_path, "trial")


def test_figures_and_the_studys_own_note_are_shown(page, server, opened, tmp_path):
    study = opened.study._study_id
    page.goto(f"{server.url}/dashboard/studies/{study}")
    figure = page.get_by_text("Validation Dice against parameters").first
    figure.scroll_into_view_if_needed()
    expect(figure).to_be_visible()
    assert page.locator(".js-plotly-plot").count() >= 4
    save_screenshot(page, tmp_path, "figures")
    page.goto(f"{server.url}/dashboard/studies/{study}/note")
    expect(page.get_by_text("Leaderboard").first).to_be_visible()
    save_screenshot(page, tmp_path, "note")


def test_nothing_in_a_name_or_a_note_runs(page, server, opened, tmp_path):
    study = opened.study._study_id
    for place in ("", "/trials?numbers=1", "/trialTable", "/note", "/analytics"):
        page.goto(f"{server.url}/dashboard/studies/{study}{place}")
        page.wait_for_load_state("networkidle")
        if "numbers" in place:
            expect(page.get_by_text("evil").first).to_be_visible()
            save_screenshot(page, tmp_path, "evil")
            assert page.locator("iframe").count() == 0
            for link in page.get_by_text("click", exact=True).all():
                link.click()
        assert page.locator("img[src='x']").count() == 0
