"""Create and resume studies."""

import csv
import json
import shutil
from functools import partial
from pathlib import Path

import optuna
import pytest
import yaml

from search.results.final_test import run_final_test
from search.results.report import write_reports
from search.spec.loading import load_spec
from search.storage.database import open_storage, sqlite_url
from search.storage.study_dir import is_study, read_run_info
from search.study.creation import create_or_resume
from search.study.location import StudyLocation
from search.study.opening import join_study, open_study
from tests.conftest import write_folder, write_pair
from tests.search.helpers import SLOT, open_tiny, refusal, search, tiny_spec, tree


def contents(folder):
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_create_writes_all_files(tiny_data, tmp_path):
    spec = tiny_spec()
    opened = create_or_resume(spec, tiny_data, tmp_path / "deep" / "mine")
    folder = tmp_path / "deep" / "mine"
    assert is_study(folder)
    files = [
        "audit.json",
        "data.json",
        "run.json",
        "split.json",
        "study.db",
        "study.yaml",
        "trials",
    ]
    assert tree(folder) == [*files, "trials/.study"]
    run_info = json.loads((folder / "run.json").read_text())
    assert run_info == read_run_info(folder)
    assert run_info["study"] == opened.name == "mine"
    assert run_info["storage"] is None
    assert run_info["data"] == str(tiny_data)
    assert run_info["layout"] == "folders"
    # study.yaml is a valid study file.
    assert load_spec(str(folder / "study.yaml")) == spec.with_encoder_weights({})
    split = json.loads((folder / "split.json").read_text())
    assert split == opened.split.to_dict()
    sizes = {part: len(names) for part, names in split.items()}
    assert sizes["train"] == 21  # 70% of 30; the others share 9
    assert sorted([sizes["val"], sizes["test"]]) == [4, 5]


