"""One scene in every form that a data set may hold, from the files to the cache's pixels."""

import cv2
import numpy as np
import pytest
from PIL import Image

from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex

SIZE = 32
WIDTH, HEIGHT = 96, 64


def scene():
    """Return a smooth RGB image without symmetries."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 2.4, y * 3.5, 90 + 0 * x], axis=2).astype(np.uint8)


def lesion():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return ((x - 30) ** 2 / 400 + (y - 20) ** 2 / 150 < 1).astype(np.uint8) * 255


def deep(path, pixels):
    """Write 16 bits per channel by OpenCV, in the order blue, green, red."""
    assert cv2.imwrite(str(path), np.ascontiguousarray(pixels.astype(np.uint16)[..., ::-1] * 257))
    return path


def turned(path, pixels, **options):
    """Write a portrait photograph: stored rotated, with orientation 6."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(path, exif=exif, **options)


def see_through(mode):
    def save(path, pixels):
        picture = Image.fromarray(pixels).convert(mode)
        picture.putalpha(Image.linear_gradient("L").resize((WIDTH, HEIGHT)))
        picture.save(path)

    return save


def clear_palette(path, pixels):
    picture = Image.fromarray(pixels).quantize(256)
    picture.info["transparency"] = 3
    picture.save(path)


#: Each with its file's name, how it is written and how far its pixels may be from the scene's.
COLOUR = {
    "JPEG": ("jpg", lambda p, a: Image.fromarray(a).save(p, quality=97, subsampling=0), 3),
    "progressive JPEG": ("jpg", lambda p, a: Image.fromarray(a).save(p, progressive=True), 6),
    "turned JPEG": ("jpg", lambda p, a: turned(p, a, quality=97, subsampling=0), 3),
    "turned PNG": ("png", turned, 1),
    "16-bit PNG": ("png", deep, 1),
    "16-bit TIFF": ("tif", deep, 1),
    "BMP": ("bmp", lambda p, a: Image.fromarray(a).save(p), 0),
    "palette": ("png", lambda p, a: Image.fromarray(a).quantize(256).save(p), 12),
    "palette, see-through": ("png", clear_palette, 12),
    "alpha": ("png", see_through("RGB"), 0),
    "WebP with alpha": ("webp", lambda p, a: Image.fromarray(a).convert("RGBA").save(p, lossless=True), 0),  # noqa: E501
}  # fmt: skip
GREY = {
    "grey JPEG": ("jpg", lambda p, a: Image.fromarray(a).save(p, quality=97), 3),
    "grey PNG": ("png", lambda p, a: Image.fromarray(a).save(p), 0),
    "grey, alpha": ("png", see_through("L"), 0),
    "16-bit grey PNG": ("png", lambda p, a: Image.fromarray(a.astype(np.uint16) * 257).save(p), 1),
    "16-bit grey TIFF": ("tif", lambda p, a: Image.fromarray(a.astype(np.uint16) * 257).save(p), 1),
}
MASKS = {
    "1-bit BMP": ("bmp", lambda p, a: Image.fromarray(a).convert("1").save(p)),
    "1-bit PNG": ("png", lambda p, a: Image.fromarray(a).convert("1").save(p)),
    "0 and 1": ("png", lambda p, a: Image.fromarray(a // 255).save(p)),
    "16 bits": ("tif", lambda p, a: Image.fromarray(a.astype(np.uint16) * 257).save(p)),
    "palette": ("png", lambda p, a: Image.fromarray(a).convert("P").save(p)),
    "colour": ("png", lambda p, a: Image.fromarray(a).convert("RGB").save(p)),
    "alpha": ("png", lambda p, a: Image.fromarray(a).convert("RGBA").save(p)),
    "turned": ("png", turned),
}


def cached(tmp_path, image, mask=None):
    """Return the cached image and mask of one pair, each given by suffix, writer and pixels."""
    wanted = {"images": image, "masks": mask or ("png", lambda p, a: Image.fromarray(a).save(p), lesion())}  # noqa: E501  # fmt: skip
    for folder, (ending, write, pixels) in wanted.items():
        (tmp_path / "set" / folder).mkdir(parents=True)
        write(tmp_path / "set" / folder / f"a.{ending}", pixels)
    index = DatasetIndex.read(tmp_path / "set")
    cache = build_cache(index, SIZE, tmp_path / "cache")
    assert cache.shapes == [(HEIGHT, WIDTH)]
    return cache.images[0].astype(int), cache.masks[0]


def small(pixels):
    """Return the scene at the cache's size, reduced independently by area."""
    return cv2.resize(pixels, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(int)


@pytest.mark.parametrize("kind", COLOUR)
def test_colour_images_in_all_formats(tmp_path, kind):
    ending, write, off = COLOUR[kind]
    image, _ = cached(tmp_path, (ending, write, scene()))
    # Scaling by triangles and by area differ by 3 at most at the edges of this scene.
    assert np.abs(image - small(scene()))[2:-2, 2:-2].max() <= off + 3


@pytest.mark.parametrize("kind", GREY)
def test_grey_images_in_all_formats(tmp_path, kind):
    ending, write, off = GREY[kind]
    grey = scene()[..., 1]
    image, _ = cached(tmp_path, (ending, write, grey))
    assert (image == image[..., :1]).all()
    assert np.abs(image[..., 0] - small(grey))[2:-2, 2:-2].max() <= off + 3


@pytest.mark.parametrize("kind", MASKS)
def test_masks_in_all_formats(tmp_path, kind):
    ending, write = MASKS[kind]
    png = ("png", lambda p, a: Image.fromarray(a).save(p), scene())
    _, mask = cached(tmp_path, png, (ending, write, lesion()))
    assert set(np.unique(mask)) == {0, 1}
    soft = small(lesion())
    assert (mask[soft > 160] == 1).all()
    assert (mask[soft < 96] == 0).all()


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_photograph_of_24_million_pixels(tmp_path, orientation):
    """6000 x 4000 pixels, stored upright or rotated."""
    large = cv2.resize(scene(), (6000, 4000), interpolation=cv2.INTER_LINEAR)
    mask = cv2.resize(lesion(), (6000, 4000), interpolation=cv2.INTER_NEAREST)
    for folder in ("images", "masks"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    path = tmp_path / "set" / "images" / "a.jpg"
    if orientation == 6:
        turned(path, large, quality=90)
    else:
        Image.fromarray(large).save(path, quality=90)
    Image.fromarray(mask).save(tmp_path / "set" / "masks" / "a.png", compress_level=1)
    index = DatasetIndex.read(tmp_path / "set")
    cache = build_cache(index, SIZE, tmp_path / "cache")
    assert cache.shapes == [(4000, 6000)]
    assert np.abs(cache.images[0].astype(int) - small(large)).max() <= 6
    assert cache.areas[0] == pytest.approx((mask > 0).mean(), abs=1e-12)
    assert (cache.masks[0][small(mask) > 160] == 1).all()
    assert (cache.masks[0][small(mask) < 96] == 0).all()
