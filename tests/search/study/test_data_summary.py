"""data.json of known files."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.data.split import Split
from search.study.data_summary import EDGES, read_data_summary, summarize_data
from tests.conftest import write_pair
from tests.search.helpers import open_tiny


@pytest.fixture()
def images(tmp_path):
    """Six pairs; ``copy`` is image ``a`` under another name and in another format."""
    root = tmp_path / "data"
    for i, name in enumerate("abcd"):
        write_pair(root, name, seed=i)
    write_pair(root, "wide", size=(60, 40), seed=9)
    with Image.open(root / "images" / "a.png") as picture:
        picture.save(root / "images" / "copy.bmp")
    shutil.copy(root / "masks" / "a.png", root / "masks" / "copy.png")
    empty = Image.new("L", (48, 40))
    empty.save(root / "masks" / "d.png")
    return root


def summarize(root, split):
    index = DatasetIndex.read(root)
    return summarize_data(index, build_cache(index, 16), split)


def test_parts_sizes_and_areas(images):
    summary = summarize(images, Split(("a", "b"), ("c",), ("d", "wide")))
    assert json.loads(json.dumps(summary)) == summary
    assert (summary["pairs"], summary["used"]) == (6, 5)  # copy is in no part
    areas = {
        name: (np.asarray(Image.open(images / "masks" / f"{name}.png")) > 0).mean()
        for name in ("a", "b", "d", "wide")
    }
    train, test = summary["parts"]["train"], summary["parts"]["test"]
    assert (train["images"], train["groups"], train["empty"]) == (2, 2, 0)
    assert train["area"]["median"] == pytest.approx(np.mean([areas["a"], areas["b"]]))
    assert test["empty"] == 1
    assert test["area"]["counts"] == np.histogram([areas["d"], areas["wide"]], EDGES)[0].tolist()
    assert summary["sizes"] == {
        "kinds": 2,
        "most": [
            {"height": 40, "width": 48, "images": 4},
            {"height": 40, "width": 60, "images": 1},
        ],
    }
    assert summary["duplicates"] == {"sets": 0, "leaks": 0, "names": []}
    assert summary["groups_in_several_parts"] == 0


def test_duplicates_and_leaks(images):
    within = summarize(images, Split(("a", "copy"), ("b",), ("c",)))
    assert within["duplicates"] == {"sets": 1, "leaks": 0, "names": [["a", "copy"]]}
    across = summarize(images, Split(("a", "b"), ("c",), ("copy",)))
    assert across["duplicates"] == {"sets": 1, "leaks": 1, "names": [["a", "copy"]]}


def test_a_group_in_two_parts_is_counted(images):
    (images / "pairs.csv").write_text(
        "image,mask,group\n"
        + "".join(f"images/{n}.png,masks/{n}.png,{g}\n" for n, g in zip("abc", "xxy", strict=True))
    )
    index = DatasetIndex.read(images / "pairs.csv")
    names = [r.name for r in index.records]
    split = Split((names[0],), (names[1],), (names[2],))
    assert summarize_data(index, build_cache(index, 16), split)["groups_in_several_parts"] == 1


def test_a_study_stores_the_summary(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s")
    summary = read_data_summary(tmp_path / "s")
    assert summary == summarize_data(opened.index, opened.cache, opened.split)
    assert sum(part["images"] for part in summary["parts"].values()) == 30
    assert read_data_summary(tmp_path) is None
