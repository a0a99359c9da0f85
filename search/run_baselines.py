"""The published systems trained side by side: same images, same split, same budget, one table.

Each baseline is a trial of one study, in the same storage and child process as any search. It is
tested as soon as it is trained; what the test gave lies in ``results/<trial>/``, written whole or
not at all, so that a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from optuna.trial import FrozenTrial
from PIL import Image
from rich.console import Console

from lesionseg.config import TrialConfig
from lesionseg.data.sets import Roots
from lesionseg.errors import InputError
from search.monitoring import tables as show
from search.results.baseline_table import (
    BaselineResult,
    TestResult,
    compare_baselines,
    format_csv,
    format_markdown,
)
from search.results.evaluation import (
    evaluate_checkpoint,
    per_image_rows,
    read_test_records,
    summarize_evaluation,
    write_csv,
)
from search.signals import sigterm_as_interrupt
from search.spec import baselines
from search.spec.search_space import find_size_errors
from search.spec.loading import apply_overrides, parse_spec
from search.spec.study_spec import StudySpec
from search.storage import trial_records
from search.storage.lease_types import Claim
from search.storage.retention import WEIGHTS
from search.storage.study_dir import is_study, lock_study
from search.study.creation import create_or_resume
from search.study.evaluations import record_test_evaluation
from search.study.opening import OpenStudy
from search.study.sampling import prepare_sampling
from search.trial_process.protocol import Evaluated, EvaluateJob
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
        "budget": {"trials": len(baselines.load_baselines()), "epochs": epochs},
        "sampler": {"name": "random"},
        "pruner": {"name": "none"},
    }
    return parse_spec(apply_overrides(plain, overrides), "baselines run")


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
) -> list[BaselineResult]:
    """Trains and tests the baselines that have no result yet, and writes the table of all.

    only: baselines' names; none means all. repeats: trainings of each, with seeds one apart.
    Writes ``table.md``, ``table.csv``, ``dice_vs_time.png`` and ``overlays.png`` to the folder.
    Raises InputError: an unknown baseline, an image size that one of them cannot take, or what
    ``create_or_resume`` refuses. KeyboardInterrupt leaves a study that can be gone on with.
    """
    names = baselines.expand_names(only or [baselines.ALL])
    wanted = [_config(name, spec, repeat) for repeat in range(repeats) for name in names]
    _refuse_sizes(names, wanted, spec)
    slot = default_slot(device, threads)
    with ExitStack() as held:
        held.enter_context(sigterm_as_interrupt())
        there = is_study(folder)
        if there:
            held.enter_context(lock_study(folder))
        with show.counting(console, "reading pictures") as tick:
            opened = create_or_resume(spec, data, folder, storage, on_progress=tick)
        if not there:
            held.enter_context(lock_study(folder))
        prepare_sampling(opened)
        _work(console, opened, slot, list(zip(names * repeats, wanted, strict=True)))
        return write_table(opened)


def write_table(opened: OpenStudy) -> list[BaselineResult]:
    """Writes the table and its figures from what is there; the rows, best test Dice first."""
    from search.results import baseline_figures  # matplotlib waits until it is needed

    found = compare_baselines(
        {t.number: TestResult.read(_place(opened.folder, t.number)) for t in _tested(opened)},
        trial_records.all_trials(opened.study),
    )
    (opened.folder / "table.md").write_text(format_markdown(found), encoding="utf-8")
    (opened.folder / "table.csv").write_text(format_csv(found), encoding="utf-8")
    if any(row.is_tested for row in found):
        baseline_figures.plot_dice_vs_time(found, opened.folder / "dice_vs_time.png")
        baseline_figures.plot_outlines(
            found,
            [r for r in read_test_records(opened) if r.name in _shown(opened)],
            opened.folder / "results",
            opened.folder / "overlays.png",
        )
    return found


def _config(name: str, spec: StudySpec, repeat: int) -> TrialConfig:
    return baselines.build_config(
        name, spec.data.image_size, spec.budget.epochs, spec.seed + repeat, spec.budget.patience
    )


def _refuse_sizes(names: Sequence[str], configs: Sequence[TrialConfig], spec: StudySpec) -> None:
    told = [
        problem
        for name, config in zip(names, configs, strict=False)
        for problem in find_size_errors(
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
        study, opened.spec, opened.trial_data, opened.artifact_store, slot, lines, keep=None, twins=True
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
                opened.artifact_store.delete(trial.number, WEIGHTS)


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
    weights = opened.artifact_store.fetch(trial.number, WEIGHTS)
    if weights is None:  # another host trained it, and tests it
        return
    record_test_evaluation(opened.study)
    tested = evaluate_checkpoint(
        EvaluateJob(
            weights,
            opened.cache.path,
            read_test_records(opened),
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


def _write(folder: Path, number: int, tested: Evaluated) -> None:
    place = _place(folder, number)
    partial = place.with_name(f".{number}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    found = summarize_evaluation(tested.evaluation) | {"speed": tested.speed}
    (partial / "result.json").write_text(json.dumps(found))
    write_csv(partial / "per_image.csv", per_image_rows(tested.evaluation))
    for name, mask in tested.shown.items():
        Image.fromarray(mask.astype(np.uint8) * 255).save(partial / f"{name}.png")
    partial.rename(place)


def _tested(opened: OpenStudy) -> list[FrozenTrial]:
    return [
        t
        for t in trial_records.all_trials(opened.study)
        if _place(opened.folder, t.number).is_dir()
    ]
