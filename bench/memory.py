"""Host memory of trainings on many pictures, and one cache for all workers of a host. Linux only.

Two parts, on generated pictures of 64 pixels:

1. A training in its child process, as a worker starts it. After each epoch: the memory that is
   its own (RssAnon and RssShmem of /proc/PID/status, summed with those of its children), and the
   pages of files that it has mapped (RssFile), among which the cache is: these are the system's to
   take back, and are there once for all processes.
2. Two workers that join a study at the same time, its cache deleted before: who maps a cache
   under construction (builders), who maps the finished one, and whether that is one file.

    python -m bench.memory [--images 10000] [--epochs 8] [--to FILE]
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from lesionseg.config import TrialConfig
from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.space import ComponentConfig
from lesionseg.training.types import EpochRecord
from search.spec.loading import parse_spec
from search.spec.study_spec import StudySpec
from search.study.creation import create_or_resume
from search.trial_process.process import TrialProcess
from search.trial_process.protocol import JobError, ModelBuilt, TrainJob

SIDE = 64
MIB = 2**20
#: Epochs after which everything that a training needs is there.
SETTLED = 2
#: Seconds for which two trainings that map a cache are looked at, before they are put down.
LOOKED_AT = 10.0
#: MiB by which a training's own memory may grow from then on.
FLAT = 16.0


def write_pictures(folder: Path, n: int) -> Path:
    """JPEGs of skin with hairs and a lesion of many lobes, no two alike, and their masks."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    for i in range(n):
        cy, cx = rng.uniform(-0.2, 0.2, 2)
        angle, lobes = np.arctan2(y - cy, x - cx), rng.uniform(-0.3, 0.3, 4)
        edge = rng.uniform(0.12, 0.35) * (
            1 + sum(a * np.cos((k + 1) * angle + rng.uniform(0, 6)) for k, a in enumerate(lobes))
        )
        inside = np.hypot(y - cy, x - cx) < edge
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        shade = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float64)
        pixels = rng.uniform((180, 130, 110), (235, 190, 170)) + (shade - 128) / 3
        pixels[inside] *= rng.uniform(0.4, 0.7)
        pixels += rng.normal(0, 6, (SIDE, SIDE, 1))
        picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        picture.save(folder / "images" / f"{i:06}.jpg", quality=85)
        Image.fromarray(inside).save(folder / "masks" / f"{i:06}.png")
    return folder


@dataclass(frozen=True)
class Weight:
    """Bytes of a process and its children: their own, and of mapped files."""

    own: int
    mapped: int


def weigh(pid: int) -> Weight:
    """What the process and its children take now."""
    own = mapped = 0
    top = psutil.Process(pid)
    for process in (top, *top.children(recursive=True)):
        with suppress(OSError, psutil.Error):
            rows = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            found = {key: value.split() for key, _, value in (row.partition(":") for row in rows)}
            own += 1024 * (int(found["RssAnon"][0]) + int(found["RssShmem"][0]))
            mapped += 1024 * int(found["RssFile"][0])
    return Weight(own, mapped)


