"""How well copies of real pictures are found, how far strangers stay below, and how long it takes.

Of some pictures of a data set a copy is made in each of many ways, and looked for beside its own
picture. What is found among the set's own pictures is listed by its similarity, so that people can
look at it: the number alone does not say which are copies in truth. At last 12,000 pictures are
compared with one another: parts of the set's pictures, half as wide, from anywhere and laid down
any way.

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

PICTURES = 12_000
Change = Callable[[Image.Image], Image.Image]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--copies", type=int, default=400)
    parser.add_argument("--to", type=Path)
    args = parser.parse_args()
    told = "\n".join(measured(args.root, args.copies)) + "\n"
    print(told, end="")
    if args.to:
        args.to.write_text(told, encoding="utf-8")


def measured(root: Path, copies: int) -> list[str]:
    """The lines of the result, as Markdown."""
    began = time.perf_counter()
    seen = audit_dataset(root)
    read = time.perf_counter() - began
    found = find_leaks({"": seen})
    took = time.perf_counter() - began
    looks = [pair.fingerprint for pair in seen.pairs if pair.fingerprint is not None]
    lines = [
        f"# Copies in {seen.index.layout}",
        "",
        f"{platform.machine()}, {count_cores()} cores, load {os.getloadavg()[0]:.1f} at the end. "
        f"{len(seen.pairs)} pairs: audited in {took:.1f} s, {read:.1f} s of it reading.",
        "",
        f"{len(found.clusters)} pictures under several names (similarity from {MIN_SIMILARITY}):",
        "",
        *(f"- {each}" for each in found.clusters),
        "",
        "| A copy of a picture, changed | found |",
        "|---|---:|",
    ]
    for name, share in recalls(seen.index, looks, copies):
        lines.append(f"| {name} | {share:.1%} |")
    parts = quarters(looks)
    began = time.perf_counter()
    twins = find_duplicate_pairs(parts)
    seconds = time.perf_counter() - began
    lines += ["", f"{len(parts)} pictures compared in {seconds:.0f} s; {len(twins)} pairs."]
    return lines


def recalls(index: DatasetIndex, looks: Sequence[Fingerprint], n: int) -> list[tuple[str, float]]:
    """For each change the share of copies that are found together with their own picture."""
    chosen = np.random.default_rng(0).permutation(len(looks))[:n].tolist()
    told = []
    for name, change in CHANGES.items():

        def is_found(i: int, change: Change = change) -> bool:
            copy = fingerprint_image(change(read_image(index.records[i].image)), "copy")
            return bool(find_duplicate_pairs([looks[i], copy]))

        with ThreadPoolExecutor(count_cores()) as pool:
            told.append((name, float(np.mean(list(pool.map(is_found, chosen))))))
    return told


def quarters(looks: Sequence[Fingerprint]) -> list[Fingerprint]:
    """Looks at parts of the pictures, half as wide and high."""
    rng = np.random.default_rng(0)
    found = []
    for k in range(PICTURES):
        x, y = rng.integers(0, THUMB_PX // 2, 2).tolist()
        part = looks[k % len(looks)].thumb[y : y + THUMB_PX // 2, x : x + THUMB_PX // 2]
        laid = np.rot90(part, int(rng.integers(4)))
        found.append(fingerprint_image(Image.fromarray(laid).convert("RGB"), str(k)))
    return found


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def scaled(image: Image.Image, factor: float) -> Image.Image:
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.BICUBIC)


def cropped(image: Image.Image, rim: float) -> Image.Image:
    dx, dy = image.width * rim, image.height * rim
    return image.crop((round(dx), round(dy), round(image.width - dx), round(image.height - dy)))


def _turned(way: Image.Transpose) -> Change:
    return lambda image: image.transpose(way)


CHANGES: dict[str, Change] = {
    "half the size, JPEG 75": lambda i: recompressed(scaled(i, 0.5), 75),
    "a quarter of the size, JPEG 75": lambda i: recompressed(scaled(i, 0.25), 75),
    "twice the size, JPEG 90": lambda i: recompressed(scaled(i, 2), 90),
    "JPEG 90": lambda i: recompressed(i, 90),
    "JPEG 60": lambda i: recompressed(i, 60),
    "JPEG 30": lambda i: recompressed(i, 30),
    "half the size, JPEG 30": lambda i: recompressed(scaled(i, 0.5), 30),
    "squeezed to a square of 150": lambda i: i.resize((150, 150)),
    "darker, 0.7": lambda i: ImageEnhance.Brightness(i).enhance(0.7),
    "brighter, 1.25": lambda i: ImageEnhance.Brightness(i).enhance(1.25),
    "contrast 1.3": lambda i: ImageEnhance.Contrast(i).enhance(1.3),
    "half the colour": lambda i: ImageEnhance.Color(i).enhance(0.5),
    "mirrored": _turned(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned by 90 degrees, half the size, JPEG 60": lambda i: recompressed(
        scaled(i.transpose(Image.Transpose.ROTATE_90), 0.5), 60
    ),
    "cropped by 2% a side": lambda i: cropped(i, 0.02),
    "cropped by 4% a side": lambda i: cropped(i, 0.04),
    "cropped by 6% a side": lambda i: cropped(i, 0.06),
    "cropped by 5%, turned upside down, JPEG 50": lambda i: recompressed(
        cropped(i, 0.05).transpose(Image.Transpose.ROTATE_180), 50
    ),
    "cropped by 10% a side": lambda i: cropped(i, 0.1),
}

if __name__ == "__main__":
    main()
