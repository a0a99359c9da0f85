"""Peers f and g: this project's own commands, ``run auto`` and ``run quick``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bench.peers.job import Job, Trained
from lesionseg.inference.predictor import load
from search.trial_process.resources import count_cores


def train_auto(job: Job) -> Trained:
    """Run ``lesionsearch run auto`` for the time of the job."""
    # With all cores, the number of workers is left to the command.
    threads = [] if job.threads == count_cores() else ["--threads", str(job.threads)]
    return _run(job, "auto", "--hours", str(job.minutes / 60), *threads)


def train_quick(job: Job) -> Trained:
    """Run the study ``quick`` as it is shipped."""
    return _run(job, "quick", "--threads", str(job.threads))


def _run(job: Job, study: str, *options: str) -> Trained:
    """Run a study in a folder of its own; its test images must be those that are judged."""
    folder = job.folder / "run"
    command = [str(Path(sys.executable).with_name("lesionsearch")), "run", study, *options]
    command += ["--data", job.data, "--out", str(folder), "--device", "cpu"]
    command += ["--set", f"seed={job.seed}"]
    if job.limit:
        for part in ("train", "val", "test"):
            command += ["--set", f"data.limit.{part}={job.limit}"]
    if status := subprocess.run(command).returncode:
        raise SystemExit(status)  # the command has said why
    split = json.loads((folder / "split.json").read_text())
    if set(split["test"]) != set(job.judged["test"]):
        raise SystemExit(f"{folder}/split.json: the test images are not those of the other peers")
    segmenter = load(folder, "cpu")
    notes = {"command": command[1:], **{part: len(names) for part, names in split.items()}}
    return Trained(lambda path: segmenter.predict(path).mask, notes)
