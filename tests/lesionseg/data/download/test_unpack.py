"""Extraction of archives: damaged ones leave nothing behind, none writes outside its folder."""

import io
import zipfile

import pytest

from lesionseg.data.download.fetch import ArchiveError, extract_archive
from tests.lesionseg.data.download.server import CONTENT, make_zip


def with_link() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        info = zipfile.ZipInfo("ISIC2018_Task1-2_Training_Input/ISIC_0.jpg")
        info.external_attr = 0o120777 << 16
        file.writestr(info, "/etc/passwd")
    return stream.getvalue()


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


@pytest.mark.parametrize(
    "content",
    [
        make_zip(**{"../../outside.txt": "x"}),
        make_zip(**{"/outside.txt": "x"}),
        make_zip(**{"..\\outside.txt": "x"}),
        make_zip(**{"C:/outside.txt": "x"}),
        with_link(),
    ],
    ids=["up", "root", "backslash", "drive", "link"],
)
def test_an_archive_is_unpacked_inside_its_folder_and_without_links(tmp_path, scratch, content):
    archive = scratch / "set.zip"
    archive.write_bytes(content)
    extract_archive(archive, scratch.parent, scratch)
    files = [p for p in tmp_path.rglob("*") if not p.is_dir() or p.is_symlink()]
    inside = [p for p in files if p != archive]
    assert len(inside) == 1
    assert inside[0].is_relative_to(scratch.parent / "set")
    assert not inside[0].is_symlink()
