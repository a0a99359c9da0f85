"""Whatever the user gets wrong: exit code 2, one line that names it, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import cli
from search.spec.loading import load_spec
from search.study.creation import create_or_resume
from tests.conftest import ROOT, write_folder, write_pair
from tests.search.helpers import write_study

SECRET = "hunter2secret"


@dataclass(frozen=True)
class Case:
    """args: made in an empty folder (what they need is written there). told: what is named."""

    name: str
    args: Callable[[Path], list[object]]
    told: tuple[str, ...]


def data_of(here: Path, n: int = 12) -> Path:
    return write_folder(here / "data", n)


def study_of(here: Path, changes=None) -> Path:
    return write_study(here / "study.yaml", changes)


def run(here: Path, *more, data=None, study=None) -> list[object]:
    return ["run", study or study_of(here), "--data", data or data_of(here), "--no-final", *more]


def text(here: Path, content: str) -> list[object]:
    (here / "study.yaml").write_text(content)
    return run(here, study=here / "study.yaml")


def started(here: Path, out: str = "runs/tiny") -> Path:
    """A study that exists already."""
    create_or_resume(load_spec(str(study_of(here))), data_of(here), Path(out))
    return Path(out)


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- data that are broken ----------------------------------------------------------------------


def without_masks(here: Path) -> list[object]:
    data = data_of(here)
    for i in (2, 3, 5, 7):
        (data / "masks" / f"im{i:03}.png").unlink()
    return run(here, data=data)


def no_mask_fits(here: Path) -> list[object]:
    data = data_of(here, 3)
    for path in list((data / "masks").iterdir()):
        path.rename(path.with_stem(f"other_{path.stem}"))
    return run(here, data=data)


def of_another_size(here: Path) -> list[object]:
    data = data_of(here)
    write_pair(here / "larger", "im004", size=(96, 80))
    (here / "larger" / "masks" / "im004.png").rename(data / "masks" / "im004.png")
    return run(here, data=data)


def with_file(here: Path, relative: str, content: bytes) -> list[object]:
    data = data_of(here)
    put(data / relative, content)
    return run(here, data=data)


def truncated_jpeg(here: Path) -> list[object]:
    data = data_of(here)
    image = Image.open(data / "images" / "im004.png")
    image.resize((400, 300)).save(here / "whole.jpg")
    (data / "images" / "im004.png").unlink()
    Image.open(data / "masks" / "im004.png").resize((400, 300)).save(data / "masks" / "im004.png")
    whole = (here / "whole.jpg").read_bytes()
    put(data / "images" / "im004.jpg", whole[: len(whole) // 2])
    (here / "whole.jpg").unlink()
    return run(here, data=data)


def grey_mask(here: Path) -> list[object]:
    data = data_of(here)
    grey = np.linspace(0, 255, 48 * 40).reshape(40, 48).astype(np.uint8)
    Image.fromarray(grey).save(data / "masks" / "im004.png")
    return run(here, data=data)


def two_official_parts(here: Path) -> list[object]:
    data = data_of(here)
    rows = [f"images/im{i:03}.png,masks/im{i:03}.png,p{i % 3},train" for i in range(6)]
    rows += [f"images/im{i:03}.png,masks/im{i:03}.png,p{i},test" for i in range(6, 8)]
    rows += ["images/im008.png,masks/im008.png,p1,test"]
    put(data / "manifest.csv", "\n".join(["image,mask,group,split", *rows]))
    return run(here, data=data)


def manifest(here: Path, content: str | bytes) -> list[object]:
    data = data_of(here, 2)
    return run(here, data=put(data / "list.csv", content))


def same_names(here: Path) -> list[object]:
    data = data_of(here)
    with Image.open(data / "images" / "im004.png") as image:
        image.save(data / "images" / "im004.bmp")
    return run(here, data=data)


def same_names_in_two_parts(here: Path) -> list[object]:
    data = data_of(here)
    for split in ("train", "test"):
        write_pair(data / split, "im004")
    for folder in ("images", "masks"):
        shutil.rmtree(data / folder)
    return run(here, data=data)


def link_to_nothing(here: Path) -> list[object]:
    data = data_of(here)
    (data / "images" / "im004.png").unlink()
    (data / "images" / "im004.png").symlink_to("gone.png")
    return run(here, data=data)


DATA = [
    Case(
        "no such folder",
        lambda here: run(here, data=here / "nowhere"),
        ("data: no such folder: ", "nowhere", "--data"),
    ),
    Case(
        "a folder with no pairs",
        lambda here: run(here, data=put(here / "data" / "notes.txt", "x").parent),
        ("no pairs of image and mask; expected ", "images/ and masks/", "isic2018"),
    ),
    Case(
        "data that are one picture",
        lambda here: run(here, data=data_of(here) / "images" / "im000.png"),
        ("im000.png: no pairs of image and mask",),
    ),
    Case(
        "images and masks that are empty",
        lambda here: run(here, data=empty_folders(here)),
        ("no pairs of image and mask",),
    ),
    Case(
        "images without a mask",
        without_masks,
        ("4 of 12 images have no mask", "im002.png, im003.png, im005.png and 1 more"),
    ),
    Case("no mask that fits", no_mask_fits, ("none of 3 images has a mask", "im000.png")),
    Case(
        "a mask of another size",
        of_another_size,
        ("im004.png: the mask has 96x80 pixels, its image 48x40",),
    ),
    Case(
        "an image that is no picture",
        lambda here: with_file(here, "images/im004.png", b"<html>404</html>"),
        ("images/im004.png: not an image",),
    ),
    Case(
        "an image of no bytes",
        lambda here: with_file(here, "images/im004.png", b""),
        ("images/im004.png: not an image",),
    ),
    Case(
        "a mask that is no picture",
        lambda here: with_file(here, "masks/im004.png", b"\x00" * 64),
        ("masks/im004.png: not an image",),
    ),
    Case("a truncated JPEG", truncated_jpeg, ("im004.jpg: the image is damaged", "truncated")),
    Case(
        "a mask that is not binary",
        grey_mask,
        ("masks/im004.png: the mask is not binary: 256 grey levels from 0 to 255",),
    ),
    Case(
        "fewer images than the split needs",
        lambda here: run(here, data=data_of(here, 2)),
        ("data.split: 2 images are too few", "would be empty"),
    ),
    Case(
        "official parts where there are none",
        lambda here: run(here, "--set", "data.split=official"),
        ("data.split: official",),
    ),
    Case(
        "a patient in two official parts",
        two_official_parts,
        ("1 groups lie in two official splits: p1", "p1 in train and test"),
    ),
    Case("one name twice", same_names, ("1 names occur twice: im004",)),
    Case(
        "one name in two official parts",
        same_names_in_two_parts,
        ("1 names occur twice: im004 (train and test); ", "rename or remove all but one"),
    ),
    Case(
        "a link to what is not there",
        link_to_nothing,
        ("1 files are links to missing files: im004.png -> gone.png; repair the links",),
    ),
    Case(
        "a manifest without a column",
        lambda here: manifest(here, "image,msk\na.png,b.png\n"),
        ("list.csv: needs the columns image and mask", "got image, msk"),
    ),
    Case("an empty manifest", lambda here: manifest(here, ""), ("needs the columns", "got none")),
    Case(
        "a manifest of missing files",
        lambda here: manifest(here, "image,mask\nimages/im000.png,masks/none.png\n"),
        ("list.csv:2: mask: no such file: 'masks/none.png'",),
    ),
    Case(
        "a manifest with an unknown part",
        lambda here: manifest(here, "image,mask,split\nimages/im000.png,masks/im000.png,dev\n"),
        ("list.csv:2: split must be train, val or test, got 'dev'",),
    ),
    Case(
        "a manifest that is no text",
        lambda here: manifest(here, b"\xff\xfe\x00image"),
        ("list.csv: not a readable CSV file",),
    ),
    Case(
        "data check of a layout that does not exist",
        lambda here: ["data", "check", data_of(here), "--layout", "folder"],
        ("unknown layout 'folder' (did you mean 'folders'?)",),
    ),
    Case(
        "data check of a folder that does not exist",
        lambda here: ["data", "check", here / "nowhere"],
        ("no such folder", "nowhere"),
    ),
    Case(
        "data check against a folder that does not exist",
        lambda here: ["data", "check", data_of(here), "--against", here / "nowhere"],
        (
            "data: no such folder: ",
            "nowhere; --data, DIR and --against take the folder of a data set",
        ),
    ),
    Case(
        "data check of broken pairs",
        lambda here: ["data", "check", *with_file(here, "masks/im004.png", b"x")[3:4]],
        ("1 of 12 pairs cannot be used", "im004.png"),
    ),
    Case(
        "a layout that the data have not",
        lambda here: run(here, "--set", "data.layout=ph2"),
        ("no pairs of image and mask", "IMDxxx"),
    ),
]


def empty_folders(here: Path) -> Path:
    for name in ("images", "masks"):
        (here / "data" / name).mkdir(parents=True)
    return here / "data"


# --- studies that are wrong --------------------------------------------------------------------

SPEC = [
    Case(
        "an unknown study",
        lambda here: run(here, study="quik"),
        ("unknown study 'quik' (did you mean 'quick'?)",),
    ),
    Case(
        "a study file that is not there",
        lambda here: run(here, study=here / "none.yaml"),
        ("none.yaml: cannot be read: No such file",),
    ),
    Case(
        "broken YAML",
        lambda here: text(here, "name: x\nbudget: {trials: [3}\n"),
        ("study.yaml: not YAML: line 2, column 20: ",),
    ),
    Case(
        "a doubled key",
        lambda here: text(here, "seed: 1\nname: x\nseed: 2\n"),
        ("line 3, column 1: duplicate key 'seed'",),
    ),
    Case(
        "an unknown key",
        lambda here: text(here, "budget: {trails: 3}"),
        ("budget.trails: unknown key (did you mean 'trials'?)",),
    ),
    Case(
        "an unknown option",
        lambda here: text(here, "search: {loss: [bce, dise]}"),
        ("search.loss: unknown loss 'dise' (did you mean 'dice'?)",),
    ),
    Case(
        "a range outside the row",
        lambda here: text(here, "search: {optimizer: {adam: {lr: [1.0e-4, 10]}}}"),
        ("search.optimizer.adam.lr: must lie in [1e-05, 0.1], got 10",),
    ),
    Case(
        "a range upside down",
        lambda here: text(here, "search: {model: {unet: {width: [64, 8]}}}"),
        ("search.model.unet.width: must have low <= high, got [64, 8]",),
    ),
    Case(
        "several errors",
        lambda here: text(here, "budget: {trials: 0}\nsearch: {loss: x}"),
        ("(1) budget.trials", "(2) search.loss"),
    ),
    Case("a negative budget", lambda here: run(here, "--trials", -1), ("budget.trials", "got -1")),
    Case("a negative time", lambda here: run(here, "--hours", -1), ("budget.hours", "got -1")),
    Case(
        "an image size that the model cannot take",
        lambda here: run(here, "--set", "data.image_size=17"),
        ("data.image_size: unet takes multiples of 2 from 4 on, got 17; the nearest is 16",),
    ),
    Case(
        "an unknown published system",
        lambda here: ["baselines", "run", "--data", data_of(here), "--only", "unet-dise"],
        ("unknown baseline 'unet-dise' (did you mean 'unet-dice'?)",),
    ),
    Case(
        "a size that a published system cannot take",
        lambda here: ["baselines", "run", "--data", data_of(here), "--image-size", 48],
        ("segnet-bce: segnet takes multiples of 32 from 32 on, got 48",),
    ),
    Case(
        "a published system that shall be another",
        lambda here: ["baselines", "run", "--data", data_of(here), "--set", "fixed.ema=0.9"],
        (
            "--set: fixed.ema=0.9: only keys of data, and seed, can be set; the baselines "
            "determine the rest",
        ),
    ),
    Case(
        "weights that are not there",
        lambda here: run(
            here,
            "--set",
            "data.image_size=32",
            "--set",
            "search.model={smp_fpn: {encoder: resnet18, weights: /no/such/file.safetensors}}",
        ),
        ("/no/such/file.safetensors",),
    ),
    Case("--set without a value", lambda here: run(here, "--set", "seed"), ("--set: ", "'seed'")),
    Case(
        "--set with broken YAML",
        lambda here: run(here, "--set", "search.loss=[bce"),
        ("--set: search.loss: the value is not YAML: '[bce'",),
    ),
    Case(
        "--set of an unknown key",
        lambda here: run(here, "--set", "budget.epoch=3"),
        ("budget.epoch: unknown key (did you mean 'epochs'?)",),
    ),
    Case(
        "a grid over real numbers",
        lambda here: run(here, "--set", "sampler.name=grid"),
        ("sampler.name: grid needs values",),
    ),
]

# --- folders, storages, studies that exist -----------------------------------------------------


def changed_spec(here: Path) -> list[object]:
    started(here)
    return run(here, "--set", "budget.epochs=7", "--set", "seed=3")


def changed_data(here: Path) -> list[object]:
    started(here)
    write_pair(here / "data", "one_more")
    return ["run", here / "study.yaml", "--data", here / "data", "--no-final"]


def storage_of(here: Path) -> Path:
    return started(here).resolve() / "study.db"


def url_of(here: Path) -> str:
    return f"sqlite:///{storage_of(here)}"


def another_in_mind(here: Path) -> list[object]:
    started(here)
    other = write_study(here / "other.yaml", {"budget.epochs": 7, "seed": 3})
    return ["worker", "tiny", "--study", other, "--device", "cpu"]


def elsewhere(here: Path) -> list[object]:
    started(here)
    study = here / "study.yaml"
    return ["run", study, "--data", here / "data", "--artifacts", here / "kept"]


SOME = "image,mask\nimages/im000.png,masks/im000.png\n"

PLACES = [
    Case(
        "a study that exists with another spec",
        changed_spec,
        ("study 'tiny' exists with another spec: seed, budget.epochs differ", "--out"),
    ),
    Case(
        "a study that was run on other data",
        changed_data,
        ("study 'tiny' was run on other data", "give the same folder"),
    ),
    Case(
        "one data set twice",
        lambda here: run(here, "--data", data_of(here)),
        ("data: ", "data is given twice; give each data set once"),
    ),
    Case(
        "two data sets that overlap",
        lambda here: run(here, "--data", put(here / "data" / "some.csv", SOME)),
        ("--data: 1 images of some.csv are also part of data: im000.png",),
    ),
    Case(
        "a second data set that is none",
        lambda here: run(here, "--data", put(here / "other" / "notes.txt", "x").parent),
        ("data: ", "other: no pairs of image and mask"),
    ),
    Case(
        "more folds than patients",
        lambda here: run(here, "--set", "data.split.kfold=1000"),
        ("data.split.kfold: must be at most the number of groups", "got 1000"),
    ),
    Case(
        "an output folder below a file",
        lambda here: run(here, "--out", put(here / "file", "x") / "s"),
        ("--out: ", "file/s cannot be made", "is a file"),
    ),
    Case(
        "an output folder that is a file",
        lambda here: run(here, "--out", put(here / "file", "x")),
        ("--out: ", "file cannot be made"),
    ),
    Case(
        "an output folder that cannot be written",
        lambda here: run(here, "--out", "/proc/s"),
        ("--out: /proc/s cannot be made",),
    ),
    Case(
        "an output folder that holds other things",
        lambda here: run(here, "--out", put(here / "thesis" / "a.doc", "x").parent),
        ("thesis holds other things than a study; give a new folder",),
    ),
    Case(
        "a storage that cannot be reached",
        lambda here: run(here, "--storage", f"postgresql://u:{SECRET}@127.0.0.1:1/db"),
        ("storage: postgresql+psycopg://u:***@127.0.0.1:1/db: cannot be used: ",),
    ),
    Case(
        "a storage on a host that does not exist",
        lambda here: run(here, "--storage", f"postgresql://u:{SECRET}@nowhere.invalid/db"),
        ("storage: postgresql+psycopg://u:***@nowhere.invalid/db: cannot be used: ",),
    ),
    Case(
        "a storage that is no URL",
        lambda here: run(here, "--storage", SECRET),
        ("storage: not a database URL",),
    ),
    Case(
        "a storage with a port that is no number",
        lambda here: run(here, "--storage", f"postgresql://u:{SECRET}@h:port/db"),
        ("storage: not a database URL",),
    ),
    Case(
        "a storage of an unknown kind",
        lambda here: run(here, "--storage", f"mysql://u:{SECRET}@h/db"),
        ("storage: mysql://u:***@h/db: must be sqlite or postgresql, got 'mysql'",),
    ),
    Case(
        "a storage in memory",
        lambda here: run(here, "--storage", "sqlite://"),
        ("storage: sqlite://: needs a file",),
    ),
    Case(
        "a storage in a folder that is not there",
        lambda here: run(here, "--storage", f"sqlite:///{here}/none/s.db"),
        ("none/s.db: cannot be used: unable to open database file",),
    ),
    *(
        Case(
            f"{command} of a study that is not there",
            lambda here, command=command: [command, "nope"],
            ("no study 'nope': looked in nope and runs/nope (studies under runs/: none)",),
        )
        for command in ("status", "final", "report", "pause", "resume", "stop")
    ),
    Case(
        "a worker for a study that is nowhere",
        lambda here: ["worker", "nope", "--device", "cpu"],
        ("runs/nope: no study here, and no --storage to look for it in",),
    ),
    Case(
        "a worker at a storage that does not hold its study",
        lambda here: ["worker", "nope", "--storage", f"sqlite:///{storage_of(here)}"],
        ("study.db holds no study 'nope'; check the name",),
    ),
    Case(
        "a worker that does not know where the images are",
        lambda here: ["worker", "tiny", "--storage", url_of(here), "--out", here / "other"],
        ("--data: give the folder of the images on this host",),
    ),
    Case(
        "a worker with another study in mind",
        another_in_mind,
        ("is not the study 'tiny': seed, budget.epochs differ",),
    ),
    Case(
        "checkpoints in a place of an unknown kind",
        lambda here: run(here, "--artifacts", "ftp://bucket/prefix"),
        ("artifacts: must be a folder or s3://bucket/prefix, got 'ftp://bucket/prefix'",),
    ),
    Case(
        "checkpoints in a place with a password",
        lambda here: run(here, "--artifacts", f"s3://u:{SECRET}@bucket"),
        ("artifacts: takes no credentials",),
    ),
    Case(
        "checkpoints elsewhere than the study has them",
        elsewhere,
        ("--artifacts: study 'tiny' keeps its checkpoints in its own folder, got ",),
    ),
    Case(
        "status of a study whose storage is gone",
        lambda here: ["status", without_storage(here)],
        ("study.db holds no study 'tiny'; it may have been moved or deleted.",),
    ),
    Case(
        "final of a study whose data are gone",
        lambda here: ["final", without_data(here)],
        ("data: no such folder: ",),
    ),
    Case(
        "a cache folder that cannot be written",
        lambda here: run(here),
        ("cache: ", "cannot be written", "LESIONSEARCH_CACHE"),
    ),
]


def without_storage(here: Path) -> Path:
    folder = started(here)
    (folder / "study.db").unlink()
    return folder


def without_data(here: Path) -> Path:
    folder = started(here)
    (here / "data").rename(here / "moved")
    return folder


# --- words on the command line -----------------------------------------------------------------

WORDS = [
    Case("an unknown command", lambda here: ["rum"], ("No such command 'rum'",)),
    Case("an unknown command of data", lambda here: ["data", "chekc"], ("'chekc'",)),
    Case("a misspelt option", lambda here: run(here, "--dat", "x"), ("--dat",)),
    Case("an unknown option before the command", lambda here: ["--bogus", "status"], ("--bogus",)),
    Case("no --data", lambda here: ["run", "quick"], ("Missing option '--data'",)),
    Case("no study", lambda here: ["run"], ("Missing argument",)),
    Case("one word too many", lambda here: ["status", "a", "b"], ("(b)",)),
    Case(
        "a number that is none",
        lambda here: run(here, "--trials", "many"),
        ("--trials", "valid integer"),
    ),
    Case("no threads", lambda here: run(here, "--threads", 0), ("--threads",)),
    Case(
        "an unknown device", lambda here: run(here, "--device", "gpu"), ("device: must be", "'gpu'")
    ),
    Case(
        "a device that is not available",
        lambda here: run(here, "--device", "cuda:63"),
        ("device: 'cuda:63' is not available", "use cpu"),
    ),
    Case(
        "GPUs that are no numbers",
        lambda here: run(here, "--gpus", "a,b"),
        ("--gpus: must be numbers such as 0,1, got 'a,b'",),
    ),
    Case(
        "a GPU named twice",
        lambda here: run(here, "--gpus", "1,1"),
        ("--gpus: must name each GPU once",),
    ),
    Case(
        "a GPU that is not available",
        lambda here: run(here, "--gpus", "63"),
        ("device: 'cuda:63' is not available",),
    ),
    Case(
        "GPUs and a number of workers",
        lambda here: run(here, "--gpus", "0", "--workers", 2),
        ("--gpus and --workers: give one",),
    ),
    Case("fewer workers than none", lambda here: run(here, "--workers", -1), ("--workers",)),
    Case(
        "an unknown engine",
        lambda here: run(here, "--engine", "rya"),
        ("--engine: unknown engine 'rya' (did you mean 'ray'?)",),
    ),
    Case(
        "settings of an engine that has none",
        lambda here: run(here, "--engine-set", "partition=gpu"),
        ("--engine-set: the engine local has no settings; add --engine?",),
    ),
    Case(
        "an engine's setting without a value",
        lambda here: run(here, "--engine", "slurm", "--engine-set", "partition"),
        ("--engine-set: must be KEY=VALUE such as partition=gpu, got 'partition'",),
    ),
    Case(
        "GPUs for an engine that finds them",
        lambda here: run(here, "--engine", "ray", "--gpus", "0"),
        ("--gpus: the engine ray assigns the GPUs; use --workers",),
    ),
    Case(
        "a worker's share of nothing",
        lambda here: ["worker", "tiny", "--share", "0"],
        ("--share",),
    ),
    Case(
        "an unknown family",
        lambda here: ["options", "modl"],
        ("options: unknown family 'modl' (did you mean 'model'?)",),
    ),
    Case("no picture to make", lambda here: ["data", "synth", here / "d", "-n", 0], ("-n", "to 1")),
    Case(
        "pictures into a folder that is not empty",
        lambda here: ["data", "synth", put(here / "d" / "x", "x").parent, "-n", 1],
        ("data synth: ", "empty"),
    ),
    Case(
        "pictures into a folder that cannot be made",
        lambda here: ["data", "synth", "/proc/d", "-n", 1],
        ("data synth: ", "/proc"),
    ),
    Case(
        "pictures of no size",
        lambda here: ["data", "synth", here / "d", "-n", 1, "--height", 0],
        ("--height", "32"),
    ),
    Case("too few images for the demo", lambda here: ["demo", "--images", 3], ("--images", "20")),
]

CASES = [*DATA, *SPEC, *PLACES, *WORDS]


def everything(folder: Path) -> dict[str, bytes | None]:
    """Each path below a folder and what is in it."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
        # A lock may stay: it says nothing and is nobody's.
        if p.name != ".lock"
    }


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_bad_input_is_told_in_one_line_and_leaves_nothing_behind(case, tmp_path, monkeypatch):
    here = Path.cwd()
    cache = tmp_path / "cache"
    monkeypatch.setenv("LESIONSEARCH_CACHE", str(cache))
    args = [str(a) for a in case.args(here)]
    if case.name == "a cache folder that cannot be written":
        monkeypatch.setenv("LESIONSEARCH_CACHE", "/proc/cache")
    before = everything(here)
    result = CliRunner().invoke(cli.app, args)
    assert result.exit_code == 2, result.stderr or result.exception
    (line,) = result.stderr.splitlines()
    assert line.startswith("lesionsearch: ")
    for fragment in case.told:
        assert fragment in line
    assert SECRET not in result.output
    assert "Traceback" not in result.output
    assert everything(here) == before
    # Of the cache, only what is whole (the pictures may be fine and something else not).
    left = [p.name for p in cache.iterdir()] if cache.exists() else []
    assert [name for name in left if "partial" in name] == []
    assert all((cache / n / "meta.json").is_file() for n in left if (cache / n).is_dir())


def test_a_disk_that_is_full_is_told_and_leaves_no_half_cache(tmp_path):
    """A real limit, in a process of its own: no file may grow past 20 kB."""
    here = Path.cwd()
    spec = study_of(here, {"data.image_size": 64})
    script = """
import resource, signal, sys
import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
cli.app(sys.argv[1:])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, "run", spec, "--data", data_of(here), "--device", "cpu"],
        env=os.environ | {"LESIONSEARCH_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"lesionsearch: cache: {tmp_path / 'cache'}: cannot be written: ")
    assert "make room" in line
    assert [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"] == []
    assert not (here / "runs").exists()


def test_the_table_has_no_case_twice():
    assert len({c.name for c in CASES}) == len(CASES)


def test_the_study_that_the_cases_start_from_is_good(tiny_data):
    """Otherwise each of them could be refused for another reason than its own."""
    study = write_study(Path("study.yaml"))
    args = ["run", study, "--data", tiny_data, "--no-final", "--hours", "1e-12"]
    assert CliRunner().invoke(cli.app, [str(a) for a in args]).exit_code == 0
