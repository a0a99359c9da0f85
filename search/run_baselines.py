"""Trains and tests the published systems on the same images, split and budget.

Each training of a baseline is a trial of one study. It is tested as soon as it is complete; the
results are in ``results/<trial>/``. An interrupted run resumes where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from optuna.trial import FrozenTrial
from PIL import Image
from rich.console import Console

from lesionseg.config import TrialConfig
from lesionseg.data.mask_checks import describe_readings, warn_of_inverted
from lesionseg.data.merge import Roots
from lesionseg.data.split import find_positions
from lesionseg.errors import InputError
from lesionseg.runtime.files import atomic_folder, file_stem
from lesionseg.viz.trial_sheet import select_by_area
from search.monitoring.console import progress_bar
from search.monitoring.live import TrialLog, live_view
from search.monitoring.status import StatusReader
from search.results import baseline_table, evaluation
from search.results.baseline_table import BaselineResult
from search.signals import SignalHandler
from search.spec import baselines
from search.spec.loading import apply_overrides, parse_spec
from search.spec.search_space import find_size_errors
from search.spec.study_spec import StudySpec
from search.storage import trial_records
from search.storage.lease_types import Claim
from search.storage.retention import KEEP_BEST, WEIGHTS
from search.storage.trial_records import State, TrialAttr
from search.study.creation import lock_and_open
from search.study.opening import OpenStudy, record_test_evaluation
from search.study.samplers import prepare_sampling
from search.trial_process.protocol import EvaluateJob
from search.trial_process.resources import default_slot
from search.workers.trial_context import TrialContext
from search.workers.worker import Worker

#: Keys that ``--set`` accepts.
SETTABLE_KEYS = ("data", "seed")
#: Test images whose predictions are stored.
EXAMPLES = 5


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
        stack.enter_context(SignalHandler().installed())
        with progress_bar(console, "reading images") as on_progress:
            opened = stack.enter_context(
                lock_and_open(
                    spec,
                    options.data,
                    options.folder,
                    storage=options.storage,
                    on_progress=on_progress,
                )
            )
        masks = opened.cache.list_masks(opened.index.records)
        for line in [*describe_readings(masks), *warn_of_inverted(masks)]:
            console.print(line, markup=False)
        prepare_sampling(opened)
        on_event = partial(console.print, markup=False)
        context = TrialContext(opened, slot, listener=TrialLog(console), on_event=on_event)
        view = live_view(console, lambda: StatusReader(opened.folder, options.storage))
        with Worker(context, keep_all=True, allow_duplicates=True) as worker, view:
            _train_and_test(console, worker, configs)
        return write_table(opened)


def write_table(opened: OpenStudy) -> list[BaselineResult]:
    """Write the table and figures of all stored results; return them, best test Dice first."""
    from search.results import baseline_figures  # matplotlib is slow to import

    trials, folder = trial_records.all_trials(opened.study), opened.folder
    results = baseline_table.compare_baselines(baseline_table.read_results(folder), trials)
    (folder / "table.md").write_text(baseline_table.format_markdown(results), encoding="utf-8")
    evaluation.write_csv(folder / "table.csv", list(map(baseline_table.csv_row, results)))
    if any(result.is_tested for result in results):
        examples = _example_names(opened)
        records = [r for r in evaluation.read_test_records(opened) if r.name in examples]
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
    errors = dict.fromkeys(  # once for all repeats
        error
        for name, config in configs
        for error in find_size_errors({config.model.name: config.model.params}, size, name)
    )
    if errors:
        raise InputError("; ".join(errors))
    return configs


def _train_and_test(
    console: Console, worker: Worker, configs: Sequence[tuple[str, TrialConfig]]
) -> None:
    context = worker.context
    worker.leases.reap_expired()
    for trial in trial_records.all_trials(context.study):
        _test_if_missing(console, context, trial)
    existing = {
        (
            t.user_attrs.get(TrialAttr.BASELINE),
            t.user_attrs.get(TrialAttr.FIXED_CONFIG, {}).get("seed"),
        )
        for t in trial_records.all_trials(context.study)
        if trial_records.state_of(t) in {State.WAITING, State.RUNNING, State.COMPLETE}
    }
    worker.leases.enqueue(
        [
            ({}, {TrialAttr.BASELINE: name, TrialAttr.FIXED_CONFIG: config.to_dict()})
            for name, config in configs
            if (name, config.seed) not in existing
        ]
    )
    while isinstance(claim := worker.claim(bounded=False, fresh=False), Claim):
        _test_if_missing(console, context, worker.run(claim))
        ranking = trial_records.rank_trials(trial_records.all_trials(context.study))
        for trial in ranking[KEEP_BEST:]:
            context.store.delete(trial.number, WEIGHTS)


def _test_if_missing(console: Console, context: TrialContext, trial: FrozenTrial) -> None:
    """Test a complete trial without a result; write metrics, per-image scores, example masks."""
    opened, slot = context.opened, context.slot
    folder = opened.folder / "results" / str(trial.number)
    if trial_records.state_of(trial) != State.COMPLETE or folder.is_dir():
        return
    weights = opened.artifact_store.fetch(trial.number, WEIGHTS)
    if weights is None:  # trained on another host, which tests it
        return
    records, names = evaluation.read_test_records(opened), _example_names(opened)
    evaluated = evaluation.evaluate_checkpoint(
        EvaluateJob(weights, opened.cache.path, records, slot, show=names)
    )
    record_test_evaluation(opened.study)
    metrics = evaluation.summarize_evaluation(evaluated.evaluation) | {"speed": evaluated.speed}
    rows = evaluation.per_image_rows(evaluated.evaluation)
    with atomic_folder(folder) as partial:
        (partial / "result.json").write_text(json.dumps(metrics))
        evaluation.write_csv(partial / "per_image.csv", rows)
        for name, mask in evaluated.shown.items():
            Image.fromarray(mask.astype(np.uint8) * 255).save(partial / f"{file_stem(name)}.png")
    dice = float(evaluated.evaluation.scores["dice"].mean())
    console.print(f"{trial.user_attrs[TrialAttr.BASELINE]}: test Dice {dice:.4f}", markup=False)


def _example_names(opened: OpenStudy) -> tuple[str, ...]:
    """Return EXAMPLES test images of different lesion area, the same for all systems."""
    positions = find_positions(opened.split.test, opened.cache.names)
    examples = select_by_area(opened.cache, positions, EXAMPLES)
    return tuple(opened.cache.names[i] for i in examples)
