"""Contents of a cache, concurrent builds, interrupted builds, unusable pairs."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lesionseg.data.cache import build_cache, default_root, read_pair, restore_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.errors import InputError
from tests.conftest import write_folder


def index_of(folder):
    return DatasetIndex.read(folder)


def resized(array, size):
    """Bilinear with antialiasing, by torch instead of PIL; float [.., S, S]."""
    planes = torch.from_numpy(np.atleast_3d(array).astype(np.float32)).permute(2, 0, 1)[None]
    out = torch.nn.functional.interpolate(
        planes, (size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return out[0].permute(1, 2, 0).numpy().squeeze()


def refusal(*args, **kwargs):
    with pytest.raises(InputError) as caught:
        build_cache(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def list_remaining(root):
    """Return the files in a cache root except locks and the tests' working folder."""
    return sorted(p.name for p in root.iterdir() if p.suffix != ".lock" and p.name != "cwd")


def run(code, data, root):
    """Start a process that runs the code."""
    return subprocess.Popen(
        [sys.executable, "-c", code, str(data), str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- contents ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 32, 96])
def test_images_are_resized_as_by_torch(tiny_data, tmp_path, size):
    index = index_of(tiny_data)
    cache = build_cache(index, size, tmp_path)
    assert cache.images.shape == (30, size, size, 3) and cache.images.dtype == np.uint8
    assert cache.masks.shape == (30, size, size) and cache.masks.dtype == np.uint8
    assert set(np.unique(cache.masks)) == {0, 1}
    for i, record in enumerate(index.records):
        image = np.asarray(Image.open(record.image).convert("RGB"))
        mask = np.asarray(Image.open(record.mask)) > 0
        assert np.abs(cache.images[i] - resized(image, size)).max() <= 1.01
        soft = resized(mask * 255, size)
        sure = np.abs(soft - 127.5) > 1.5
        assert np.array_equal(cache.masks[i][sure] > 0, soft[sure] > 127.5)
        assert sure.mean() > 0.99


def test_meta_is_in_the_order_of_the_arrays(tiny_data, tmp_path):
    index = index_of(tiny_data)
    cache = build_cache(index, 16, tmp_path)
    assert cache.names == [r.name for r in index.records]
    at_full_size = [float((np.asarray(Image.open(r.mask)) > 0).mean()) for r in index.records]
    assert cache.areas.tolist() == at_full_size
    assert cache.thresholded == []


def test_a_reduced_jpeg_is_close_to_a_full_decode(tmp_path):
    rng = np.random.default_rng(0)
    big = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    big = big.resize((1200, 900), Image.Resampling.BICUBIC)
    mask = Image.fromarray((np.mgrid[:900, :1200][1] > 500).astype(np.uint8) * 255)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    big.save(tmp_path / "images/a.jpg", quality=95)
    mask.save(tmp_path / "masks/a.png")
    cache = build_cache(index_of(tmp_path), 64, tmp_path / "cache")
    whole = np.asarray(Image.open(tmp_path / "images/a.jpg"))
    assert np.abs(cache.images[0] - resized(whole, 64)).mean() < 1
    assert cache.areas[0] == pytest.approx(699 / 1200)


