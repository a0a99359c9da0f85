"""The model card ``final/README.md``: Markdown with the YAML header that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from search.results.documents import Table, render
from search.results.formatting import format_inference, metric_scores
from search.spec.formatting import format_config
from search.storage.final_report import FinalReport

TAGS = ("skin-lesion-segmentation", "dermoscopy", "image-segmentation", "medical-imaging")


def render_model_card(
    report: FinalReport, *, layout: str, split_sizes: Mapping[str, int], fingerprint: str
) -> str:
    """Return the card of a final model.

    Args:
        report: content of metrics.json.
        layout: layout of the data set.
        split_sizes: number of images of ``train``, ``val`` and ``test``.
        fingerprint: fingerprint of the data set.
    """
    model, *configuration = format_config(report["config"]).split(" · ")
    scores = metric_scores(report["test"], report["ci95"])
    values = {
        "header": _header(report, layout, split_sizes["test"]),
        "report": report,
        "layout": layout,
        "split_sizes": split_sizes,
        "fingerprint": fingerprint,
        "model": model,
        "configuration": " · ".join(configuration),
        "inference": format_inference(report["inference"]),
        "scores": Table(
            "scores",
            ("metric", "mean>", "95% interval>"),
            [[score.name, score.mean_text, score.interval_text] for score in scores],
        ),
    }
    return render("card.md.j2", values)


def _header(report: Mapping[str, Any], layout: str, n_test: int) -> str:
    """Return the YAML header: what a hub shows and searches."""
    result = {
        "task": {"type": "image-segmentation", "name": "Skin-lesion segmentation"},
        "dataset": {"type": layout, "name": f"{layout}, {n_test} test images"},
        "metrics": [
            {"type": score.key, "name": score.name, "value": score.value}
            for score in metric_scores(report["test"], report["ci95"])
            if not score.name.endswith("(px)")
        ],
    }
    header = {
        # The licence of the images is not known to the software.
        "license": "unknown",
        "library_name": "lesionsearch",
        "pipeline_tag": "image-segmentation",
        "tags": [*TAGS, next(iter(report["config"]["model"]))],
        "metrics": ["dice", "jaccard"],
        "model-index": [{"name": report["study"], "results": [result]}],
    }
    dumped: str = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return dumped
