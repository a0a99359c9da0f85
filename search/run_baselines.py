"""Trains and tests the published systems on the same images, split and budget.

Each training of a baseline is a trial of one study. It is tested as soon as it is complete; the
results are in ``results/<trial>/``. An interrupted run resumes where it stopped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from optuna.trial import FrozenTrial
from PIL import Image
from rich.console import Console

from lesionseg.config import TrialConfig
from lesionseg.data.merge import Roots
from lesionseg.errors import InputError
from search.monitoring.console import progress_bar
from search.monitoring.live import TrialLog, live_view
from search.monitoring.status import StatusReader
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
from search.spec.loading import apply_overrides, parse_spec
from search.spec.search_space import find_size_errors
from search.spec.study_spec import StudySpec
from search.storage import trial_records
from search.storage.lease_types import Claim
from search.storage.retention import WEIGHTS
from search.storage.trial_records import State, TrialAttr
from search.study.creation import lock_and_open
from search.study.evaluations import record_test_evaluation
from search.study.opening import OpenStudy
from search.study.sampling import prepare_sampling
from search.trial_process.protocol import Evaluated, EvaluateJob
from search.trial_process.resources import default_slot
from search.trial_process.slot import Slot
from search.workers.trial_context import TrialContext
from search.workers.worker import KEEP_BEST, Worker

#: Keys that ``--set`` accepts.
SETTABLE_KEYS = ("data", "seed")
#: Quantiles, by lesion area, of the test images whose predictions are stored.
EXAMPLE_QUANTILES = (0.05, 0.3, 0.5, 0.7, 0.95)


@dataclass(frozen=True)
class BaselineOptions:
    """What to train, and where.

    Attributes:
        only: names of baselines; empty for all.
        repeats: trainings of each baseline; their seeds are consecutive.
        storage: database URL; None for ``study.db`` in the folder.
        threads: CPU threads; None for all cores.
    """

    data: Roots
    folder: Path
    only: Sequence[str] = ()
    repeats: int = 1
    storage: str | None = field(default=None, repr=False)
    device: str = "auto"
    threads: int | None = None


def make_spec(image_size: int, epochs: int, overrides: Sequence[str] = ()) -> StudySpec:
    """Return the study in which baselines are trained; InputError for other overrides."""
    for override in overrides:
        if override.split("=")[0].split(".")[0].strip() not in SETTABLE_KEYS:
            raise InputError(
                f"--set: {override}: only keys of data, and seed, can be set; "
                "the baselines determine the rest"
            )
    spec = {
        "name": baselines.ALL,
        "data": {"image_size": image_size},
        "budget": {"trials": len(baselines.load_baselines()), "epochs": epochs},
        "sampler": {"name": "random"},
        "pruner": {"name": "none"},
    }
    return parse_spec(apply_overrides(spec, overrides), "baselines run")


def run_baselines(
    console: Console, spec: StudySpec, options: BaselineOptions
) -> list[BaselineResult]:
    """Train and test the baselines without a result, and write the table of all.

    Writes ``table.md``, ``table.csv``, ``dice_vs_time.png`` and ``overlays.png``. Returns a result
    per baseline, the best test Dice first. Raises InputError for an unknown baseline, an unusable
    image size or study, and KeyboardInterrupt, after which the run can be resumed.
    """
    configs = _make_configs(spec, options)
    slot = default_slot(options.device, options.threads)
    with ExitStack() as stack:
        stack.enter_context(sigterm_as_interrupt())
        with progress_bar(console, "reading images") as on_progress:
            opened = stack.enter_context(
                lock_and_open(
                    spec, options.data, options.folder, options.storage, on_progress=on_progress
                )
            )
        prepare_sampling(opened)
        _train_and_test(console, opened, slot, configs, options.storage)
        return write_table(opened)


def write_table(opened: OpenStudy) -> list[BaselineResult]:
    """Write the table and figures of all stored results; return them, best test Dice first."""
    from search.results import baseline_figures  # matplotlib is slow to import

    trials, folder = trial_records.all_trials(opened.study), opened.folder
    folders = {t.number: _result_folder(opened, t) for t in trials}
    tests = {number: TestResult.read(path) for number, path in folders.items() if path.is_dir()}
    results = compare_baselines(tests, trials)
    (folder / "table.md").write_text(format_markdown(results), encoding="utf-8")
    (folder / "table.csv").write_text(format_csv(results), encoding="utf-8")
    if any(result.is_tested for result in results):
        examples = _example_names(opened)
        records = [r for r in read_test_records(opened) if r.name in examples]
        baseline_figures.plot_dice_vs_time(results, folder / "dice_vs_time.png")
        baseline_figures.plot_outlines(
            results, records, folder / "results", folder / "overlays.png"
        )
    return results


def _make_configs(spec: StudySpec, options: BaselineOptions) -> list[tuple[str, TrialConfig]]:
    """Return name and configuration of each training; InputError for an unusable image size."""
    size, budget = spec.data.image_size, spec.budget
    configs = [
        (name, baselines.build_config(
            name, size, budget.epochs, spec.seed + repeat, budget.patience
        ))
        for repeat in range(options.repeats)
        for name in baselines.expand_names(options.only or [baselines.ALL])
    ]  # fmt: skip
    errors: dict[str, None] = {}  # ordered, and once for all repeats
    for name, config in configs:
        model = {config.model.name: config.model.params}
        errors |= dict.fromkeys(find_size_errors(model, size, name))
    if errors:
        raise InputError("; ".join(errors))
    return configs


def _train_and_test(
    console: Console,
    opened: OpenStudy,
    slot: Slot,
    configs: Sequence[tuple[str, TrialConfig]],
    storage: str | None,
) -> None:
    context = TrialContext(opened, slot, listener=TrialLog(console))
    worker = Worker(context, keep_best=None, allow_duplicates=True)
    with worker, live_view(console, lambda: StatusReader(opened.folder, storage)):
        worker.leases.reap_expired()
        for trial in trial_records.all_trials(opened.study):
            _test_if_missing(console, opened, slot, trial)
        _enqueue_missing(opened, configs)
        while isinstance(claim := worker.claim(bounded=False, fresh=False), Claim):
            _test_if_missing(console, opened, slot, worker.run(claim))
            ranking = trial_records.rank_trials(trial_records.all_trials(opened.study))
            for trial in ranking[KEEP_BEST:]:
                opened.artifact_store.delete(trial.number, WEIGHTS)


def _enqueue_missing(opened: OpenStudy, configs: Sequence[tuple[str, TrialConfig]]) -> None:
    """Queue each training that has no complete, running or waiting trial."""
    existing = {
        (
            t.user_attrs.get(TrialAttr.BASELINE),
            t.user_attrs.get(TrialAttr.FIXED_CONFIG, {}).get("seed"),
        )
        for t in trial_records.all_trials(opened.study)
        if trial_records.state_of(t) in {State.WAITING, State.RUNNING, State.COMPLETE}
    }
    for name, config in configs:
        if (name, config.seed) not in existing:
            attrs = {TrialAttr.BASELINE: name, TrialAttr.FIXED_CONFIG: config.to_dict()}
            opened.study.enqueue_trial({}, user_attrs=attrs)


def _test_if_missing(console: Console, opened: OpenStudy, slot: Slot, trial: FrozenTrial) -> None:
    folder = _result_folder(opened, trial)
    if trial_records.state_of(trial) != State.COMPLETE or folder.is_dir():
        return
    weights = opened.artifact_store.fetch(trial.number, WEIGHTS)
    if weights is None:  # trained on another host, which tests it
        return
    record_test_evaluation(opened.study)
    evaluated = evaluate_checkpoint(
        EvaluateJob(
            weights,
            opened.cache.path,
            read_test_records(opened),
            slot.device,
            slot.threads,
            show=_example_names(opened),
        )
    )
    _write_result(folder, evaluated)
    dice = float(evaluated.evaluation.scores["dice"].mean())
    console.print(f"{trial.user_attrs[TrialAttr.BASELINE]}: test Dice {dice:.4f}", markup=False)


def _example_names(opened: OpenStudy) -> tuple[str, ...]:
    """Return test images at EXAMPLE_QUANTILES, the same for all systems."""
    areas = dict(zip(opened.cache.names, opened.cache.areas, strict=True))
    names = sorted(opened.split.test, key=lambda name: areas[name])
    indices = [round(quantile * (len(names) - 1)) for quantile in EXAMPLE_QUANTILES]
    return tuple(dict.fromkeys(names[i] for i in indices))


def _result_folder(opened: OpenStudy, trial: FrozenTrial) -> Path:
    return opened.folder / "results" / str(trial.number)


def _write_result(folder: Path, evaluated: Evaluated) -> None:
    """Write metrics, per-image scores and example masks; the folder appears when complete."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    metrics = summarize_evaluation(evaluated.evaluation) | {"speed": evaluated.speed}
    (partial / "result.json").write_text(json.dumps(metrics))
    write_csv(partial / "per_image.csv", per_image_rows(evaluated.evaluation))
    for name, mask in evaluated.shown.items():
        Image.fromarray(mask.astype(np.uint8) * 255).save(partial / f"{name}.png")
    partial.rename(folder)
