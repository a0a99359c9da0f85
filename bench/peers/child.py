"""One peer's process: train within the time, then write the masks of all judged images.

python -m bench.peers.child LETTER JOB
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from PIL import Image

from bench.peers.job import MASKS, TRAINED, Job, Trained

#: The function of each peer's training: Job -> Trained.
PEERS = {
    "a": "published.train",
    "b": "notebook.train",
    "c": "pretrained.train",
    "d": "plain_optuna.train",
    "e": "nnunet.train",
    "f": "own_runs.train_auto",
    "g": "own_runs.train_quick",
}


def main(letter: str, path: Path) -> None:
    """Run a peer."""
    job = Job.read(path)
    module, function = PEERS[letter].split(".")
    trained: Trained = getattr(importlib.import_module(f"bench.peers.{module}"), function)(job)
    (job.folder / TRAINED).write_text(json.dumps(trained.notes))
    for name, images in job.judged.items():
        folder = job.folder / MASKS / name
        folder.mkdir(parents=True, exist_ok=True)
        for image_name, image in images.items():
            mask = trained.segment(Path(image))
            Image.fromarray(mask).save(folder / f"{image_name}.png")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
