"""The published systems trained side by side: same images, same split, same budget, one table.

Each baseline is a trial of one study, in the same storage and child process as any search. It is
tested as soon as it is trained; what the test gave lies in ``results/<trial>/``, written whole or
not at all, so that a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial
from PIL import Image
from rich.console import Console

from lesionseg.config import TrialConfig
from lesionseg.data.sets import Roots
from lesionseg.errors import InputError
from search.monitoring import tables as show
from search.results.baseline_table import Row, rows, table_csv, table_markdown
from search.results.final_test import judged, per_image, test, test_records, write_rows
from search.signals import sigterm_as_interrupt
from search.spec import baselines
from search.spec.search_space import refused_sizes
from search.spec.study_spec import StudySpec, spec_from, with_overrides
from search.storage import trial_records
from search.storage.leases import Claim
from search.storage.retention import WEIGHTS
from search.storage.study_dir import is_study, locked
from search.study.lifecycle import (
    OpenStudy,
    count_test_evaluation,
    create_or_resume,
    prepare_sampling,
)
from search.trial_process.protocol import Tested, TestJob
from search.trial_process.resources import default_slot
from search.trial_process.slot import Slot
from search.workers.worker import KEEP_BEST, Worker

#: Shares of the test images, by lesion area, at which the pictured ones stand.
SHOWN = (0.05, 0.3, 0.5, 0.7, 0.95)


def make_spec(image_size: int, epochs: int, overrides: Sequence[str] = ()) -> StudySpec:
    """The study in which baselines are trained. overrides: of ``data`` and ``seed`` alone.

    Raises InputError for another key: what is trained is the baselines', not the run's.
    """
    for text in overrides:
        if text.split("=")[0].split(".")[0].strip() not in {"data", "seed"}:
            raise InputError(
                f"--set: {text}: only keys of data, and seed, can be set here; baselines settle "
                f"the rest"
            )
    plain = {
        "name": baselines.ALL,
        "data": {"image_size": image_size},
        "budget": {"trials": len(baselines.names()), "epochs": epochs},
        "sampler": {"name": "random"},
        "pruner": {"name": "none"},
    }
    return spec_from(with_overrides(plain, overrides), "baselines run")


def run_baselines(
    console: Console,
    spec: StudySpec,
    data: Roots,
    folder: Path,
    *,
    only: Sequence[str] = (),
    repeats: int = 1,
    storage: str | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> list[Row]:
    """Trains and tests the baselines that have no result yet, and writes the table of all.

    only: baselines' names; none means all. repeats: trainings of each, with seeds one apart.
    Writes ``table.md``, ``table.csv``, ``dice_vs_time.png`` and ``overlays.png`` to the folder.
    Raises InputError: an unknown baseline, an image size that one of them cannot take, or what
    ``create_or_resume`` refuses. KeyboardInterrupt leaves a study that can be gone on with.
    """
    names = baselines.selected(only or [baselines.ALL])
    wanted = [_config(name, spec, repeat) for repeat in range(repeats) for name in names]
    _refuse_sizes(names, wanted, spec)
    slot = default_slot(device, threads)
    with ExitStack() as held:
        held.enter_context(sigterm_as_interrupt())
        there = is_study(folder)
        if there:
            held.enter_context(locked(folder))
        with show.counting(console, "reading pictures") as tick:
            opened = create_or_resume(spec, data, folder, storage, on_progress=tick)
        if not there:
            held.enter_context(locked(folder))
        prepare_sampling(opened)
        _work(console, opened, slot, list(zip(names * repeats, wanted, strict=True)))
        return write_table(opened)


def write_table(opened: OpenStudy) -> list[Row]:
    """Writes the table and its figures from what is there; the rows, best test Dice first."""
    from search.results import baseline_figures  # matplotlib waits until it is needed

    found = rows(
        {t.number: _result(opened.folder, t.number) for t in _tested(opened)},
        trial_records.all_trials(opened.study),
    )
    (opened.folder / "table.md").write_text(table_markdown(found), encoding="utf-8")
    (opened.folder / "table.csv").write_text(table_csv(found), encoding="utf-8")
    if any(row.tested for row in found):
        baseline_figures.dice_vs_time(found, opened.folder / "dice_vs_time.png")
        baseline_figures.overlays(
            found,
            [r for r in test_records(opened) if r.name in _shown(opened)],
            opened.folder / "results",
            opened.folder / "overlays.png",
        )
    return found


def _config(name: str, spec: StudySpec, repeat: int) -> TrialConfig:
    return baselines.config(
        name, spec.data.image_size, spec.budget.epochs, spec.seed + repeat, spec.budget.patience
    )


def _refuse_sizes(names: Sequence[str], configs: Sequence[TrialConfig], spec: StudySpec) -> None:
    told = [
        problem
        for name, config in zip(names, configs, strict=False)
        for problem in refused_sizes(
            {config.model.name: config.model.params}, spec.data.image_size, name
        )
    ]
    if told:
        raise InputError("; ".join(told))


def _work(
    console: Console, opened: OpenStudy, slot: Slot, wanted: Sequence[tuple[str, TrialConfig]]
) -> None:
    study = opened.study
    lines = show.TrialLines(console, 0, 0, opened.spec.budget.epochs)
    worker = Worker(
        study, opened.spec, opened.material, opened.store, slot, lines, keep=None, twins=True
    )
    with worker, lines.bars:
        worker.leases.reap_expired()
        for trial in trial_records.all_trials(study):
            _test_missing(console, opened, slot, trial)
        _enqueue(opened, wanted)
        lines.expect(trial_records.count_by_state(trial_records.all_trials(study))["waiting"])
        while isinstance(claim := worker.claim(bounded=False, fresh=False), Claim):
            _test_missing(console, opened, slot, worker.run(claim))
            for trial in trial_records.rank_trials(trial_records.all_trials(study))[KEEP_BEST:]:
                opened.store.delete(trial.number, WEIGHTS)


def _enqueue(opened: OpenStudy, wanted: Sequence[tuple[str, TrialConfig]]) -> None:
    """Queues what has no trial that is done, at work or waiting; one that failed is tried anew."""
    there = {
        (
            t.user_attrs.get(trial_records.TrialAttr.BASELINE),
            t.user_attrs.get(trial_records.TrialAttr.FIXED_CONFIG, {}).get("seed"),
        )
        for t in trial_records.all_trials(opened.study)
        if trial_records.state_of(t) in {"waiting", "running", "complete"}
    }
    for name, config in wanted:
        if (name, config.seed) not in there:
            attrs = {
                trial_records.TrialAttr.BASELINE: name,
                trial_records.TrialAttr.FIXED_CONFIG: config.to_dict(),
            }
            opened.study.enqueue_trial({}, user_attrs=attrs)


def _test_missing(console: Console, opened: OpenStudy, slot: Slot, trial: FrozenTrial) -> None:
    if trial_records.state_of(trial) != "complete" or _place(opened.folder, trial.number).is_dir():
        return
    weights = opened.store.fetch(trial.number, WEIGHTS)
    if weights is None:  # another host trained it, and tests it
        return
    count_test_evaluation(opened.study)
    tested = test(
        TestJob(
            weights,
            opened.cache.path,
            test_records(opened),
            slot.device,
            slot.threads,
            show=_shown(opened),
        )
    )
    _write(opened.folder, trial.number, tested)
    dice = float(tested.evaluation.scores["dice"].mean())
    console.print(
        f"{trial.user_attrs[trial_records.TrialAttr.BASELINE]}: test Dice {dice:.4f}", markup=False
    )


def _shown(opened: OpenStudy) -> tuple[str, ...]:
    """Test images of small to large lesions, the same for every system."""
    areas = dict(zip(opened.cache.names, opened.cache.areas, strict=True))
    order = sorted(opened.split.test, key=lambda name: areas[name])
    return tuple(dict.fromkeys(order[round(share * (len(order) - 1))] for share in SHOWN))


def _place(folder: Path, number: int) -> Path:
    return folder / "results" / str(number)


def _write(folder: Path, number: int, tested: Tested) -> None:
    place = _place(folder, number)
    partial = place.with_name(f".{number}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    found = judged(tested.evaluation) | {"speed": tested.speed}
    (partial / "result.json").write_text(json.dumps(found))
    write_rows(partial / "per_image.csv", per_image(tested.evaluation))
    for name, mask in tested.shown.items():
        Image.fromarray(mask.astype(np.uint8) * 255).save(partial / f"{name}.png")
    partial.rename(place)


def _tested(opened: OpenStudy) -> list[FrozenTrial]:
    return [
        t
        for t in trial_records.all_trials(opened.study)
        if _place(opened.folder, t.number).is_dir()
    ]


def _result(folder: Path, number: int) -> dict[str, Any]:
    """What one test gave; ``images``: its per-image rows."""
    place = _place(folder, number)
    found: dict[str, Any] = json.loads((place / "result.json").read_text())
    with (place / "per_image.csv").open(newline="") as file:
        return found | {"images": list(csv.DictReader(file))}
