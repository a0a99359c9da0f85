"""All facts of a report as plain data: the content of report.json (docs/report.md)."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NotRequired

from optuna.trial import FrozenTrial
from pydantic import AfterValidator, BeforeValidator, FiniteFloat
from typing_extensions import TypedDict

from lesionseg.data.pairs import SPLITS
from lesionseg.errors import InputError
from lesionseg.runtime.files import file_stem
from search.results.baseline_table import BaselineResult, compare_baselines, read_results
from search.results.final_metrics import REPRODUCTION_TOLERANCE
from search.results.formatting import format_inference, metric_scores
from search.results.report.search_facts import search_facts
from search.storage import trial_records
from search.storage.final_report import FinalReport
from search.storage.stored_files import Count, Name, read_csv_file, require_keys
from search.storage.study_dir import read_metrics, read_run_info, retest_hint
from search.study import data_audit
from search.study.data_summary import read_data_summary
from search.study.opening import list_test_evaluations, load_study

#: Incremented when a key of report.json changes its meaning or is removed.
FORMAT = 1


def report_facts(
    folder: Path, *, against: Path | None = None, storage: str | None = None
) -> dict[str, Any]:
    """Return the facts of a study, without NaN and infinity.

    Args:
        folder: the study's folder.
        against: folder of a ``baselines run`` to compare the test results with.
        storage: URL of the study's storage; the recorded one by default.

    Raises:
        InputError: the folder contains no study, its storage cannot be opened, ``against`` contains
            no results, or they are of other test images.
    """
    study, run_info = load_study(folder, storage=storage), read_run_info(folder)
    trials = trial_records.all_trials(study)
    spec, split = study.user_attrs["spec"], study.user_attrs["split"]
    final = read_metrics(folder)
    evaluations = len(list_test_evaluations(study))
    test: dict[str, Any] = {
        # An evaluation whose files could not be written has no metrics.json.
        "test_evaluations": max(final["test_evaluations"] if final else 0, evaluations),
        "tolerance": REPRODUCTION_TOLERANCE,
        "metrics": final,
    }
    if final:
        test |= _final_test(folder, final, on_train_val=spec["final"]["fit_on"] == "train_val")
    selected = {key: final[key] for key in ("trial", "baseline", "config")} if final else None
    if not final and (ranking := trial_records.rank_trials(trials)):
        selected = {
            "trial": ranking[0].number,
            "baseline": ranking[0].user_attrs.get(trial_records.TrialAttr.BASELINE),
            "config": trial_records.config_of(ranking[0]),
        }
    facts = {
        "format": FORMAT,
        "study": study.study_name,
        "version": run_info["version"],
        "data": {
            "layout": run_info["layout"],
            "fingerprint": study.user_attrs["data"],
            "image_size": spec["data"]["image_size"],
            "split": {name: len(split[name]) for name in SPLITS},
            "folds": list(map(len, split.get("folds", ()))),
            "summary": read_data_summary(folder),
            "audit": data_audit.summarize_audit(folder, split),
        },
        "fidelity": _fidelity(spec, final),
        "search": search_facts(trials)
        | {"budget": spec["budget"], "encoder_weights": spec.get("encoder_weights") or {}},
        "selected": selected,
        "test": test,
        "comparison": _comparison(folder, test.get("images", []), against, storage),
        "environment": {
            "versions": final["versions"] if final else {"lesionsearch": run_info["version"]},
            "seed": spec["seed"],
            **_workers(trials),
            "tested_on": final and final["device"],
        },
        "reproduction": {
            "command": f"lesionsearch run {shlex.quote(str(folder / 'study.yaml'))} --data DIR "
            "--out NEW",
            "spec": spec,
        },
    }
    # JSON has neither NaN nor infinity.
    finite: dict[str, Any] = json.loads(json.dumps(facts), parse_constant=lambda _: None)
    return finite


def _fidelity(spec: Mapping[str, Any], final: FinalReport | None) -> Mapping[str, Any]:
    """Return image size and epochs of the search and the final; the planned ones before the test.

    spec: older studies have none of their own for the final.
    """
    search = {"image_size": spec["data"]["image_size"], "epochs": spec["budget"]["epochs"]}
    planned = {key: spec["final"].get(key) or value for key, value in search.items()}
    stored = final.get("fidelity") if final else None
    return stored or {"search": search, "final": planned}


class ImageScores(TypedDict):
    """What is read of a row of per_image.csv.

    tp, fp, fn, tn: numbers of pixels. disagreement: of an ensemble's members; empty or absent for a
    single network.
    """

    name: Name
    group: Name
    tp: Count
    fp: Count
    fn: Count
    tn: Count
    dice: FiniteFloat
    disagreement: NotRequired[Annotated[FiniteFloat | None, BeforeValidator(lambda v: v or None)]]


def _count_pixels(row: ImageScores) -> int:
    return row["tp"] + row["fp"] + row["fn"] + row["tn"]


def _check_pixels(row: ImageScores) -> ImageScores:
    if not _count_pixels(row):
        raise ValueError("an image without pixels")
    return row


def _check_epoch(row: dict[str, float]) -> dict[str, float]:
    if not row["epoch"].is_integer():
        raise ValueError("epoch must be an integer")
    return row


#: A row of history.csv: an epoch of the retraining.
HistoryRow = Annotated[
    dict[str, FiniteFloat],
    require_keys("epoch", "train_loss", "val_loss", "dice"),
    AfterValidator(_check_epoch),
]


def _read_scores(folder: Path, final: FinalReport) -> list[ImageScores]:
    path, remedy = folder / "final" / "per_image.csv", retest_hint(folder)
    rows = read_csv_file(path, Annotated[ImageScores, AfterValidator(_check_pixels)], remedy)
    if len(rows) != final["test"]["n"]:
        raise InputError(
            f"{path}: damaged: {len(rows)} of {final['test']['n']} test images; {remedy}"
        )
    return rows


def _final_test(folder: Path, final: FinalReport, *, on_train_val: bool) -> dict[str, Any]:
    """Return the part of the section ``test`` that follows from a final test."""
    # Only another test evaluation can restore deleted files: the report is written without them.
    files = ("per_image.csv", "history.csv")
    missing = [file for file in files if not (folder / "final" / file).is_file()]
    images = [
        {
            "name": row["name"],
            "group": row["group"],
            "dice": row["dice"],
            # the true lesion's share of the pixels
            "lesion_share": (row["tp"] + row["fn"]) / _count_pixels(row),
            "disagreement": row.get("disagreement"),
        }
        for row in (() if "per_image.csv" in missing else _read_scores(folder, final))
    ]
    dice = {str(image["name"]): image["dice"] for image in images}
    names = {file_stem(name): name for name in dice}
    overlays = []
    for kind, file in final["overlays"]:  # a file is called best_1_STEM.png
        stem = file.removeprefix(f"{kind}_").partition("_")[2].removesuffix(".png")
        name = names.get(stem, stem)
        overlays.append({"kind": kind, "file": file, "name": name, "dice": dice.get(name)})
    epochs, kept_epoch = [], None
    if "history.csv" not in missing:
        epochs = read_csv_file(folder / "final" / "history.csv", HistoryRow, retest_hint(folder))
        # The weights are those of the first epoch with the best Dice, or of the last epoch.
        kept = epochs[-1] if on_train_val else max(epochs, key=lambda row: row["dice"])
        kept_epoch = int(kept["epoch"])
    return {
        "missing": missing,
        "scores": [asdict(score) for score in metric_scores(final["test"], final["ci95"])],
        "inference": format_inference(final["inference"]),
        "images": images,
        "overlays": overlays,
        "retraining": epochs,
        "kept_epoch": kept_epoch,
    }


def _comparison(
    folder: Path, images: Sequence[Mapping[str, Any]], against: Path | None, storage: str | None
) -> dict[str, Any] | None:
    """Return the section ``comparison``; None without baselines that were tested.

    Without a final test the best baseline is the reference. A difference is the Dice of the
    reference minus that of the baseline. images: of the final test; empty without a test.
    """
    place = against or folder
    results = read_results(place)
    if not results:
        if not against:
            return None
        raise InputError(
            f"--against: {against}: contains no test results; give the folder of a `baselines run`"
        )
    groups = {row["name"]: row["group"] for row in next(iter(results.values())).images}
    reference = {image["name"]: image["dice"] for image in images} or None
    if reference and reference.keys() != groups.keys():
        raise InputError(
            f"--against: {place}: tested on other images ({len(groups)} there, {len(images)} "
            f"here); run the baselines on the same data and split"
        )
    study = load_study(place, storage=storage if place == folder else None)
    compared = compare_baselines(results, trial_records.all_trials(study), reference)
    tested = [result for result in compared if result.is_tested]
    return {
        "reference": None if reference else tested[0].baseline,
        "images": len(groups),
        "groups": len(set(groups.values())),
        "rows": list(map(_compared, tested)),
    }


def _compared(result: BaselineResult) -> dict[str, Any]:
    low, high = result.ci95["dice"]
    paired = result.difference
    return {
        "baseline": result.baseline,
        "dice": result.means["dice"],
        "low": low,
        "high": high,
        "model_params": result.costs["params"],
        "trainings": len(result.trials),
        "difference": paired and -paired.difference,
        "difference_low": paired and -paired.high,
        "difference_high": paired and -paired.low,
        "p": result.p,
        "p_holm": result.p_holm,
    }


def _workers(trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    owner = trial_records.TrialAttr.OWNER
    owners = [t.user_attrs[owner] for t in trials if owner in t.user_attrs]
    keys = ("device", "threads", "share")
    counts = Counter(tuple(o[key] for key in keys) for o in owners)
    return {
        "hosts": len({o["host"] for o in owners}),
        "searched_on": [
            dict(zip(keys, values, strict=True)) | {"trials": n}
            for values, n in sorted(counts.items())
        ],
    }
