"""The published systems."""

import re

import pytest
import torch

from lesionseg.augment import build_augment
from lesionseg.config import DEFAULT_COMPONENTS, SETTINGS
from lesionseg.errors import InputError
from lesionseg.losses import build_loss
from lesionseg.models import build_model
from search.spec import baselines
from search.spec.search_space import find_size_errors
from tests.conftest import ROOT

NAMES = list(baselines.load_baselines())
FILES = sorted((ROOT / "studies" / "baselines").glob("*.yaml"))


def test_there_are_twenty_baselines():
    assert len(NAMES) == 20
    assert sorted(NAMES) == [p.stem for p in FILES]
    assert [baselines.get_baseline(n).source for n in NAMES] == sorted(
        baselines.get_baseline(n).source for n in NAMES
    )


def test_baselines_per_source():
    by_source = [baselines.get_baseline(n).source for n in NAMES]
    assert {s: by_source.count(s) for s in "ABCDE"} == {"A": 6, "B": 1, "C": 10, "D": 1, "E": 2}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_comments_name_source_and_assumptions(path):
    comment = " ".join(re.findall(r"^# (.*)$", path.read_text(), re.MULTILINE))
    source = baselines.get_baseline(path.stem).source
    assert comment.startswith(f"Source {source}: ")
    assert "Assumed" in comment


@pytest.mark.parametrize("name", NAMES)
def test_configurations_are_complete_and_can_be_built(name):
    config = baselines.build_config(name, 64, 10, seed=3)
    assert (config.image_size, config.seed) == (64, 3)
    plain = config.to_dict()
    assert plain.keys() == {*DEFAULT_COMPONENTS, *SETTINGS}
    with torch.device("meta"):
        model = build_model(config.model, image_size=64)
        assert model.train()(torch.zeros(2, 3, 64, 64)).shape == (2, 1, 64, 64)
    build_loss(config.loss)
    build_augment(config.augment)
    assert find_size_errors({config.model.name: config.model.params}, 256) == []


def test_digests_differ():
    assert len({baselines.build_config(n, 256, 20).digest() for n in NAMES}) == 20


def test_epochs():
    epochs = {n: baselines.build_config(n, 256, 20).epochs for n in NAMES}
    assert {n for n, e in epochs.items() if e != 20} == {"e-unet-ham-v1"}
    assert epochs["e-unet-ham-v1"] == 10
    assert baselines.build_config("e-unet-ham-v1", 256, 1).epochs == 1


@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [
        ("segnet-bce", "model", {"segnet": {"width": 64}}),
        ("segnet-bce", "augment", {"none": {}}),
        ("unet-bcedice-plateau", "schedule", {"plateau": {"factor": 0.5, "patience": 3}}),
        ("unet-bcedice-plateau", "augment", {"rotations": {"strength": 1.0}}),
        ("d-unet-isic2018", "batch_size", 8),
        ("d-unet-isic2018", "optimizer", {"adam": {"lr": 1e-4}}),
        ("c-baseline-flooding", "flooding", 0.08),
        ("c-hardmseg", "model", {"hardnet_mseg": {}}),
        ("unet-dice", "loss", {"dice": {}}),
    ],
)
def test_values_of_the_sources(name, key, expected):
    assert baselines.build_config(name, 256, 10).to_dict()[key] == expected


def test_differences_between_the_baselines_of_source_c():
    base = baselines.build_config("c-baseline-unet", 256, 10).to_dict()
    expected = {
        "c-bigger-unet": {"model"},
        "c-deeper-unet": {"model"},
        "c-hardmseg": {"model"},
        "c-deeplabv3-resnet": {"model"},
        "c-baseline-aug": {"augment"},
        "c-baseline-scheduler": {"schedule"},
        "c-baseline-flooding": {"flooding"},
        "c-bigger-deeper-aug": {"model", "augment"},
        "c-slightly-bigger-deeper-aug": {"model", "augment"},
    }
    for name, keys in expected.items():
        other = baselines.build_config(name, 256, 10).to_dict()
        assert {k for k in base if base[k] != other[k]} == keys, name


def test_expand_names():
    assert baselines.expand_names(["unet-dice", "baselines"]) == [
        "unet-dice",
        *[n for n in NAMES if n != "unet-dice"],
    ]
    assert baselines.expand_names([]) == []
    with pytest.raises(
        InputError, match=r"unknown baseline 'unet-dise' \(did you mean 'unet-dice'"
    ):
        baselines.expand_names(["unet-dise"])


def test_the_docs_list_all_baselines():
    text = (ROOT / "docs" / "baselines.md").read_text()
    for name in NAMES:
        source = baselines.get_baseline(name).source
        assert re.search(rf"^\| {source} \|.*`{name}`", text, re.MULTILINE), name
