"""Recall and time of the near-duplicate search on real images.

Some images of a data set are copied with each of many changes, and the copies are searched for.
Matches among the images of the set itself are listed with their similarity for inspection. At last
12,000 images are compared: random crops of half the width, rotated by multiples of 90 degrees.

    python -m bench.duplicates DIR [--copies 400] [--to FILE]
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from lesionseg.data.duplicates.alignment import MIN_SIMILARITY, THUMB_PX
from lesionseg.data.duplicates.audit import audit_dataset
from lesionseg.data.duplicates.leakage import find_leaks
from lesionseg.data.duplicates.matching import Fingerprint, find_duplicate_pairs, fingerprint_image
from lesionseg.data.image_io import read_image
from lesionseg.data.index import DatasetIndex
from search.trial_process.resources import count_cores

CROPS = 12_000
Change = Callable[[Image.Image], Image.Image]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--copies", type=int, default=400)
    parser.add_argument("--to", type=Path)
    args = parser.parse_args()
    text = "\n".join(measure(args.root, args.copies)) + "\n"
    print(text, end="")
    if args.to:
        args.to.write_text(text, encoding="utf-8")


def measure(root: Path, copies: int) -> list[str]:
    """Return the lines of the result as Markdown."""
    start = time.perf_counter()
    audit = audit_dataset(DatasetIndex.read(root, lenient=True))
    read_s = time.perf_counter() - start
    report = find_leaks({"": audit})
    total_s = time.perf_counter() - start
    fingerprints = [pair.fingerprint for pair in audit.pairs if pair.fingerprint is not None]
    lines = [
        f"# Near-duplicates in {audit.index.layout}",
        "",
        f"{platform.machine()}, {count_cores()} cores, load {os.getloadavg()[0]:.1f} at the end. "
        f"{len(audit.pairs)} pairs: audited in {total_s:.1f} s, {read_s:.1f} s of it reading.",
        "",
        f"{len(report.clusters)} images under several names (similarity from {MIN_SIMILARITY}):",
        "",
        *(f"- {cluster}" for cluster in report.clusters),
        "",
        "| Change of the copy | found |",
        "|---|---:|",
    ]
    for name, share in measure_recall(audit.index, fingerprints, copies):
        lines.append(f"| {name} | {share:.1%} |")
    crops = fingerprint_crops(fingerprints)
    start = time.perf_counter()
    pairs = find_duplicate_pairs(crops)
    seconds = time.perf_counter() - start
    lines += ["", f"{len(crops)} images compared in {seconds:.0f} s; {len(pairs)} pairs."]
    return lines


def measure_recall(
    index: DatasetIndex, fingerprints: Sequence[Fingerprint], n: int
) -> list[tuple[str, float]]:
    """Return for each change the share of copies that match their original."""
    chosen = np.random.default_rng(0).permutation(len(fingerprints))[:n].tolist()
    recalls = []
    for name, change in CHANGES.items():

        def is_found(i: int, change: Change = change) -> bool:
            copy = fingerprint_image(change(read_image(index.records[i].image)), "copy")
            return bool(find_duplicate_pairs([fingerprints[i], copy]))

        with ThreadPoolExecutor(count_cores()) as pool:
            recalls.append((name, float(np.mean(list(pool.map(is_found, chosen))))))
    return recalls


def fingerprint_crops(fingerprints: Sequence[Fingerprint]) -> list[Fingerprint]:
    """Fingerprint random crops of half the width and height, rotated."""
    rng = np.random.default_rng(0)
    half = THUMB_PX // 2
    crops = []
    for k in range(CROPS):
        x, y = rng.integers(0, half, 2).tolist()
        crop = fingerprints[k % len(fingerprints)].thumb[y : y + half, x : x + half]
        rotated = np.rot90(crop, int(rng.integers(4)))
        crops.append(fingerprint_image(Image.fromarray(rotated).convert("RGB"), str(k)))
    return crops


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def scaled(image: Image.Image, factor: float) -> Image.Image:
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.BICUBIC)


def cropped(image: Image.Image, margin: float) -> Image.Image:
    dx, dy = image.width * margin, image.height * margin
    return image.crop((round(dx), round(dy), round(image.width - dx), round(image.height - dy)))


def _transpose(method: Image.Transpose) -> Change:
    return lambda image: image.transpose(method)


CHANGES: dict[str, Change] = {
    "half the size, JPEG 75": lambda i: recompressed(scaled(i, 0.5), 75),
    "a quarter of the size, JPEG 75": lambda i: recompressed(scaled(i, 0.25), 75),
    "twice the size, JPEG 90": lambda i: recompressed(scaled(i, 2), 90),
    "JPEG 90": lambda i: recompressed(i, 90),
    "JPEG 60": lambda i: recompressed(i, 60),
    "JPEG 30": lambda i: recompressed(i, 30),
    "half the size, JPEG 30": lambda i: recompressed(scaled(i, 0.5), 30),
    "resized to a square of 150": lambda i: i.resize((150, 150)),
    "darker, 0.7": lambda i: ImageEnhance.Brightness(i).enhance(0.7),
    "brighter, 1.25": lambda i: ImageEnhance.Brightness(i).enhance(1.25),
    "contrast 1.3": lambda i: ImageEnhance.Contrast(i).enhance(1.3),
    "half the colour": lambda i: ImageEnhance.Color(i).enhance(0.5),
    "mirrored": _transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "rotated by 90 degrees, half the size, JPEG 60": lambda i: recompressed(
        scaled(i.transpose(Image.Transpose.ROTATE_90), 0.5), 60
    ),
    "cropped by 2% a side": lambda i: cropped(i, 0.02),
    "cropped by 4% a side": lambda i: cropped(i, 0.04),
    "cropped by 6% a side": lambda i: cropped(i, 0.06),
    "cropped by 5%, rotated by 180 degrees, JPEG 50": lambda i: recompressed(
        cropped(i, 0.05).transpose(Image.Transpose.ROTATE_180), 50
    ),
    "cropped by 10% a side": lambda i: cropped(i, 0.1),
}

if __name__ == "__main__":
    main()
