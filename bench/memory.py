"""Host memory of trainings on many images, and sharing of a cache among workers. Linux only.

Two parts, on generated images of 64 pixels:

1. A training in its process, as started by a worker. After each epoch: its own memory (RssAnon and
   RssShmem of /proc/PID/status, with those of its children), and the pages of mapped files
   (RssFile), such as the cache, which the system can reclaim and processes share.
2. Two workers that join a study at the same time, after its cache was deleted: which processes map
   a cache under construction (builders), which the finished one, and whether it is the same file.

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
from search.trial_process.slot import Slot

SIDE = 64
MIB = 2**20
#: Epochs after which a training has allocated everything.
WARMUP_EPOCHS = 2
#: How long two trainings that map a cache are observed.
OBSERVATION_S = 10.0
#: Allowed growth of a training's own memory after the warm-up.
MAX_GROWTH_MIB = 16.0


def write_images(folder: Path, n: int) -> Path:
    """Write n different JPEGs of skin with a lobed lesion, and their masks."""
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
class MemoryUse:
    """Bytes of a process and its children: own memory, and pages of mapped files."""

    own: int
    mapped: int


def measure_memory(pid: int) -> MemoryUse:
    """Return the current memory of a process and its children."""
    own = mapped = 0
    top = psutil.Process(pid)
    for process in (top, *top.children(recursive=True)):
        with suppress(OSError, psutil.Error):
            rows = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            fields = {key: value.split() for key, _, value in (row.partition(":") for row in rows)}
            own += 1024 * (int(fields["RssAnon"][0]) + int(fields["RssShmem"][0]))
            mapped += 1024 * int(fields["RssFile"][0])
    return MemoryUse(own, mapped)


def train_and_measure(
    data: Path, epochs: int, threads: int = 1
) -> Iterator[tuple[float, MemoryUse]]:
    """Yield the duration of each epoch and the memory at its end."""
    cache = build_cache(DatasetIndex.read(data), SIDE)
    order = np.random.default_rng(0).permutation(len(cache.names))
    train, val = np.sort(order[len(order) // 5 :]), np.sort(order[: len(order) // 5])
    config = TrialConfig(
        model=ComponentConfig("unet", {"width": 4, "depth": 2}),
        image_size=SIDE,
        epochs=epochs,
        batch_size=16,
    )
    job = TrainJob(config.to_dict(), cache.path, train, val, Slot("cpu", threads))
    with TrialProcess(job) as child:
        for message in child.messages():
            match message:
                case ModelBuilt():
                    child.reply(stop=False)
                case EpochRecord():
                    yield message.seconds, measure_memory(child.pid)
                    child.reply(stop=False)
                case JobError(reason, text):
                    raise SystemExit(f"the training failed: {reason}: {text}")


def growth(readings: Sequence[MemoryUse]) -> float:
    """Return the growth of own memory in MiB from the first half of epochs to the second.

    By medians, because single values may include memory that is freed a moment later (``peak``).
    """
    own = [reading.own for reading in readings[WARMUP_EPOCHS - 1 :]]
    half = len(own) // 2
    return (statistics.median(own[half:]) - statistics.median(own[:half])) / MIB


def peak(readings: Sequence[MemoryUse]) -> float:
    """Return the difference in MiB of the maximum and the value after the warm-up."""
    own = [reading.own for reading in readings[WARMUP_EPOCHS - 1 :]]
    return (max(own) - own[0]) / MIB


@dataclass
class SharingObservation:
    """Use of the cache by workers that join at the same time.

    Attributes:
        builders: processes that mapped a cache under construction.
        trainings: device and inode of the images that each training mapped.
        caches: number of complete caches at the end.
        together: whether two trainings had mapped their images at the same time.
        pss: resident and proportional memory of each training in MiB.
    """

    builders: set[int] = field(default_factory=set)
    trainings: dict[int, tuple[str, str]] = field(default_factory=dict)
    caches: int = 0
    together: bool = False
    pss: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def is_one(self) -> bool:
        """Whether one process built one cache, and two trainings mapped it at the same time."""
        files = set(self.trainings.values())
        return len(self.builders) == self.caches == len(files) == 1 and self.together


def make_spec(epochs: int) -> StudySpec:
    """Return a study of two small trials."""
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


def observe_sharing(data: Path, folder: Path, root: Path, epochs: int) -> SharingObservation:
    """Let two workers join a study whose cache does not exist; ``root`` is that of the caches."""
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
    observed, until = SharingObservation(), float("inf")
    try:
        while any(worker.poll() is None for worker in workers) and time.monotonic() < until:
            _observe(workers, root.resolve(), observed)
            if observed.together:
                until = min(until, time.monotonic() + OBSERVATION_S)
            time.sleep(0.05 if observed.builders else 0.005)  # small caches are built fast
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()
    observed.caches = sum(path.is_dir() for path in root.iterdir())
    return observed


def _observe(
    workers: Sequence[subprocess.Popen[bytes]], root: Path, observed: SharingObservation
) -> None:
    running = 0
    for worker in workers:
        with suppress(psutil.Error):
            top = psutil.Process(worker.pid)
            for process in (top, *top.children(recursive=True)):
                files = _mapped_files(process.pid, root)
                if any(".partial/" in name for name in files):
                    observed.builders.add(process.pid)
                images = [file for name, file in files.items() if name.endswith("-64/images.npy")]
                if images and process.pid != worker.pid:
                    observed.trainings[process.pid] = images[0]
                    running += 1
                    with suppress(OSError, ValueError):
                        observed.pss[process.pid] = _rss_and_pss(process.pid)
    observed.together = observed.together or running > 1


def _mapped_files(pid: int, root: Path) -> dict[str, tuple[str, str]]:
    """Return device and inode of the files below ``root`` that a process has mapped."""
    with suppress(OSError):
        rows = [row.split(maxsplit=5) for row in Path(f"/proc/{pid}/maps").read_text().splitlines()]
        return {r[5]: (r[3], r[4]) for r in rows if len(r) == 6 and r[5].startswith(str(root))}
    return {}


def _rss_and_pss(pid: int) -> tuple[float, float]:
    """Return the resident and the proportional set size in MiB."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    fields = {
        key: int(value.split()[0]) / 1024 for key, _, value in (r.partition(":") for r in rows)
    }
    return fields["Rss"], fields["Pss"]


