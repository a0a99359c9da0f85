"""Against PIL on the file itself."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lesionseg.data import png
from lesionseg.data.image_io import read_binary_mask, read_image
from lesionseg.errors import InputError

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (61, 83, 4), dtype=np.uint8)


def written(path, raw):
    path.write_bytes(raw)
    return path


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def by_hand(stream, width=4, height=3, depth=8, colour=0, interlaced=0, pieces=1):
    """A PNG around a stream of zlib, which may be anything."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    step = max(1, -(-len(stream) // pieces))
    data = [chunk(b"IDAT", stream[i : i + step]) for i in range(0, len(stream), step)]
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(data) + chunk(b"IEND", b"")


def plain(width=4, height=3):
    """Rows that count up, none filtered."""
    return b"".join(b"\0" + bytes(range(width * y, width * (y + 1))) for y in range(height))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_picture_of_any_mode_is_what_pil_reads(tmp_path, mode):
    if mode == "I;16":
        picture = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(NOISE, "RGBA").convert(mode)
    path = tmp_path / "a.PNG"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(path, exif=exif, dpi=(300, 300))
    with Image.open(path) as theirs, Image.open(png.recompress(path)) as ours:
        assert ours.mode == theirs.mode
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
        assert ours.getexif() == theirs.getexif()
        assert ours.info.keys() == theirs.info.keys()


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_pixels_in_several_pieces_are_put_together(tmp_path, pieces):
    path = written(tmp_path / "a.png", by_hand(zlib.compress(plain()), pieces=pieces))
    with Image.open(png.recompress(path)) as picture:
        assert np.array_equal(np.asarray(picture), np.arange(12).reshape(3, 4))


def test_one_pixel(tmp_path):
    path = written(tmp_path / "a.png", by_hand(zlib.compress(b"\0\x7f"), width=1, height=1))
    with Image.open(png.recompress(path)) as picture:
        assert np.asarray(picture).tolist() == [[127]]


@pytest.mark.parametrize(
    "raw",
    {
        "nothing": b"",
        "a JPEG by another name": b"\xff\xd8\xff\xe0" + bytes(64),
        "signature only": b"\x89PNG\r\n\x1a\n",
        "cut off in the pixels": by_hand(zlib.compress(NOISE.tobytes()), 83, 61, 8, 6)[:9000],
        "cut off in a chunk's head": by_hand(zlib.compress(plain()))[:-6],
        "interlaced": by_hand(zlib.compress(plain()), interlaced=1),
        "no such colours": by_hand(zlib.compress(plain()), colour=5),
        "no pixels": by_hand(b""),
        "not a stream": by_hand(b"\x12" * 40),
        "a wrong checksum": by_hand(zlib.compress(plain())[:-4] + b"\0\0\0\0"),
        "too few rows": by_hand(zlib.compress(plain(height=2))),
        "too many rows": by_hand(zlib.compress(plain(height=4))),
        "too large": by_hand(zlib.compress(bytes(9)), width=20_000, height=20_000),
    }.items(),
    ids=lambda case: case[0],
)
def test_what_is_odd_is_left_to_pil(tmp_path, raw):
    assert png.recompress(written(tmp_path / "a.png", raw[1])) is None


def test_other_files_are_not_looked_at(tmp_path):
    assert png.recompress(tmp_path / "not there.jpg") is None


def test_a_stream_that_never_ends_is_not_inflated_to_its_end(tmp_path, monkeypatch):
    asked = []

    class Stream:
        eof = False

        def decompress(self, data, most):
            asked.append(most)
            return bytes(most)

    monkeypatch.setattr(png.zlib_ng, "decompressobj", Stream)
    bomb = written(tmp_path / "a.png", by_hand(zlib.compress(bytes(10**6))))
    assert png.recompress(bomb) is None
    assert asked == [3 * 5 + 1]


def test_broken_pictures_are_told_by_name(tmp_path):
    path = written(tmp_path / "a.png", by_hand(zlib.compress(plain())[:-9]))
    with pytest.raises(InputError, match=r"a\.png: .*damaged"):
        read_image(path)
    with pytest.raises(InputError, match=r"b\.png: no such file"):
        read_binary_mask(tmp_path / "b.png")


def test_a_mask_and_an_image_come_through_it(tmp_path, monkeypatch):
    """That it is used at all."""
    seen = []
    real = png.recompress
    monkeypatch.setattr(png, "recompress", lambda path: seen.append(path.name) or real(path))
    Image.fromarray(NOISE[..., 0] // 128 * 255).save(tmp_path / "mask.png")
    Image.fromarray(NOISE[..., :3]).save(tmp_path / "image.png")
    assert read_binary_mask(tmp_path / "mask.png").area == (NOISE[..., 0] > 127).mean()
    assert np.array_equal(np.asarray(read_image(tmp_path / "image.png")), NOISE[..., :3])
    assert seen == ["mask.png", "image.png"]
