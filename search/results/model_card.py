"""The model card, ``final/README.md``, as model hubs read it; its numbers are metrics.json's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from lesionseg.metrics import METRICS, SURFACE
from search.spec.formatting import format_config, format_step

#: What a card is called where it lies.
NAME = "README.md"
#: Beside the overlap metrics and distances.
OF_PIXELS = ("average_precision", "calibration_error")
TAGS = ("skin-lesion-segmentation", "dermoscopy", "image-segmentation", "medical-imaging")


def model_card(
    report: Mapping[str, Any], *, layout: str, parts: Mapping[str, int], fingerprint: str
) -> str:
    """The card of a final model, as Markdown with a YAML header.

    Args:
        report: what metrics.json holds.
        layout: of the data set, a row of LAYOUTS.
        parts: images in ``train``, ``val`` and ``test``.
        fingerprint: of the data set.
    """
    data = {"layout": layout, "parts": parts, "fingerprint": fingerprint}
    text = _environment().get_template("card.md.j2")
    return text.render(
        report=report,
        data=data,
        front=_front(report, data),
        fit_on=report["final"]["fit_on"],
        model=format_config(report["config"]).split(" · ")[0],
        configuration=" · ".join(format_config(report["config"]).split(" · ")[1:]),
        inference=_inference(report["inference"]),
        rows=_rows(report),
    )


def _front(report: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """The header: what a hub shows and searches."""
    measured = [*METRICS, *(f"{name}_percent" for name in SURFACE), *OF_PIXELS]
    results = [
        {"type": name, "name": _label(name), "value": report["test"][name]} for name in measured
    ]
    found = {
        "task": {"type": "image-segmentation", "name": "Skin-lesion segmentation"},
        "dataset": {
            "type": data["layout"],
            "name": f"{data['layout']}, {data['parts']['test']} test images",
        },
        "metrics": results,
    }
    header = {
        # Of data and weights nobody has told it; who shares the model has to.
        "license": "unknown",
        "library_name": "lesionsearch",
        "pipeline_tag": "image-segmentation",
        "tags": [*TAGS, next(iter(report["config"]["model"]))],
        "metrics": ["dice", "jaccard"],
        "model-index": [{"name": report["study"], "results": [found]}],
    }
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True)


def _rows(report: Mapping[str, Any]) -> list[dict[str, str]]:
    distances = [name for each in SURFACE for name in (each, f"{each}_percent")]
    rows = []
    for name in (*METRICS, *distances, *OF_PIXELS):
        digits = 4 if name in (*METRICS, *OF_PIXELS) else 2
        ends = report["ci95"].get(name)
        rows.append(
            {
                "name": _label(name),
                "mean": f"{report['test'][name]:.{digits}f}",
                "interval": _interval(ends, digits) if ends else "",
            }
        )
    return rows


def _label(name: str) -> str:
    if name.endswith("_percent"):
        return f"{name.removesuffix('_percent').upper()} (% of the diagonal)"
    return f"{name.upper()} (pixels)" if name in SURFACE else name.replace("_", " ").capitalize()


def _inference(inference: Mapping[str, Any]) -> str:
    steps = [f"test-time augmentation {inference['tta']}"] * (inference["tta"] != "none")
    return (
        ", ".join([*steps, *map(format_step, inference["chain"])])
        or "nothing but a cut at one half"
    )


def _interval(ends: Sequence[float], digits: int = 4) -> str:
    return f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}"


def _plain(value: object) -> str:
    """Text of a name, of which nothing is taken for Markdown or HTML."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#" else c for c in text)


def _environment() -> Environment:
    # Markdown, not HTML: names pass through _plain instead.
    environment = Environment(
        loader=PackageLoader("search.results"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701
    )
    environment.filters["score"] = lambda value: f"{value:.4f}"
    environment.filters["interval"] = _interval
    environment.filters["plain"] = _plain
    return environment
