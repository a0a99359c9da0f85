"""A study's note and figures for the dashboard, and missing notes of its trials.

The dashboard and the end of a run call ``refresh``. Notes that a person has edited are not
overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from search.monitoring import notes
from search.monitoring.notes import escape_markdown, markdown_table
from search.spec.formatting import format_step
from search.storage import training_time, trial_records
from search.storage.leases import TrialLeases
from search.storage.note_attrs import find_trials_without_note, note_attrs, split_text, version_key
from search.storage.optuna_internals import storage_of, study_id
from search.storage.trial_records import StudyAttr, TrialAttr

#: System attribute with the version of the study's note that this module wrote last.
WRITTEN_VERSION = "lesionsearch:note_ver"
#: Rows of the leaderboard.
LEADERBOARD_ROWS = 10
#: Trials whose notes are written in one transaction; longer ones would block workers.
NOTES_PER_TRANSACTION = 200
#: Prefix of the attributes in which optuna-dashboard stores a figure; its id follows.
_FIGURE_PREFIX = "dashboard:plot_data:"


def refresh(study: optuna.Study, trials: Sequence[FrozenTrial] | None = None) -> None:
    """Write the study's note and figures, and a note for each finished trial without one.

    trials: all trials of the study, if the caller has read them.
    """
    leases = TrialLeases(study)
    trials = trial_records.all_trials(study) if trials is None else trials
    existing = storage_of(study).get_study_system_attrs(study_id(study))
    without_note = find_trials_without_note(existing, trials)
    for start in range(0, len(without_note), NOTES_PER_TRANSACTION):
        attrs: dict[str, Any] = {}
        for trial in without_note[start : start + NOTES_PER_TRANSACTION]:
            attrs |= notes.trial_note_attrs(trial)
        leases.set_study_system_attrs(attrs)
    leases.set_study_system_attrs(
        {**_note_attrs(study, trials, existing), **_figure_attrs(trials, existing)}
    )


def format_study_note(study: optuna.Study, trials: Sequence[FrozenTrial]) -> str:
    """Return the study's note: states, leaderboard, reasons, data and budget."""
    attrs, ranking = study.user_attrs, trial_records.rank_trials(trials)
    spec = attrs[StudyAttr.SPEC]
    parts = [f"# {escape_markdown(study.study_name)}", _summary(spec, trials)]
    if ranking:
        rows = [_leaderboard_row(rank, t) for rank, t in enumerate(ranking[:LEADERBOARD_ROWS], 1)]
        header = ("", "trial", "Dice", "model", "loss", "parameters", "training")
        parts += ["## Leaderboard", markdown_table(header, rows)]
        parts.append(
            "Dice is the mean over validation images. The best of many trials is biased upwards; "
            "only the test images give an unbiased estimate."
        )
    reasons = trial_records.count_reasons(trials)
    if reasons:
        parts += ["## Reasons", markdown_table(("reason", "trials"), list(reasons.items()))]
    parts += ["## Data", markdown_table(("", ""), _data_rows(spec, attrs))]
    budget = _budget_rows(spec["budget"], trials)
    parts += ["## Budget", markdown_table(("", "limit", "spent"), budget)]
    return "\n\n".join(parts) + "\n"


def _summary(spec: Mapping[str, Any], trials: Sequence[FrozenTrial]) -> str:
    counts = trial_records.count_by_state(trials)
    text = ", ".join(f"{n} {state}" for state, n in counts.items() if n) or "no trials yet"
    sampler, pruner = spec["sampler"]["name"], spec["pruner"]["name"]
    return f"{escape_markdown(text)}; sampler {sampler}, pruner {pruner}."


def _leaderboard_row(rank: int, trial: FrozenTrial) -> notes.TableRow:
    attrs = trial.user_attrs
    params = f"{attrs['params'] / 1e6:.2f} M" if "params" in attrs else ""
    seconds = f"{attrs['seconds']:.0f} s" if "seconds" in attrs else ""
    model, loss = _searched_pick(trial, "model"), _searched_pick(trial, "loss")
    return (rank, trial.number, f"{trial.value:.4f}", model, loss, params, seconds)


def _searched_pick(trial: FrozenTrial, family: str) -> str:
    """Return a family's option with its searched parameters; the others are equal in all trials."""
    config = trial.user_attrs.get(TrialAttr.CONFIG) or {}
    name = next(iter(config.get(family, {})), "")
    prefix = f"{family}.{name}."
    params = {k.removeprefix(prefix): v for k, v in trial.params.items() if k.startswith(prefix)}
    return format_step({name: params})


def _data_rows(spec: Mapping[str, Any], attrs: Mapping[str, Any]) -> list[notes.TableRow]:
    counts = [
        (f"{part} images", len(names))
        for part, names in attrs.get("split", {}).items()
        if isinstance(names, list | tuple)
    ]
    size = spec["data"]["image_size"]
    return [*counts, ("image size", f"{size} px"), ("fingerprint", attrs.get("data", ""))]


def _budget_rows(budget: Mapping[str, Any], trials: Sequence[FrozenTrial]) -> list[notes.TableRow]:
    spent: dict[str, object] = {
        "trials": trial_records.count_finished(trials),
        "hours": f"{training_time.hours_spent(trials):.2f}",
        "gpu_hours": f"{training_time.gpu_hours_spent(trials):.2f}",
        "epochs": "",
    }
    return [
        (key.replace("_", " "), budget[key], value)
        for key, value in spent.items()
        if budget.get(key) is not None
    ]


def _note_attrs(
    study: optuna.Study, trials: Sequence[FrozenTrial], existing: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the attributes of the study's note; none where a person has edited it."""
    version = int(existing.get(version_key(None), 0))
    if version != int(existing.get(WRITTEN_VERSION, 0)):
        return {}
    attrs = note_attrs(None, format_study_note(study, trials), version + 1, existing)
    return {**attrs, WRITTEN_VERSION: version + 1}


def _figure_attrs(trials: Sequence[FrozenTrial], existing: Mapping[str, Any]) -> dict[str, str]:
    from search.monitoring.dashboard.plots import make_figures  # plotly is slow to import

    attrs: dict[str, str] = {}
    for name, figure in make_figures(trials).items():
        attrs |= split_text(f"{_FIGURE_PREFIX}{name}:", figure.to_json(), existing)
    return attrs