def test_trial_data_are_the_positions_of_the_split(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s")
    names = opened.cache.names
    assert [names[i] for i in opened.trial_data.train] == list(opened.split.train)
    assert [names[i] for i in opened.trial_data.val] == list(opened.split.val)
    assert not set(opened.split.test) & {
        names[i] for i in [*opened.trial_data.train, *opened.trial_data.val]
    }


def test_resume_keeps_split_and_trials(tiny_data, tmp_path):
    first = open_tiny(tiny_data, tmp_path / "s")
    first.study.tell(first.study.ask(), 0.5)
    again = open_tiny(tiny_data, tmp_path / "s")
    assert again.split == first.split
    assert again.spec == first.spec
    assert [t.value for t in again.study.trials] == [0.5]
    opened = open_study(tmp_path / "s")
    assert (opened.split, opened.spec, opened.cache) == (first.split, first.spec, first.cache)


def test_resume_uses_the_stored_split(tiny_data, tmp_path):
    first = open_tiny(tiny_data, tmp_path / "s")
    swapped = first.split.to_dict()
    swapped["val"], swapped["test"] = swapped["test"], swapped["val"]
    first.study.set_user_attr("split", swapped)
    assert open_tiny(tiny_data, tmp_path / "s").split.to_dict() == swapped


def test_a_renamed_folder_keeps_its_study(tiny_data, tmp_path):
    first = open_tiny(tiny_data, tmp_path / "old")
    first.study.tell(first.study.ask(), 0.5)
    (tmp_path / "old").rename(tmp_path / "new")
    again = open_tiny(tiny_data, tmp_path / "new")
    assert again.name == "old"
    assert len(again.study.trials) == 1


def test_the_working_directory_can_be_the_folder(tiny_data, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert open_tiny(tiny_data, Path(".")).name == "mine"
    assert open_tiny(tiny_data, tmp_path / "mine").name == "mine"


@pytest.fixture
def two_sets(tmp_path):
    """Two data sets that share three names."""
    for n, seed, name in ((20, 0, "one"), (12, 50, "two")):
        for i in range(n):
            write_pair(tmp_path / name, f"im{i:03}" if i < 3 else f"{name}{i:03}", seed=seed + i)
    return tmp_path / "one", tmp_path / "two"


def test_several_data_sets_in_any_order(two_sets, tmp_path):
    first = open_tiny(two_sets, tmp_path / "s")
    run_info, files = read_run_info(tmp_path / "s"), contents(tmp_path / "s")
    assert run_info["data"] == sorted(map(str, two_sets))
    again = open_tiny(two_sets[::-1], tmp_path / "s")
    assert again.split == first.split
    assert again.cache == first.cache
    same = {k: v for k, v in files.items() if "study.db" not in k}
    assert {k: v for k, v in contents(tmp_path / "s").items() if k in same} == same
    opened = open_study(tmp_path / "s")  # the recorded folders
    assert opened.index == first.index
    assert join_study(StudyLocation("s", tmp_path / "s", data=two_sets[::-1])).index == first.index


@pytest.mark.parametrize("which", [0, 1])
def test_resume_with_one_of_two_data_sets_is_an_error(two_sets, tmp_path, which):
    open_tiny(two_sets, tmp_path / "s")
    message = refusal(open_tiny, two_sets[which], tmp_path / "s")
    assert "was run on other data" in message and "of its images are missing: " in message


def test_resume_with_another_data_set_is_an_error(two_sets, tmp_path):
    open_tiny(two_sets[0], tmp_path / "s")
    assert "was run on other data" in refusal(open_tiny, two_sets, tmp_path / "s")


def test_the_data_summary_counts_each_data_set(two_sets, tmp_path):
    opened = open_tiny(two_sets, tmp_path / "s")
    summary = json.loads((tmp_path / "s" / "data.json").read_text())
    assert [(row["name"], row["pairs"], row["conflicting"]) for row in summary["sets"]] == [
        ("one", 20, 0),
        ("two", 12, 0),
    ]
    wfirst = {r.name: r.dataset for r in opened.index.records}
    for row in summary["sets"]:
        for part in ("train", "val", "test"):
            members = [name for name in getattr(opened.split, part) if wfirst[name] == row["name"]]
            assert row[part] == len(members)


def test_search_and_test_several_data_sets(two_sets, tmp_path):
    opened = open_tiny(two_sets, tmp_path / "s", {"budget.trials": 1})
    search(opened)
    run_final_test(opened, SLOT)
    with (tmp_path / "s" / "final" / "per_image.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == sorted(opened.split.test)
    write_reports(tmp_path / "s", ("html", "md"))
    for name in ("report.html", "report.md"):
        assert "Lesion in another split elsewhere" in (tmp_path / "s" / name).read_text()


def test_folds_are_stored_with_the_split(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"data.split": {"kfold": 4, "test": 0.2}})
    split = json.loads((tmp_path / "s" / "split.json").read_text())
    assert len(split["test"]) == 6
    assert [len(names) for names in split["folds"]] == [6] * 4
    assert split["val"] == split["folds"][0]
    assert opened.study.user_attrs["split"] == split
    names = opened.cache.names
    for (train, val), fold in zip(opened.trial_data.folds, split["folds"], strict=True):
        assert [names[i] for i in val] == fold
        assert {names[i] for i in train} == {*names} - {*fold} - {*split["test"]}


def test_resume_after_the_data_moved(tiny_data, tmp_path):
    open_tiny(tiny_data, tmp_path / "s")
    moved = shutil.copytree(tiny_data, tmp_path / "moved")
    open_tiny(moved, tmp_path / "s")
    assert read_run_info(tmp_path / "s")["data"] == str(moved)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"budget.epochs": 3}, "budget.epochs"),
        ({"seed": 1}, "seed"),
        ({"data.image_size": 32}, "data.image_size"),
        ({"data.split": {"seed": 1}}, "data.split.mode, data.split.seed"),
        ({"search.loss": "dice", "sampler.name": "tpe"}, "sampler.name, search.loss"),
        ({"search.model": {"unet": {"width": [4, 9], "depth": 1}}}, "search.model.unet.width"),
    ],
)
def test_another_spec_is_an_error_that_names_the_keys(tiny_data, tmp_path, changes, keys):
    open_tiny(tiny_data, tmp_path / "s")
    before = contents(tmp_path / "s")
    assert refusal(open_tiny, tiny_data, tmp_path / "s", changes) == (
        f"study 's' exists with another spec: {keys} differ; "
        f"restore the old values, or start a new study with another --out"
    )
    assert contents(tmp_path / "s") == before


@pytest.mark.parametrize(
    "changes",
    [
        {"budget.trials": 50},
        {"budget.trials": 1},
        {"budget.hours": 3, "budget.total_hours": 4},
        {"budget.gpu_hours": 3, "budget.trial_minutes": 9, "budget.stall_minutes": 1},
        {"final": {"seeds": 2, "fit_on": "train_val"}},
    ],
)
def test_resumable_keys_may_change(tiny_data, tmp_path, changes):
    open_tiny(tiny_data, tmp_path / "s")
    open_tiny(tiny_data, tmp_path / "s", changes)
    expected = tiny_spec(changes).with_encoder_weights({})
    assert load_spec(str(tmp_path / "s" / "study.yaml")) == expected
    assert open_study(tmp_path / "s").spec == expected


