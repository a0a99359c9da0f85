"""Atomic writing of files, and file names."""

import json
import os

import pytest

from lesionseg.errors import InputError
from lesionseg.runtime.files import atomic_folder, atomic_path, atomic_write, file_stem, read_json


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


#: Valid names of image files: the longest ones in ASCII and in UTF-8, and unusual ones.
NAMES = [
    "a" * 251, "a" * 250 + "b", "ä" * 125, "ä" * 124 + "b", "\N{CJK UNIFIED IDEOGRAPH-4E2D}" * 83,
    "lesion: 1?", "lesion_ 1_", "back\\slash", "line\nbreak", "tab\t", "latin\udce9",
]  # fmt: skip


def test_file_stems_of_any_names_can_be_written_everywhere_and_are_different(folder):
    stems = [file_stem(name) for name in NAMES]
    assert len({stem.lower() for stem in stems}) == len(NAMES)
    assert stems == [file_stem(stem) for stem in stems]
    for stem in stems:
        assert len(f"median_10_{stem}_1000.png".encode()) <= 143  # the limit of eCryptfs
        assert stem.isprintable() and not set(stem) & set('/\\:*?"<>|')
        (folder / f"{stem}.png").write_text(stem)
    assert len(list(folder.iterdir())) == len(NAMES)


@pytest.mark.parametrize("name", ["ISIC_0024306", "Muttermal ä (2)", "a" * 120, "a.b-c'd"])
def test_ordinary_names_stay_as_they_are(name):
    assert file_stem(name) == name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b"\xff", "can't decode byte"),
        (b'\xef\xbb\xbf{"a": 1}', "Unexpected UTF-8 BOM"),
        (b"[" * 100_000, "maximum recursion depth"),
        (b"[" * 33 + b"]" * 33, "more than 32 levels"),
        (b"9" * 5000, "Exceeds the limit"),
        (b'{"a": 1', "Expecting ',' delimiter"),
    ],
)
def test_damaged_json_is_an_error_in_one_line(folder, content, message):
    path = folder / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: damaged, not JSON: ")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_json_is_read(folder):
    plain = {"a": [1, None, {"b": 0.5}], "name": "im\udcff"}
    (folder / "a.json").write_text(json.dumps(plain))
    (folder / "b.json").write_text("[" * 32 + "]" * 32)
    assert read_json(folder / "a.json") == plain
    assert read_json(folder / "b.json")
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_json(folder / "c.json")


def test_the_longest_names_can_be_written_atomically(folder):
    name = "ä" * 127
    for unique in (False, True):
        atomic_write(folder / name, "text", unique=unique)
    with atomic_folder(folder / f"{name}b") as partial:
        (partial / "file").write_text("text")
    assert {p.name for p in folder.iterdir()} == {name, f"{name}b"}


def test_a_pipe_is_written_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    atomic_write(pipe, "text")
    assert os.read(reader, 10) == b"text"
    assert pipe.is_fifo()
    os.close(reader)
