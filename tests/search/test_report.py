"""report.html against the records and files that it was made of."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import optuna
import pytest
import yaml
from optuna.trial import TrialState
from PIL import Image

from lesionseg import metrics
from lesionseg.errors import InputError
from lesionseg.metrics import METRICS, SURFACE
from search import report, trials
from search.final import read_metrics
from search.report import DEFINITIONS, write_report
from search.spec import spec_from
from search.storage import open_storage, storage_url
from search.study import open_records
from search.suggest import suggest

SPEC = spec_from(
    {
        "name": "small",
        "data": {"image_size": 64},
        "budget": {"trials": 40, "epochs": 6},
        "search": {
            "model": {"unet": {"width": [8, 24], "depth": [3, 4]}, "segnet": {"width": [8, 16]}},
            "loss": ["bce", "focal"],
            "optimizer": {"adamw": {"lr": [5.0e-4, 1.0e-2]}},
        },
    },
    "test",
)
#: Markup that must be seen as text wherever it comes from.
EVIL = "<script>alert('x')</script>"


@pytest.fixture(autouse=True)
def _no_storage(monkeypatch):
    monkeypatch.delenv("LESIONSEARCH_STORAGE", raising=False)


def make_study(folder: Path, name: str = "melanoma", changes: dict | None = None) -> optuna.Study:
    """A study without a trial, and the folder of it; changes: to the spec."""
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=name,
        storage=open_storage(storage_url(None, folder)),
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    plain = SPEC.model_dump(mode="json") | (changes or {})
    split = {part: [f"{part}_{i}" for i in range(n)] for part, n in (("train", 70), ("val", 15))}
    split["test"] = names_of_test(12)
    about = {"study": name, "storage": None, "data": "gone", "layout": "pairs", "version": "0.1.0"}
    for key, value in (("spec", plain), ("split", split), ("data", "0123456789abcdef")):
        study.set_user_attr(key, value)
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "split.json").write_text(json.dumps(split))
    (folder / "study.yaml").write_text(yaml.safe_dump(plain))
    return study


def add(
    study: optuna.Study,
    end: str,
    curve: list[float],
    reason: str | None = None,
    message: str | None = None,
) -> int:
    """One trial as a worker leaves it: config, digest, reported values, end."""
    trial = study.ask()
    config = suggest(trial, SPEC.space)
    trial.set_user_attr("config", config.to_dict())
    trial.set_user_attr("digest", config.digest())
    trial.set_user_attr("params", 123_456 + trial.number)
    for epoch, value in enumerate(curve, 1):
        trial.report(value, epoch)
    if end in {"complete", "pruned"} and curve:
        trial.set_user_attr("best_epoch", int(np.argmax(curve)) + 1)
        trial.set_user_attr("epochs", len(curve))
        trial.set_user_attr("seconds", 1.5 * len(curve))
    if reason:
        trial.set_user_attr("reason", reason)
        trial.set_user_attr("message", message or "")
    state = {"pruned": TrialState.PRUNED, "failed": TrialState.FAIL}.get(end)
    study.tell(trial, max(curve) if end == "complete" else None, state=state)
    return trial.number


def curve_to(value: float, epochs: int = 6) -> list[float]:
    return [value * (1 - 0.5**e) / (1 - 0.5**epochs) for e in range(1, epochs + 1)]


def fill(study: optuna.Study, n: int = 16, seed: int = 0) -> None:
    """n trials: a quarter pruned, one failed, one skipped, the rest complete."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        value = float(0.7 + 0.2 * rng.random())
        if i == 3:
            add(study, "failed", [0.2], "oom", "OutOfMemoryError: 3 GiB wanted")
        elif i == 5:
            add(study, "failed", [], trials.DUPLICATE, "the same configuration as trial 1")
        elif i % 4 == 2:
            add(study, "pruned", curve_to(value)[:2])
        else:
            add(study, "complete", curve_to(value))


def names_of_test(n: int) -> list[str]:
    return [f"ISIC_{i:07d}" for i in range(n)]


