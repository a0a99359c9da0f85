"""Files that are complete or absent."""

import pytest

from lesionseg.runtime.files import atomic_folder, atomic_path, atomic_write


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


@pytest.mark.parametrize("data", ["tëxt\n", b"\x00bytes", ""])
@pytest.mark.parametrize("unique", [False, True])
def test_data_is_written_and_replaces_an_existing_file(data, unique, folder):
    path = folder / "file"
    path.write_text("old")
    atomic_write(path, data, unique=unique)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert list(folder.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_after_an_error_the_existing_file_is_unchanged(error, folder):
    path = folder / "file"
    path.write_text("old")

    def interrupt():
        with atomic_path(path) as partial:
            partial.write_text("new")
            assert path.read_text() == "old"
            raise error

    with pytest.raises(error):
        interrupt()
    assert path.read_text() == "old"
    assert list(folder.iterdir()) == [path]


def test_the_partial_file_of_a_killed_process_is_overwritten(folder):
    path = folder / "file"
    (folder / ".file.partial").write_text("half")
    atomic_write(path, "uninterrupted")
    assert list(folder.iterdir()) == [path]


def test_unique_writers_do_not_share_a_partial_file(folder):
    path = folder / "file"
    with atomic_path(path, unique=True) as first, atomic_path(path, unique=True) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"


def test_nothing_is_left_where_the_file_was_not_written(folder):
    with pytest.raises(FileNotFoundError), atomic_path(folder / "file"):
        pass
    assert list(folder.iterdir()) == []


def write_folder(folder, text, error=None, **options):
    with atomic_folder(folder, **options) as partial:
        (partial / "text").write_text(text)
        if error:
            raise error


def test_a_folder_appears_as_a_whole_and_may_replace_another_one(folder):
    path = folder / "deep" / "result"
    (folder / "deep" / ".result.partial" / "left").mkdir(parents=True)
    for text in ("first", "second"):
        write_folder(path, text, replace=True)
        assert [p.name for p in path.iterdir()] == ["text"]
        assert (path / "text").read_text() == text
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("replace", [True, False])
def test_after_an_error_the_existing_folder_is_unchanged(replace, folder):
    path = folder / "result"
    write_folder(path, "old")
    with pytest.raises(KeyboardInterrupt):
        write_folder(path, "new", KeyboardInterrupt, replace=replace)
    assert (path / "text").read_text() == "old"
    assert list(folder.iterdir()) == [path]


def test_only_an_empty_folder_is_replaced_unless_requested(folder):
    path = folder / "result"
    path.mkdir()
    write_folder(path, "first")
    with pytest.raises(OSError, match="not empty"):
        write_folder(path, "second")
    assert (path / "text").read_text() == "first"
    assert list(folder.iterdir()) == [path]
