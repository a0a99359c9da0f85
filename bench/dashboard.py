"""The dashboard on a study of thousands of trials, and what a trial pays for what is shown of it.

First view: a study of finished trials of 40 epochs, as workers leave them, in SQLite; the real
command serves it and the page's own questions are asked, the first time as soon as it listens.
With --plain the same questions to optuna-dashboard as it comes. Cost: CPU seconds of a trial's
picture and note, against those of a training in the same process.

    python -m bench.dashboard [--trials 5000] [--plain] [--cost]
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.orm import Session

from bench.overhead import open_bench_study
from lesionseg.config import TrialConfig
from lesionseg.space import ComponentConfig
from search.monitoring import notes
from search.storage import artifact_ids
from search.storage.leases import TrialLeases
from search.storage.optuna_internals import cached_trial, study_id
from search.storage.queries import insert_trials
from search.storage.retention import HISTORY, PICTURE
from search.storage.retrying_storage import backend_of
from search.study.creation import create_or_resume
from search.study.opening import OpenStudy
from search.study.suggest import suggest

EPOCHS = 40
METRICS = ("dice", "jaccard", "thresholded_jaccard", "precision", "recall", "specificity")


def fill(opened: OpenStudy, n: int) -> None:
    """Finished trials as workers leave them: drawn, reported, described; nothing is trained."""
    rng, mark = np.random.default_rng(0), opened.study.user_attrs["uuid"]
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    began = datetime.now() - timedelta(days=2)
    made = []
    for number in range(n):
        trial = drawn.ask()
        config = suggest(trial, opened.spec.space)
        frozen = cached_trial(trial)
        made.append(_ended(number, frozen, config, rng, mark, began))
    backend = backend_of(opened.study)
    with Session(backend.engine) as session, session.begin():
        insert_trials(session, study_id(opened.study), made)


def _ended(
    number: int,
    frozen: FrozenTrial,
    config: TrialConfig,
    rng: np.random.Generator,
    mark: str,
    began: datetime,
) -> FrozenTrial:
    top = float(rng.uniform(0.5, 0.9))
    pruned = number % 2 == 1
    epochs = int(rng.integers(4, EPOCHS)) if pruned else EPOCHS
    curve = {e: top * (1 - 0.7**e) for e in range(1, epochs + 1)}
    start = began + timedelta(seconds=30 * number)
    attrs = {
        "config": config.to_dict(), "digest": config.digest(), "params": 1000 + number,
        "macs": 10**9, "epochs": epochs, "best_epoch": epochs, "seconds": 0.7 * epochs,
        "val": dict.fromkeys(METRICS, curve[epochs]), "peak_memory": 10**9,
        "owner": {"host": "lab", "pid": 1, "device": "cpu", "worker": "w" * 32},
        "started_at": start.timestamp(), "ended_at": start.timestamp() + 28,
    }  # fmt: skip
    return FrozenTrial(
        number=number, trial_id=number, value=None if pruned else curve[epochs],
        state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
        datetime_start=start, datetime_complete=start + timedelta(seconds=28),
        params=frozen.params, distributions=frozen.distributions, intermediate_values=curve,
        user_attrs=attrs,
        system_attrs=artifact_ids.artifact_attrs(mark, number, [HISTORY, PICTURE]),
    )  # fmt: skip


def describe(opened: OpenStudy) -> None:
    """Write the notes of all trials."""
    leases, known = TrialLeases(opened.study), opened.study.get_trials(deepcopy=False)
    for at in range(0, len(known), 500):
        texts = [notes.trial_note_attrs(t) for t in known[at : at + 500]]
        leases.set_study_system_attrs({key: value for text in texts for key, value in text.items()})


def _command() -> str:
    return str(Path(sys.executable).with_name("lesionsearch"))


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """The real command; its port."""
    command = [_command(), "dashboard", str(folder)]
    began = time.perf_counter()
    process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r":(\d+)/", process.stdout.readline())
        assert found
        print(f"{'until it listens':44}{time.perf_counter() - began:8.2f} s")
        yield int(found[1])
    finally:
        process.terminate()
        process.wait()


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def plain(opened: OpenStudy) -> Iterator[int]:
    """Optuna-dashboard by itself."""
    import optuna_dashboard

    url = f"sqlite:///{opened.folder}/study.db"
    app = optuna_dashboard.wsgi(optuna.storages.RDBStorage(url))
    with make_server("127.0.0.1", 0, app, handler_class=_Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def ask(port: int, path: str, what: str) -> None:
    """Asks once, as a browser does, and prints what that took."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1800)
    began = time.perf_counter()
    connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
    answer = connection.getresponse()
    body = answer.read()
    took = time.perf_counter() - began
    whole = gzip.decompress(body) if answer.getheader("Content-Encoding") == "gzip" else body
    size = f"{len(body) / 1e6:8.2f} MB sent, {len(whole) / 1e6:7.2f} MB unpacked"
    print(f"{what:44}{took:8.2f} s {size}, {answer.status}", flush=True)


