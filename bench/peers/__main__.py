"""Options of ``python -m bench.peers``: split, run the peers one after the other, compare."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import bench.peers as package
from bench.peers import judge
from bench.peers.job import TRAINED, Job, Pair
from bench.peers.measure import run_measured
from lesionseg.data.index import DatasetIndex
from lesionseg.data.pairs import Record
from search.spec.loading import parse_spec
from search.study.creation import create_or_resume

#: A description by letter; ``child.PEERS`` has their functions.
PEERS = {
    "a": "best published baseline",
    "b": "notebook's U-Net from scratch",
    "c": "plain pretrained script",
    "d": "Optuna over the script's settings",
    "e": "nnU-Net 2D",
    "f": "lesionsearch run auto",
    "g": "lesionsearch run quick",
}

Parts = Mapping[str, Sequence[Record]]


def split_as_a_study(data: Path, limit: int | None) -> Parts:
    """Return the records of each part, near-duplicates in one group, as a study splits them."""
    limits = dict.fromkeys(("train", "val", "test"), limit) if limit else {}
    spec = parse_spec(
        {
            "name": "split",
            "data": {"image_size": 64, "limit": limits},
            "budget": {"trials": 1, "epochs": 1},
        },
        "bench.peers",
    )
    with tempfile.TemporaryDirectory() as folder:
        opened = create_or_resume(spec, (data,), Path(folder) / "split")
        records = {record.name: record for record in opened.index.records}
        split = opened.split
    parts = {"train": split.train, "val": split.val, "test": split.test}
    return {part: [records[name] for name in names] for part, names in parts.items()}


def make_job(letter: str, options: argparse.Namespace, parts: Parts, judged: Parts) -> Job:
    """Return the task of a peer, whose time begins now."""
    train, val = (
        [Pair(r.name, str(r.image), str(r.mask)) for r in parts[part]] for part in ("train", "val")
    )
    return Job(
        data=str(options.data.resolve()),
        out=str((options.out / letter).resolve()),
        minutes=options.minutes,
        threads=options.threads,
        seed=options.seed,
        train=train,
        val=val,
        judged={name: {r.name: str(r.image) for r in each} for name, each in judged.items()},
        limit=options.limit,
    )


def run_peer(letter: str, options: argparse.Namespace, parts: Parts, judged: Parts) -> None:
    """Run a peer in a process of its own and score its masks; says so where it fails."""
    folder = options.out / letter
    shutil.rmtree(folder, ignore_errors=True)
    job = make_job(letter, options, parts, judged)
    python = options.nnunet if letter == "e" else sys.executable
    # Caches are the peer's own, so that their time is too.
    environment = os.environ | {
        "OMP_NUM_THREADS": str(options.threads),
        "LESIONSEARCH_CACHE": str(job.folder / "cache"),
    }
    command = [str(python), "-m", "bench.peers.child", letter, str(job.write())]
    measured = run_measured(command, environment, folder / "log.txt", folder / TRAINED)
    if measured.status or not measured.until_marker:
        lines = (folder / "log.txt").read_text(errors="replace").splitlines()
        print(f"({letter}) failed: {lines[-1] if lines else measured.status}", flush=True)
        return
    judge.score_masks(folder, judged)
    minutes = {name: round(s / 60, 2) for name, s in measured.until_marker._asdict().items()}
    result = {
        "minutes": minutes,
        "total_minutes": {name: round(s / 60, 2) for name, s in measured.total._asdict().items()},
        "given": {key: getattr(options, key) for key in ("minutes", "threads", "seed", "limit")},
        "notes": json.loads((folder / TRAINED).read_text()),
    }
    (folder / judge.RESULT).write_text(json.dumps(result, indent=1))
    print(f"({letter}) {PEERS[letter]}: {minutes}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(package.__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="abcdf", help="letters of the peers to run")
    parser.add_argument("--quick", action="store_true", help="run g too")
    parser.add_argument("--nnunet", metavar="PYTHON", help="run e too, in this environment")
    parser.add_argument("--external", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="images of each part, for a rehearsal")
    parser.add_argument("--merge", action="store_true", help="only compare what is there")
    options = parser.parse_args(argv)
    letters = options.only + "e" * bool(options.nnunet) + "g" * options.quick
    if unknown := set(letters) - set(PEERS):
        parser.error(f"--only: no peers {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    if "e" in letters and not options.nnunet:
        parser.error("--only: e needs --nnunet PYTHON")
    if not options.merge:
        parts = split_as_a_study(options.data, options.limit)
        print("images:", {part: len(records) for part, records in parts.items()}, flush=True)
        judged = {judge.TEST: parts["test"]}
        for name, _, folder in (each.partition("=") for each in options.external):
            judged[name] = DatasetIndex.read((Path(folder),)).records
        for letter in dict.fromkeys(letters):
            run_peer(letter, options, parts, judged)
    print(judge.merge(options.out, PEERS))


if __name__ == "__main__":
    main()
