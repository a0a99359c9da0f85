"""The bundled ImageNet weights recognise photographs, through our own encoder and normalisation."""

from pathlib import Path

import matplotlib
import pytest
import skimage.data
import timm
import torch
from PIL import Image

from lesionseg.data.image_io import resize_square
from lesionseg.data.loader import normalise
from lesionseg.errors import InputError
from lesionseg.models import weight_files
from lesionseg.models.smp import build_smp
from lesionseg.models.weight_files import BUNDLED, read_bundled

HOPPER = Path(matplotlib.__file__).parent / "mpl-data/sample_data/grace_hopper.jpg"

#: Photographs, and the numbers of ImageNet's classes that name their subject.
PHOTOGRAPHS = {
    "espresso": (lambda: Image.fromarray(skimage.data.coffee()), {967}),
    "cat": (lambda: Image.fromarray(skimage.data.chelsea()), {281, 282, 285}),
    "tripod": (lambda: Image.fromarray(skimage.data.camera()), {872}),
    "military uniform": (lambda: Image.open(HOPPER), {652}),
}


@pytest.fixture(scope="module", params=BUNDLED)
def classifier(request):
    """From normalised images to classes: our encoder, and the head in the package's file."""
    encoder = build_smp("fpn", encoder=request.param, weights="bundled").encoder.eval()
    whole = timm.create_model(request.param.removeprefix("tu-")).eval()
    whole.load_state_dict(read_bundled(request.param))
    head = torch.nn.Sequential(whole.conv_head, whole.bn2, whole.global_pool, whole.classifier)
    return encoder, head, whole


def pixels(photograph):
    image = PHOTOGRAPHS[photograph][0]().convert("RGB")
    return torch.from_numpy(resize_square(image, 224).copy())[None]


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_photographs_are_recognised(classifier, photograph):
    encoder, head, whole = classifier
    with torch.inference_mode():
        logits = head(encoder(normalise(pixels(photograph)))[-1])
        # As timm's own network sees the photograph.
        expected = whole(pixels(photograph).permute(0, 3, 1, 2) / 127.5 - 1)
    assert int(logits.argmax()) in PHOTOGRAPHS[photograph][1]
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


def test_a_file_of_another_size_is_refused(monkeypatch):
    path = weight_files.bundled_file("tu-tf_efficientnet_lite1")
    monkeypatch.setattr(weight_files, "bundled_file", lambda encoder: path)
    with pytest.raises(InputError, match="does not fit encoder 'tu-tf_efficientnet_lite0'"):
        read_bundled("tu-tf_efficientnet_lite0")


def test_a_file_of_another_order_is_refused(monkeypatch):
    encoder = "tu-tf_efficientnet_lite0"
    state = dict(weight_files.read_tensors(weight_files.bundled_file(encoder)))
    names = list(state)  # a batch norm's weight and bias have the same shape
    names[1], names[2] = names[2], names[1]
    monkeypatch.setattr(weight_files, "read_tensors", lambda path: {n: state[n] for n in names})
    with pytest.raises(InputError, match="does not fit"):
        read_bundled(encoder)