def put_pair(root, name, image, mask):
    for folder, picture in (("images", image), ("masks", mask)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(root / folder / f"{name}.png")


def test_empty_full_and_tiny_masks(tmp_path):
    image = np.full((40, 60, 3), 99, np.uint8)
    pixel = np.zeros((40, 60), np.uint8)
    pixel[20, 30] = 255
    put_pair(tmp_path, "empty", image, np.zeros((40, 60), np.uint8))
    put_pair(tmp_path, "full", image, np.full((40, 60), 255, np.uint8))
    put_pair(tmp_path, "pixel", image, pixel)
    put_pair(tmp_path, "small", np.full((1, 1, 3), 5, np.uint8), np.full((1, 1), 1, np.uint8))
    cache = build_cache(index_of(tmp_path), 16, tmp_path / "cache")
    assert cache.names == ["empty", "full", "pixel", "small"]
    # One pixel of the original vanishes after resizing; its area remains.
    assert [int(m.sum()) for m in cache.masks] == [0, 256, 0, 256]
    assert cache.areas.tolist() == [0.0, 1.0, 1 / 2400, 1.0]


def test_thresholded_masks_are_named(tmp_path):
    image = np.full((20, 20, 3), 99, np.uint8)
    soft = np.zeros((20, 20), np.uint8)
    soft[5:15, 5:15], soft[5, 5:15] = 255, 130
    put_pair(tmp_path, "a", image, soft)
    put_pair(tmp_path, "b", image, (soft > 0).astype(np.uint8))
    assert build_cache(index_of(tmp_path), 16, tmp_path / "cache").thresholded == ["a"]


def test_a_rotated_image_matches_its_upright_mask(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    put_pair(tmp_path, "a", np.zeros((40, 20, 3), np.uint8), np.ones((20, 40), np.uint8))
    stored = np.zeros((40, 20, 3), np.uint8)
    stored[:, :5] = 255  # the left edge as stored is the top when upright
    Image.fromarray(stored).save(tmp_path / "images/a.png", exif=exif)
    (record,) = index_of(tmp_path).records
    image, mask, area, shape, reading = read_pair(record, 16)
    assert shape == (20, 40)
    assert image[:3].mean() > 200 and image[6:].mean() < 5
    assert mask.all() and area == 1.0 and not reading.thresholded


def test_a_mask_of_another_size_is_refused(tmp_path):
    put_pair(tmp_path, "a", np.zeros((40, 60, 3), np.uint8), np.ones((60, 40), np.uint8))
    (record,) = index_of(tmp_path).records
    with pytest.raises(InputError) as caught:
        read_pair(record, 16)
    assert str(caught.value) == (
        f"{record.mask}: the mask has 40x60 pixels, its image 60x40; they must be of one size"
    )


def test_the_arrays_cannot_be_written_to(tiny_data, tmp_path):
    cache = build_cache(index_of(tiny_data), 16, tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        cache.images[0, 0, 0, 0] = 1


def test_pickling_keeps_only_the_path(tiny_data, tmp_path):
    cache = build_cache(index_of(tiny_data), 64, tmp_path)
    assert cache.images.sum() > 0 and cache.names  # used: mapped and parsed
    sent = pickle.dumps(cache)
    assert len(sent) < 1000
    copy = pickle.loads(sent)
    assert copy == cache
    assert np.array_equal(copy.images, cache.images) and copy.names == cache.names


def test_real_ph2_images(real_data, tmp_path):
    index = index_of(real_data / "ph2")
    cache = build_cache(index, 64, tmp_path)
    assert cache.images.shape == (10, 64, 64, 3)
    # A lesion keeps its share of the picture, whatever its aspect.
    assert np.abs(cache.masks.mean(axis=(1, 2)) - cache.areas).max() < 0.01
    assert 0.02 < cache.areas.min() < cache.areas.max() < 0.95


# --- reuse ---------------------------------------------------------------------------------------


def test_a_second_call_builds_nothing(tiny_data, tmp_path):
    index, seen = index_of(tiny_data), []
    first = build_cache(index, 16, tmp_path, lambda done, total: seen.append((done, total)))
    assert seen == [(i, 30) for i in range(1, 31)]
    inode = (first.path / "images.npy").stat().st_ino
    again = build_cache(index_of(tiny_data), 16, tmp_path, lambda *_: pytest.fail("built again"))
    assert again == first
    assert (again.path / "images.npy").stat().st_ino == inode
    assert list_remaining(tmp_path) == [first.path.name]


def test_another_size_is_another_cache(tiny_data, tmp_path):
    index = index_of(tiny_data)
    small, large = build_cache(index, 16, tmp_path), build_cache(index, 32, tmp_path)
    assert small.path != large.path
    assert small.images.shape[1] == 16 and large.images.shape[1] == 32


def rewrite(path):
    path.write_bytes(path.read_bytes()[::-1])


@pytest.mark.parametrize(
    "change",
    [
        lambda root: os.utime(root / "images/im000.png", ns=(1, 1)),
        lambda root: os.utime(root / "masks/im000.png", ns=(1, 1)),
        lambda root: shutil.copy(root / "images/im001.png", root / "images/im000.png"),
        lambda root: (root / "images/im000.png").unlink(),
        lambda root: [
            (root / d / "im000.png").rename(root / d / "other.png") for d in ("images", "masks")
        ],
    ],
    ids=["image touched", "mask touched", "image replaced", "image removed", "pair renamed"],
)
def test_a_changed_data_set_is_another_cache(tmp_path, change):
    root = write_folder(tmp_path / "data", 3)
    before = build_cache(index_of(root), 16, tmp_path / "cache")
    change(root)
    assert build_cache(index_of(root), 16, tmp_path / "cache").path != before.path


def test_default_root_depends_on_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LESIONSEARCH_CACHE", str(tmp_path / "own"))
    assert default_root() == tmp_path / "own"
    monkeypatch.delenv("LESIONSEARCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_root() == tmp_path / "xdg" / "lesionsearch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_root() == tmp_path / "home" / ".cache" / "lesionsearch"


def test_build_uses_the_default_root(monkeypatch, tiny_data, tmp_path):
    monkeypatch.setenv("LESIONSEARCH_CACHE", str(tmp_path / "own"))
    assert build_cache(index_of(tiny_data), 16).path.parent == tmp_path / "own"


# --- damage --------------------------------------------------------------------------------------


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def drop_the_last_name(path):
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | {"names": meta["names"][:-1]}))


DAMAGES = {
    "short images": lambda path: truncate(path / "images.npy"),
    "empty masks": lambda path: os.truncate(path / "masks.npy", 0),
    "no images": lambda path: (path / "images.npy").unlink(),
    "swapped arrays": lambda path: shutil.copy(path / "masks.npy", path / "images.npy"),
    "short names": lambda path: drop_the_last_name(path / "meta.json"),
    "half a file of names": lambda path: truncate(path / "meta.json"),
    "a list": lambda path: (path / "meta.json").write_text("[]"),
    "nothing": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_built_again(tiny_data, tmp_path, damage):
    index = index_of(tiny_data)
    cache = build_cache(index, 16, tmp_path / "cache")
    pixels, masks = cache.images[:].copy(), cache.masks[:].copy()
    assert cache.is_unchanged()
    damage(cache.path)
    assert not cache.is_unchanged()
    again = build_cache(index, 16, tmp_path / "cache")  # by another process that starts
    assert np.array_equal(again.images, pixels) and np.array_equal(again.masks, masks)
    assert not cache.is_unchanged()
    damage(cache.path)
    restore_cache(cache, index)  # by this process
    assert cache.is_unchanged()
    assert np.array_equal(cache.images, pixels) and np.array_equal(cache.masks, masks)
    assert cache.names == again.names


@pytest.mark.parametrize("name", ["images.npy", "masks.npy"])
def test_truncation_under_a_mapping_is_noticed(tiny_data, tmp_path, name):
    cache = build_cache(index_of(tiny_data), 16, tmp_path / "cache")
    size = (cache.path / name).stat().st_size
    cache.check_size()
    truncate(cache.path / name)
    with pytest.raises(OSError, match=rf"{name} was truncated to {size - 1} of {size} bytes"):
        cache.check_size()


def test_a_deleted_cache_can_be_read_while_it_is_mapped(tiny_data, tmp_path):
    cache = build_cache(index_of(tiny_data), 16, tmp_path / "cache")
    pixels = cache.images[:].copy()
    shutil.rmtree(cache.path)
    cache.check_size()
    assert np.array_equal(cache.images, pixels)


def test_a_damaged_cache_of_images_that_are_gone_or_changed_is_refused(tmp_path):
    index = index_of(write_folder(tmp_path / "data", 3))
    cache = build_cache(index, 16, tmp_path / "cache")
    image = index.records[1].image
    image.rename(tmp_path / "moved.png")
    restore_cache(cache, index)  # the images are not needed
    truncate(cache.path / "images.npy")
    what = re.escape(f"cache: {cache.path} is damaged or missing and cannot be built again")
    with pytest.raises(InputError, match=rf"{what}: {image}: No such file or directory; restore"):
        restore_cache(cache, index)
    image.write_bytes((tmp_path / "moved.png").read_bytes())
    os.utime(image, (0, 0))
    with pytest.raises(InputError, match=f"{what}: the images have changed; start again"):
        restore_cache(cache, index)


def test_a_folder_of_caches_that_is_deleted_meanwhile_is_made_again(tiny_data, tmp_path):
    deleted = []

    def delete(done, total):
        if not deleted:
            deleted.append(done)
            shutil.rmtree(tmp_path / "cache")

    index = index_of(tiny_data)
    cache = build_cache(index, 16, tmp_path / "cache", delete)
    assert deleted and cache.names == [record.name for record in index.records]


# --- concurrent builds ---------------------------------------------------------------------------


MANY = """
import sys, time
from pathlib import Path
from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex

index, steps = DatasetIndex.read(Path(sys.argv[1])), 0

def step(done, total):
    global steps
    steps += 1
    time.sleep(0.01)  # lets the other processes find the lock

print("ready", flush=True)
sys.stdin.readline()
cache = build_cache(index, 16, Path(sys.argv[2]), step)
print(steps, cache.path.name, int(cache.images.sum()))
"""


def test_concurrent_processes_build_once(tiny_data, tmp_path):
    processes = [run(MANY, tiny_data, tmp_path) for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(int(steps) for steps, _, _ in outputs) == [0, 0, 0, 30]
    ((name, total),) = {(name, total) for _, name, total in outputs}
    assert list_remaining(tmp_path) == [name]
    assert int(total) == build_cache(index_of(tiny_data), 16, tmp_path).images.sum()


# --- interruptions -------------------------------------------------------------------------------

BUILD = """
import os, signal, sys, time
from pathlib import Path
from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.errors import InputError

def step(done, total):
    if done == 5:
        {at_five}

try:
    print(build_cache(DatasetIndex.read(Path(sys.argv[1])), 16, Path(sys.argv[2]), step).path)
except InputError as error:
    print("InputError:", error)
"""


def start(data, root, at_five="pass", setup=""):
    return run(setup + BUILD.format(at_five=at_five), data, root)


def test_a_killed_build_is_repeated(tiny_data, tmp_path):
    killed = start(tiny_data, tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    (partial,) = list_remaining(tmp_path)
    # The lock is released and partial files are discarded.
    cache = build_cache(index_of(tiny_data), 16, tmp_path)
    assert list_remaining(tmp_path) == [cache.path.name]
    assert partial == f".{cache.path.name}.partial"
    fresh = build_cache(index_of(tiny_data), 16, tmp_path / "other")
    assert np.array_equal(cache.images, fresh.images)
    assert np.array_equal(cache.masks, fresh.masks)
    assert (cache.path / "meta.json").read_text() == (fresh.path / "meta.json").read_text()


def test_a_waiting_process_takes_over_from_a_killed_one(tiny_data, tmp_path):
    stuck = start(tiny_data, tmp_path, "print('five', flush=True); time.sleep(60)")
    assert stuck.stdout.readline() == "five\n"
    waiting = start(tiny_data, tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=1.5)
    stuck.kill()
    stuck.communicate()
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, err
    assert list_remaining(tmp_path) == [Path(out.strip()).name]


def test_a_full_disk_is_an_input_error(tiny_data, tmp_path):
    """A limit of the file size lets writes fail as on a full disk; 30 images need 23 kB."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
    full = start(tiny_data, tmp_path, setup=limit)
    out, err = full.communicate(timeout=60)
    assert full.returncode == 0, err
    assert out.strip() == (
        f"InputError: cache: {tmp_path}: cannot be written: File too large; make room, or set "
        f"LESIONSEARCH_CACHE to another folder"
    )
    assert list_remaining(tmp_path) == []


def test_an_uncreatable_root_is_an_input_error(tiny_data, tmp_path):
    (tmp_path / "file").write_text("a file")
    text = refusal(index_of(tiny_data), 16, tmp_path / "file" / "cache")
    assert text == (
        f"cache: {tmp_path}/file/cache: cannot be written: Not a directory; make room, or set "
        f"LESIONSEARCH_CACHE to another folder"
    )


def test_ctrl_c_leaves_no_files_and_no_lock(tiny_data, tmp_path):
    def interrupt(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_cache(index_of(tiny_data), 16, tmp_path / "cache", interrupt)
    assert list_remaining(tmp_path / "cache") == []
    assert build_cache(index_of(tiny_data), 16, tmp_path / "cache").names


def test_ctrl_c_does_not_wait_for_remaining_images(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "data", 40)
    read = []
    original = Image.open

    def counted(path, *args, **kwargs):
        read.append(path)
        time.sleep(0.01)
        return original(path, *args, **kwargs)

    monkeypatch.setattr(Image, "open", counted)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_cache(index_of(root), 16, tmp_path / "cache", interrupt)
    # 40 pairs would be opened 160 times.
    assert len(read) < 80 + 4 * (os.cpu_count() or 1)


# --- unusable pairs ------------------------------------------------------------------------------


@pytest.fixture
def faulty(tmp_path):
    """Eight pairs of which four are unusable for different reasons."""
    root = write_folder(tmp_path / "faulty", 8)
    image = root / "images/im002.png"
    image.write_bytes(image.read_bytes()[:200])
    Image.new("L", (10, 10)).save(root / "masks/im003.png")
    Image.linear_gradient("L").resize((48, 40)).save(root / "masks/im005.png")
    (root / "masks/im006.png").write_text("no picture")
    return root


def test_all_unusable_pairs_are_counted(faulty, tmp_path):
    seen = []
    text = refusal(index_of(faulty), 16, tmp_path / "cache", lambda done, _: seen.append(done))
    assert text.startswith(f"data: {faulty}/images/im002.png: the image is damaged (")
    assert text.endswith(" and 3 more; 4 of 8 pairs cannot be used")
    assert seen == list(range(1, 9))  # all are checked
    assert list_remaining(tmp_path / "cache") == []


def test_a_single_unusable_pair_has_no_count(tmp_path):
    root = write_folder(tmp_path / "data", 3)
    (root / "masks/im001.png").write_bytes(b"")
    text = refusal(index_of(root), 16, tmp_path / "cache")
    assert text.startswith(f"data: {root}/masks/im001.png: not an image (")
    assert "more" not in text and "of 3" not in text


def test_repaired_pairs_are_used(faulty, tmp_path):
    refusal(index_of(faulty), 16, tmp_path / "cache")
    write_folder(faulty, 8)
    assert len(build_cache(index_of(faulty), 16, tmp_path / "cache").names) == 8