def test_other_data_are_an_error(tiny_data, tmp_path):
    open_tiny(tiny_data, tmp_path / "s")
    other = shutil.copytree(tiny_data, tmp_path / "other")
    write_pair(other, "one_more")
    message = refusal(open_tiny, other, tmp_path / "s")
    assert message.startswith("study 's' was run on other data (fingerprint ")
    assert read_run_info(tmp_path / "s")["data"] == str(tiny_data)
    assert refusal(open_study, tmp_path / "s", data=other) == message


def test_a_folder_with_other_files_is_an_error(tiny_data, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.doc").write_text("years of work")
    message = refusal(open_tiny, tiny_data, tmp_path / "s")
    assert message.endswith("holds other things than a study; give a new folder")
    assert tree(tmp_path / "s") == ["thesis.doc"]


def test_a_folder_below_a_file_is_an_error(tiny_data, tmp_path):
    (tmp_path / "file").write_text("")
    message = refusal(open_tiny, tiny_data, tmp_path / "file" / "s")
    assert message == f"--out: {tmp_path}/file/s cannot be made: {tmp_path}/file is a file"


def test_an_incomplete_study_is_completed(tiny_data, tmp_path):
    open_tiny(tiny_data, tmp_path / "s")
    (tmp_path / "s" / "run.json").unlink()  # the last file that is written
    assert open_tiny(tiny_data, tmp_path / "s").name == "s"
    shutil.rmtree(tmp_path / "s")
    (tmp_path / "s").mkdir()
    optuna.create_study(study_name="s", storage=open_storage(sqlite_url(tmp_path / "s")))
    assert open_tiny(tiny_data, tmp_path / "s").split.train
    assert is_study(tmp_path / "s")


def test_an_unreachable_storage_leaves_no_folder(tiny_data, tmp_path):
    for url in ("postgresql://u:pw@127.0.0.1:1/db", "sqlite:////proc/no/x.db"):
        assert "cannot be used" in refusal(
            create_or_resume, tiny_spec(), tiny_data, tmp_path / "runs" / "s", url
        )
        assert not (tmp_path / "runs").exists()


def test_two_hosts_create_one_study(tiny_data, tmp_path, postgres_url):
    first = create_or_resume(tiny_spec(), tiny_data, tmp_path / "first" / "s", postgres_url)
    tfirst = create_or_resume(tiny_spec(), tiny_data, tmp_path / "tfirst" / "s", postgres_url)
    assert (tfirst.split, tfirst.name) == (first.split, first.name)
    message = refusal(
        create_or_resume, tiny_spec({"seed": 5}), tiny_data, tmp_path / "third" / "s", postgres_url
    )
    assert "another spec: seed differ" in message
    assert not (tmp_path / "third").exists()


def test_the_artifact_store_of_a_study_is_fixed(tiny_data, tmp_path):
    make = partial(create_or_resume, tiny_spec(), tiny_data)
    first = make(tmp_path / "s", artifacts=str(tmp_path / "artifacts"))
    assert make(tmp_path / "s").artifact_store.local_path(
        0, "x"
    ) == first.artifact_store.local_path(0, "x")
    assert make(tmp_path / "s", artifacts=str(tmp_path / "artifacts")).name == "s"
    message = refusal(make, tmp_path / "s", artifacts=str(tmp_path / "other"))
    assert message == (
        f"--artifacts: study 's' keeps its checkpoints in {tmp_path / 'artifacts'}, "
        f"got {tmp_path / 'other'}; leave the option out"
    )
    # Relative paths are stored as absolute ones.
    assert make(tmp_path / "t", artifacts="near").study.user_attrs["artifacts"] == str(
        Path.cwd() / "near"
    )
    assert "artifacts: must be a folder" in refusal(make, tmp_path / "new", artifacts="ftp://a/b")
    assert not (tmp_path / "new").exists()
    twin = tmp_path / "elsewfirst" / "s"
    assert "holds another study" in refusal(make, twin, artifacts=str(tmp_path / "artifacts"))
    assert not twin.exists()


def test_a_larger_budget_continues_the_search(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 1})
    search(opened)
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 2})
    search(opened)
    assert yaml.safe_load((tmp_path / "s" / "study.yaml").read_text())["budget"]["trials"] == 2
    assert len(opened.study.trials) == 2


def test_too_few_images_leave_no_folder(tmp_path):
    data = write_folder(tmp_path / "data", 2)
    assert "would be empty" in refusal(open_tiny, data, tmp_path / "runs" / "s")
    assert not (tmp_path / "runs").exists()
