"""Reading pictures as cameras and annotators really leave them."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin, TiffTags

from lesionseg.data.image_io import (
    read_image,
    read_image_and_size,
    to_upright_rgb,
)
from lesionseg.data.mask_io import read_mask
from lesionseg.errors import InputError

WIDTH, HEIGHT = 23, 17


def scene():
    """Return a smooth RGB image without symmetries."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 10, y * 14, np.full_like(x, 90)], axis=2).astype(np.uint8)


def lesion():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[3:9, 5:19] = True
    return mask


def save(path, array, mode=None, **options):
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def refusal(read, path):
    with pytest.raises(InputError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    assert text.count(str(path)) == 1
    return text.removeprefix(f"{path}: ")


# --- images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp"])
def test_lossless_images_are_read_exactly(tmp_path, name):
    options = {"lossless": True} if name == "a.webp" else {}
    picture = read_image(save(tmp_path / name, scene(), **options))
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), scene())


def test_a_jpeg_is_read_closely(tmp_path):
    picture = read_image(save(tmp_path / "a.jpg", scene(), quality=95))
    assert np.abs(np.asarray(picture).astype(int) - scene()).max() < 25
    assert np.abs(np.asarray(picture).astype(int) - scene()).mean() < 5


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = scene()[..., 0]
    pixels = np.asarray(read_image(save(tmp_path / "a.png", grey)))
    assert all(np.array_equal(pixels[..., c], grey) for c in range(3))


def with_palette(path, *colours):
    """Write the lesion in the second colour, as a palette image."""
    picture = Image.fromarray(lesion().astype(np.uint8))
    picture.putpalette(bytes(sum(colours, ())))
    picture.save(path)
    with Image.open(path) as stored:
        assert stored.mode == "P"
    return path


def test_palette_image(tmp_path):
    pixels = np.asarray(read_image(with_palette(tmp_path / "a.png", (10, 220, 60), (200, 30, 40))))
    assert (pixels[lesion()] == (200, 30, 40)).all()
    assert (pixels[~lesion()] == (10, 220, 60)).all()


def test_alpha_is_dropped_and_colours_stay(tmp_path):
    alpha = np.where(lesion(), 255, 128).astype(np.uint8)
    path = save(tmp_path / "a.png", np.dstack([scene(), alpha]))
    assert np.array_equal(np.asarray(read_image(path)), scene())


def test_cmyk_jpeg(tmp_path):
    path = save(tmp_path / "a.jpg", scene(), "CMYK", quality=95)
    assert np.abs(np.asarray(read_image(path)).astype(int) - scene()).mean() < 8


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, name):
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    pixels = np.asarray(read_image(save(tmp_path / name, deep)))
    assert np.array_equal(pixels[..., 0].ravel(), np.arange(256))


def test_eight_bits_in_sixteen_keep_their_values(tmp_path):
    shallow = np.arange(256, dtype=np.uint16).reshape(16, 16)
    pixels = np.asarray(read_image(save(tmp_path / "a.png", shallow)))
    assert np.array_equal(pixels[..., 0].ravel(), np.arange(256))


#: How the stored pixels of an upright picture lie, by EXIF orientation (EXIF 2.3, tag 274).
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a, -1),
}


def with_orientation(path, array, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}
    return save(path, np.ascontiguousarray(array), exif=exif, **options)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_images_are_read_upright(tmp_path, name, orientation):
    path = with_orientation(tmp_path / name, STORED[orientation](scene()), orientation)
    pixels = np.asarray(read_image(path)).astype(int)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(pixels - scene()).mean() < 8  # a JPEG and a WebP lose a little
    mask = read_mask(
        with_orientation(tmp_path / "m.png", STORED[orientation](lesion()), orientation)
    )
    assert np.array_equal(mask[0], lesion())


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_invalid_orientations_are_ignored(tmp_path, orientation):
    path = with_orientation(tmp_path / "a.png", scene(), orientation)
    assert np.array_equal(np.asarray(read_image(path)), scene())


def with_tags(path, array, *entries):
    """A JPEG whose EXIF holds these entries: tag, type, count and the four bytes of the value."""
    head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return save(path, np.ascontiguousarray(array), exif=head + body + bytes(4), quality=95)


HELD = (0x0112, 3, 1, struct.pack("<HH", 6, 0))
#: What cameras and editors leave in EXIF that is of another kind than it should be.
ODD_TAGS = {
    "resolution as text": (0x011A, 2, 4, b"72 \0"),
    "width as text": (0x0100, 2, 4, b"abc\0"),
    "an EXIF folder as text": (0x8769, 2, 4, b"abc\0"),
}


@pytest.mark.parametrize("odd", ODD_TAGS)
def test_invalid_other_tags_are_ignored(tmp_path, odd):
    tags = sorted([HELD, ODD_TAGS[odd]])
    path = with_tags(tmp_path / "a.jpg", STORED[6](scene()), *tags)
    assert np.abs(np.asarray(read_image(path)).astype(int) - scene()).mean() < 8
    big = np.kron(scene(), np.ones((16, 16, 1), np.uint8))
    small, size = read_image_and_size(with_tags(tmp_path / "b.jpg", STORED[6](big), *tags), 54)
    assert size == (16 * HEIGHT, 16 * WIDTH)
    assert small.width > small.height and small.width < 16 * WIDTH


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\x7f"]
)
def test_unreadable_metadata_is_ignored(tmp_path, exif):
    path = save(tmp_path / "a.jpg", scene(), exif=exif, quality=95)
    assert np.abs(np.asarray(read_image(path)).astype(int) - scene()).mean() < 8


