"""The shipped study files."""

from pathlib import Path

import pytest

import studies
from search.spec.loading import load_spec, parse_spec, shipped_studies
from search.study.suggest import suggest
from tests.search.helpers import in_memory

FOLDER = Path(studies.__file__).parent
FILES = sorted(p for p in FOLDER.glob("*") if p.suffix in {".yaml", ".yml"})
NAMES = [p.relative_to(FOLDER).with_suffix("").as_posix() for p in FILES]


def test_all_study_files_are_shipped():
    assert shipped_studies() == dict(zip(NAMES, FILES, strict=True))
    # A literal number: a study that vanishes with its file would go unnoticed otherwise.
    assert len(FILES) == 4
    assert {"quick", "isic2018", "ph2", "everything"} <= set(NAMES)


@pytest.mark.parametrize(("name", "path"), list(zip(NAMES, FILES, strict=True)), ids=NAMES)
def test_studies_can_be_loaded_by_name(name, path):
    spec = load_spec(name)
    assert spec == load_spec(str(path))
    assert spec.name == path.stem
    assert spec.find_errors() == []


@pytest.mark.parametrize("name", NAMES)
def test_studies_can_be_sampled(name):
    spec = load_spec(name)
    study = in_memory()
    for _ in range(5):
        config = suggest(study.ask(), spec.space)
        assert config.image_size == spec.data.image_size
        assert config.epochs == spec.budget.epochs


@pytest.mark.parametrize("name", NAMES)
def test_stored_studies_are_equal(name):
    spec = load_spec(name)
    assert parse_spec(spec.model_dump(mode="json"), name) == spec


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_studies_have_a_comment(path):
    assert path.read_text().startswith("# ")
