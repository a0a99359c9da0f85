"""Extraction of archives: damaged ones leave nothing behind, none writes outside its folder."""

import io
import re
import shutil
import warnings
import zipfile

import pytest

from lesionseg.data.download import unpack
from lesionseg.data.download.unpack import ArchiveError, extract_archive
from tests.lesionseg.data.download.server import CONTENT, make_zip


def with_wrong_crc() -> bytes:
    whole = make_zip(**{"ISIC_0.jpg": CONTENT})
    return whole[:200] + b"\0\0\0\0" + whole[204:]


def compressed(method, damage) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        file.writestr("ISIC_0.jpg", CONTENT[::3] * 40)
    whole = bytearray(stream.getvalue())
    damage(whole)
    return bytes(whole)


def encrypt(whole: bytearray) -> None:
    """Mark the only member as encrypted, in its header and in the directory."""
    whole[6] |= 1
    whole[whole.index(b"PK\1\2") + 8] |= 1


def overwrite(whole: bytearray) -> None:
    whole[90:130] = b"\xff" * 40


@pytest.fixture
def scratch(tmp_path):
    folder = tmp_path / "a" / "b" / ".fetch"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (with_wrong_crc(), "damaged"),
        (compressed(zipfile.ZIP_DEFLATED, overwrite), "damaged"),
        (b"<html>please log in</html>", "damaged"),
        (make_zip(), "contains no file"),
        (compressed(zipfile.ZIP_BZIP2, overwrite), "damaged"),
        (compressed(zipfile.ZIP_DEFLATED, encrypt), "encrypted"),
    ],
    ids=["crc", "deflate", "html", "empty", "bzip2", "encrypted"],
)
def test_a_damaged_archive_leaves_nothing_behind(scratch, content, message):
    archive = scratch / "set.zip"
    archive.write_bytes(content)
    with pytest.raises(ArchiveError, match=message) as caught:
        extract_archive(archive, scratch.parent, scratch)
    assert "\n" not in str(caught.value)
    assert [p.name for p in scratch.parent.iterdir()] == [".fetch"]
    assert [p.name for p in scratch.iterdir()] == ["set.zip"]


def make_member(name: str, mode: int = 0) -> zipfile.ZipInfo:
    """Return a member whose name is not cut at a NUL."""
    info = zipfile.ZipInfo("x")
    info.filename = info.orig_filename = name
    info.external_attr = mode << 16
    return info


#: Members that are not unpacked, and what the message says.
REFUSED = {
    "up": (["../../outside.txt"], r"'../../outside.txt': a name may not be"),
    "inner up": (["a/../b.png"], "a name may not be"),
    "root": (["/outside.txt"], "a name may not be"),
    "backslash": (["..\\outside.txt"], "a name may not be"),
    "nul": (["ISIC_0.jpg\0.png"], "cannot be printed"),
    "control": (["a\x1b[2J.png"], "cannot be printed"),
    "long": ([f"{'n' * 300}.png"], "at most 200 bytes, got 304"),
    "deep": (["/".join(["d"] * 3000)], "3000 levels deep, at most 16"),
    "twice": (["a.png", "a.png"], "two members have the path 'a.png'"),
    "case": (["A/ä.png", "a/A\u0308.PNG"], "two members have the path"),
    "file and folder": (["a", "a/b.png"], "two members have the path 'a/b.png'"),
    "folder and file": (["a/b.png", "a"], "two members have the path 'a'"),
    "link": ([make_member("a.png", 0o120777)], "is not a file or folder"),
    "device": ([make_member("a.png", 0o20666)], "is not a file or folder"),
    "fifo": ([make_member("a.png", 0o10666)], "is not a file or folder"),
}


def refused(scratch, members) -> str:
    """Return the message, after the check that nothing was written."""
    archive = scratch / "set.zip"
    with zipfile.ZipFile(archive, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for a name twice
        for member in members:
            info = member if isinstance(member, zipfile.ZipInfo) else make_member(member)
            file.writestr(info, b"x")
    with pytest.raises(ArchiveError) as caught:
        extract_archive(archive, scratch.parent, scratch)
    assert [p.name for p in scratch.parent.iterdir()] == [".fetch"]
    assert [p.name for p in scratch.iterdir()] == ["set.zip"]
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    return str(caught.value)


@pytest.mark.parametrize("kind", REFUSED)
def test_members_that_are_not_unpacked(scratch, kind):
    members, message = REFUSED[kind]
    assert re.search(message, refused(scratch, members))


def test_the_number_of_members_is_limited(scratch, monkeypatch):
    monkeypatch.setattr(unpack, "MAX_MEMBERS", 30)
    names = [f"{i}.png" for i in range(31)]
    assert refused(scratch, names) == "set.zip: has 31 members, at most 30 are unpacked"


def test_more_data_than_the_disk_has_room_for_is_refused_before_it_is_written(scratch, monkeypatch):
    usage = shutil.disk_usage(scratch)._replace(free=2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "unpacks to 0.0 GB, 0.0 GB are free" in refused(scratch, ["a.png", "b.png", "c.png"])


def test_names_of_other_systems_are_unpacked_inside_the_folder(tmp_path, scratch):
    archive = scratch / "set.zip"
    archive.write_bytes(make_zip(**{"C:/outside.txt": "x", "Läsion/1 (2).png": "y"}))
    extract_archive(archive, scratch.parent, scratch)
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == ["a/b/.fetch/set.zip", "a/b/set/C:/outside.txt", "a/b/set/Läsion/1 (2).png"]


def test_a_file_of_the_archives_name_stays_a_file_in_its_folder(tmp_path, scratch):
    archive = scratch / "images.zip"
    archive.write_bytes(make_zip(images=CONTENT))
    extract_archive(archive, tmp_path, scratch)
    assert (tmp_path / "images" / "images").read_bytes() == CONTENT


def test_metadata_of_macos_and_paths_of_the_current_folder_are_accepted(scratch):
    archive = scratch / "set.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("./images/a.png", "./images/b.png", "__MACOSX/Icon\r"):
            file.writestr(name, b"x")
    extract_archive(archive, scratch.parent, scratch)
    unpacked = scratch.parent / "set"
    assert sorted(p.name for p in unpacked.rglob("*")) == ["a.png", "b.png", "images"]