def make_final(
    folder: Path, study: optuna.Study, names: list[str] | None = None, size=(120, 90), **changes
) -> dict:
    """``final/`` as finalize() leaves it, of invented counts; its metrics."""
    names = names or names_of_test(12)
    (folder / "final" / "overlays").mkdir(parents=True)
    counts = invented_counts(len(names))
    scores = metrics.score(counts)
    groups = [f"patient_{i // 2}" for i in range(len(names))]
    best = trials.ranked(trials.all_trials(study))[0]
    told = {
        "study": study.study_name,
        "trial": best.number,
        "test": {k: float(v.mean()) for k, v in scores.items()}
        | {"n": len(names), "groups": len(set(groups))},
        "ci95": {k: list(v) for k, v in metrics.bootstrap(scores, groups, resamples=200).items()},
        "confusion": dict(
            zip(("tp", "fp", "fn", "tn"), (counts / 10_000).mean(0).tolist(), strict=True)
        ),
        "val": {
            "search": best.value,
            "retrained": best.value - 0.0012,
            "gap": -0.0012,
            "reproduced": True,
            "seeds": {"0": best.value - 0.0012},
        },
        "test_looks": 1,
        "overlays": draw_overlays(folder / "final" / "overlays", names, scores["dice"], size),
        "seconds": 12.34,
        "images_per_second": 56.78,
        "params": 123_456,
        "seed": 0,
        "config": trials.config_of(best),
        "versions": {"python": "3.12.1", "lesionsearch": "0.1.0", "torch": "2.11.0"},
    } | changes
    (folder / "final" / "metrics.json").write_text(json.dumps(told))
    rows = [
        [n, g, *(scores[m][i] for m in METRICS)]
        for i, (n, g) in enumerate(zip(names, groups, strict=True))
    ]
    write_csv(folder / "final" / "per_image.csv", ["name", "group", *METRICS], rows)
    rows = [
        [e, 1 / e, 1.1 / e, 1e-3, 2.0, *[d] * len(METRICS)] for e, d in enumerate(curve_to(0.9), 1)
    ]
    header = ["epoch", "train_loss", "val_loss", "lr", "seconds", *METRICS]
    write_csv(folder / "final" / "history.csv", header, rows)
    return told


