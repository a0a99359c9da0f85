"""Reading masks as editors and annotation tools save them."""

import struct

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lesionseg.data.mask_io import read_binary_mask, read_mask
from lesionseg.errors import InputError
from tests.lesionseg.data.test_image_io import (
    HEIGHT,
    STORED,
    WIDTH,
    lesion,
    refusal,
    save,
    scene,
    with_palette,
)


@pytest.mark.parametrize("value", [1, 2, 127, 128, 254, 255])
@pytest.mark.parametrize("name", ["m.png", "m.bmp", "m.tif"])
def test_any_single_value_is_lesion(tmp_path, name, value):
    mask, thresholded = read_mask(save(tmp_path / name, lesion().astype(np.uint8) * value))
    assert mask.dtype == bool and mask.shape == (HEIGHT, WIDTH)
    assert np.array_equal(mask, lesion())
    assert thresholded is False


def test_one_bit_masks(tmp_path):
    for name in ("m.bmp", "m.png", "m.tif"):
        path = save(tmp_path / name, lesion())
        with Image.open(path) as stored:
            assert stored.mode == "1"
        mask, thresholded = read_mask(path)
        assert np.array_equal(mask, lesion()) and not thresholded


@pytest.mark.parametrize(("value", "full"), [(0, False), (1, True), (128, True), (255, True)])
def test_a_mask_of_one_value_is_empty_if_black_and_else_full(tmp_path, value, full):
    mask, thresholded = read_mask(save(tmp_path / "m.png", np.full((5, 4), value, np.uint8)))
    assert mask.shape == (5, 4) and bool(mask.all()) == full and bool(mask.any()) == full
    assert not thresholded


@pytest.mark.parametrize("value", [0, 255])
def test_a_mask_of_one_pixel(tmp_path, value):
    mask, _ = read_mask(save(tmp_path / "m.png", np.full((1, 1), value, np.uint8)))
    assert mask.tolist() == [[value > 0]]


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 255), (128, 0, 0), (255, 255, 0)])
def test_a_coloured_mask(tmp_path, colour):
    rgb = np.where(lesion()[..., None], colour, (0, 0, 0)).astype(np.uint8)
    assert np.array_equal(read_mask(save(tmp_path / "m.png", rgb))[0], lesion())
    indexed = with_palette(tmp_path / "p.png", (0, 0, 0), colour)
    assert np.array_equal(read_mask(indexed)[0], lesion())


def test_a_mask_with_opaque_alpha(tmp_path):
    white = np.where(lesion()[..., None], 255, 0).astype(np.uint8).repeat(3, axis=2)
    opaque = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    assert np.array_equal(
        read_mask(save(tmp_path / "m.png", np.dstack([white, opaque])))[0], lesion()
    )
    transparent = np.where(lesion()[..., None], 255, 0).astype(np.uint8)
    path = save(tmp_path / "n.png", np.dstack([white, transparent]))
    assert np.array_equal(read_mask(path)[0], lesion())


@pytest.mark.parametrize("value", [1, 255, 256, 65535])
def test_a_sixteen_bit_mask(tmp_path, value):
    mask, thresholded = read_mask(save(tmp_path / "m.png", lesion().astype(np.uint16) * value))
    assert np.array_equal(mask, lesion()) and not thresholded


def test_jpeg_masks_are_thresholded(tmp_path):
    # Off the grid of 8x8 blocks, which alone would be stored exactly.
    big = np.roll(np.kron(lesion(), np.ones((8, 8), bool)), (3, 5), axis=(0, 1))
    path = save(tmp_path / "m.jpg", big.astype(np.uint8) * 255, quality=90)
    assert len(np.unique(np.asarray(Image.open(path)))) > 2
    mask, thresholded = read_mask(path)
    assert thresholded is True
    assert np.array_equal(mask, big)


def nearly(shares):
    """Return a mask of 1000 pixels with the given number of each grey level, the rest black."""
    grey = np.zeros(1000, np.uint8)
    grey[: sum(shares.values())] = np.repeat(list(shares), list(shares.values()))
    return grey.reshape(25, 40)


