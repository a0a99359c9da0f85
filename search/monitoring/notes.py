"""Notes of studies and trials for optuna-dashboard, as Markdown, and figures of studies.

A trial's note is a function of the trial's record. Text from files, libraries or people is
escaped. The dashboard and the end of a run call ``refresh``, which does not overwrite notes that
a person has edited.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from lesionseg.config import DEFAULT_COMPONENTS
from lesionseg.data.pairs import SPLITS
from search.spec.formatting import format_component, format_encoder_weights, format_step
from search.storage import training_time, trial_records
from search.storage.leases import TrialLeases
from search.storage.note_attrs import find_trials_without_note, note_attrs, split_text, version_key
from search.storage.optuna_internals import storage_of, study_id, trial_id
from search.storage.trial_records import StudyAttr, TrialAttr

#: Last lines of a traceback that the note of a failed trial contains.
TRACE_LINES = 8
#: System attribute with the version of the study's note that this module wrote last.
WRITTEN_VERSION = "lesionsearch:note_ver"
#: Rows of the leaderboard.
LEADERBOARD_ROWS = 10
#: Trials whose notes are written in one transaction; longer ones would block workers.
NOTES_PER_TRANSACTION = 200
#: Prefix of the attributes in which optuna-dashboard stores a figure; its id follows.
_FIGURE_PREFIX = "dashboard:plot_data:"

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
#: Rows of a trial's table of costs: title, attribute, format.
_COSTS = (
    ("parameters", "params", lambda v: f"{v / 1e6:.2f} million"),
    ("multiply-adds per image", "macs", lambda v: f"{v / 1e9:.2f} billion"),
    ("epochs", "epochs", str),
    ("training", "seconds", lambda v: f"{v:.0f} s"),
    ("peak memory", "peak_memory", lambda v: f"{v / 1e9:.2f} GB"),
    ("accumulation steps per batch", "accumulation_factor", str),
    ("trained on", TrialAttr.OWNER, lambda v: f"{v.get('device')} of {v.get('host')}"),
    ("baseline", TrialAttr.BASELINE, str),
    ("requeued from", TrialAttr.REQUEUED_FROM, str),
    ("requeued as", TrialAttr.REQUEUED_AS, str),
    ("repeat of", TrialAttr.REPEAT_OF, str),
    ("duplicate of", TrialAttr.DUPLICATE_OF, str),
)

TableRow = Sequence[object]


def escape_markdown(value: object) -> str:
    """Return a value as one line that Markdown shows literally: links, HTML and tables included."""
    return _PUNCTUATION.sub(r"\\\1", " ".join(str(value).split()))


def markdown_table(header: TableRow, rows: Iterable[TableRow]) -> str:
    """Return a Markdown table with escaped cells."""
    lines = [tuple(map(escape_markdown, header)), ("---",) * len(header)]
    lines += [tuple(map(escape_markdown, row)) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
            attrs |= trial_note_attrs(trial)
        leases.set_study_system_attrs(attrs)
    attrs = figure_attrs(trials, existing)
    version = int(existing.get(version_key(None), 0))
    if version == int(existing.get(WRITTEN_VERSION, 0)):  # no person has edited it
        attrs |= note_attrs(None, format_study_note(study, trials), version + 1, existing)
        attrs[WRITTEN_VERSION] = version + 1
    leases.set_study_system_attrs(attrs)


def figure_attrs(trials: Sequence[FrozenTrial], existing: Iterable[str]) -> dict[str, Any]:
    """Return a study's figures as system attributes; see ``split_text`` for ``existing``."""
    from search.monitoring.dashboard.plots import make_figures  # plotly is slow to import

    attrs: dict[str, Any] = {}
    for name, figure in make_figures(trials).items():
        attrs |= split_text(f"{_FIGURE_PREFIX}{name}:", figure.to_json(), existing)
    return attrs


def trial_note_attrs(trial: FrozenTrial) -> dict[str, Any]:
    """Return the note of a finished trial as system attributes of its study."""
    return note_attrs(trial_id(trial), format_trial_note(trial))


def format_trial_note(trial: FrozenTrial) -> str:
    """Return a trial's note: outcome, metrics, configuration, cost and error."""
    attrs = trial.user_attrs
    parts = [_headline(trial)]
    if attrs.get(TrialAttr.MESSAGE):
        parts.append(f"> {escape_markdown(attrs[TrialAttr.MESSAGE])}")
    if "val" in attrs:
        parts += _validation_tables(trial)
    if TrialAttr.CONFIG in attrs:
        rows = _configuration_rows(attrs[TrialAttr.CONFIG])
        parts.append(markdown_table(("configuration", ""), rows))
    costs = [(title, text(attrs[key])) for title, key, text in _COSTS if attrs.get(key) is not None]
    if costs:
        parts.append(markdown_table(("cost", ""), costs))
    if attrs.get("trace"):
        trace = attrs["trace"].splitlines()[-TRACE_LINES:]
        parts.append("\n".join(f"    {line.rstrip()}" for line in trace))
    return "\n\n".join(parts) + "\n"


