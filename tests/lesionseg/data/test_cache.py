"""The cache: what lies in it, who builds it, and what happens when building is cut short."""

import os
import pickle
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

from lesionseg.data.cache import Cache, build_cache, check_pair, default_root, read_pair
from lesionseg.data.index import DatasetIndex
from lesionseg.data.pairs import Record
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


def left_behind(root):
    """What lies in a cache's root, but for the locks (and the tests' own folder)."""
    return sorted(p.name for p in root.iterdir() if p.suffix != ".lock" and p.name != "cwd")


def run(code, data, root):
    """A process of its own that runs the code."""
    return subprocess.Popen(
        [sys.executable, "-c", code, str(data), str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- what lies in it -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 32, 96])
def test_pictures_are_resized_as_torch_would(tiny_data, tmp_path, size):
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


def test_records_facts_are_kept_in_the_order_of_the_arrays(tiny_data, tmp_path):
    index = index_of(tiny_data)
    cache = build_cache(index, 16, tmp_path)
    assert cache.names == [r.name for r in index.records]
    at_full_size = [float((np.asarray(Image.open(r.mask)) > 0).mean()) for r in index.records]
    assert cache.areas.tolist() == at_full_size
    assert cache.thresholded == []


def test_a_large_jpeg_decoded_in_part_is_close_to_one_decoded_in_full(tmp_path):
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
    # A pixel of the original is less than half of a pixel here; its area is still known.
    assert [int(m.sum()) for m in cache.masks] == [0, 256, 0, 256]
    assert cache.areas.tolist() == [0.0, 1.0, 1 / 2400, 1.0]


def test_masks_that_had_to_be_cut_are_named(tmp_path):
    image = np.full((20, 20, 3), 99, np.uint8)
    soft = np.zeros((20, 20), np.uint8)
    soft[5:15, 5:15], soft[5, 5:15] = 255, 130
    put_pair(tmp_path, "a", image, soft)
    put_pair(tmp_path, "b", image, (soft > 0).astype(np.uint8))
    assert build_cache(index_of(tmp_path), 16, tmp_path / "cache").thresholded == ["a"]


