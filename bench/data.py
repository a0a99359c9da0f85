"""Time to build the cache of large photographs, compared with a simple loop.

    python -m bench.data [--images 200] [--rounds 3] [--sizes 96 256] [--to FILE]

The photographs are generated: JPEGs of 3000 x 2000 with their masks. The loop opens each pair with
PIL, converts and resizes it, and keeps the arrays. A second start maps the existing cache. Loop and
cache alternate; the ratio is the median over rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex

HEIGHT, WIDTH = 2000, 3000


def write_photographs(folder: Path, n: int) -> Path:
    """Write images of skin-coloured noise with a dark ellipse, and their masks."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    grain = rng.normal(0, 12, (HEIGHT, WIDTH, 1))
    for i in range(n):
        cy, cx = rng.uniform(0.35, 0.65, 2) * (HEIGHT, WIDTH)
        ry, rx = rng.uniform(0.1, 0.3, 2) * (HEIGHT, WIDTH)
        mask = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        skin = np.array([205, 160, 140]) + np.roll(grain, 37 * i, axis=0)
        skin[mask] -= (70, 80, 70)
        pixels = np.clip(skin, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i:04}.jpg", quality=92)
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"{i:04}.png")
    return folder


def notebook_loop(folder: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Read and resize all pairs with PIL."""
    images, masks = [], []
    for path in sorted((folder / "images").iterdir()):
        image = Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        mask = Image.open(folder / "masks" / f"{path.stem}.png").convert("L")
        images.append(np.asarray(image))
        masks.append(np.asarray(mask.resize((size, size), Image.Resampling.NEAREST)) > 127)
    return np.stack(images), np.stack(masks)


def measure(folder: Path, size: int, root: Path, rounds: int) -> str:
    """Return a row of the table: medians over rounds."""
    loops: list[float] = []
    builds: list[float] = []
    maps: list[float] = []
    for i in range(rounds):
        loops.append(measure_s(notebook_loop, folder, size))
        builds.append(measure_s(open_cache, folder, size, root / str(i)))
        maps.append(measure_s(open_cache, folder, size, root / str(i)))
    ratio = statistics.median(loop / built for loop, built in zip(loops, builds, strict=True))
    loop, built, mapped = map(statistics.median, (loops, builds, maps))
    return f"| {size} | {loop:.1f} s | {built:.1f} s | {ratio:.2f} | {mapped:.3f} s |"


def measure_s(work: Callable[..., object], *params: Any) -> float:
    """Return the duration of a call."""
    began = time.perf_counter()
    work(*params)
    return time.perf_counter() - began


def open_cache(folder: Path, size: int, root: Path) -> None:
    """Read the index and build or open the cache, as a study does."""
    cache = build_cache(DatasetIndex.read(folder), size, root)
    assert cache.images[0].any() and cache.masks.shape[1:] == (size, size)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="*", default=[96, 256])
    parser.add_argument("--to", type=Path, help="a Markdown file for the table")
    args = parser.parse_args(argv)
    head = "| image size | loop | cache | loop / cache | second start |\n|---|---|---|---|---|"
    print(head)
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_photographs(Path(scratch) / "data", args.images)
        rows = []
        for size in args.sizes:
            rows.append(measure(folder, size, Path(scratch) / f"cache-{size}", args.rounds))
            print(rows[-1], flush=True)
    if args.to:
        machine = (
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        )
        title = f"# {args.images} photographs of {WIDTH} x {HEIGHT}\n\n`python -m bench.data`: "
        args.to.write_text(f"{title}{machine}.\n\n{head}\n" + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
