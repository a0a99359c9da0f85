"""Notes of trials for optuna-dashboard, as Markdown.

A note is a function of the trial's record. Text from files, libraries or people is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from lesionseg.config import DEFAULT_COMPONENTS
from search.spec.formatting import format_step
from search.storage import trial_records
from search.storage.note_attrs import note_attrs
from search.storage.optuna_internals import trial_id
from search.storage.trial_records import TrialAttr

#: Last lines of a traceback that the note of a failed trial contains.
TRACE_LINES = 8

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")

TableRow = Sequence[object]


def escape_markdown(value: object) -> str:
    """Return a value as one line that Markdown shows literally: links, HTML and tables included."""
    return _PUNCTUATION.sub(r"\\\1", " ".join(str(value).split()))


def markdown_table(header: TableRow, rows: Iterable[TableRow]) -> str:
    """Return a Markdown table with escaped cells."""
    lines = [tuple(map(escape_markdown, header)), ("---",) * len(header)]
    lines += [tuple(map(escape_markdown, row)) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
    if cost_rows := list(_cost_rows(attrs)):
        parts.append(markdown_table(("cost", ""), cost_rows))
    if attrs.get("trace"):
        trace = attrs["trace"].splitlines()[-TRACE_LINES:]
        parts.append("\n".join(f"    {line.rstrip()}" for line in trace))
    return "\n\n".join(parts) + "\n"


def _format_number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


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
    components = [
        (family, format_step(config[family])) for family in DEFAULT_COMPONENTS if family in config
    ]
    settings = [
        f"{key.replace('_', ' ')} {_format_number(value)}"
        for key, value in config.items()
        if key not in DEFAULT_COMPONENTS
    ]
    return [*components, ("settings", ", ".join(settings))]


def _cost_rows(attrs: Mapping[str, Any]) -> Iterator[TableRow]:
    for name, key, format_value in (
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
    ):
        if attrs.get(key) is not None:
            yield name, format_value(attrs[key])
