"""The spec of ``run auto``: of the study in the folder, or of a new plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lesionseg.errors import InputError
from search.planning.planner import AUTO, Planned
from search.spec.loading import apply_overrides, parse_spec
from search.spec.study_spec import StudySpec
from search.storage.study_dir import default_folder, is_study
from search.storage.trial_records import StudyAttr
from search.study.opening import load_or_recover


def auto_folder(out: Path | None, overrides: Sequence[str]) -> Path:
    """Return the folder of the study: ``out``, or its name under ``runs/``."""
    if out is not None:
        return out
    name = apply_overrides({"name": AUTO}, overrides)["name"]
    return default_folder(str(name), "--set name")


def load_or_plan(
    folder: Path,
    storage: str | None,
    overrides: Sequence[str],
    make_plan: Callable[[], Planned],
    on_line: Callable[[str], None],
) -> StudySpec:
    """Return the stored spec of a study, with overrides, or the one of a new plan.

    A study keeps its plan, which the finished trials were run with.

    Args:
        folder: of the study.
        storage: as in ``load_study``.
        overrides: texts such as ``budget.total_hours=2``.
        make_plan: makes the plan of a new study.
        on_line: called with each line about the plan.

    Raises:
        InputError: the folder holds a study without ``budget.total_hours``, or as ``make_plan``.
    """
    if not is_study(folder):
        planned = make_plan()
        for line in planned.summary():
            on_line(line)
        plain = planned.plan.spec.model_dump(mode="json", exclude_unset=True)
        return parse_spec(apply_overrides(plain, overrides), "the plan")
    study, _ = load_or_recover(folder, storage)
    stored = study.user_attrs[StudyAttr.SPEC]
    if stored["budget"].get("total_hours") is None:
        raise InputError(
            f"{folder}: holds a study that was not planned; resume it with its own file, or give "
            f"another --out"
        )
    on_line(f"the study in {folder} keeps its plan")
    return parse_spec(apply_overrides(stored, overrides), f"{folder}")
