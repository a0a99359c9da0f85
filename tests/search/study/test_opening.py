"""Open studies by folder and by storage."""

import shutil

import optuna

from search.storage.database import STORAGE_VARIABLE, open_storage, storage_url
from search.storage.study_dir import is_study, read_run_info
from search.study.creation import create_or_resume
from search.study.location import StudyLocation
from search.study.opening import OpenStudy, join_study, load_study, open_study
from tests.conftest import write_pair
from tests.search.helpers import open_tiny, refusal, tiny_spec, tree


def test_a_missing_database_is_an_error_and_not_created(tiny_data, tmp_path):
    open_tiny(tiny_data, tmp_path / "s")
    (tmp_path / "s" / "study.db").unlink()
    for call in (
        lambda: load_study(tmp_path / "s"),
        lambda: open_tiny(tiny_data, tmp_path / "s"),
    ):
        message = refusal(call)
        assert "study.db holds no study 's'; it may have been moved or deleted." in message
    assert "study.db" not in tree(tmp_path / "s")


def test_a_damaged_run_json_is_an_error(tmp_path):
    (tmp_path / "run.json").write_text('{"study": "x')
    message = refusal(read_run_info, tmp_path)
    assert message.startswith(f"{tmp_path}/run.json: damaged, not JSON: Unterminated string")


def test_the_storage_url_is_recorded(tiny_data, tmp_path):
    url = f"sqlite:///{tmp_path}/elsewfirst.db"
    first = create_or_resume(tiny_spec(), tiny_data, tmp_path / "s", url)
    first.study.tell(first.study.ask(), 0.5)
    assert read_run_info(tmp_path / "s")["storage"] == url
    assert "study.db" not in tree(tmp_path / "s")
    for again in (
        create_or_resume(tiny_spec(), tiny_data, tmp_path / "s"),
        create_or_resume(tiny_spec(), tiny_data, tmp_path / "s", url),
        open_study(tmp_path / "s"),
    ):
        assert len(again.study.trials) == 1
    assert "study.db" not in tree(tmp_path / "s")


def test_the_environment_does_not_replace_a_recorded_storage(tiny_data, tmp_path, monkeypatch):
    open_tiny(tiny_data, tmp_path / "s")
    monkeypatch.setenv(STORAGE_VARIABLE, f"sqlite:///{tmp_path}/other.db")
    assert load_study(tmp_path / "s").study_name == "s"
    assert open_tiny(tiny_data, tmp_path / "s").name == "s"
    assert not (tmp_path / "other.db").exists()
    # It is used for new studies.
    open_tiny(tiny_data, tmp_path / "new")
    assert (tmp_path / "other.db").exists()
    assert "study.db" not in tree(tmp_path / "new")


def test_a_storage_without_the_study_is_an_error(tiny_data, tmp_path):
    open_tiny(tiny_data, tmp_path / "s")
    url = f"sqlite:///{tmp_path}/other.db"
    optuna.create_study(storage=url)
    message = refusal(create_or_resume, tiny_spec(), tiny_data, tmp_path / "s", url)
    assert message.endswith(
        "other.db holds no study 's'; it may have been moved or deleted. "
        "Restore the database, or start a new study in another folder with --out"
    )


def test_another_study_of_the_same_name_is_not_taken_for_the_deleted_one(tiny_data, tmp_path):
    url = f"sqlite:///{tmp_path}/shared.db"
    create_or_resume(tiny_spec(), tiny_data, tmp_path / "a" / "s", url)
    optuna.delete_study(study_name="s", storage=url)
    create_or_resume(tiny_spec(), tiny_data, tmp_path / "b" / "s", url)
    for call in (load_study, open_study):
        assert refusal(call, tmp_path / "a" / "s") == (
            f"{tmp_path}/a/s: its study 's' was deleted; {url} holds another study of this name. "
            "Restore the database, or start a new study in another folder with --out"
        )
    assert load_study(tmp_path / "b" / "s").study_name == "s"


def test_the_password_of_a_database_is_not_stored(tiny_data, tmp_path, postgres_url, monkeypatch):
    # The test server accepts any password.
    with_password = postgres_url.replace("postgres@", "postgres:hunter2secret@")
    first = create_or_resume(tiny_spec(), tiny_data, tmp_path / "s", with_password)
    first.study.tell(first.study.ask(), 0.5)
    texts = "".join(p.read_text() for p in (tmp_path / "s").rglob("*") if p.is_file())
    assert "hunter2secret" not in texts
    assert "postgres:***@" in texts
    message = refusal(load_study, tmp_path / "s")
    assert "whose password is not stored; give --storage or set LESIONSEARCH_STORAGE" in message
    # A new study.db in the folder would hide the study.
    assert refusal(create_or_resume, tiny_spec(), tiny_data, tmp_path / "s") == message
    assert "study.db" not in tree(tmp_path / "s")
    monkeypatch.setenv(STORAGE_VARIABLE, with_password)
    assert len(open_study(tmp_path / "s").study.trials) == 1
    monkeypatch.delenv(STORAGE_VARIABLE)
    again = create_or_resume(tiny_spec(), tiny_data, tmp_path / "s", with_password)
    assert len(again.study.trials) == 1


def join(url, folder, data) -> OpenStudy:
    return join_study(StudyLocation("s", folder, url, data))


def test_join_by_folder_or_by_storage(tiny_data, tmp_path):
    url = f"sqlite:///{tmp_path}/shared.db"
    artifacts = tmp_path / "artifacts"
    first = create_or_resume(tiny_spec(), tiny_data, tmp_path / "first", url, str(artifacts))
    assert first.name == "first"
    again = join_study(StudyLocation("first", tmp_path / "first"))
    tfirst = join_study(StudyLocation("first", tmp_path / "tfirst" / "mine", url, tiny_data))
    for other in (again, tfirst):
        assert (other.name, other.spec, other.split) == (first.name, first.spec, first.split)
        assert other.trial_data.cache == first.trial_data.cache
        assert other.artifact_store.local_path(3, "x") == artifacts / "first" / "trials" / "3" / "x"
    assert is_study(tmp_path / "tfirst" / "mine")
    assert "study.db" not in tree(tmp_path / "tfirst" / "mine")


def test_join_errors(tiny_data, tmp_path):
    url = f"sqlite:///{tmp_path}/shared.db"
    create_or_resume(tiny_spec(), tiny_data, tmp_path / "s", url)
    assert "holds nothing of the study as this host sees it" in refusal(
        join, url, tmp_path / "elsewfirst" / "s", tiny_data
    )
    other = shutil.copytree(tiny_data, tmp_path / "other")
    write_pair(other, "one_more")
    assert "was run on other data" in refusal(join, url, tmp_path / "x" / "s", other)
    assert "--data: give the folder" in refusal(join, url, tmp_path / "x" / "s", None)
    assert "no --storage to look for it in" in refusal(join, None, tmp_path / "x" / "s", tiny_data)
    optuna.create_study(study_name="foreign", storage=open_storage(storage_url(url, tmp_path)))
    assert "was not created by lesionsearch" in refusal(
        join_study, StudyLocation("foreign", tmp_path / "x" / "foreign", url, tiny_data)
    )
    assert not (tmp_path / "x").exists() and not (tmp_path / "elsewfirst").exists()
