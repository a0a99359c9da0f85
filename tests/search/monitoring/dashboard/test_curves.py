"""Learning curves drawn from a history's text."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from search.monitoring.dashboard.artifact_reader import BLUE, draw_curves

HEAD = "epoch,train_loss,val_loss,lr,seconds,dice,jaccard\n"


def drawn(text):
    with Image.open(io.BytesIO(draw_curves(text))) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def blue(pixels):
    """How many pixels have the colour of the validation's curves."""
    wanted = [int(BLUE[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(pixels - wanted).sum(2) < 40).sum())


def test_curves_are_seen():
    rows = "".join(f"{e},{1 / e},{1.1 / e},0.01,1,{1 - 1 / e},{1 - 1.2 / e}\n" for e in range(1, 9))
    pixels = drawn(HEAD + rows)
    assert pixels.shape == (286, 792, 3)
    assert blue(pixels) > 300


def test_one_epoch_is_a_dot_and_what_is_no_number_is_left_out():
    one = drawn(HEAD + "1,0.5,0.6,0.01,1,0.7,0.6\n")
    assert 10 < blue(one) < 280
    odd = drawn(HEAD + "1,nan,inf,0.01,1,nan,nan\n2,0.5,0.6,0.01,1,0.7,0.6\n")
    assert blue(odd) > 10


@pytest.mark.parametrize("text", ["", HEAD, "a,b\n1,2\n", HEAD + "1,x,1,1,1,1,1\n", "\x00"])
def test_what_is_no_history_is_refused(text):
    with pytest.raises(ValueError):
        draw_curves(text)


def test_a_line_that_was_cut_off_is_left_out():
    assert blue(drawn(HEAD + "1,0.5,0.6,0.01,1,0.7,0.6\n2,0.5,0.")) > 10