def views(port: int, study: int, trials: int) -> None:
    """What the first page asks, and what it asks again every ten seconds."""
    ask(port, "/dashboard", "the page")
    ask(port, "/api/studies", "the list of studies")
    ask(port, f"/api/studies/{study}?after=0", "the study, the first time")
    ask(port, f"/api/studies/{study}?after=0", "the study, a second browser")
    time.sleep(6)  # what is kept is looked at anew
    ask(port, f"/api/studies/{study}?after={trials}", "the study, what is new in it")
    ask(port, f"/api/studies/{study}/param_importances", "importances")


def cost(folder: Path) -> None:
    """CPU seconds of a training, and of what is then made to look at; in one process, one run."""
    from lesionseg.data.synthetic import write_dataset
    from lesionseg.training import checkpoint
    from lesionseg.training.train import train
    from lesionseg.training.types import TrainData, TrainOptions
    from lesionseg.viz.trial_sheet import select_by_area, write_trial_sheet
    from search.spec.loading import parse_spec

    write_dataset(folder / "data", 60, height=128, width=128)
    search = {"model": {"unet": {"width": 16, "depth": 4}}, "loss": "bce_dice"}
    plain = {"name": "cost", "data": {"image_size": 128}, "search": search}
    opened = create_or_resume(parse_spec(plain, "bench"), folder / "data", folder / "cost")
    unet = ComponentConfig("unet", {"width": 16, "depth": 4})
    config = TrialConfig(model=unet, image_size=128, batch_size=8, epochs=2)
    data = TrainData(opened.cache, opened.trial_data.train, opened.trial_data.val)
    weights, cpu = folder / "model.safetensors", torch.device("cpu")
    began = time.process_time()
    train(config, data, options=TrainOptions(weights_path=weights))
    epoch = (time.process_time() - began) / config.epochs
    drawn = []
    for _ in range(7):
        began = time.process_time()
        model, _ = checkpoint.load(weights)
        write_trial_sheet(
            model, data.cache, select_by_area(data.cache, data.val), folder / "s.jpg", cpu
        )
        drawn.append(time.process_time() - began)
    leases, trial = TrialLeases(opened.study), opened.study.ask()
    opened.study.tell(trial, 0.5)
    done, noted = opened.study.trials[0], []
    for _ in range(7):
        began = time.process_time()
        leases.set_study_system_attrs(notes.trial_note_attrs(done))
        noted.append(time.process_time() - began)
    added = statistics.median(drawn) + statistics.median(noted)
    print(f"an epoch of {len(data.train)} images of 128 px          {epoch:8.2f} CPU seconds")
    print(f"the picture                                {statistics.median(drawn):8.3f}")
    print(f"the note                                   {statistics.median(noted):8.3f}")
    for epochs in (10, EPOCHS):
        print(f"share of a trial of {epochs} epochs               {added / (epochs * epoch):8.2%}")
    print(f"share of a trial of 60 CPU seconds         {added / 60:8.2%} (at most 2%)")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--plain", action="store_true", help="optuna-dashboard as it comes, too")
    parser.add_argument("--cost", action="store_true", help="what a trial pays, and nothing else")
    given = parser.parse_args(argv)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.cost:
            cost(folder)
            return
        os.environ["LESIONSEARCH_CACHE"] = str(folder / "cache")
        opened = open_bench_study(folder)
        fill(opened, given.trials)
        describe(opened)
        print(f"{given.trials} trials; torch {torch.__version__}, optuna {optuna.__version__}")
        with served(opened.folder) as port:
            views(port, study_id(opened.study), given.trials)
        began = time.perf_counter()
        command = [_command(), "status", str(opened.folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(f"{'lesionsearch status, the whole command':44}{time.perf_counter() - began:8.2f} s")
        if given.plain:
            print("optuna-dashboard as it comes:", flush=True)
            with plain(opened) as port:
                views(port, study_id(opened.study), given.trials)


if __name__ == "__main__":
    main()