def report(images: int, epochs: int) -> str:
    """Run both parts and return the results as Markdown."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["LESIONSEARCH_CACHE"] = str(folder / "first")
        start = time.perf_counter()
        data = write_images(folder / "data", images)
        generation_s = time.perf_counter() - start
        rows = list(train_and_measure(data, epochs))
        observed = observe_sharing(data, folder / "shared", folder / "second", epochs=2)
    readings = [reading for _, reading in rows]
    pixels = images * SIDE * SIDE * 4 / MIB
    lines = [
        "# Host memory",
        "",
        f"Machine: {os.cpu_count()} cores ({platform.machine()}), no GPU used; Linux, Python "
        f"{platform.python_version()}. Date: {date.today().isoformat()}.",
        "",
        f"`python -m bench.memory --images {images} --epochs {epochs}`: {images:,} pairs of "
        f"{SIDE} pixels, generated in {generation_s:.0f} s; their cache takes {pixels:.0f} MiB.",
        "",
        "## One training",
        "",
        "A U-Net (width 4, depth 2) on four fifths of the pairs, batches of 16, one thread; after",
        "each epoch. Own: RssAnon and RssShmem of its processes. Mapped files: the cache and",
        "libraries, which the system can reclaim.",
        "",
        "| epoch | seconds | own, MiB | mapped files, MiB |",
        "|---:|---:|---:|---:|",
        *(
            f"| {n} | {seconds:.1f} | {reading.own / MIB:.1f} | {reading.mapped / MIB:.1f} |"
            for n, (seconds, reading) in enumerate(rows, 1)
        ),
        "",
        f"From epoch {WARMUP_EPOCHS} on, from the first half to the last, its median grew by",
        f"{growth(readings):.1f} MiB (at most {MAX_GROWTH_MIB:g}). The highest reading lies "
        f"{peak(readings):.1f} MiB above that of epoch {WARMUP_EPOCHS}.",
        "",
        "## Two workers, one cache",
        "",
        "Two `lesionsearch worker` join a study at the same time, on a host without its cache;",
        f"when both train, they are observed for {OBSERVATION_S:g} seconds and terminated.",
        "",
        f"- Processes that built a cache: {len(observed.builders)}. Caches at the end: "
        f"{observed.caches}.",
        f"- Trainings that had its images mapped: {len(observed.trainings)}, two of them at the "
        f"same time: {'yes' if observed.together else 'no'}; different files among these: "
        f"{len(set(observed.trainings.values()))}.",
        *(
            f"- A training of {resident:.0f} MiB resident has a proportional set size "
            f"(Pss) of {part:.0f} MiB."
            for resident, part in observed.pss.values()
        ),
        "",
    ]
    if growth(readings) > MAX_GROWTH_MIB or not observed.is_one:
        lines += ["**Memory grew, or the cache was not shared.**", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=8, help="at least 4")
    parser.add_argument("--to", type=Path, help="the file to write; else standard output")
    args = parser.parse_args()
    text = report(args.images, max(args.epochs, WARMUP_EPOCHS + 2))
    if args.to:
        args.to.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