@pytest.mark.parametrize(
    ("shares", "lesion_pixels"),
    [
        ({255: 300, 128: 25, 127: 25}, 325),  # 95% near black or white, the rest cut at 128
        ({255: 300, 31: 300}, 300),
        ({224: 300, 31: 10}, 300),
        ({1: 500, 255: 500}, 500),
        ({254: 500, 255: 500}, 1000),
        ({90: 50}, 50),  # two values only: one of them is lesion, however grey
    ],
)
def test_nearly_binary_masks_are_thresholded_at_128(tmp_path, shares, lesion_pixels):
    mask, thresholded = read_mask(save(tmp_path / "m.png", nearly(shares)))
    assert mask.sum() == lesion_pixels
    assert thresholded == (len(shares) > 1)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({255: 300, 128: 51}, "3 grey levels from 0 to 255"),
        ({100: 500, 200: 500}, "2 grey levels from 100 to 200"),
        # Labels: all are near black, but the mask is not empty.
        ({1: 500, 2: 500}, "2 grey levels from 1 to 2"),
        ({1: 300, 2: 100}, "3 grey levels from 0 to 2"),
        ({32: 900, 64: 50}, "3 grey levels from 0 to 64"),
    ],
)
def test_grey_masks_are_refused(tmp_path, shares, message):
    path = save(tmp_path / "m.png", nearly(shares))
    assert refusal(read_mask, path) == (
        f"the mask is not binary: {message}; save it with 0 for skin and 255 for lesion"
    )


def test_a_photograph_as_mask_is_refused(tmp_path):
    assert "is not binary" in refusal(read_mask, save(tmp_path / "m.jpg", scene()))


# --- masks in colours and in the alpha channel ---------------------------------------------------

CONTRADICTION = (
    "the colours and the alpha channel show different masks; remove one of them: save it with 0 "
    "for skin and 255 for lesion, without an alpha channel"
)
WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (200, 30, 40)