def invented_counts(n: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    tp, fp, fn = (rng.integers(*ends, n) for ends in ((2000, 3000), (1, 900), (1, 900)))
    return np.stack([tp, fp, fn, 10_000 - tp - fp - fn], axis=1)


def draw_overlays(folder: Path, names: list[str], dice: np.ndarray, size) -> list[list[str]]:
    listed = []
    for kind, members in zip(
        ("best", "median", "worst"), np.array_split(np.argsort(-dice)[:9], 3), strict=True
    ):
        for k, i in enumerate(members, 1):
            listed.append([kind, f"{kind}_{k}_{names[i]}.png"])
            noise = np.random.default_rng(i).integers(120, 200, (size[1], size[0], 3), np.uint8)
            Image.fromarray(noise).save(folder / listed[-1][1])
    return listed


def write_csv(path: Path, header: list[str], rows: list[list]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


class Page(HTMLParser):
    """A report as a reader has it: its text, its elements, the cells of its tables."""

    VOID = frozenset({"meta", "br", "img"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.feed(self.source)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables[dict(attrs).get("id", "")] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open[-3:]):
            self.rows[-1][-1] += data

    def table(self, name: str) -> list[list[str]]:
        return [[" ".join(cell.split()) for cell in row] for row in self.tables[name]]

    def of(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished and tested study with its report; only to be read."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    study = make_study(folder)
    fill(study)
    make_final(folder, study)
    write_report(folder)
    return folder


@pytest.fixture()
def done(finished, tmp_path):
    """A copy of it: its folder, its study, its metrics."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    return folder, open_records(folder)[0], read_metrics(folder)


@pytest.fixture(scope="module")
def page(finished):
    """Its report."""
    return Page(finished / "report.html")


def test_every_number_of_the_test_is_that_of_metrics_json(finished, page):
    told = read_metrics(finished)
    rows = {row[0]: row[1:3] for row in page.table("scores")[1:]}
    assert rows == {
        DEFINITIONS[m][0]: [
            f"{told['test'][m]:.4f}",
            "{:.4f} to {:.4f}".format(*told["ci95"][m]),
        ]
        for m in METRICS
    }
    low, high = told["ci95"]["dice"]
    assert (
        f"{told['test']['dice']:.4f} test Dice, 95% interval {low:.4f} to {high:.4f}" in page.text
    )
    assert "12 test images of 6 patients or lesions, looked at once" in page.text
    for share in told["confusion"].values():
        assert f"{100 * share:.2f}%" in page.text
    assert f"Val. Dice, search {told['val']['search']:.4f}" in page.text
    assert f"Val. Dice, retrained {told['val']['retrained']:.4f}" in page.text
    assert "\N{MINUS SIGN}0.0012 reproduced" in page.text


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"tta": "none", "chain": []}, "on the validation images: nothing."),
        (
            {"tta": "d4", "chain": [{"threshold": {"value": 0.4}}, {"largest": {}}]},
            "the mean over flips and turns, threshold(value=0.4), largest.",
        ),
    ],
)
def test_what_is_done_after_the_network_is_told(done, chosen, told):
    folder, _, report_ = done
    page = Page(write_report(folder))
    assert "After the network" not in page.text  # of an older study it is not known
    report_["inference"] = chosen
    (folder / "final" / "metrics.json").write_text(json.dumps(report_))
    assert told in " ".join(Page(write_report(folder)).text.split())


def test_every_metric_has_a_name_and_a_definition():
    assert tuple(DEFINITIONS)[: len(METRICS)] == METRICS
    distances = {f"{name}{unit}" for name in SURFACE for unit in ("", "_percent")}
    assert set(DEFINITIONS) == {*METRICS, *distances, "average_precision", "calibration_error"}


def test_an_unknown_metric_without_interval_is_shown_under_its_key(done):
    folder, _, told = done
    told["test"]["unheard"] = 3.25
    (folder / "final" / "metrics.json").write_text(json.dumps(told))
    assert Page(write_report(folder)).table("scores")[-1] == [
        "unheard",
        "3.2500",
        "\N{EN DASH}",
        "",
    ]


def test_how_it_was_found_is_told_in_a_sentence(finished, page):
    study = open_records(finished)[0]
    told = read_metrics(finished)
    counted = trials.counts(trials.all_trials(study))
    assert counted == {
        "waiting": 0, "running": 0, "complete": 10, "pruned": 4, "failed": 1, "skipped": 1,
    }  # fmt: skip
    assert (
        f"Trial {told['trial']} was chosen by its validation Dice out of 15 trials "
        f"(10 complete, 4 pruned, 1 failed; 1 more skipped)"
    ) in page.text
    assert page.table("states") == [
        [s.capitalize() for s in counted],
        ["0", "0", "10", "4", "1", "1"],
    ]
    assert page.table("reasons")[1:] == [
        ["failed", "oom", "1", "3", "OutOfMemoryError: 3 GiB wanted"],
        ["skipped", "duplicate", "1", "5", "the same configuration as trial 1"],
    ]


def test_the_leaderboard_is_the_ranking_with_the_winner_marked(finished, page):
    study = open_records(finished)[0]
    told = read_metrics(finished)
    rows = page.table("leaderboard")[1:]
    best = trials.ranked(trials.all_trials(study))
    assert [row[0].split()[0] for row in rows] == [str(t.number) for t in best[:10]]
    assert [row[1] for row in rows] == [f"{t.value:.4f}" for t in best[:10]]
    assert [row[0].endswith("★") for row in rows] == [True] + 9 * [False]
    assert rows[0][0] == f"{told['trial']} ★"
    assert rows[0][-3:] == ["0.12 M", "6", "9"]


def test_overlays_come_in_order_with_name_and_dice(finished, page):
    told = read_metrics(finished)
    with (finished / "final" / "per_image.csv").open() as file:
        dice = {row["name"]: float(row["dice"]) for row in csv.DictReader(file)}
    names = [re.sub(r"^[a-z]+_\d_|\.png$", "", file) for _, file in told["overlays"]]
    assert [image["alt"] for image in page.of("img")] == [
        f"{n} with its true and its predicted outline, Dice {dice[n]:.4f}" for n in names
    ]
    assert (
        page.text.index("Best ISIC")
        < page.text.index("Median ISIC")
        < page.text.index("Worst ISIC")
    )


def test_a_picture_that_is_gone_leaves_its_place(done):
    folder, _, told = done
    (folder / "final" / "overlays" / told["overlays"][0][1]).unlink()
    (folder / "final" / "overlays" / told["overlays"][1][1]).write_bytes(b"no picture")
    page = Page(write_report(folder))
    assert len(page.of("img")) == 7
    assert page.text.count("the picture is missing") == 2


def test_the_page_needs_nothing_beside_itself(page):
    assert page.open == []
    assert page.source.startswith("<!DOCTYPE html>\n<html lang")
    assert not re.search(r"https?:|@import|url\((?!#)", page.source)
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.of("img"))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert {a["href"][0] for tag, a in page.elements if "href" in a} == {"#"}


def test_every_picture_has_a_text_and_every_id_is_unique(page):
    assert len(page.of("svg")) == 6
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.of("svg"))
    assert all(image["alt"] for image in page.of("img"))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    wanted = [a["href"][1:] for _, a in page.elements if "href" in a]
    wanted += [a["aria-labelledby"] for a in page.of("section")]
    assert set(wanted) <= set(ids)


def test_markup_in_names_and_messages_is_shown_as_text(tmp_path):
    evil_file = "<b onclick=x>&amp;$x_1$"
    study = make_study(tmp_path, name=EVIL)
    add(study, "complete", [0.5])
    add(study, "failed", [], f"crash{EVIL}", f"RuntimeError: {EVIL}")
    make_final(tmp_path, study, [f"{evil_file}{i}" for i in range(9)], versions={EVIL: EVIL})
    page = Page(write_report(tmp_path))
    assert not page.of("script")
    assert not page.of("b")[10:]
    assert page.text.startswith(f"{EVIL}: report")
    assert page.table("reasons")[1] == ["failed", f"crash{EVIL}", "1", "1", f"RuntimeError: {EVIL}"]
    assert all(image["alt"].startswith(evil_file) for image in page.of("img"))
    assert page.text.count(evil_file) == 9
    assert page.table("facts")[-1] == [EVIL, EVIL]


def test_without_a_final_test_the_page_says_so(done):
    folder, study, _ = done
    shutil.rmtree(folder / "final")
    page = Page(write_report(folder))
    best = trials.ranked(trials.all_trials(study))[0]
    assert f"{best.value:.4f} validation Dice of the best trial; not tested yet" in page.text
    assert "The final test was not run yet" in page.text
    assert "Looks at the test images 0" in page.text
    assert "scores" not in page.tables
    assert page.table("leaderboard")[1][0] == f"{best.number} ★"


@pytest.mark.parametrize(
    ("ends", "sentence"),
    [
        ([], "0 trials were run (0 complete, 0 pruned, 0 failed)"),
        (["pruned"], "1 trial was run (0 complete, 1 pruned, 0 failed)"),
        (["pruned", "pruned"], "2 trials were run (0 complete, 2 pruned, 0 failed)"),
        (["failed"], "1 trial was run (0 complete, 0 pruned, 1 failed)"),
    ],
)
def test_without_a_complete_trial_the_page_says_so(tmp_path, ends, sentence):
    study = make_study(tmp_path)
    for end in ends:
        add(study, end, [0.3, 0.4], "oom" if end == "failed" else None)
    page = Page(write_report(tmp_path))
    assert "no trial was completed" in page.text
    assert sentence in page.text
    assert "so there is no leaderboard" in page.text
    assert "Configuration of the winner" not in page.text


def test_a_single_trial_is_enough_for_a_page(tmp_path):
    study = make_study(tmp_path)
    add(study, "complete", [0.5])
    make_final(tmp_path, study)
    page = Page(write_report(tmp_path))
    assert "out of 1 trial (1 complete" in page.text
    assert "Importances need 10 complete or pruned trials; there are 1." in page.text


def test_missing_files_of_the_final_test_leave_their_parts_out(done):
    folder, _, _ = done
    for name in ("per_image.csv", "history.csv"):
        (folder / "final" / name).unlink()
    page = Page(write_report(folder))
    assert len(page.of("svg")) == 4
    assert "Retraining of the winner" not in page.text


def test_a_second_look_is_warned_of_and_the_first_is_counted(tmp_path):
    study = make_study(tmp_path)
    add(study, "complete", [0.5])
    make_final(tmp_path, study, test_looks=2)
    text = Page(write_report(tmp_path)).text
    assert "The test images were looked at 2 times." in text
    assert "Looks at the test images 2" in text


def test_a_test_that_broke_off_counts_as_a_look(done):
    folder, study, _ = done
    study.set_user_attr("test_looks", ["2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"])
    assert "The test images were looked at 2 times." in Page(write_report(folder)).text


def test_a_retraining_that_differs_is_warned_of(tmp_path):
    study = make_study(tmp_path)
    add(study, "complete", [0.5])
    val = {
        "search": 0.5,
        "retrained": 0.45,
        "gap": -0.05,
        "reproduced": False,
        "seeds": {"0": 0.45},
    }
    make_final(tmp_path, study, val=val)
    text = Page(write_report(tmp_path)).text
    assert "The retraining did not reproduce the search." in text
    assert "Gap \N{MINUS SIGN}0.0500 not reproduced" in text


def test_training_on_the_validation_images_leaves_nothing_to_compare(tmp_path):
    study = make_study(tmp_path, changes={"final": {"fit_on": "train_val", "seeds": 1}})
    add(study, "complete", [0.5])
    nothing = dict.fromkeys(("retrained", "gap", "reproduced", "seeds"))
    make_final(tmp_path, study, val={"search": 0.5} | nothing)
    text = Page(write_report(tmp_path)).text
    assert "cannot be compared: the validation images were trained on" in text
    assert "that curve shows no generalisation" in text
    assert "did not reproduce" not in text


def test_seeds_are_told_when_there_are_several(tmp_path):
    study = make_study(tmp_path)
    add(study, "complete", [0.5])
    val = {"search": 0.5, "retrained": 0.5, "gap": 0.0, "reproduced": True}
    make_final(tmp_path, study, val=val | {"seeds": {"0": 0.5, "1": 0.51}}, seed=1)
    assert (
        "2 seeds, validation Dice: seed 0 0.5000, seed 1 0.5100."
        in Page(write_report(tmp_path)).text
    )


def test_a_search_that_went_on_after_the_test_is_told(done):
    folder, study, told = done
    better = add(study, "complete", curve_to(0.99))
    page = Page(write_report(folder))
    assert f"Trial {better} has since reached a validation Dice of 0.9900" in page.text
    marked = [row[0] for row in page.table("leaderboard") if "★" in row[0]]
    assert marked == [f"{told['trial']} ★"]


def test_a_search_that_is_not_over_is_told(done):
    folder, study, _ = done
    study.ask()
    study.enqueue_trial({})
    assert "The search was not over when this was written: 1 running, 1 waiting." in (
        Page(write_report(folder)).text
    )


def test_what_is_needed_to_repeat_it_is_there(finished, page):
    told = read_metrics(finished)
    assert f"lesionsearch run {finished}/study.yaml --data DIR --out NEW" in page.text
    plain = re.findall(r'<pre id="(\w+)"><code>(.*?)</code>', page.source, re.DOTALL)
    shown = {name: yaml.safe_load(text) for name, text in plain if name != "command"}
    assert shown == {"spec": SPEC.model_dump(mode="json"), "configuration": told["config"]}
    assert ["torch", "2.11.0"] in page.table("facts")


def test_the_same_records_give_the_same_bytes(done):
    folder, _, _ = done
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_a_page_of_large_pictures_stays_small(done):
    folder, study, _ = done
    shutil.rmtree(folder / "final")
    make_final(folder, study, size=(480, 360))
    overlays = (folder / "final" / "overlays").glob("*.png")
    assert sum(path.stat().st_size for path in overlays) > 3_000_000
    assert write_report(folder).stat().st_size < 5_000_000


@pytest.mark.parametrize("broken", ["_render", "os.replace"])
def test_a_report_that_fails_leaves_nothing_and_harms_nothing(done, monkeypatch, broken):
    folder, _, _ = done
    (folder / "report.html").write_text("the last one")
    before = sorted(folder.iterdir())

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(f"search.report.{broken}", fail)
    with pytest.raises(OSError, match="no space"):
        write_report(folder)
    assert sorted(folder.iterdir()) == before
    assert (folder / "report.html").read_text() == "the last one"


def test_a_folder_without_a_study_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no study here"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("hours", "told"),
    [(2.25, "2.2 hours"), (1, "1.0 hours"), (0.5, "30 minutes"), (0.01, "36 seconds")],
)
def test_spans_are_told_as_people_do(hours, told):
    assert report._span(hours) == told
