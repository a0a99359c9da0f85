"""The final test in the time that a study has left: measure, plan, and when trainings must end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from pydantic import TypeAdapter, ValidationError

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError
from lesionseg.inference.tta import SYMMETRIES
from lesionseg.models import required_imports
from lesionseg.runtime.files import atomic_write
from search.errors import JobFailed
from search.results.evaluation import run_job
from search.results.final_plan import FinalCosts, FinalPlan, fit_to_time
from search.results.slot_threads import join_slots, run_on_slots, share_slots
from search.spec.study_spec import StudySpec
from search.storage import trial_records
from search.storage.retention import kept_weights
from search.study.fidelity import to_final
from search.study.forecast import EPOCH_S, REPORT_S, SCORE_S, START_S, postprocess_s, size_cost
from search.study.opening import OpenStudy
from search.trial_process.protocol import Measured, MeasureJob
from search.trial_process.slot import Slot

#: The stored schedule, in the folder of the retrainings.
SCHEDULE_FILE = "schedule.json"
#: Part of the time that is kept for what follows the trainings if the speed cannot be measured.
UNKNOWN_AFTER_SHARE = 0.25


@dataclass(frozen=True)
class Schedule:
    """What is trained, and the seconds for it.

    left_s: that the study had left at the beginning; None without a limit.
    forecast_s: of the whole final test; None if the speed could not be measured.
    after_s: of what follows the trainings; member_s: the part of each member of an ensemble;
        selection_s: that of the selection of post-processing.
    end: of the study, by the monotonic clock; None for no limit.
    """

    plan: FinalPlan
    left_s: float | None = None
    forecast_s: float | None = None
    after_s: float = 0.0
    member_s: float = 0.0
    selection_s: float = 0.0
    end: float | None = None

    @property
    def training_end(self) -> float:
        """The time of the monotonic clock at which all trainings must be finished."""
        return math.inf if self.end is None else self.end - self.after_s

    @property
    def member_limit(self) -> int:
        """The largest number of members now: fewer if the trainings took longer than forecast."""
        members = self.plan.ensemble - math.ceil(
            self._late_s / self.member_s if self.member_s else 0.0
        )
        return max(1, members)

    @property
    def has_selection(self) -> bool:
        """Whether inference steps are selected now: not if the trainings took much too long."""
        return self.plan.selection and self._late_s <= self.selection_s

    @property
    def _late_s(self) -> float:
        return max(0.0, time.monotonic() - self.training_end)


@dataclass(frozen=True)
class _StoredSchedule:
    """origin: what the schedule depends on."""

    origin: dict[str, Any]
    schedule: Schedule


def planned(spec: StudySpec, trials: int) -> FinalPlan:
    """Return the plan of a study file. trials: number of trials that can be finalists."""
    final = spec.final
    finalists = min(final.finalists, trials)
    return FinalPlan(finalists, final.seeds, final.epochs or spec.budget.epochs, final.ensemble)


def final_config(trial: FrozenTrial, spec: StudySpec, epochs: int) -> TrialConfig:
    """Return a trial's configuration at the final's image size, for this number of epochs."""
    final = spec.final.model_copy(update={"epochs": epochs})
    config = TrialConfig.from_dict(trial_records.config_of(trial))
    return to_final(config, spec.model_copy(update={"final": final}))


def trainable(
    trials: Sequence[FrozenTrial], spec: StudySpec, on_event: Callable[[str], None]
) -> list[FrozenTrial]:
    """Return the trials whose networks accept the final's image size; report the others.

    Raises:
        InputError: there is none.
    """
    usable, errors = [], []
    for trial in trials:
        try:
            final_config(trial, spec, spec.final.epochs or spec.budget.epochs)
        except InputError as error:
            errors.append(error)
        else:
            usable.append(trial)
    if not usable:
        raise errors[0]
    for problem in errors:
        on_event(f"final: {problem}; the trial is left out")
    return usable


def make_schedule(
    opened: OpenStudy,
    trials: Sequence[FrozenTrial],
    slots: Sequence[Slot],
    folder: Path,
    left_s: float | None,
    on_event: Callable[[str], None],
) -> Schedule:
    """Return the schedule for the time that is left.

    It is stored: an interrupted final test goes on with it, so that its trainings can resume.

    Args:
        opened: the study, with the cache of the final test.
        trials: the finalists, best first.
        slots: where to train.
        folder: of the retrainings.
        left_s: seconds; None for no limit.
        on_event: called with a message if the plan differs from the study file's.
    """
    wanted = planned(opened.spec, len(trials))
    end = None if left_s is None else time.monotonic() + left_s
    origin = {
        "final": opened.spec.final.model_dump(),
        "total_hours": opened.spec.budget.total_hours,
        "trials": [trial.number for trial in trials],
    }
    path = folder / SCHEDULE_FILE
    if stored := _read_schedule(path, origin):
        if changes := _describe_changes(wanted, stored.plan):
            on_event(f"final: continues with {changes}, as it was interrupted")
        return replace(stored, end=end)
    if left_s is None:
        return Schedule(wanted)
    schedule = _fit(opened, trials[0], slots, wanted, left_s, on_event)
    folder.mkdir(exist_ok=True)
    atomic_write(path, TypeAdapter(_StoredSchedule).dump_json(_StoredSchedule(origin, schedule)))
    if changes := _describe_changes(wanted, schedule.plan):
        on_event(f"final: {changes}, for the {max(0.0, left_s) / 60:.1f} minutes that are left")
    return replace(schedule, end=end)


def _describe_changes(wanted: FinalPlan, plan: FinalPlan) -> str:
    before, after = asdict(wanted), asdict(replace(plan, selection=wanted.selection))
    changes = [
        f"{key} {value} instead of {before[key]}"
        for key, value in after.items()
        if value != before[key]
    ]
    return ", ".join([*changes, *["no selection of inference steps"] * (not plan.selection)])


def _read_schedule(path: Path, origin: dict[str, Any]) -> Schedule | None:
    try:
        stored = TypeAdapter(_StoredSchedule).validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return stored.schedule if stored.origin == origin else None


def _fit(
    opened: OpenStudy,
    trial: FrozenTrial,
    slots: Sequence[Slot],
    wanted: FinalPlan,
    left_s: float,
    on_event: Callable[[str], None],
) -> Schedule:
    """Measure the best configuration and fit the plan.

    Fewer trainings than CPU slots get more threads each. If the fit leads to that, the speed is
    measured again.
    """
    plan, start = wanted, time.monotonic()
    config = final_config(trial, opened.spec, wanted.epochs)
    for _ in range(2):
        used = share_slots(slots, plan.finalists * plan.seeds)
        try:
            costs = _estimate(opened, config, used)
        except JobFailed as error:
            on_event(f"final: {error}; the trainings end after most of the time that is left")
            return Schedule(wanted, left_s, after_s=UNKNOWN_AFTER_SHARE * left_s)
        fewest = replace(wanted, finalists=plan.finalists, seeds=plan.seeds)
        plan = fit_to_time(fewest, left_s - (time.monotonic() - start), costs)
        if len(share_slots(slots, plan.finalists * plan.seeds)) >= len(used):
            break
    forecast_s, after_s = costs.forecast_s(plan), costs.after_s(plan)
    return Schedule(plan, left_s, forecast_s, after_s, costs.member_s, costs.selection_s)


def _estimate(opened: OpenStudy, config: TrialConfig, slots: Sequence[Slot]) -> FinalCosts:
    """Measure steps and validation on all slots at the same time; estimate the rest.

    Raises:
        JobFailed: the measurement failed.
    """
    data, final = opened.trial_data, opened.spec.final

    def measure(slot: Slot, must_stop: Callable[[], bool]) -> Measured:
        job = MeasureJob(
            config.to_dict(), data.cache, data.train, slot,
            imports=required_imports([config.model.name]),
        )  # fmt: skip
        return run_job(job, Measured, "the measurement of the training's speed", must_stop)

    speeds = run_on_slots([measure] * len(slots), slots)
    step_s = max(speed.seconds_per_step for speed in speeds)
    image_s = max(speed.seconds_per_val_image for speed in speeds)
    val_s, test_s = len(data.val) * image_s, len(opened.split.test) * image_s
    epoch_s = partial(_epoch_s, step_s=step_s, val_s=val_s, batch_size=config.batch_size)
    search_size = opened.spec.data.image_size
    selection_size = search_size if final.selects_on_search else config.image_size
    selection_val_s = val_s * size_cost(selection_size, config.image_size)
    return FinalCosts(
        fit_on=final.fit_on,
        slots=len(slots),
        kept=kept_weights(final)
        if config.image_size == search_size and final.fit_on == "train"
        else 0,
        epoch_s=epoch_s(len(data.train)),
        joint_epoch_s=epoch_s(len(data.train_val)),
        judge_s=val_s,
        member_s=(len(SYMMETRIES) if final.tta else 1) * (selection_val_s + test_s),
        fixed_s=_fixed_s(opened, join_slots(slots).threads),
        selection_s=postprocess_s(len(data.val), selection_size) if final.postprocess else 0.0,
    )


def _epoch_s(images: int, *, step_s: float, val_s: float, batch_size: int) -> float:
    return max(1, images // batch_size) * step_s + val_s + EPOCH_S


def _fixed_s(opened: OpenStudy, threads: int) -> float:
    """Estimate the scores of the test and the report."""
    shapes = dict(zip(opened.cache.names, opened.cache.shapes, strict=True))
    pixels = sum(height * width for height, width in (shapes[n] for n in opened.split.test))
    return 3 * START_S + REPORT_S + SCORE_S * pixels / 1e6 / threads
