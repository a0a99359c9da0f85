"""report.html and report.md. The templates escape all names and messages.

The HTML page has no external files; the Markdown has the same tables without pictures.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from search.results.charts import evaluation, parameters
from search.results.charts import trials as trial_charts
from search.results.documents import dump_yaml, render
from search.results.report.tables import report_tables

#: Longest side of an overlay in the page, in pixels.
OVERLAY_SIDE = 480


def render_html(facts: Mapping[str, Any], folder: Path) -> str:
    """Return the HTML page. facts: of ``report_facts``; folder: the study's folder."""
    overlays = _embed_overlays(facts["test"].get("overlays", []), folder / "final" / "overlays")
    charts_ = _search_charts(facts) | _test_charts(facts["test"])
    return render(
        "report.html.j2", _template_values(facts) | {"charts": charts_, "overlays": overlays}
    )


def render_markdown(facts: Mapping[str, Any]) -> str:
    """Return the tables in GitHub's Markdown. facts: of ``report_facts``."""
    return re.sub(r"\n{3,}", "\n\n", render("report.md.j2", _template_values(facts))).strip() + "\n"


def _template_values(facts: Mapping[str, Any]) -> dict[str, Any]:
    selected, spec = facts["selected"], facts["reproduction"]["spec"]
    return {
        "facts": facts,
        "study": facts["study"],
        "search": facts["search"],
        "test": facts["test"],
        "final": facts["test"]["metrics"],
        "selected": selected and selected["trial"],
        "spec": spec,
        "tables": report_tables(facts),
        "config_yaml": selected and dump_yaml(selected["config"]),
        "spec_yaml": dump_yaml(spec),
    }


def _search_charts(facts: Mapping[str, Any]) -> dict[str, Markup | None]:
    search = facts["search"]
    selected = facts["selected"] and facts["selected"]["trial"]
    trials, names, shares = search["trials"], search["varied_params"], search["importances"]
    return {
        "history": trial_charts.history_chart(trials, selected),
        "curves": trial_charts.curves_chart(trials, selected),
        "importance": trial_charts.importance_chart(shares) if shares else None,
        "slices": parameters.slices_chart(trials, names, selected) if names else None,
        "parallel": parameters.parallel_chart(trials, names, selected)
        if names and search["complete"] > 1
        else None,
    }


def _test_charts(test: Mapping[str, Any]) -> dict[str, Markup]:
    """Return the charts of the final test; a chart without numbers is left out."""
    final = test["metrics"]
    if final is None:
        return {}
    curves, scores = final["curves"], final["test"]
    figures = {
        "recall": evaluation.recall_chart(curves, scores["average_precision"]),
        "calibration": evaluation.calibration_chart(curves, scores["calibration_error"]),
    }
    if images := test["images"]:
        dice = [image["dice"] for image in images]
        figures["dice"] = evaluation.dice_chart(dice)
        figures["size"] = evaluation.size_chart([image["lesion_share"] for image in images], dice)
    if test["retraining"]:
        figures["retraining"] = trial_charts.retraining_chart(
            test["retraining"], test["kept_epoch"]
        )
    return figures


def _embed_overlays(
    overlays: Sequence[Mapping[str, Any]], folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """Return the overlays by kind, each with its picture as data URI."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for each in overlays:
        data = _data_uri(folder / each["file"])
        by_kind.setdefault(each["kind"], []).append({**each, "data": data})
    return by_kind


def _data_uri(path: Path) -> str | None:
    """Return a picture as JPEG, a fifth of a PNG's size; None if it cannot be read."""
    stream = io.BytesIO()
    try:
        with Image.open(path) as picture:
            picture.thumbnail((OVERLAY_SIDE, OVERLAY_SIDE))
            # Chroma subsampling would blur the colours of thin outlines.
            picture.convert("RGB").save(stream, "JPEG", quality=88, subsampling=0)
    except OSError:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
