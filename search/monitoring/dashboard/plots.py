"""A study's own figures for the dashboard: what a search cost and what that bought."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import plotly.graph_objects as go
from optuna.trial import FrozenTrial

from search.storage import trial_records

#: Of the Okabe-Ito palette, told apart by colour-blind people.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#5b6570")
GREY = "#9aa4ad"
#: Points and curves drawn at most: more are neither seen nor light.
MOST_POINTS, MOST_CURVES = 2000, 100

Points = dict[str, list[tuple[float, float, int]]]


def figures(known: Sequence[FrozenTrial]) -> dict[str, go.Figure]:
    """Each figure by the id that it is kept under; those that would be empty are left out."""
    drawn = {
        "lesionsearch-dice-seconds": _against(
            known, "Validation Dice against seconds of training", "seconds of training",
            lambda t: t.user_attrs.get("seconds"),
        ),
        "lesionsearch-dice-parameters": _against(
            known, "Validation Dice against parameters", "million parameters",
            lambda t: t.user_attrs.get("params", math.nan) / 1e6,
        ),
        "lesionsearch-pruned": _curves(known),
        "lesionsearch-cost": _cost(known),
    }  # fmt: skip
    return {name: figure for name, figure in drawn.items() if figure.data}


def front(points: Sequence[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """Those that no other point beats, (cost, gain, number): cheapest first, each gains more."""
    best, kept = -math.inf, []
    for point in sorted(points, key=lambda p: (p[0], -p[1], p[2])):
        if point[1] > best:
            best = point[1]
            kept.append(point)
    return kept


def model_of(trial: FrozenTrial) -> str:
    """Its architecture's name."""
    config = trial.user_attrs.get("config") or {}
    return str(next(iter(config.get("model", {"unknown": None}))))


def _against(
    known: Sequence[FrozenTrial], title: str, x: str, cost: Callable[[FrozenTrial], float | None]
) -> go.Figure:
    """Complete trials by architecture, and the Pareto front of them all."""
    by_model: Points = defaultdict(list)
    for trial in trial_records.rank_trials(known)[:MOST_POINTS]:
        spent = cost(trial)
        if spent is not None and math.isfinite(spent) and trial.value is not None:
            by_model[model_of(trial)].append((spent, trial.value, trial.number))
    figure = _figure(title, x, "validation Dice")
    for i, (model, points) in enumerate(sorted(by_model.items())):
        figure.add_scatter(
            x=_rounded(p[0] for p in points),
            y=_rounded(p[1] for p in points),
            text=[f"trial {p[2]}" for p in points],
            mode="markers", name=model, marker={"color": COLOURS[i % len(COLOURS)], "size": 7},
            hovertemplate=f"%{{text}}: Dice %{{y:.4f}}, %{{x:.3g}} {x}",
        )  # fmt: skip
    best = front([p for points in by_model.values() for p in points])
    if len(best) > 1:
        figure.add_scatter(
            x=_rounded(p[0] for p in best),
            y=_rounded(p[1] for p in best),
            mode="lines", name="Pareto front", hoverinfo="skip",
            line={"color": GREY, "shape": "hv", "dash": "dot"},
        )  # fmt: skip
    if by_model:
        figure.update_xaxes(type="log")
    return figure


def _curves(known: Sequence[FrozenTrial]) -> go.Figure:
    """Validation Dice by epoch of pruned trials, beside the best complete one's."""
    pruned = [t for t in known if trial_records.state_of(t) == "pruned" and t.intermediate_values]
    figure = _figure("Pruned trials beside the best", "epoch", "validation Dice")
    if not pruned:
        return figure
    step = math.ceil(len(pruned) / MOST_CURVES)
    x: list[float | None] = []
    y: list[float | None] = []
    for trial in pruned[::step]:
        curve = trial_records.dice_by_epoch(trial)
        x += [*curve, None]
        y += [*_rounded(curve.values()), None]
    figure.add_scatter(
        x=x, y=y, mode="lines+markers", name=f"{len(pruned[::step])} of {len(pruned)} pruned",
        line={"color": GREY, "width": 1}, marker={"size": 3}, opacity=0.6,
    )  # fmt: skip
    for best in trial_records.rank_trials(known)[:1]:
        curve = trial_records.dice_by_epoch(best)
        figure.add_scatter(
            x=list(curve), y=_rounded(curve.values()),
            mode="lines+markers", name=f"trial {best.number}, the best",
            line={"color": COLOURS[0], "width": 2.5},
        )  # fmt: skip
    return figure


def _cost(known: Sequence[FrozenTrial]) -> go.Figure:
    """Minutes that trials took by the clock, by architecture and by how they ended."""
    spent: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for trial in known:
        if trial.state.is_finished() and trial.datetime_start is not None:
            minutes = trial_records.hours_spent([trial]) * 60
            spent[trial_records.state_of(trial)][model_of(trial)] += minutes
    figure = _figure("What the search spent, by architecture", "", "minutes")
    models = sorted({m for by_model in spent.values() for m in by_model}, key=_total(spent))
    colours = {"complete": COLOURS[0], "pruned": GREY, "failed": COLOURS[3], "skipped": COLOURS[1]}
    for state, by_model in sorted(spent.items()):
        figure.add_bar(
            x=models, y=_rounded(by_model.get(m, 0.0) for m in models), name=state,
            marker={"color": colours.get(state, GREY)},
        )  # fmt: skip
    figure.update_layout(barmode="stack")
    return figure


def _total(spent: Mapping[str, Mapping[str, float]]) -> Callable[[str], float]:
    return lambda model: -sum(by_model.get(model, 0.0) for by_model in spent.values())


def _figure(title: str, x: str, y: str) -> go.Figure:
    figure = go.Figure()
    # Plotly's own template is as long as the figure, and the dashboard has its own.
    figure.update_layout(template=None, title=title, hovermode="closest", showlegend=True)
    figure.update_xaxes(title=x, showgrid=False)
    figure.update_yaxes(title=y, gridcolor="#d9dee3")
    return figure


def _rounded(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