def painted(path, inside, outside=None, mode="RGBA"):
    """Write the lesion in one colour with alpha, the skin in another."""
    pixels = np.where(lesion()[..., None], inside, outside or (*inside[:3], 0))
    return save(path, pixels.astype(np.uint8), mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("colour", [BLACK, WHITE, RED])
@pytest.mark.parametrize("alpha", [255, 90])
@pytest.mark.parametrize("name", ["m.png", "m.tif"])
def test_the_alpha_channel_is_the_mask_where_the_colours_are_constant(
    tmp_path, mode, colour, alpha, name
):
    mask = read_binary_mask(painted(tmp_path / name, (*colour, alpha), mode=mode))
    assert np.array_equal(np.asarray(mask.image) == 255, lesion())
    assert (mask.from_alpha, mask.thresholded) == (True, False)
    assert mask.area == lesion().mean()


@pytest.mark.parametrize("transparent", [bytes([0, 255]), 0])
def test_a_palette_with_transparency(tmp_path, transparent):
    picture = Image.fromarray(lesion().astype(np.uint8))
    picture.putpalette(bytes(RED + RED))
    picture.save(tmp_path / "m.png", transparency=transparent)
    mask = read_binary_mask(tmp_path / "m.png")
    assert np.array_equal(np.asarray(mask.image) == 255, lesion()) and mask.from_alpha


@pytest.mark.parametrize(
    ("inside", "outside"), [((*WHITE, 255), (*BLACK, 255)), ((*RED, 80), (*BLACK, 80)),
                            ((*WHITE, 255), (*BLACK, 0)), ((*RED, 80), (*BLACK, 0))]
)  # fmt: skip
def test_the_colours_are_the_mask_where_the_alpha_channel_agrees_or_is_constant(
    tmp_path, inside, outside
):
    mask = read_binary_mask(painted(tmp_path / "m.png", inside, outside))
    assert np.array_equal(np.asarray(mask.image) == 255, lesion()) and not mask.from_alpha


@pytest.mark.parametrize(
    ("inside", "outside"), [((*BLACK, 255), (*WHITE, 0)), ((*WHITE, 0), (*BLACK, 255)),
                            ((*WHITE, 0), (*WHITE, 0)), ((*WHITE, 0), (*BLACK, 0))]
)  # fmt: skip
def test_colours_and_alpha_channel_that_contradict_each_other_are_refused(
    tmp_path, inside, outside
):
    assert refusal(read_mask, painted(tmp_path / "m.png", inside, outside)) == CONTRADICTION


@pytest.mark.parametrize("colour", [BLACK, WHITE])
def test_a_nearly_opaque_alpha_channel_is_no_mask(tmp_path, colour):
    mask = read_binary_mask(painted(tmp_path / "m.png", (*colour, 254), (*colour, 255)))
    assert (mask.area, mask.from_alpha) == (float(colour == WHITE), False)


def test_a_cut_out_photograph_is_refused(tmp_path):
    alpha = lesion().astype(np.uint8)[..., None] * 255
    path = save(tmp_path / "m.png", np.dstack([scene(), alpha]))
    assert refusal(read_mask, path) == CONTRADICTION


def test_soft_edges_are_taken_from_the_alpha_channel(tmp_path):
    """A soft brush: constant colour where the alpha channel is not 0."""
    alpha = cv2.GaussianBlur(lesion().astype(np.uint8) * 255, (3, 3), 0.5)
    white = np.where(alpha > 0, 255, 0).astype(np.uint8)
    path = save(tmp_path / "m.png", np.dstack([white, white, white, alpha]))
    mask = read_binary_mask(path)
    assert (mask.from_alpha, mask.thresholded) == (True, True)
    assert np.array_equal(np.asarray(mask.image) == 255, alpha >= 128)


def deep_tiff(path, pixels, orientation):
    """16 bits per channel, which neither PIL nor OpenCV writes with an orientation."""
    (height, width, _), data = pixels.shape, pixels.astype("<u2").tobytes()
    entries = [
        *((256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 134), (259, 3, 1, 1)),
        *((262, 3, 1, 2), (273, 4, 1, 140), (274, 3, 1, orientation), (277, 3, 1, 3)),
        *((278, 3, 1, height), (279, 4, 1, len(data))),
    ]
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    head += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    path.write_bytes(head + struct.pack("<3H", 16, 16, 16) + data)
    return path


@pytest.mark.parametrize("orientation", STORED)
def test_a_deep_tiff_is_turned_once(tmp_path, orientation):
    pixels = np.repeat(lesion()[..., None] * np.uint16(65535), 3, axis=2)
    path = deep_tiff(tmp_path / "m.tif", STORED[orientation](pixels), orientation)
    stored = read_binary_mask(path)
    assert stored.orientation == orientation
    assert np.array_equal(np.asarray(stored.image) > 0, STORED[orientation](lesion()))
    assert np.array_equal(read_mask(path)[0], lesion())


@pytest.mark.parametrize("colour", [(1, 0, 0), (0, 0, 1), (0, 0, 255), (0, 3, 0)])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_label_in_one_channel_is_lesion(tmp_path, colour, bits):
    rgb = np.where(lesion()[..., None], colour, BLACK).astype(np.uint16 if bits == 16 else np.uint8)
    assert cv2.imwrite(str(tmp_path / "m.png"), rgb[..., ::-1])
    assert np.array_equal(read_mask(tmp_path / "m.png")[0], lesion())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(
    ("skin", "colour"), [(BLACK, (128, 0, 0)), (BLACK, (0, 0, 1)), ((20, 9, 0), (250, 240, 230))]
)
def test_the_colours_of_a_palette_decide_and_not_its_order(tmp_path, order, skin, colour):
    picture = Image.fromarray(np.where(lesion(), order[1], order[0]).astype(np.uint8))
    palette = sorted([(order[0], skin), (order[1], colour)])
    picture.putpalette(bytes(sum((c for _, c in palette), ())))
    picture.save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png")[0], lesion())


@pytest.mark.parametrize(
    ("skin", "colour"), [(WHITE, (0, 0, 255)), ((68, 1, 84), (253, 231, 37)), (RED, (0, 255, 0))]
)
def test_two_colours_of_which_none_is_black_or_white_are_refused(tmp_path, skin, colour):
    rgb = np.where(lesion()[..., None], colour, skin).astype(np.uint8)
    assert "the mask is not binary" in refusal(read_mask, save(tmp_path / "m.png", rgb))


@pytest.mark.parametrize("levels", [(0, 1, 255), (0, 38, 219)])
def test_labels_with_one_for_ignored_pixels_are_refused(tmp_path, levels):
    """The lesion and around it a thin line of the label for "ignore", as in PASCAL VOC."""
    inner = cv2.erode(lesion().astype(np.uint8), np.ones((3, 3), np.uint8))
    mask = np.array(levels, np.uint8)[2 * lesion() - inner]
    mask = np.kron(mask, np.ones((1, 1), np.uint8))
    large = np.zeros((10 * HEIGHT, 10 * WIDTH), np.uint8)
    large[:HEIGHT, :WIDTH] = mask
    assert "3 grey levels" in refusal(read_mask, save(tmp_path / "m.png", large))


@pytest.mark.parametrize(
    "values", [np.int32([0, 2**16]), np.int32([0, 2**31 - 1]), np.float32([0, 0.5])]
)
def test_wide_values_are_not_clipped(tmp_path, values):
    Image.fromarray(values[lesion().astype(int)]).save(tmp_path / "m.tif")
    assert np.array_equal(read_mask(tmp_path / "m.tif")[0], lesion())


@pytest.mark.parametrize("values", [np.uint16([0, 200, 300]), np.int32([0, -1, -1])])
def test_other_wide_values_are_refused(tmp_path, values):
    labels = lesion().astype(int)
    labels[4, 6:9] = 2
    Image.fromarray(values[labels]).save(tmp_path / "m.tif")
    assert "the mask is not binary" in refusal(read_mask, tmp_path / "m.tif")


def test_inverted_masks_are_inverted(tmp_path):
    mask = read_binary_mask(save(tmp_path / "m.png", ~lesion()), inverted=True)
    assert np.array_equal(np.asarray(mask.image) == 255, lesion())
    assert mask.area == pytest.approx(lesion().mean())


# --- any mask in any encoding --------------------------------------------------------------------

bytes_ = st.integers(0, 255)
colours = st.tuples(bytes_, bytes_, bytes_)


def encoder(build):
    """A strategy of functions that write a mask, bool [H, W], to a path without an ending."""

    @st.composite
    def drawn(draw):
        return build(draw)

    return drawn()


def write(pixels, suffix="png", mode=None, **options):
    """Return a function that writes what ``pixels`` makes of a mask."""
    return lambda mask, path: save(path.with_suffix(f".{suffix}"), pixels(mask), mode, **options)


def chosen(mask, skin, lesion, dtype=np.uint8):
    index = mask if np.ndim(skin) == 0 else mask[..., None]
    return np.where(index, np.asarray(lesion), np.asarray(skin)).astype(dtype)


def grey(draw):
    levels = st.tuples(st.just(0), st.integers(1, 255)) | st.tuples(st.integers(0, 31), bytes_)
    skin, colour = sorted(draw(levels.filter(lambda pair: pair[0] != pair[1])))
    suffix = draw(st.sampled_from(["png", "bmp", "tif"]))
    return write(lambda mask: chosen(mask, skin, colour), suffix)


def one_bit(draw):
    suffix = draw(st.sampled_from(["png", "bmp", "tif"]))
    return write(lambda mask: mask, suffix)


def wide(draw):
    bits, suffix = draw(st.sampled_from([(16, "png"), (16, "tif"), (31, "tif")]))
    value = draw(st.integers(1, 2**bits - 1) | st.sampled_from([1, 255, 256, 2**bits - 1]))
    dtype = np.uint16 if bits == 16 else np.int32
    return write(lambda mask: chosen(mask, 0, value, dtype), suffix)


def wide_colours(draw):
    channels = draw(st.sampled_from([3, 4]))
    value = draw(st.integers(1, 2**16 - 1) | st.sampled_from([1, 255, 256]))

    def save_deep(mask, path):
        pixels = np.repeat(chosen(mask, 0, value, np.uint16)[..., None], channels, axis=2)
        if channels == 4:
            pixels[..., 3] = 2**16 - 1
        assert cv2.imwrite(str(path.with_suffix(".png")), pixels)
        return path.with_suffix(".png")

    return save_deep


def two_colours(draw):
    """The lesion in the lighter of two colours, or in any colour on black."""
    pair = sorted(
        {draw(st.just(BLACK) | colours), draw(colours)},
        key=lambda c: (any(c), np.dot(c, (299, 587, 114))),
    )
    skin, colour = pair if len(pair) == 2 else (BLACK, WHITE)
    return draw(st.sampled_from([rgb, palette, opaque]))(draw, skin, colour)


def rgb(draw, skin, colour):
    suffix = draw(st.sampled_from(["png", "bmp", "tif"]))
    return write(lambda mask: chosen(mask, skin, colour), suffix)


def opaque(draw, skin, colour):
    alpha = draw(st.integers(1, 255))
    return write(lambda mask: chosen(mask, (*skin, alpha), (*colour, alpha)))


def palette(draw, skin, colour):
    first, second = draw(st.permutations(range(draw(st.sampled_from([2, 16, 256])))))[:2]
    table = np.zeros((256, 3), np.uint8)
    table[first], table[second] = skin, colour

    def save_palette(mask, path):
        picture = Image.fromarray(chosen(mask, first, second))
        picture.putpalette(table.tobytes())
        picture.save(path.with_suffix(".png"))
        return path.with_suffix(".png")

    return save_palette


def alpha_channel(draw):
    """The mask in the alpha channel; what is hidden may have any colour."""
    colour, alpha = draw(colours), draw(st.integers(1, 255))
    hidden = draw(st.just(colour) | st.sampled_from([BLACK, WHITE]) | colours)
    suffix = draw(st.sampled_from(["png", "tif", "webp"]))
    mode = draw(st.sampled_from(["RGBA", "LA"])) if suffix != "webp" else "RGBA"
    options = {"lossless": True, "exact": draw(st.booleans())} if suffix == "webp" else {}
    return write(lambda mask: chosen(mask, (*hidden, 0), (*colour, alpha)), suffix, mode, **options)


def transparent_palette(draw):
    colour, hidden = draw(colours), draw(st.sampled_from([BLACK, WHITE]) | colours)

    def save_palette(mask, path):
        picture = Image.fromarray(mask.astype(np.uint8))
        picture.putpalette(bytes(hidden + colour))
        picture.save(path.with_suffix(".png"), transparency=bytes([0, 255]))
        return path.with_suffix(".png")

    return save_palette


def noisy_jpeg(draw):
    mode, quality = draw(st.sampled_from(["L", "RGB"])), draw(st.integers(30, 100))
    return write(lambda mask: chosen(mask, 0, 255), "jpg", mode, quality=quality)


def soft_edges(draw):
    sigma = draw(st.floats(0.3, 1.5))
    return write(lambda mask: cv2.GaussianBlur(chosen(mask, 0, 255), (0, 0), sigma))


EXACT = [grey, one_bit, wide, wide_colours, two_colours, alpha_channel, transparent_palette]
SOFT = [noisy_jpeg, soft_edges]


@st.composite
def masks(draw):
    """A mask of one to three rectangles and ellipses, which does not fill the image."""
    height, width = draw(st.integers(24, 90)), draw(st.integers(24, 90))
    mask = np.zeros((height, width), np.uint8)
    for _ in range(draw(st.integers(1, 3))):
        y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        a, b = draw(st.integers(3, height // 3)), draw(st.integers(3, width // 3))
        if draw(st.booleans()):
            cv2.ellipse(mask, (x, y), (b, a), 0, 0, 360, 1, -1)
        else:
            mask[max(0, y - a) : y + a, max(0, x - b) : x + b] = 1
    mask[draw(st.sampled_from([0, -1])), :2] = 0
    return mask.astype(bool)


@pytest.mark.parametrize("kind", EXACT + SOFT)
@pytest.mark.parametrize("inverted", [False, True])
def test_reading_gives_the_mask_or_a_refusal_and_never_another_mask(
    tmp_path_factory, kind, inverted
):
    folder, found = tmp_path_factory.mktemp("masks"), []

    @settings(max_examples=30, deadline=None)
    @given(masks(), encoder(kind))
    def check(truth, encode):
        path = encode(~truth if inverted else truth, folder / "m")
        try:
            mask, _ = read_mask(path, inverted=inverted)
        except InputError as error:
            assert "\n" not in str(error)
            return
        found.append(path)
        wrong = (mask != truth).astype(np.uint8)
        if kind in SOFT:  # but at edges and thin lines
            wrong = cv2.erode(wrong, np.ones((3, 3), np.uint8), borderValue=0)
        assert not wrong.any()

    check()
    assert found  # not everything is refused
