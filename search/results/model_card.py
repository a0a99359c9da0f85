"""The model card ``final/README.md``: Markdown with the YAML header that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from search.results.documents import Table, render
from search.results.formatting import format_inference, metric_scores
from search.results.selection_tables import costs_table, format_fidelity, members_table
from search.spec.formatting import format_config, format_weights
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
    weights, ensemble = report.get("encoder_weights"), report.get("ensemble")
    fidelity = report.get("fidelity")
    values = {
        "header": _header(report, layout, split_sizes["test"]),
        "report": report,
        "layout": layout,
        "split_sizes": split_sizes,
        "fingerprint": fingerprint,
        "model": model,
        "configuration": " · ".join(configuration),
        "encoder_weights": weights and format_weights(weights),
        "searched_at": fidelity and format_fidelity(fidelity["search"]),
        "ensemble": ensemble,
        "members": ensemble and members_table(ensemble),
        "costs": ensemble and costs_table(ensemble),
        "disagreement": report.get("disagreement"),
        "inference": format_inference(report["inference"]),
        "scores": Table(
            "scores",
            ("metric", "mean>", "95% interval>"),
            [[score.name, score.mean_text, score.interval_text] for score in scores],
        ),
    }
    return render("card.md.j2", values)


def _network_tags(report: Mapping[str, Any]) -> list[str]:
    """Return the names of the tested networks, the one of the largest weight first."""
    ensemble = report.get("ensemble")
    if not ensemble:
        return [next(iter(report["config"]["model"]))]
    names = [next(iter(member["config"]["model"])) for member in ensemble["members"]]
    return ["ensemble", *dict.fromkeys(names)]


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
        "tags": [*TAGS, *_network_tags(report)],
        "metrics": ["dice", "jaccard"],
        "model-index": [{"name": report["study"], "results": [result]}],
    }
    dumped: str = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return dumped