@pytest.mark.parametrize("orientation", STORED)
def test_images_are_rotated_only_once(tmp_path, orientation):
    path = with_orientation(tmp_path / "a.png", STORED[orientation](scene()), orientation)
    with Image.open(path) as opened:
        stored = opened.size
        once = to_upright_rgb(opened)
        assert np.array_equal(np.asarray(to_upright_rgb(once)), scene())
        assert np.array_equal(np.asarray(to_upright_rgb(opened)), scene())
        assert opened.size == stored  # the caller's picture is left as it was


def test_sixteen_bit_images_are_read_upright(tmp_path):
    deep = scene()[..., 0].astype(np.uint16) * 257
    path = with_orientation(tmp_path / "a.png", STORED[6](deep), 6)
    assert np.array_equal(np.asarray(read_image(path))[..., 0], scene()[..., 0])


@pytest.mark.parametrize("size", [27, 54, 214])
def test_reduced_image_is_large_enough_and_similar(tmp_path, size):
    big = np.asarray(Image.fromarray(scene()).resize((460, 340), Image.Resampling.BICUBIC))
    path = save(tmp_path / "a.jpg", big, quality=95)
    whole, small = read_image(path), read_image_and_size(path, size)[0]
    assert min(small.size) >= min(15 * size // 8, 340)
    assert small.size < whole.size or size == 214
    shrunk = np.asarray(whole.resize(small.size, Image.Resampling.BOX)).astype(int)
    assert np.abs(np.asarray(small) - shrunk).mean() < 4


# --- what is no picture --------------------------------------------------------------------------

readers = pytest.mark.parametrize("read", [read_image, read_mask])


@readers
def test_missing_file(tmp_path, read):
    assert refusal(read, tmp_path / "no.jpg") == "no such file"


@readers
@pytest.mark.parametrize("content", [b"", b"\0", b"just text\n" * 9, b"\xff\xd8\xff", b"BM"])
def test_other_content_named_jpg(tmp_path, read, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert refusal(read, path).startswith("not an image (")


@readers
def test_folder_named_jpg(tmp_path, read):
    path = tmp_path / "a.jpg"
    path.mkdir()
    assert refusal(read, path).startswith("not an image (")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.tif", "a.webp"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_images_are_damaged(tmp_path, name, share):
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    path = save(tmp_path / name, noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    for read in (read_image, read_mask):
        assert refusal(read, path).startswith(("the image is damaged (", "not an image ("))


def test_invalid_tiff_header_is_damage(tmp_path):
    """The offset of a TIFF's pixels has the wrong type."""
    where = TiffImagePlugin.ImageFileDirectory_v2()
    where.tagtype[273] = TiffTags.ASCII
    where[273] = "x"
    path = save(tmp_path / "a.tif", scene(), tiffinfo=where)
    for read in (read_image, read_mask):
        assert refusal(read, path).startswith("the image is damaged (")


def png_of(width, height):
    """Write a PNG header of that size, without pixels."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")  # noqa: E501
    )  # fmt: skip


@readers
def test_too_large_images_are_refused(tmp_path, read):
    path = tmp_path / "a.png"
    path.write_bytes(png_of(60_000, 60_000))
    assert "more than 179 million pixels" in refusal(read, path)


def encoded():
    """Write one image in every supported format."""
    exif = Image.Exif()
    exif[0x0112] = 6
    forms = [("JPEG", {}), ("JPEG", {"exif": exif, "progressive": True}), ("PNG", {"exif": exif})]
    forms += [("BMP", {}), ("TIFF", {}), ("WEBP", {}), ("WEBP", {"lossless": True, "exif": exif})]
    for form, options in forms:
        buffer = io.BytesIO()
        Image.fromarray(scene()).save(buffer, form, **options)
        yield buffer.getvalue()
    buffer = io.BytesIO()
    Image.fromarray(lesion()).save(buffer, "BMP")
    yield buffer.getvalue()


@pytest.mark.filterwarnings("ignore")  # PIL warns of odd EXIF and of large sizes
@pytest.mark.parametrize("seed", range(4))
def test_randomly_damaged_files_are_read_or_refused(tmp_path, seed, capfd):
    rng = random.Random(seed)
    path = tmp_path / "a.jpg"
    for content in encoded():
        for _ in range(25):
            damaged = bytearray(content)
            for _ in range(rng.choice((1, 3, 10))):
                # The header, where most of the sense is, more often than the rest.
                end = min(len(damaged), 80) if rng.random() < 0.6 else len(damaged)
                damaged[rng.randrange(end)] = rng.randrange(256)
            if rng.random() < 0.3:
                del damaged[rng.randrange(len(damaged)) :]
            path.write_bytes(damaged)
            for read in (read_image, read_mask):
                try:
                    read(path)
                except InputError as error:
                    assert "\n" not in str(error)
    capfd.readouterr()  # libtiff and libjpeg complain by themselves
