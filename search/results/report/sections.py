"""The sections of a report about the final test, the baselines, the data and the reproduction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import groupby
from typing import Any

from search.results.charts import plots
from search.results.documents import Block, Cell, Charts, Pictures, Section, Table, Text, dump_yaml
from search.results.formatting import (
    MISSING,
    MetricScore,
    format_count,
    format_duration,
    format_interval,
    format_number,
    format_p_value,
)
from search.results.report.final_sections import final_sections
from search.results.report.search_sections import missing_file, search_sections
from search.spec.formatting import format_encoder_weights

Facts = Mapping[str, Any]


def report_sections(facts: Facts) -> list[Section]:
    """Return the sections of a report that have content. facts: of ``report_facts``."""
    sections = [
        *_test_sections(facts),
        Section("comparison", "Baselines on the same images", list(_comparison(facts))),
        Section("data", "Data", list(_data(facts["data"], facts["fidelity"]))),
        *search_sections(facts),
        Section("reproduction", "Reproduction", list(_reproduction(facts))),
    ]
    return [section for section in sections if section.blocks]


def _test_sections(facts: Facts) -> Iterator[Section]:
    test = facts["test"]
    if test["metrics"] is None:
        text = (
            "The final test has not been run yet. The command lesionsearch final retrains the best "
            "configuration and evaluates it on the test images."
        )
        yield Section("test", "Final test", [Text(text)])
        return
    yield Section("test", "Final test", list(_scores(test)))
    yield from final_sections(test, facts["fidelity"])
    yield Section("errors", "Errors", list(_errors(test)))
    blocks: list[Block] = [Text("True outline: sky blue. Predicted outline: orange.")]
    for kind, pictures in groupby(test["overlays"], key=lambda picture: picture["kind"]):
        blocks += [Text(kind.capitalize(), "heading"), Pictures(list(pictures))]
    yield Section("overlays", "Best, median and worst test images", blocks)


def _scores(test: Facts) -> Iterator[Block]:
    counts = test["metrics"]["test"]
    yield Table(
        "scores",
        ("Metric", "Mean>", "95% interval>", "Definition, for one image"),
        [
            [score.name, score.mean_text, score.interval_text, score.definition]
            for score in (MetricScore(**row) for row in test["scores"])
        ],
        f"{_count_images(counts['n'], counts['groups'])}; "
        f"{format_count(test['test_evaluations'], 'test evaluation')}.",
        wide=True,
    )
    yield Text(
        "TP, FP, FN and TN are the pixel counts of one image; lesion is the positive class. The "
        "prediction is resized to the mask's own size. A score is the mean over images, so each "
        "image has the same weight. The interval is a percentile interval of a bootstrap over "
        "groups (all images of a patient or lesion). If an empty mask makes a ratio 0/0, the score "
        "is 1 if the prediction is correct and 0 if not. If one of two masks is empty, a surface "
        "distance is the image's diagonal; if both are, it is 0."
    )
    yield Text(f"Inference steps, selected on the validation images: {test['inference']}.")


def _errors(test: Facts) -> Iterator[Block]:
    final = test["metrics"]
    tp, fp, fn, tn = (f"{final['confusion'][key]:.2%}" for key in ("tp", "fp", "fn", "tn"))
    yield Table(
        "confusion",
        ("", "Predicted lesion>", "Predicted skin>"),
        [["True lesion", tp, fn], ["True skin", fp, tn]],
        "Confusion matrix: shares of an image's pixels, averaged over the test images.",
    )
    curves, scores = final["curves"], final["test"]
    precision, error = scores["average_precision"], scores["calibration_error"]
    dice = [image["dice"] for image in test["images"]]
    shares = [image["lesion_share"] for image in test["images"]]
    by_image = [
        (partial(plots.dice_chart, dice=dice), "Dice of each test image."),
        (
            partial(plots.size_chart, shares=shares, dice=dice),
            "Dice of each test image and the size of its lesion.",
        ),
    ]
    by_pixel = [
        (
            partial(plots.recall_chart, curves=curves, average_precision=precision),
            "Precision and recall of pixels at every threshold; each image has the same weight. "
            f"Average precision {format_number(precision)}.",
        ),
        (
            partial(plots.calibration_chart, curves=curves, error=error),
            "Share of lesion among the pixels with a predicted probability; the area of a dot "
            f"grows with the number of pixels. Calibration error {format_number(error)}.",
        ),
    ]
    if "per_image.csv" in test["missing"]:
        yield Charts(by_pixel)
        yield missing_file("per_image.csv", "the Dice of each image is not known")
    else:
        yield Charts([by_image[0], *by_pixel, by_image[1]])


def _comparison(facts: Facts) -> Iterator[Block]:
    comparison, final = facts["comparison"], facts["test"]["metrics"]
    if not comparison:
        return
    rows: list[list[Cell]] = []
    reference = comparison["reference"]
    if reference is None:
        interval = format_interval(*final["ci95"]["dice"])
        dice, millions = format_number(final["test"]["dice"]), f"{final['params'] / 1e6:.2f} M"
        rows.append(["this study", dice, interval, *[MISSING] * 4, millions])
    for row in comparison["rows"]:
        rows.append(
            [row["baseline"], format_number(row["dice"]), format_interval(row["low"], row["high"]),
             format_number(row["difference"], "+.4f"),
             format_interval(row["difference_low"], row["difference_high"], "+.4f"),
             format_p_value(row["p"]), format_p_value(row["p_holm"]),
             f"{row['model_params'] / 1e6:.2f} M"]
        )  # fmt: skip
    yield Table(
        "systems",
        ("System", "Test Dice>", "95% interval>", "Difference>", "95% interval>", "p>", "p, Holm>",
         "Parameters>"),
        rows,
        f"{_count_images(comparison['images'], comparison['groups'])}. "
        f"Difference: Dice of {reference or 'this study'} minus Dice of the system.",
        highlighted=[row[0] for row in rows].index(reference or "this study"),
        wide=True,
    )  # fmt: skip
    note = (
        "Intervals of differences: paired bootstrap over patients or lesions. p: two-sided "
        "Wilcoxon signed-rank test over the mean differences of patients or lesions. p, Holm: "
        "corrected for the number of comparisons."
    )
    if reference:
        note += f" {reference} has the highest test Dice, so its own score is slightly optimistic."
    yield Text(note)


def _count_images(images: int, groups: int) -> str:
    patients = format_count(groups, "patient or lesion", "patients or lesions")
    return f"{format_count(images, 'test image')} of {patients}"


def _data(data: Facts, fidelity: Facts) -> Iterator[Block]:
    summary, audit = data["summary"], data["audit"]
    if not summary:
        splits = [[split, f"{n:,}"] for split, n in data["split"].items()]
        yield Table("splits", ("Split", "Images>"), splits)
        return
    yield Table(
        "splits",
        ("Split", "Images>", "Patients or lesions>", "Lesion area, median>", "5% to 95%>",
         "Empty masks>", "Full masks>"),
        [
            [split, f"{row['images']:,}", f"{row['groups']:,}",
             format_number(row["area"]["median"], ".1%"),
             format_interval(row["area"]["p5"], row["area"]["p95"], ".1%"),
             str(row["empty"]), str(row["full"])]
            for split, row in summary["parts"].items()
        ],
        f"{format_count(summary['pairs'], 'pair')} of image and mask, layout "
        f"{data['layout']}; {summary['used']:,} of them used. Lesion area: the mask's share of the "
        f"image.",
    )  # fmt: skip
    edges = [f"{100 * edge:g}" for edge in summary["edges"]]
    yield Table(
        "areas",
        ("Split", *(f"{a} to {b}%>" for a, b in zip(edges[:-1], edges[1:], strict=True))),
        [[split, *map(str, row["area"]["counts"])] for split, row in summary["parts"].items()],
        "Images by lesion area",
    )
    keys = ("pairs", "train", "val", "test")
    yield Table(
        "sets",
        ("Data set", "Pairs>", "Train>", "Val>", "Test>", "Lesion in another split elsewhere>"),
        [
            [row["name"], *(f"{row[key]:,}" for key in keys), str(row["conflicting"])]
            for row in summary.get("sets", [])
        ],
        "Images by data set",
    )
    yield Text(f"Patients or lesions in more than one split: {summary['groups_in_several_parts']}.")
    exact = "Images under several names with identical pixels at the training's size"
    near = "Duplicates including resized, recompressed, rotated or cropped ones"
    searches = [(exact, summary["duplicates"], "sets"), (near, audit, "duplicates")]
    for title, found, key in searches:
        if found:
            names = "; ".join(map(" = ".join, found["names"][:5]))
            leaks = f"in more than one split: {found['leaks']}"
            yield Text(f"{title}: {found[key]}; {leaks}. {names}")
    if audit and audit["excluded"]:
        yield Text(f"Excluded duplicates: {audit['excluded']}.")
    yield Text(f"Masks that were not binary, thresholded at 128: {summary['thresholded']}.")
    yield from (Text(f"{note}.") for note in summary.get("notes", []))
    yield from (Text(f"Warning: {line}.", "warning") for line in summary.get("warnings", []))
    kinds = format_count(summary["sizes"]["kinds"], "image size")
    most = ", ".join(
        f"{size['width']} \N{MULTIPLICATION SIGN} {size['height']} ({size['images']:,})"
        for size in summary["sizes"]["most"][:3]
    )
    searched, tested = (fidelity[key]["image_size"] for key in ("search", "final"))
    side = f"{tested} \N{MULTIPLICATION SIGN} {tested}"
    if searched != tested:
        side += f", in the search {searched} \N{MULTIPLICATION SIGN} {searched}"
    yield Text(f"{kinds}, most often {most}; the network's input is {side}.")
    if any(found and found["leaks"] for _, found, _ in searches):
        yield Text(
            "Some images are in several splits. Training and test images overlap, so the test "
            "scores can be optimistic.",
            "warning",
        )


def _reproduction(facts: Facts) -> Iterator[Block]:
    data, environment, final = facts["data"], facts["environment"], facts["test"]["metrics"]
    yield Text(facts["reproduction"]["command"], "code", "command")
    yield Text(
        f"DIR is the folder of the same data (layout {data['layout']}, fingerprint "
        f"{data['fingerprint']}), NEW is a folder for the new study."
    )
    if weights := facts["search"]["encoder_weights"]:
        yield Text(f"Weights that the encoders start from: {format_encoder_weights(weights)}.")
    yield Text("Study file", "heading")
    yield Text(dump_yaml(facts["reproduction"]["spec"]), "code", "spec")
    is_ensemble = final is not None and final.get("ensemble") is not None
    largest = "of the member with the largest weight"
    if facts["selected"]:
        title = f"Configuration {largest}" if is_ensemble else "Selected configuration"
        yield Text(title, "heading")
        yield Text(dump_yaml(facts["selected"]["config"]), "code", "configuration")
    rows = []
    if final:
        rows = [
            ["Trainable parameters", f"{final['params']:,}"],
            [f"Seed {largest if is_ensemble else 'of the tested network'}", str(final["seed"])],
            ["Retraining", f"{final['seconds']:,.1f} s"],
            ["Prediction, network alone", f"{final['images_per_second']:,.1f} images/s"],
        ]
        if time := final.get("time"):
            durations = (format_duration(time[key]) for key in ("left_s", "forecast_s", "used_s"))
            text = "{} were left, forecast {}, used {}".format(*durations)
            rows.append(["Time of the final test", text])
    rows.append(["Seed of the study", str(environment["seed"])])
    for row in environment["searched_on"]:
        share = f" x {row['share']:.2g}" if row["share"] < 1 else ""
        threads = format_count(row["threads"], "thread")
        trials = format_count(row["trials"], "trial")
        rows.append(["Searched on", f"{row['device']}{share}, {threads}: {trials}"])
    if environment["tested_on"]:
        rows.append(["Retrained and tested on", environment["tested_on"]])
    rows += map(list, environment["versions"].items())
    yield Table("environment", ("Environment", ">"), rows)
