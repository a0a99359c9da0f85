import pytest

from lesionseg.errors import InputError
from lesionseg.models.plan import divisor, plan

# Worked by hand: the sides of the feature maps, halved and rounded up down to 4..7 pixels.
SIDES = {
    8: [8, 4],
    16: [16, 8, 4],
    64: [64, 32, 16, 8, 4],
    96: [96, 48, 24, 12, 6],
    100: [100, 50, 25, 13, 7],
    256: [256, 128, 64, 32, 16, 8, 4],
    320: [320, 160, 80, 40, 20, 10, 5],
    512: [512, 256, 128, 64, 32, 16, 8, 4],
}


@pytest.mark.parametrize(("size", "sides"), SIDES.items())
def test_a_stage_is_added_while_its_map_stays_four_pixels_wide(size, sides):
    planned = plan(size)
    assert planned.strides == (1, *[2] * (len(sides) - 1))
    assert planned.kernels == (3,) * len(sides)
    assert len(planned.features) == len(sides)
    side = size
    for stride, expected in zip(planned.strides, sides, strict=True):
        side = -(-side // stride)
        assert side == expected


def test_the_channels_double_up_to_512():
    assert plan(64).features == (32, 64, 128, 256, 512)
    assert plan(96).features == (32, 64, 128, 256, 512)
    assert plan(256).features == (32, 64, 128, 256, 512, 512, 512)
    assert plan(320).features == (32, 64, 128, 256, 512, 512, 512)
    assert plan(512).features == (32, 64, 128, 256, 512, 512, 512, 512)


def test_the_first_stage_can_be_of_another_width():
    assert plan(64, 5).features == (5, 10, 20, 40, 80)
    assert plan(64, 64).features == (64, 128, 256, 512, 512)


@pytest.mark.parametrize(
    ("size", "multiple"), [(8, 2), (96, 16), (100, 16), (256, 64), (320, 64), (512, 128)]
)
def test_the_sides_are_padded_to_a_multiple_of_all_strides(size, multiple):
    assert divisor(plan(size)) == multiple


def test_the_lowest_map_of_the_padded_image_is_of_four_to_seven_pixels():
    for size in range(8, 600):
        multiple = divisor(plan(size))
        assert 4 <= -(-size // multiple) <= 7


@pytest.mark.parametrize("size", [7, 1, 0, -4])
def test_too_small_an_image_is_refused(size):
    with pytest.raises(InputError, match=rf"^image_size: must be at least 8, got {size}$"):
        plan(size)