def train_and_weigh(data: Path, epochs: int, threads: int = 1) -> Iterator[tuple[float, Weight]]:
    """Seconds of each epoch, and what the training took when it had ended."""
    cache = build_cache(DatasetIndex.read(data), SIDE)
    order = np.random.default_rng(0).permutation(len(cache.names))
    train, val = np.sort(order[len(order) // 5 :]), np.sort(order[: len(order) // 5])
    config = TrialConfig(
        model=ComponentConfig("unet", {"width": 4, "depth": 2}), image_size=SIDE, epochs=epochs, batch_size=16
    )
    job = TrainJob(config.to_dict(), cache.path, train, val, "cpu", threads)
    with TrialProcess(job) as child:
        for message in child.messages():
            match message:
                case ModelBuilt():
                    child.reply(stop=False)
                case EpochRecord():
                    yield message.seconds, weigh(child.pid)
                    child.reply(stop=False)
                case JobError(reason, text):
                    raise SystemExit(f"the training failed: {reason}: {text}")


def growth(weights: Sequence[Weight]) -> float:
    """MiB of its own that a training took more in its last half than in its first, by the median.

    A single reading may catch what is given back a moment later: ``peak`` tells it apart.
    """
    settled = [weight.own for weight in weights[SETTLED - 1 :]]
    half = len(settled) // 2
    return (statistics.median(settled[half:]) - statistics.median(settled[:half])) / MIB


def peak(weights: Sequence[Weight]) -> float:
    """MiB by which the highest reading lies above that of a training that has just settled."""
    settled = [weight.own for weight in weights[SETTLED - 1 :]]
    return (max(settled) - settled[0]) / MIB


@dataclass
class Shared:
    """What was seen of workers that join at once.

    builders: processes that had a cache under construction mapped. trainings: the file of images
    that each training had mapped, as device and inode. caches: complete ones at the end.
    together: whether two trainings had theirs mapped at the same time.
    """

    builders: set[int] = field(default_factory=set)
    trainings: dict[int, tuple[str, str]] = field(default_factory=dict)
    caches: int = 0
    together: bool = False
    pss: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def is_one(self) -> bool:
        """Whether one process built one cache that all trainings, two at once, had mapped."""
        files = set(self.trainings.values())
        return len(self.builders) == self.caches == len(files) == 1 and self.together


def make_spec(epochs: int) -> StudySpec:
    """Two small trials."""
    return parse_spec(
        {
            "name": "shared",
            "data": {"image_size": SIDE},
            "budget": {"trials": 2, "epochs": epochs},
            "pruner": {"name": "none"},
            "fixed": {"batch_size": 16},
            "search": {"model": {"unet": {"width": [4, 8], "depth": 2}}, "augment": "none"},
        },
        "bench",
    )


def share(data: Path, folder: Path, root: Path, epochs: int) -> Shared:
    """Has two workers join a study at once, whose cache is not there yet. root: of the caches."""
    environment = dict(os.environ, LESIONSEARCH_CACHE=str(root))
    before = os.environ.get("LESIONSEARCH_CACHE")
    os.environ["LESIONSEARCH_CACHE"] = str(root)
    try:
        create_or_resume(make_spec(epochs), data, folder)
    finally:
        os.environ.pop("LESIONSEARCH_CACHE")
        if before is not None:
            os.environ["LESIONSEARCH_CACHE"] = before
    shutil.rmtree(root)
    command = [sys.executable, "-m", "cli", "worker", folder.name, "--out", str(folder)]
    command += ["--device", "cpu", "--threads", "1"]
    workers = [subprocess.Popen(command, env=environment) for _ in range(2)]
    seen, until = Shared(), float("inf")
    try:
        while any(worker.poll() is None for worker in workers) and time.monotonic() < until:
            _look(workers, root.resolve(), seen)
            if seen.together:  # what they would train on is beside the point
                until = min(until, time.monotonic() + LOOKED_AT)
            time.sleep(0.05 if seen.builders else 0.005)  # a small cache is built at once
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()
    seen.caches = sum(path.is_dir() for path in root.iterdir())
    return seen


def _look(workers: Sequence[subprocess.Popen[bytes]], root: Path, seen: Shared) -> None:
    at_work = 0
    for worker in workers:
        with suppress(psutil.Error):
            top = psutil.Process(worker.pid)
            for process in (top, *top.children(recursive=True)):
                found = _mapped(process.pid, root)
                building = [name for name in found if ".partial/" in name]
                seen.builders |= {process.pid} if building else set()
                whole = [where for name, where in found.items() if name.endswith("-64/images.npy")]
                if whole and process.pid != worker.pid:
                    seen.trainings[process.pid] = whole[0]
                    at_work += 1
                    with suppress(OSError, ValueError):
                        seen.pss[process.pid] = _proportional(process.pid)
    seen.together = seen.together or at_work > 1


def _mapped(pid: int, root: Path) -> dict[str, tuple[str, str]]:
    """Files below ``root`` that a process has mapped: name to device and inode."""
    with suppress(OSError):
        rows = [row.split(maxsplit=5) for row in Path(f"/proc/{pid}/maps").read_text().splitlines()]
        return {r[5]: (r[3], r[4]) for r in rows if len(r) == 6 and r[5].startswith(str(root))}
    return {}


def _proportional(pid: int) -> tuple[float, float]:
    """MiB resident, and MiB where each page counts in parts among those who share it."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    found = {
        key: int(value.split()[0]) / 1024 for key, _, value in (r.partition(":") for r in rows)
    }
    return found["Rss"], found["Pss"]


def report(images: int, epochs: int) -> str:
    """Both parts, as Markdown."""
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        os.environ["LESIONSEARCH_CACHE"] = str(here / "first")
        began = time.perf_counter()
        data = write_pictures(here / "data", images)
        made = time.perf_counter() - began
        rows = list(train_and_weigh(data, epochs))
        seen = share(data, here / "shared", here / "second", epochs=2)
    weights = [weight for _, weight in rows]
    pixels = images * SIDE * SIDE * 4 / MIB
    lines = [
        "# Host memory",
        "",
        f"Machine: {os.cpu_count()} cores ({platform.machine()}), no GPU used; Linux, Python "
        f"{platform.python_version()}. Date: {date.today().isoformat()}.",
        "",
        f"`python -m bench.memory --images {images} --epochs {epochs}`: {images:,} pairs of "
        f"{SIDE} pixels, generated in {made:.0f} s; their cache takes {pixels:.0f} MiB.",
        "",
        "## One training",
        "",
        "A U-Net (width 4, depth 2) on four fifths of the pairs, batches of 16, one thread; after",
        "each epoch. Own: RssAnon and RssShmem of its processes. Mapped files: the cache and",
        "libraries, which the system takes back when it needs them.",
        "",
        "| epoch | seconds | own, MiB | mapped files, MiB |",
        "|---:|---:|---:|---:|",
        *(
            f"| {n} | {seconds:.1f} | {weight.own / MIB:.1f} | {weight.mapped / MIB:.1f} |"
            for n, (seconds, weight) in enumerate(rows, 1)
        ),
        "",
        f"From epoch {SETTLED} on, from the first half to the last, its median grew by",
        f"{growth(weights):.1f} MiB (at most {FLAT:g}). The highest reading lies "
        f"{peak(weights):.1f} MiB above that of epoch {SETTLED}.",
        "",
        "## Two workers, one cache",
        "",
        "Two `lesionsearch worker` join a study at the same time, on a host without its cache;",
        f"once both train they are looked at for {LOOKED_AT:g} seconds and put down.",
        "",
        f"- Processes that built a cache: {len(seen.builders)}. Caches at the end: {seen.caches}.",
        f"- Trainings that had its images mapped: {len(seen.trainings)}, of them two at the same "
        f"time: {'yes' if seen.together else 'no'}; different files among these: "
        f"{len(set(seen.trainings.values()))}.",
        *(
            f"- A training of {resident:.0f} MiB resident has {part:.0f} MiB where what is shared "
            f"counts in parts (Pss)."
            for resident, part in seen.pss.values()
        ),
        "",
    ]
    if growth(weights) > FLAT or not seen.is_one:
        lines += ["**Not as promised.**", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=8, help="at least 4")
    parser.add_argument("--to", type=Path, help="the file to write; else standard output")
    asked = parser.parse_args()
    text = report(asked.images, max(asked.epochs, SETTLED + 2))
    if asked.to:
        asked.to.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