def test_a_turned_image_fits_its_upright_mask(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    put_pair(tmp_path, "a", np.zeros((40, 20, 3), np.uint8), np.ones((20, 40), np.uint8))
    stored = np.zeros((40, 20, 3), np.uint8)
    stored[:, :5] = 255  # the left edge as stored is the top when upright
    Image.fromarray(stored).save(tmp_path / "images/a.png", exif=exif)
    (record,) = index_of(tmp_path).records
    assert check_pair(record) == (20, 40)
    image, mask, area, odd, shape = read_pair(record, 16)
    assert shape == (20, 40)
    assert image[:3].mean() > 200 and image[6:].mean() < 5
    assert mask.all() and area == 1.0 and not odd


def test_a_mask_of_another_size_is_refused(tmp_path):
    put_pair(tmp_path, "a", np.zeros((40, 60, 3), np.uint8), np.ones((60, 40), np.uint8))
    (record,) = index_of(tmp_path).records
    with pytest.raises(InputError) as caught:
        check_pair(record)
    assert str(caught.value) == (
        f"{record.mask}: the mask has 40x60 pixels, its image 60x40; they must be of one size"
    )


def test_the_arrays_cannot_be_written_to(tiny_data, tmp_path):
    cache = build_cache(index_of(tiny_data), 16, tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        cache.images[0, 0, 0, 0] = 1


def test_pickling_hands_on_the_path_and_not_the_pixels(tiny_data, tmp_path):
    cache = build_cache(index_of(tiny_data), 64, tmp_path)
    assert cache.images.sum() > 0 and cache.names  # used: mapped and parsed
    sent = pickle.dumps(cache)
    assert len(sent) < 1000
    copy = pickle.loads(sent)
    assert copy == cache
    assert np.array_equal(copy.images, cache.images) and copy.names == cache.names


def test_the_real_ph2_pictures(real_data, tmp_path):
    index = index_of(real_data / "ph2")
    cache = build_cache(index, 64, tmp_path)
    assert cache.images.shape == (10, 64, 64, 3)
    # A lesion keeps its share of the picture, whatever its aspect.
    assert np.abs(cache.masks.mean(axis=(1, 2)) - cache.areas).max() < 0.01
    assert 0.02 < cache.areas.min() < cache.areas.max() < 0.95


# --- found again, or built anew ------------------------------------------------------------------


def test_a_second_call_finds_it_and_builds_nothing(tiny_data, tmp_path):
    index, seen = index_of(tiny_data), []
    first = build_cache(index, 16, tmp_path, lambda done, total: seen.append((done, total)))
    assert seen == [(i, 30) for i in range(1, 31)]
    inode = (first.path / "images.npy").stat().st_ino
    again = build_cache(index_of(tiny_data), 16, tmp_path, lambda *_: pytest.fail("built again"))
    assert again == first
    assert (again.path / "images.npy").stat().st_ino == inode
    assert left_behind(tmp_path) == [first.path.name]


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


def test_the_default_root_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("LESIONSEARCH_CACHE", str(tmp_path / "own"))
    assert default_root() == tmp_path / "own"
    monkeypatch.delenv("LESIONSEARCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_root() == tmp_path / "xdg" / "lesionsearch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_root() == tmp_path / "home" / ".cache" / "lesionsearch"


def test_without_a_root_the_default_is_filled(monkeypatch, tiny_data, tmp_path):
    monkeypatch.setenv("LESIONSEARCH_CACHE", str(tmp_path / "own"))
    assert build_cache(index_of(tiny_data), 16).path.parent == tmp_path / "own"


# --- built by many at once -----------------------------------------------------------------------


MANY = """
import sys, time
from pathlib import Path
from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex

index, steps = DatasetIndex.read(Path(sys.argv[1])), 0

def step(done, total):
    global steps
    steps += 1
    time.sleep(0.01)  # long enough for the others to ask meanwhile

print("ready", flush=True)
sys.stdin.readline()
cache = build_cache(index, 16, Path(sys.argv[2]), step)
print(steps, cache.path.name, int(cache.images.sum()))
"""


def test_processes_that_ask_at_once_build_it_once(tiny_data, tmp_path):
    processes = [run(MANY, tiny_data, tmp_path) for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(int(steps) for steps, _, _ in told) == [0, 0, 0, 30]
    ((name, total),) = {(name, total) for _, name, total in told}
    assert left_behind(tmp_path) == [name]
    assert int(total) == build_cache(index_of(tiny_data), 16, tmp_path).images.sum()


# --- cut short -----------------------------------------------------------------------------------

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


def test_a_killed_builder_leaves_nothing_that_is_taken_for_whole(tiny_data, tmp_path):
    killed = start(tiny_data, tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    (partial,) = left_behind(tmp_path)
    assert partial.endswith(".partial")
    # The next one neither waits for the dead one's lock nor trusts its leavings.
    cache = build_cache(index_of(tiny_data), 16, tmp_path)
    assert left_behind(tmp_path) == [cache.path.name] == [partial.replace(".partial", "")]
    fresh = build_cache(index_of(tiny_data), 16, tmp_path / "other")
    assert np.array_equal(cache.images, fresh.images)
    assert np.array_equal(cache.masks, fresh.masks)
    assert cache.meta == fresh.meta


def test_who_waits_for_a_builder_that_is_killed_takes_over(tiny_data, tmp_path):
    stuck = start(tiny_data, tmp_path, "print('five', flush=True); time.sleep(60)")
    assert stuck.stdout.readline() == "five\n"
    waiting = start(tiny_data, tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=1.5)
    stuck.kill()
    stuck.communicate()
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, err
    assert left_behind(tmp_path) == [Path(out.strip()).name]


def test_a_full_disk_is_told_and_leaves_nothing(tiny_data, tmp_path):
    """The limit of a file's size fails a write as a full disk does: 30 images need 23 kB."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
    full = start(tiny_data, tmp_path, setup=limit)
    out, err = full.communicate(timeout=60)
    assert full.returncode == 0, err
    assert out.strip() == (
        f"InputError: cache: {tmp_path}: cannot be written: File too large; make room, or set "
        f"LESIONSEARCH_CACHE to another folder"
    )
    assert left_behind(tmp_path) == []


def test_a_root_that_cannot_be_made_is_told(tiny_data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    text = refusal(index_of(tiny_data), 16, tmp_path / "file" / "cache")
    assert text == (
        f"cache: {tmp_path}/file/cache: cannot be written: Not a directory; make room, or set "
        f"LESIONSEARCH_CACHE to another folder"
    )


def test_ctrl_c_leaves_nothing_and_no_lock(tiny_data, tmp_path):
    def interrupt(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_cache(index_of(tiny_data), 16, tmp_path / "cache", interrupt)
    assert left_behind(tmp_path / "cache") == []
    assert build_cache(index_of(tiny_data), 16, tmp_path / "cache").names


def test_ctrl_c_does_not_wait_for_the_pictures_that_are_left(tmp_path, monkeypatch):
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
    # Four looks at each of 40 pairs would be 160.
    assert len(read) < 80 + 4 * (os.cpu_count() or 1)


# --- pairs that cannot be used -------------------------------------------------------------------


@pytest.fixture
def faulty(tmp_path):
    """Eight pairs of which four cannot be used, each for another reason."""
    root = write_folder(tmp_path / "faulty", 8)
    image = root / "images/im002.png"
    image.write_bytes(image.read_bytes()[:200])
    Image.new("L", (10, 10)).save(root / "masks/im003.png")
    Image.linear_gradient("L").resize((48, 40)).save(root / "masks/im005.png")
    (root / "masks/im006.png").write_text("no picture")
    return root


def test_every_pair_that_cannot_be_used_is_counted(faulty, tmp_path):
    seen = []
    text = refusal(index_of(faulty), 16, tmp_path / "cache", lambda done, _: seen.append(done))
    assert text.startswith(f"data: {faulty}/images/im002.png: the image is damaged (")
    assert text.endswith(" and 3 more; 4 of 8 pairs cannot be used")
    assert seen == list(range(1, 9))  # none is left unlooked at
    assert left_behind(tmp_path / "cache") == []


def test_a_single_fault_is_told_by_itself(tmp_path):
    root = write_folder(tmp_path / "data", 3)
    (root / "masks/im001.png").write_bytes(b"")
    text = refusal(index_of(root), 16, tmp_path / "cache")
    assert text.startswith(f"data: {root}/masks/im001.png: not an image (")
    assert "more" not in text and "of 3" not in text


def test_faults_mended_are_used(faulty, tmp_path):
    refusal(index_of(faulty), 16, tmp_path / "cache")
    write_folder(faulty, 8)
    assert len(build_cache(index_of(faulty), 16, tmp_path / "cache").names) == 8


def test_a_cache_is_equal_to_another_of_the_same_path(tmp_path):
    assert Cache(tmp_path) == Cache(tmp_path) != Cache(tmp_path / "other")
    assert Record("a", tmp_path, tmp_path, "g") != Record("a", tmp_path, tmp_path, "h")