def format_study_note(study: optuna.Study, trials: Sequence[FrozenTrial]) -> str:
    """Return the study's note: states, leaderboard, reasons, data and budget."""
    attrs, ranking = study.user_attrs, trial_records.rank_trials(trials)
    spec = attrs[StudyAttr.SPEC]
    counts = trial_records.count_by_state(trials)
    states = ", ".join(f"{n} {state}" for state, n in counts.items() if n) or "no trials yet"
    parts = [
        f"# {escape_markdown(study.study_name)}",
        f"{states}; sampler {spec['sampler']['name']}, pruner {spec['pruner']['name']}.",
    ]
    if ranking:
        rows = [_leaderboard_row(rank, t) for rank, t in enumerate(ranking[:LEADERBOARD_ROWS], 1)]
        header = ("", "trial", "Dice", "model", "loss", "parameters", "training")
        parts += ["## Leaderboard", markdown_table(header, rows)]
        parts.append(
            "Dice is the mean over validation images. The best of many trials is biased upwards; "
            "only the test images give an unbiased estimate."
        )
    if reasons := trial_records.count_reasons(trials):
        parts += ["## Reasons", markdown_table(("reason", "trials"), list(reasons.items()))]
    split = attrs.get(StudyAttr.SPLIT, {})
    data_rows: list[TableRow] = [
        *((f"{part} images", len(split[part])) for part in SPLITS if part in split),
        ("image size", f"{spec['data']['image_size']} px"),
        ("encoder weights", format_encoder_weights(spec.get("encoder_weights") or {})),
        ("fingerprint", attrs.get(StudyAttr.DATA, "")),
    ]
    parts += ["## Data", markdown_table(("", ""), [row for row in data_rows if row[1] != ""])]
    spent: dict[str, object] = {
        "trials": trial_records.count_finished(trials),
        "hours": f"{training_time.hours_spent(trials):.2f}",
        "gpu_hours": f"{training_time.gpu_hours_spent(trials):.2f}",
        "epochs": "",
    }
    limits = {key: limit for key, limit in spec["budget"].items() if limit is not None}
    budget = [(key.replace("_", " "), limits[key], spent[key]) for key in spent if key in limits]
    parts += ["## Budget", markdown_table(("", "limit", "spent"), budget)]
    return "\n\n".join(parts) + "\n"


def _headline(trial: FrozenTrial) -> str:
    state, reason = trial_records.describe_state(trial), trial_records.reason_of(trial)
    line = f"**{state}**"
    if reason and reason not in state:
        line += f": {escape_markdown(reason)}"
    if trial.value is not None:
        return f"{line}, validation Dice **{trial.value:.4f}**"
    if trial.last_step is None:
        return line
    last = trial.intermediate_values[trial.last_step]
    if trial.last_step not in trial_records.dice_by_epoch(trial):
        return f"{line}, mean validation Dice {last:.4f} of the finished folds"
    return f"{line}, validation Dice {last:.4f} in its last epoch ({trial.last_step})"


def _validation_tables(trial: FrozenTrial) -> Iterator[str]:
    attrs, folds = trial.user_attrs, trial_records.folds_of(trial)
    source = f"mean of {len(folds['dice'])} folds" if folds else f"epoch {attrs.get('best_epoch')}"
    metrics = [(name.replace("_", " "), f"{value:.4f}") for name, value in attrs["val"].items()]
    yield markdown_table((f"validation, {source}", ""), metrics)
    if folds:
        pairs = zip(folds["dice"], folds["best_epochs"], strict=True)
        rows = [(fold, f"{dice:.4f}", epoch) for fold, (dice, epoch) in enumerate(pairs, 1)]
        yield markdown_table(("fold", "Dice", "best epoch"), rows)


def _configuration_rows(config: Mapping[str, Any]) -> list[TableRow]:
    settings = ", ".join(
        f"{key.replace('_', ' ')} {f'{value:.3g}' if isinstance(value, float) else value}"
        for key, value in config.items()
        if key not in DEFAULT_COMPONENTS
    )
    components = [(key, format_step(config[key])) for key in DEFAULT_COMPONENTS if key in config]
    return [*components, ("settings", settings)]


def _leaderboard_row(rank: int, trial: FrozenTrial) -> TableRow:
    attrs = trial.user_attrs
    params = f"{attrs['params'] / 1e6:.2f} M" if "params" in attrs else ""
    seconds = f"{attrs['seconds']:.0f} s" if "seconds" in attrs else ""
    config = attrs.get(TrialAttr.CONFIG)
    model, loss = (format_component(f, config[f]) if config else "" for f in ("model", "loss"))
    return (rank, trial.number, f"{trial.value:.4f}", model, loss, params, seconds)
