"""Figures of a study for the dashboard: cost of the search and its results."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import plotly.graph_objects as go
from optuna.trial import FrozenTrial

from search.storage import training_time, trial_records
from search.storage.trial_records import State, TrialAttr

#: Colours of the Okabe-Ito palette, which colour-blind people can distinguish.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#5b6570")
GREY = "#9aa4ad"
STATE_COLOURS = {
    State.COMPLETE: COLOURS[0],
    State.PRUNED: GREY,
    State.FAILED: COLOURS[3],
    State.CLOSED: COLOURS[1],
}
#: Largest number of points and curves in a figure; more would not be readable.
MAX_POINTS, MAX_CURVES = 2000, 100

#: Cost, Dice and number of a trial.
Point = tuple[float, float, int]


def make_figures(trials: Sequence[FrozenTrial]) -> dict[str, go.Figure]:
    """Return the figures that are not empty, by id."""
    figures = {
        "lesionsearch-dice-seconds": _dice_against(trials, "seconds", 1, "seconds of training"),
        "lesionsearch-dice-parameters": _dice_against(
            trials, "params", 1e6, "parameters (millions)"
        ),
        "lesionsearch-pruned": _pruned_curves(trials),
        "lesionsearch-cost": _cost_by_model(trials),
    }
    return {name: figure for name, figure in figures.items() if figure.data}


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """Return the points that no other point dominates, by rising cost and Dice."""
    best_dice, front = -math.inf, []
    for cost, dice, number in sorted(points, key=lambda point: (point[0], -point[1])):
        if dice > best_dice:
            best_dice = dice
            front.append((cost, dice, number))
    return front


def model_name(trial: FrozenTrial) -> str:
    """Return the name of a trial's architecture."""
    config = trial.user_attrs.get(TrialAttr.CONFIG) or {}
    return str(next(iter(config.get("model", {"unknown": None}))))


def _dice_against(trials: Sequence[FrozenTrial], attr: str, unit: float, title: str) -> go.Figure:
    """Draw the complete trials by architecture against an attribute, and their Pareto front."""
    by_model: dict[str, list[Point]] = defaultdict(list)
    for trial in trial_records.rank_trials(trials)[:MAX_POINTS]:
        cost = trial.user_attrs.get(attr, math.nan) / unit
        if math.isfinite(cost) and trial.value is not None:
            by_model[model_name(trial)].append((cost, trial.value, trial.number))
    figure = _empty_figure(f"Validation Dice against {title}", title, "validation Dice")
    for i, (model, points) in enumerate(sorted(by_model.items())):
        figure.add_scatter(
            x=_round(x for x, _, _ in points), y=_round(y for _, y, _ in points),
            text=[f"trial {number}" for _, _, number in points],
            mode="markers", name=model, marker={"color": COLOURS[i % len(COLOURS)], "size": 7},
            hovertemplate=f"%{{text}}: Dice %{{y:.4f}}, {title} %{{x:.3g}}",
        )  # fmt: skip
    front = pareto_front(p for points in by_model.values() for p in points)
    if len(front) > 1:
        figure.add_scatter(
            x=_round(x for x, _, _ in front), y=_round(y for _, y, _ in front),
            mode="lines", name="Pareto front", hoverinfo="skip",
            line={"color": GREY, "shape": "hv", "dash": "dot"},
        )  # fmt: skip
    return figure.update_xaxes(type="log" if by_model else None)


def _pruned_curves(trials: Sequence[FrozenTrial]) -> go.Figure:
    """Draw the validation Dice by epoch of pruned trials and of the best one."""
    pruned = [
        t for t in trials if trial_records.state_of(t) == State.PRUNED and t.intermediate_values
    ]
    figure = _empty_figure("Pruned trials and the best trial", "epoch", "validation Dice")
    if not pruned:
        return figure
    shown = pruned[:: math.ceil(len(pruned) / MAX_CURVES)]
    # One line with gaps is much faster than many lines.
    x: list[float | None] = []
    y: list[float | None] = []
    for curve in map(trial_records.dice_by_epoch, shown):
        x += [*curve, None]
        y += [*_round(curve.values()), None]
    figure.add_scatter(
        x=x, y=y, mode="lines+markers", name=f"{len(shown)} of {len(pruned)} pruned trials",
        line={"color": GREY, "width": 1}, marker={"size": 3}, opacity=0.6,
    )  # fmt: skip
    for best in trial_records.rank_trials(trials)[:1]:
        curve = trial_records.dice_by_epoch(best)
        figure.add_scatter(
            x=list(curve), y=_round(curve.values()), mode="lines+markers",
            name=f"trial {best.number} (best)", line={"color": COLOURS[0], "width": 2.5},
        )  # fmt: skip
    return figure


def _cost_by_model(trials: Sequence[FrozenTrial]) -> go.Figure:
    """Draw the minutes that trials took, by architecture and final state."""
    minutes: dict[tuple[State, str], float] = defaultdict(float)
    totals: dict[str, float] = defaultdict(float)
    for trial in trials:
        if trial.state.is_finished() and trial.datetime_start is not None:
            model, spent = model_name(trial), training_time.hours_spent([trial]) * 60
            minutes[trial_records.state_of(trial), model] += spent
            totals[model] += spent
    figure = _empty_figure("Cost of the search by architecture", "", "minutes")
    models = sorted(totals, key=lambda model: -totals[model])
    for state in sorted({state for state, _ in minutes}):
        figure.add_bar(
            x=models, y=_round(minutes[state, model] for model in models), name=str(state),
            marker={"color": STATE_COLOURS.get(state, GREY)},
        )  # fmt: skip
    return figure.update_layout(barmode="stack")


def _empty_figure(title: str, x: str, y: str) -> go.Figure:
    figure = go.Figure()
    # Plotly's template is as large as a figure, and the dashboard applies its own.
    figure.update_layout(template=None, title=title, hovermode="closest", showlegend=True)
    figure.update_xaxes(title=x, showgrid=False)
    figure.update_yaxes(title=y, gridcolor="#d9dee3")
    return figure


def _round(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
