"""What `predict` costs beside the network: throughput against the bare network, memory over time.

Throughput: images of ISIC's commonest size (1022 x 767, JPEG), read, predicted and written with
masks, overlays and a table, beside the same network on tensors that are in memory already. Both in
turns within one run. On a machine that others use too the clock says little; the processor time
that an image costs, all threads together, says what the clock would on a quiet one whose cores are
all busy.

Memory: this process's resident memory while thousands of images go through a small network.

    python -m bench.predict [--images 96] [--rounds 3] [--many 5000] [--large]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

# As the command line has it, before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import psutil
import torch
from PIL import Image

from lesionseg.config import TrialConfig
from lesionseg.data.loader import normalise
from lesionseg.data.synthetic import render
from lesionseg.inference.batch_predict import default_batch_size
from lesionseg.inference.predictor import Segmenter
from lesionseg.models import build_model
from lesionseg.runtime.device import amp_dtype, autocast, pick_device
from lesionseg.space import ComponentConfig
from search.results.predict import write_predictions
from search.trial_process.resources import count_cores

HEIGHT, WIDTH = 767, 1022
#: Different pictures; the others are the same under other names.
DRAWN = 16


def make_images(folder: Path, n: int) -> list[Path]:
    """n JPEG files."""
    folder.mkdir()
    paths = [folder / f"ISIC_{i:07}.jpg" for i in range(n)]
    for i, path in enumerate(paths):
        if i < DRAWN:
            Image.fromarray(render(i, HEIGHT, WIDTH).image).save(path, quality=92)
        else:
            path.write_bytes(paths[i % DRAWN].read_bytes())
    return paths


def make_segmenter(size: int, device: str, **params: int) -> Segmenter:
    """A U-Net of random weights; time does not depend on them."""
    config = TrialConfig(model=ComponentConfig("unet", params), image_size=size)
    model = build_model(config.model, image_size=size)
    return Segmenter(model, config, device=pick_device(device))


class Pace(NamedTuple):
    """Images a second by the clock, and by the processor time that they cost on one core."""

    by_clock: float
    by_work: float


@contextmanager
def timed(n: int, paces: list[Pace]) -> Iterator[None]:
    """Adds the pace of the n images that go through inside."""
    clock, work = time.perf_counter(), time.process_time()
    yield
    paces.append(Pace(n / (time.perf_counter() - clock), n / (time.process_time() - work)))


def bare(segmenter: Segmenter, n: int) -> None:
    """The network alone on n images, a multiple of the batch, that are in memory."""
    size, batch = segmenter.image_size, default_batch_size(segmenter.image_size)
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)
    ready = normalise(images.to(segmenter.device))
    dtype = amp_dtype(segmenter.device, "auto")
    with torch.inference_mode(), autocast(segmenter.device, dtype):
        for _ in range(0, n, batch):
            segmenter.model(ready).float().sigmoid().cpu()


def throughput(folder: Path, n: int, rounds: int, device: str) -> None:
    """Prints the paces of both and their ratios, round by round."""
    segmenter = make_segmenter(256, device)
    paths = make_images(folder / "images", n)
    bare(segmenter, 16)
    alone: list[Pace] = []
    whole: list[Pace] = []
    for i in range(rounds):
        with timed(n, alone):
            bare(segmenter, n)
        with timed(n, whole):
            write_predictions(segmenter, paths, folder / f"out{i}", threads=max(2, count_cores()))
        a, w = alone[-1], whole[-1]
        print(
            f"round {i + 1}: network {a.by_clock:.2f}/s, predict {w.by_clock:.2f}/s, ratio "
            f"{w.by_clock / a.by_clock:.3f}; by processor time {a.by_work:.2f} and "
            f"{w.by_work:.2f} a core, ratio {w.by_work / a.by_work:.3f}",
            flush=True,
        )
    for kind in ("by_clock", "by_work"):
        ratios = [getattr(w, kind) / getattr(a, kind) for a, w in zip(alone, whole, strict=True)]
        print(f"predict / network, {kind}: median {statistics.median(ratios):.3f} (at least 0.8)")


def memory(folder: Path, n: int, device: str) -> None:
    """Prints resident memory as images go through, and its growth over the last half."""
    segmenter = make_segmenter(64, device, width=4, depth=3)
    paths = make_images(folder / "many", n)
    process, seen = psutil.Process(), []

    def look(done: int, total: int) -> None:
        if done % max(1, total // 10) == 0:
            seen.append((done, process.memory_info().rss / 2**20))

    began = time.perf_counter()
    write_predictions(
        segmenter, paths, folder / "out-many", threads=max(2, count_cores()), on_image=look
    )
    seconds = time.perf_counter() - began
    print("images done    " + "  ".join(f"{done:>5}" for done, _ in seen))
    print("resident MiB   " + "  ".join(f"{mib:>5.0f}" for _, mib in seen))
    half = [mib for done, mib in seen if done >= n / 2]
    print(f"growth over the last half  {half[-1] - half[0]:+.1f} MiB; {n / seconds:.0f} images/s")


def large(folder: Path, device: str) -> None:
    """Prints the most resident memory that an image of 12,000 x 9,000 pixels takes."""
    import resource

    segmenter = make_segmenter(64, device, width=4, depth=3)
    picture = Image.fromarray(render(0, HEIGHT, WIDTH).image).resize((12_000, 9_000))
    paths = [folder / "large.jpg", folder / "large.png"]
    picture.save(paths[0], quality=85)
    picture.save(paths[1], compress_level=1)
    del picture
    for path in paths:
        pid = os.fork()
        if not pid:
            before = psutil.Process().memory_info().rss
            write_predictions(segmenter, [path] * 1, folder / f"out-{path.suffix[1:]}")
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(f"{path.name}: {(peak - before) / 2**20:.0f} MiB at most", flush=True)
            os._exit(0)
        os.waitpid(pid, 0)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--many", type=int, default=5000)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        if given.large:
            large(Path(name), given.device)
        if given.rounds:
            throughput(Path(name), given.images, given.rounds, given.device)
        if given.many:
            memory(Path(name), given.many, given.device)


if __name__ == "__main__":
    main()
