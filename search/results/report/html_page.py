"""report.html: the facts as one page that needs nothing beside itself.

Names and messages come from files and from libraries, so the templates escape them all.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from optuna.trial import FrozenTrial
from PIL import Image

from lesionseg.config import DEFAULTS
from search.results import charts
from search.results.formatting import FILTERS, interval, params

#: The longest side of an overlay within the page, in pixels.
OVERLAY_SIDE = 480


def html(facts: Mapping[str, Any], known: Sequence[FrozenTrial], folder: Path) -> str:
    """The page. known: the trials that the facts were made of. folder: where final/ is."""
    page = environment(autoescape=True)
    return page.get_template("report.html.j2").render(
        view(facts)
        | {
            "charts": _search_charts(facts, known) | _test_charts(facts["test"]),
            "overlays": _pictures(facts["test"].get("overlays", []), folder / "final" / "overlays"),
        }
    )


def environment(*, autoescape: bool) -> Environment:
    """Where both of the report's templates are rendered."""
    made = Environment(
        loader=PackageLoader("search.results"),
        autoescape=autoescape,  # noqa: S701
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= FILTERS
    made.globals |= {"interval": interval, "params": params}
    return made


def view(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts under the names that templates use."""
    winner = facts["winner"]
    alike = _alike(facts["search"]["leaders"])
    return {
        "facts": facts,
        "study": facts["study"],
        "search": facts["search"],
        "test": facts["test"],
        "final": facts["test"]["metrics"],
        "winner": winner and winner["trial"],
        "spec": facts["repeat"]["spec"],
        "families": [f for f in DEFAULTS if f not in alike],
        "alike": alike,
        "config_yaml": winner and _yaml(winner["config"]),
        "spec_yaml": _yaml(facts["repeat"]["spec"]),
    }


def _alike(leaders: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Families that say nothing of the leaders, being the same for all: each with its option."""
    found: dict[str, str] = {}
    if len(leaders) < 2:
        return found
    for family in DEFAULTS:
        told = [
            (name, params(family, name, given))
            for row in leaders
            for name, given in row["picks"][family].items()
        ]
        if len(set(told)) == 1 and not told[0][1]:
            found[family] = told[0][0]
    return found


def _search_charts(
    facts: Mapping[str, Any], known: Sequence[FrozenTrial]
) -> dict[str, Markup | None]:
    search = facts["search"]
    winner = facts["winner"] and facts["winner"]["trial"]
    shown = search["shown"]
    return {
        "history": charts.history_chart(known, winner),
        "curves": charts.curves_chart(known, winner),
        "importance": charts.importance_chart(search["importances"])
        if search["importances"]
        else None,
        "slices": charts.slices_chart(search["trials"], shown, winner) if shown else None,
        "parallel": charts.parallel_chart(search["trials"], shown, winner)
        if shown and search["complete"] > 1
        else None,
    }


def _test_charts(test: Mapping[str, Any]) -> dict[str, Markup | None]:
    """Those whose numbers there are; None for the others."""
    made: dict[str, Markup | None] = dict.fromkeys(
        ("confusion", "spread", "size", "recall", "calibration", "retraining")
    )
    final = test["metrics"]
    if final is None:
        return made
    made["confusion"] = charts.confusion_chart(final["confusion"])
    dice = [image["dice"] for image in test["images"]]
    lesion = [image["lesion"] for image in test["images"]]
    if dice:
        made["spread"] = charts.dice_chart(dice)
    if dice and None not in lesion:
        made["size"] = charts.size_chart(lesion, dice)
    if "curves" in final:
        found = final["test"]
        made["recall"] = charts.recall_chart(final["curves"], found["average_precision"])
        made["calibration"] = charts.calibration_chart(final["curves"], found["calibration_error"])
    if test["retraining"]:
        made["retraining"] = charts.retraining_chart(test["retraining"], test["kept"])
    return made


def _pictures(listed: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """By kind, each with its file as a data URI; None where it cannot be read."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for each in listed:
        kinds.setdefault(each["kind"], []).append(
            {**each, "data": _embedded(folder / each["file"])}
        )
    return kinds


def _embedded(path: Path) -> str | None:
    """A picture as a data URI, as JPEG: a photograph as PNG would be five times as large."""
    stream = io.BytesIO()
    try:
        with Image.open(path) as picture:
            picture.thumbnail((OVERLAY_SIDE, OVERLAY_SIDE))
            # Without subsampling the colours of thin outlines stay where they are.
            picture.convert("RGB").save(stream, "JPEG", quality=88, subsampling=0)
    except OSError:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _yaml(plain: Mapping[str, Any]) -> str:
    """With the innermost lists and mappings in one line each, as people write them."""
    dumped: str = yaml.safe_dump(dict(plain), sort_keys=False, default_flow_style=None, width=60)
    return dumped
