"""What a study itself carries for a dashboard: its note, its figures, and notes that are missing.

Written by the dashboard and at the end of a run, not by workers: it is about all trials at once.
A note that a person has changed since is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from search.monitoring import notes
from search.storage import trial_records
from search.storage.leases import TrialLeases
from search.storage.optuna_internals import storage_of, study_id

#: The study's system attribute that holds the version of its note as it was written here.
WRITTEN = "lesionsearch:note_ver"
#: Rows of the note's leaderboard.
LEADERS = 10
#: Trials whose missing notes are written in one transaction: others want to write too.
AT_ONCE = 200
#: How optuna-dashboard keeps figures: the figure's id and the part's place follow.
_FIGURE, _PART = "dashboard:plot_data:", 2045


def is_ours(study: optuna.Study) -> bool:
    """Whether it was made by lesionsearch."""
    return "spec" in study.user_attrs


def refresh(study: optuna.Study, known: Sequence[FrozenTrial] | None = None) -> None:
    """Writes the study's note and figures as they are now, and notes that trials lack.

    known: its trials, where they are at hand.
    """
    leases = TrialLeases(study)
    known = trial_records.all_trials(study) if known is None else known
    told = storage_of(study).get_study_system_attrs(study_id(study))
    lacking = find_trials_without_note(told, known)
    for at in range(0, len(lacking), AT_ONCE):
        texts = [notes.trial_note_attrs(t) for t in lacking[at : at + AT_ONCE]]
        leases.set_study_system_attrs({key: value for text in texts for key, value in text.items()})
    leases.set_study_system_attrs({**_note(study, known, told), **_figures(known, told)})


def of_study(study: optuna.Study, known: Sequence[FrozenTrial]) -> str:
    """The study's note: data, budget, how trials ended, the best ones."""
    attrs, ranking = study.user_attrs, trial_records.rank_trials(known)
    spec = attrs["spec"]
    parts = [f"# {notes.escape_markdown(study.study_name)}", _standing(spec, known)]
    if ranking:
        rows = [_leader(place, t) for place, t in enumerate(ranking[:LEADERS], 1)]
        head = ("", "trial", "Dice", "model", "loss", "parameters", "training")
        parts += ["## Leaderboard", notes.markdown_table(head, rows)]
        parts.append(
            "Dice is the mean over validation images; the best of many trials is a little lucky, "
            "so that only the test images say how good a model is."
        )
    reasons = trial_records.count_reasons(known)
    if reasons:
        parts += ["## Reasons", notes.markdown_table(("reason", "trials"), list(reasons.items()))]
    parts += ["## Data", notes.markdown_table(("", ""), _data(spec, attrs))]
    parts += ["## Budget", notes.markdown_table(("", "limit", "spent"), _budget(spec["budget"], known))]
    return "\n\n".join(parts) + "\n"


def _standing(spec: Mapping[str, Any], known: Sequence[FrozenTrial]) -> str:
    counted = ", ".join(
        f"{n} {state}" for state, n in trial_records.count_by_state(known).items() if n
    )
    sampler, pruner = spec["sampler"]["name"], spec["pruner"]["name"]
    return f"{notes.escape_markdown(counted or 'no trial yet')}; sampler {sampler}, pruner {pruner}."


def _leader(place: int, trial: FrozenTrial) -> notes.TableRow:
    attrs = trial.user_attrs
    picks = [_drawn(trial, family) for family in ("model", "loss")]
    params = f"{attrs['params'] / 1e6:.2f} M" if "params" in attrs else ""
    seconds = f"{attrs['seconds']:.0f} s" if "seconds" in attrs else ""
    return (place, trial.number, f"{trial.value:.4f}", *picks, params, seconds)


def _drawn(trial: FrozenTrial, family: str) -> str:
    """A pick with those of its parameters that were searched: the others are all alike."""
    config = trial.user_attrs.get("config") or {}
    name = next(iter(config.get(family, {})), "")
    start = f"{family}.{name}."
    found = {k.removeprefix(start): v for k, v in trial.params.items() if k.startswith(start)}
    return notes.format_pick({name: found})


def _data(spec: Mapping[str, Any], attrs: Mapping[str, Any]) -> list[notes.TableRow]:
    split = attrs.get("split", {})
    counts = [(f"{part} images", len(names)) for part, names in split.items() if _is_list(names)]
    size = spec["data"]["image_size"]
    return [*counts, ("image size", f"{size} px"), ("fingerprint", attrs.get("data", ""))]


def _is_list(names: object) -> bool:
    return isinstance(names, list | tuple)


def _budget(budget: Mapping[str, Any], known: Sequence[FrozenTrial]) -> list[notes.TableRow]:
    spent: dict[str, object] = {
        "trials": trial_records.count_finished(known),
        "hours": f"{trial_records.hours_spent(known):.2f}",
        "gpu_hours": f"{trial_records.gpu_hours_spent(known):.2f}",
    }
    limits = {key: budget.get(key) for key in (*spent, "epochs")}
    return [
        (key.replace("_", " "), limit, spent.get(key, ""))
        for key, limit in limits.items()
        if limit is not None
    ]


def _note(
    study: optuna.Study, known: Sequence[FrozenTrial], told: Mapping[str, Any]
) -> dict[str, Any]:
    version = int(told.get(version_key(None), 0))
    if version != int(told.get(WRITTEN, 0)):
        return {}
    attrs = note_attrs(None, of_study(study, known), version + 1)
    return {**_blank(told, "dashboard:note_str:"), **attrs, WRITTEN: version + 1}


def _figures(known: Sequence[FrozenTrial], told: Mapping[str, Any]) -> dict[str, Any]:
    from search.monitoring.dashboard.plots import figures  # plotly waits until it is needed

    attrs: dict[str, Any] = {}
    for name, figure in figures(known).items():
        prefix, text = f"{_FIGURE}{name}:", figure.to_json()
        parts = [text[at : at + _PART] for at in range(0, len(text), _PART)]
        attrs |= _blank(told, prefix)
        attrs |= {f"{prefix}{place}": part for place, part in enumerate(parts)}
    return attrs


def _blank(told: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """What was there before and is not written over, made empty: all parts are put together."""
    return {key: "" for key in told if key.startswith(prefix)}
