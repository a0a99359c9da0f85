"""What the docs say is so: tables, links, keys, studies."""

from __future__ import annotations

import re

import pytest
import yaml

from lesionseg.config import SETTINGS
from lesionseg.data.layouts import LAYOUTS
from lesionseg.registry import FAMILIES
from search.spec import loading, study_spec
from search.storage import trial_records
from search.study.creation import RESUMABLE_KEYS
from search.study.pruners import PRUNERS
from search.study.samplers import SAMPLERS
from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
README = (ROOT / "README.md").read_text()


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def rows_of(text: str) -> dict[str, str]:
    """The first two cells of every table row."""
    found = re.findall(r"^\| ([^|]+) \| (.+?) \|", text, re.MULTILINE)
    return {a.strip("` "): b for a, b in found}


def test_readme_lists_every_option_of_every_family_in_the_tables_order():
    rows = rows_of(README)
    for family, table in FAMILIES.items():
        assert names_in(rows[family]) == list(table)
    assert names_in(rows["settings"]) == list(SETTINGS)


def test_readme_lists_every_shipped_study_with_its_budget():
    rows = rows_of(README)
    for name, path in loading.shipped_studies().items():
        trials_ = yaml.safe_load(path.read_text())["budget"]["trials"]
        row = next(line for line in README.splitlines() if line.startswith(f"| `{name}` |"))
        assert name in rows
        assert f"{trials_} trials" in row


def test_data_page_lists_every_layout():
    assert set(LAYOUTS) <= set(rows_of((ROOT / "docs" / "data.md").read_text()))


def test_architecture_page_explains_every_reason_that_a_trial_is_skipped_for():
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert all(f"`{reason}`" in text for reason in trial_records.CLOSED_WITHOUT_COST)


def test_studies_page_shows_a_study_that_loads_and_names_every_key(tmp_path):
    text = (ROOT / "docs" / "studies.md").read_text()
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL).group(1)
    path = tmp_path / "mine.yaml"
    path.write_text(block)
    loaded = loading.load_spec(str(path))
    assert loaded.name == "mine"
    assert set(yaml.safe_load(block)) == set(study_spec.StudySpec.model_fields)
    for name in [*SAMPLERS, *PRUNERS]:
        assert name in block
    for key in RESUMABLE_KEYS:
        assert key.split(".")[0] in text


def test_readme_shows_a_study_that_loads(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(re.search(r"```yaml\n(.*?)```", README, re.DOTALL).group(1))
    assert loading.load_spec(str(path)).budget.trials == 60


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_within_the_project_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_no_page_holds_a_placeholder():
    for page in PAGES:
        assert "@@" not in page.read_text(), page.name


def test_the_dashboards_page_shows_proxies_that_lead_to_its_port_and_tell_the_name():
    """As nginx and Caddy read them: braces that close, statements that end, the default port."""
    page = (ROOT / "docs" / "dashboard.md").read_text()
    nginx, caddy = (
        re.search(rf"```{n}\n(.*?)```", page, re.DOTALL)[1] for n in ("nginx", "caddyfile")
    )
    for text in (nginx, caddy):
        depth = [text[: i + 1].count("{") - text[: i + 1].count("}") for i in range(len(text))]
        assert min(depth) == depth[-1] == 0
        assert "127.0.0.1:8080" in text
    ends = [line.strip()[-1] for line in nginx.splitlines() if line.strip()]
    assert set(ends) <= set("{};")
    assert "proxy_set_header Host $host;" in nginx  # Caddy hands it on by itself
