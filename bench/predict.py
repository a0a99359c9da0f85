"""Throughput of `predict` relative to the network alone, and its memory.

Throughput: JPEG images of ISIC's most frequent size (1022 x 767) are read, predicted and written
with masks, overlays and a table; the reference is the same network on tensors in memory. Both
alternate within one run. Processor time per image, summed over threads, is reported too, since the
wall time depends on other processes.

Memory: resident memory of this process while thousands of images are predicted by a small network.

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

# As in the command line; must be set before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

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
#: Number of different images; the others are copies.
DISTINCT = 16


def make_images(folder: Path, n: int) -> list[Path]:
    """Write n JPEG files and return their paths."""
    folder.mkdir()
    paths = [folder / f"ISIC_{i:07}.jpg" for i in range(n)]
    for i, path in enumerate(paths):
        if i < DISTINCT:
            Image.fromarray(render(i, HEIGHT, WIDTH).image).save(path, quality=92)
        else:
            path.write_bytes(paths[i % DISTINCT].read_bytes())
    return paths


def make_segmenter(size: int, device: str, **params: int) -> Segmenter:
    """Return a U-Net with random weights."""
    config = TrialConfig(model=ComponentConfig("unet", params), image_size=size)
    model = build_model(config.model, image_size=size)
    return Segmenter(model, config, device=pick_device(device))


class Throughput(NamedTuple):
    """Images per second of wall time and of processor time."""

    by_wall: float
    by_cpu: float


@contextmanager
def timed(n: int, results: list[Throughput]) -> Iterator[None]:
    """Append the throughput of n images that are processed within the context."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    results.append(Throughput(n / (time.perf_counter() - wall), n / (time.process_time() - cpu)))


def run_network(segmenter: Segmenter, n: int) -> None:
    """Run the network alone on n images in memory, n a multiple of the batch size."""
    size, batch = segmenter.image_size, default_batch_size(segmenter.image_size)
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)
    ready = normalise(images.to(segmenter.device))
    dtype = amp_dtype(segmenter.device, "auto")
    with torch.inference_mode(), autocast(segmenter.device, dtype):
        for _ in range(0, n, batch):
            segmenter.model(ready).float().sigmoid().cpu()


def measure_throughput(folder: Path, n: int, rounds: int, device: str) -> None:
    """Print the throughput of both and their ratio per round."""
    segmenter = make_segmenter(256, device)
    paths = make_images(folder / "images", n)
    run_network(segmenter, 16)
    alone: list[Throughput] = []
    whole: list[Throughput] = []
    for i in range(rounds):
        with timed(n, alone):
            run_network(segmenter, n)
        with timed(n, whole):
            write_predictions(segmenter, paths, folder / f"out{i}", threads=max(2, count_cores()))
        a, w = alone[-1], whole[-1]
        print(
            f"round {i + 1}: network {a.by_wall:.2f}/s, predict {w.by_wall:.2f}/s, ratio "
            f"{w.by_wall / a.by_wall:.3f}; by processor time {a.by_cpu:.2f} and "
            f"{w.by_cpu:.2f} a core, ratio {w.by_cpu / a.by_cpu:.3f}",
            flush=True,
        )
    for kind in ("by_wall", "by_cpu"):
        ratios = [getattr(w, kind) / getattr(a, kind) for a, w in zip(alone, whole, strict=True)]
        print(f"predict / network, {kind}: median {statistics.median(ratios):.3f} (at least 0.8)")


def measure_memory(folder: Path, n: int, device: str) -> None:
    """Print the resident memory over time and its growth in the second half."""
    segmenter = make_segmenter(64, device, width=4, depth=3)
    paths = make_images(folder / "many", n)
    process, samples = psutil.Process(), []

    def sample(done: int, total: int) -> None:
        if done % max(1, total // 10) == 0:
            samples.append((done, process.memory_info().rss / 2**20))

    start = time.perf_counter()
    write_predictions(
        segmenter, paths, folder / "out-many", threads=max(2, count_cores()), on_image=sample
    )
    seconds = time.perf_counter() - start
    print("images done    " + "  ".join(f"{done:>5}" for done, _ in samples))
    print("resident MiB   " + "  ".join(f"{mib:>5.0f}" for _, mib in samples))
    half = [mib for done, mib in samples if done >= n / 2]
    print(f"growth over the last half  {half[-1] - half[0]:+.1f} MiB; {n / seconds:.0f} images/s")


def measure_large_images(folder: Path, device: str) -> None:
    """Print the peak memory for an image of 12,000 x 9,000 pixels."""
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
            write_predictions(segmenter, [path], folder / f"out-{path.suffix[1:]}")
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
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        if args.large:
            measure_large_images(Path(name), args.device)
        if args.rounds:
            measure_throughput(Path(name), args.images, args.rounds, args.device)
        if args.many:
            measure_memory(Path(name), args.many, args.device)


if __name__ == "__main__":
    main()
