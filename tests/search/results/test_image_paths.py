"""What people mean by files, folders and patterns."""

import os
from pathlib import Path

import pytest

from lesionseg.errors import InputError
from search.results.image_paths import find_images, find_masks, unique_stems


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Create files below the current folder."""
    for name in ("a/1.jpg", "a/2.PNG", "a/notes.txt", "a/.hidden.png", "a/deep/3.bmp", "b/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "paths"),
    [
        (["a"], ["a/1.jpg", "a/2.PNG"]),
        (["b", "a"], ["b/1.jpg", "a/1.jpg", "a/2.PNG"]),
        (["a/2.PNG", "a", "./a/1.jpg"], ["a/2.PNG", "a/1.jpg"]),
        (["a/*"], ["a/1.jpg", "a/2.PNG"]),
        (["**/*.jpg"], ["a/1.jpg", "b/1.jpg"]),
        (["a/**/*"], ["a/1.jpg", "a/2.PNG", "a/deep/3.bmp"]),
        # What is named itself is meant, whatever it is called.
        (["a/notes.txt"], ["a/notes.txt"]),
        (["a/.hidden.png"], ["a/.hidden.png"]),
    ],
)
def test_files_folders_and_patterns_are_expanded(tree, arguments, paths):
    assert [os.path.normpath(p) for p in find_images(arguments)] == paths


def test_file_with_brackets_in_its_name_is_no_pattern(tree):
    (tree / "a[1].png").write_bytes(b"")
    assert find_images(["a[1].png"]) == [Path("a[1].png")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("c", "c: no such file or folder"),
        ("a/*.tif", "a/*.tif: matches no image"),
        (".", ".: no image in this folder; '**/*' includes its subfolders"),
    ],
)
def test_argument_without_images_is_refused(tree, arguments, message):
    with pytest.raises(InputError) as caught:
        find_images(["a", arguments])
    assert str(caught.value) == message


def test_masks_are_found_by_name_in_subfolders(tmp_path):
    images = [tmp_path / "i" / name for name in ("A.jpg", "b.jpg", "c.jpg", "d.jpg")]
    for name in ("i/A.jpg", "i/b.jpg", "i/c.jpg", "m/x/a_segmentation.png", "m/B.png", "m/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert find_masks(images, tmp_path / "m") == {
        images[0]: tmp_path / "m/x/a_segmentation.png",
        images[1]: tmp_path / "m/B.png",
    }


def test_images_next_to_their_masks_are_no_masks(tmp_path):
    """As in PH2, where both are below one folder."""
    for name in ("x/x_image/x.bmp", "x/x_lesion/x_lesion.bmp", "y/y_image/y.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    images = find_images([str(tmp_path / "*" / "*_image" / "*.bmp")])
    assert [p.name for p in images] == ["x.bmp", "y.bmp"]
    assert find_masks(images, tmp_path) == {images[0]: tmp_path / "x/x_lesion/x_lesion.bmp"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no such folder"),
        (["m/b.png"], "none of 1 images has a mask"),
        (["m/1/a.png", "m/2/a.png"], "a.jpg has 2 masks"),
    ],
)
def test_missing_and_ambiguous_masks_are_refused(tmp_path, files, message):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError) as caught:
        find_masks([tmp_path / "a.jpg"], tmp_path / "m")
    assert message in str(caught.value) and str(caught.value).startswith("--masks: ")


def test_stems_are_unique_ignoring_case():
    paths = [Path(p) for p in ("a/x.jpg", "b/x.jpg", "b/X.png", "c/x_2.jpg", "c/y.jpg", "x")]
    names = unique_stems(paths)
    assert names == ["x", "x_2", "X_3", "x_2_2", "y", "x_4"]
    assert len({n.lower() for n in names}) == len(paths)


def test_stems_of_long_names_are_short_and_unique():
    paths = [Path(f"{folder}/{'l' * 250}{end}.png") for folder in "ab" for end in "12"]
    names = unique_stems(paths)
    assert len(set(names)) == len(paths)
    assert max(len(f"{name}.png") for name in names) <= 143  # the limit of eCryptfs
