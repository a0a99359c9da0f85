"""Extraction of archives: damaged and unsafe ones leave nothing behind."""

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


def bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("ISIC_0.jpg", bytes(200_000_000))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (make_zip(**{"../../outside.txt": "x"}), "a link or an unsafe path"),
        (make_zip(**{"/outside.txt": "x"}), "a link or an unsafe path"),
        (make_zip(**{"..\\outside.txt": "x"}), "a link or an unsafe path"),
        (make_zip(**{"C:/outside.txt": "x"}), "a link or an unsafe path"),
        (with_link(), "a link or an unsafe path"),
        (with_wrong_crc(), "damaged"),
        (compressed(zipfile.ZIP_DEFLATED, overwrite), "damaged"),
        (b"<html>please log in</html>", "damaged"),
        (make_zip(), "contains no file"),
        (bomb(), "no archive of images"),
        (compressed(zipfile.ZIP_BZIP2, overwrite), "damaged"),
        (compressed(zipfile.ZIP_DEFLATED, encrypt), "encrypted"),
        (make_zip(**{".": "x"}), "a link or an unsafe path"),
        (make_zip(**{"a": "x", "a/b.jpg": "x"}), "a link or an unsafe path"),
    ],
    ids=[
        "up",
        "root",
        "backslash",
        "drive",
        "link",
        "crc",
        "deflate",
        "html",
        "empty",
        "bomb",
        "bzip2",
        "encrypted",
        "dot",
        "both",
    ],
)
def test_a_damaged_or_unsafe_archive_leaves_nothing_behind(tmp_path, content, message):
    root = tmp_path / "a" / "b"
    scratch = root / ".fetch"
    scratch.mkdir(parents=True)
    archive = scratch / "set.zip"
    archive.write_bytes(content)
    with pytest.raises(ArchiveError, match=message) as caught:
        extract_archive(archive, root, scratch)
    assert "\n" not in str(caught.value)
    assert [p.name for p in root.iterdir()] == [".fetch"]
    assert [p.name for p in scratch.iterdir()] == ["set.zip"]
    assert not list(tmp_path.rglob("outside.txt"))
