"""The report in a real browser: no errors, no requests; light, dark and printed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.results.report import write_report
from tests.search.results.report.fake_studies import (
    EVIL,
    add_trial,
    add_trials,
    ensemble_final,
    make_final,
    make_study,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a finished study with an ensemble."""
    folder = tmp_path_factory.mktemp("browser") / "run"
    study = make_study(folder)
    add_trials(study, 24)
    make_final(folder, study, **ensemble_final(study))
    return write_report(folder)


class Visit:
    """A page in a browser, with its requests and messages."""

    def __init__(self, browser, path: Path, **options) -> None:
        self.page = browser.new_page(viewport={"width": 1100, "height": 900}, **options)
        self.requests: list[str] = []
        self.messages: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on(
            "dialog", lambda dialog: (self.messages.append(dialog.message), dialog.dismiss())
        )
        self.url = path.as_uri()
        self.page.goto(self.url, wait_until="load")

    def screenshot(self) -> np.ndarray:
        """Return a screenshot of the whole page, RGB."""
        with Image.open(io.BytesIO(self.page.screenshot(full_page=True))) as picture:
            return np.asarray(picture.convert("RGB"))

    def outside(self) -> list[str]:
        """Return the requested URLs that are neither the file nor embedded data."""
        return [url for url in self.requests if url != self.url and not url.startswith("data:")]


def test_report_needs_no_requests_and_renders_in_light_dark_and_print(browser, report):
    light = Visit(browser, report, color_scheme="light")
    dark = Visit(browser, report, color_scheme="dark")
    for visit in (light, dark):
        assert visit.messages == []
        assert visit.outside() == []
    bright, dim = light.screenshot(), dark.screenshot()
    assert bright.shape[0] > 3000  # all of it is there
    # Most of a page is paper: white by day, near black at night; and neither is blank.
    assert np.median(bright) > 240
    assert np.median(dim) < 60
    assert bright.std() > 10
    assert dim.std() > 10
    dark.page.emulate_media(media="print")
    printed = dark.screenshot()
    assert np.median(printed) > 240  # no dark background is put on paper
    assert printed.std() > 10
    assert printed.shape != bright.shape or not np.array_equal(printed, bright)
    assert not dark.page.locator("nav").is_visible()
    # An A4 page without its margins; the key facts are not cut off.
    dark.page.set_viewport_size({"width": 688, "height": 900})
    facts = "document.querySelector('.facts')"
    assert dark.page.evaluate(f"{facts}.scrollWidth <= {facts}.clientWidth")
    pdf = light.page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert 2 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") <= 30


@pytest.mark.parametrize("width", [400, 1100])
def test_page_fits_the_window(browser, report, width):
    visit = Visit(browser, report)
    visit.page.set_viewport_size({"width": width, "height": 800})
    wide = visit.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width


def test_browser_builds_the_elements_as_written(browser, report):
    """A browser moves or adds elements if HTML is invalid."""
    page = Visit(browser, report).page
    source = report.read_text(encoding="utf-8")
    counted = page.evaluate(
        "Object.fromEntries(['section','table','tr','p','svg','figure','h2','h3','li','td','th']"
        ".map(tag => [tag, document.querySelectorAll(tag).length]))"
    )
    for tag, n in counted.items():
        assert source.count(f"<{tag}>") + source.count(f"<{tag} ") == n, tag
    assert page.evaluate("document.compatMode") == "CSS1Compat"
    labels = page.evaluate(
        "[...document.querySelectorAll('svg,img')].map(e => e.ariaLabel || e.alt || '')"
    )
    assert all(labels)


def test_script_in_a_name_is_not_executed(browser, tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    study = make_study(tmp_path, name=EVIL)
    add_trial(study, "complete", [0.5])
    add_trial(study, "failed", [], f"crash{evil}", evil)
    make_final(tmp_path, study, [f"{i}&lt;{evil[:4]}" for i in range(9)], versions={evil: EVIL})
    visit = Visit(browser, write_report(tmp_path))
    assert visit.messages == []
    assert visit.outside() == []
    assert visit.page.title() == f"{EVIL}: report"
    assert evil in visit.page.locator("#reasons").inner_text()
