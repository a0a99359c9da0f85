"""A study's folder: created, opened again, refused where it is not the same any more."""

import csv
import json
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import optuna
import pytest
import yaml

from lesionseg.errors import InputError
from search.results.final_test import run_final_test
from search.results.report import write_reports
from search.spec.loading import load_spec
from search.storage.database import STORAGE_VARIABLE, open_storage, sqlite_url, storage_url
from search.storage.study_dir import is_study, lock_study, read_run_info
from search.study.creation import create_or_resume
from search.study.evaluations import list_test_evaluations, record_test_evaluation
from search.study.opening import OpenStudy, join_study, load_study, open_study
from search.study.sampling import prepare_sampling
from search.study.location import StudyLocation
from search.study.pruners import PRUNERS
from search.study.suggest import suggest
from tests.conftest import write_folder, write_pair
from tests.search.helpers import SLOT, open_tiny, search, tiny_spec


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def contents(folder):
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- what is made ------------------------------------------------------------------------------


def test_a_new_study_has_its_files_and_says_where_things_are(tiny_data, tmp_path):
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
    about = json.loads((folder / "run.json").read_text())
    assert about == read_run_info(folder)
    assert about["study"] == opened.name == "mine"
    assert about["storage"] is None
    assert about["data"] == str(tiny_data)
    assert about["layout"] == "folders"
    # The frozen file can be read as a study, and is the one that was run.
    assert load_spec(str(folder / "study.yaml")) == spec
    split = json.loads((folder / "split.json").read_text())
    assert split == opened.split.to_dict()
    sizes = {part: len(names) for part, names in split.items()}
    assert sizes["train"] == 21  # 70% of 30; the others share 9
    assert sorted([sizes["val"], sizes["test"]]) == [4, 5]


def test_material_points_at_the_pictures_of_the_split(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s")
    names = opened.cache.names
    assert [names[i] for i in opened.trial_data.train] == list(opened.split.train)
    assert [names[i] for i in opened.trial_data.val] == list(opened.split.val)
    assert not set(opened.split.test) & {
        names[i] for i in [*opened.trial_data.train, *opened.trial_data.val]
    }


def test_a_resumed_study_has_the_very_same_split_and_trials(tiny_data, tmp_path):
    first = open_tiny(tiny_data, tmp_path / "s")
    first.study.tell(first.study.ask(), 0.5)
    again = open_tiny(tiny_data, tmp_path / "s")
    assert again.split == first.split
    assert again.spec == first.spec
    assert [t.value for t in again.study.trials] == [0.5]
    opened = open_study(tmp_path / "s")
    assert (opened.split, opened.spec, opened.cache) == (first.split, first.spec, first.cache)


def test_the_split_is_the_stored_one_even_where_a_new_one_would_differ(tiny_data, tmp_path):
    """As when a later version of lesionsearch deals otherwise."""
    first = open_tiny(tiny_data, tmp_path / "s")
    swapped = first.split.to_dict()
    swapped["val"], swapped["test"] = swapped["test"], swapped["val"]
    first.study.set_user_attr("split", swapped)
    assert open_tiny(tiny_data, tmp_path / "s").split.to_dict() == swapped


def test_a_renamed_folder_is_still_its_study(tiny_data, tmp_path):
    first = open_tiny(tiny_data, tmp_path / "old")
    first.study.tell(first.study.ask(), 0.5)
    (tmp_path / "old").rename(tmp_path / "new")
    again = open_tiny(tiny_data, tmp_path / "new")
    assert again.name == "old"
    assert len(again.study.trials) == 1


def test_the_folder_one_is_in_gives_its_name(tiny_data, tmp_path, monkeypatch):
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


def test_a_study_of_two_sets_goes_on_with_them_in_any_order(two_sets, tmp_path):
    first = open_tiny(two_sets, tmp_path / "s")
    about, files = read_run_info(tmp_path / "s"), contents(tmp_path / "s")
    assert about["data"] == sorted(map(str, two_sets))
    again = open_tiny(two_sets[::-1], tmp_path / "s")
    assert again.split == first.split
    assert again.cache == first.cache
    same = {k: v for k, v in files.items() if "study.db" not in k}
    assert {k: v for k, v in contents(tmp_path / "s").items() if k in same} == same
    opened = open_study(tmp_path / "s")  # where run.json says that they are
    assert opened.index == first.index
    assert join_study(StudyLocation("s", tmp_path / "s", data=two_sets[::-1])).index == first.index


@pytest.mark.parametrize("which", [0, 1])
def test_a_study_of_two_sets_is_none_of_one(two_sets, tmp_path, which):
    open_tiny(two_sets, tmp_path / "s")
    told = refusal(open_tiny, two_sets[which], tmp_path / "s")
    assert "was run on other data" in told


def test_a_study_of_one_set_is_none_of_two(two_sets, tmp_path):
    open_tiny(two_sets[0], tmp_path / "s")
    assert "was run on other data" in refusal(open_tiny, two_sets, tmp_path / "s")


def test_the_card_counts_each_set(two_sets, tmp_path):
    opened = open_tiny(two_sets, tmp_path / "s")
    card = json.loads((tmp_path / "s" / "data.json").read_text())
    assert [(row["name"], row["pairs"], row["conflicting"]) for row in card["sets"]] == [
        ("one", 20, 0),
        ("two", 12, 0),
    ]
    where = {r.name: r.dataset for r in opened.index.records}
    for row in card["sets"]:
        for part in ("train", "val", "test"):
            mine = [name for name in getattr(opened.split, part) if where[name] == row["name"]]
            assert row[part] == len(mine)


def test_a_study_of_two_sets_is_searched_and_tested(two_sets, tmp_path):
    opened = open_tiny(two_sets, tmp_path / "s", {"budget.trials": 1})
    search(opened)
    run_final_test(opened, SLOT)
    with (tmp_path / "s" / "final" / "per_image.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == sorted(opened.split.test)
    write_reports(tmp_path / "s", ("html", "md"))
    for name in ("report.html", "report.md"):
        assert "Another set has the lesion" in (tmp_path / "s" / name).read_text()


def test_the_folds_are_stored_with_the_split(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"data.split": {"kfold": 4, "test": 0.2}})
    split = json.loads((tmp_path / "s" / "split.json").read_text())
    assert len(split["test"]) == 6
    assert [len(names) for names in split["folds"]] == [6] * 4
    assert split["val"] == split["folds"][0]
    assert opened.study.user_attrs["split"] == split
    names = opened.cache.names
    for (train, val), told in zip(opened.trial_data.folds, split["folds"], strict=True):
        assert [names[i] for i in val] == told
        assert {names[i] for i in train} == {*names} - {*told} - {*split["test"]}


def test_data_that_moved_are_the_same_data(tiny_data, tmp_path):
    open_tiny(tiny_data, tmp_path / "s")
    moved = shutil.copytree(tiny_data, tmp_path / "moved")
    open_tiny(moved, tmp_path / "s")
    assert read_run_info(tmp_path / "s")["data"] == str(moved)


# --- what is refused ---------------------------------------------------------------------------


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
def test_another_spec_is_refused_and_the_keys_are_named(tiny_data, tmp_path, changes, keys):
    open_tiny(tiny_data, tmp_path / "s")
    before = contents(tmp_path / "s")
    assert refusal(open_tiny, tiny_data, tmp_path / "s", changes) == (
        f"study 's' exists with another spec: {keys} differ; "
        f"put the old values back, or start anew with another --out"
    )
    assert contents(tmp_path / "s") == before


@pytest.mark.parametrize(
    "changes",
    [
        {"budget.trials": 50},
        {"budget.trials": 1},
        {"budget.hours": 3},
        {"budget.gpu_hours": 3, "budget.trial_minutes": 9, "budget.stall_minutes": 1},
        {"final": {"seeds": 2, "fit_on": "train_val"}},
    ],
)
def test_what_changes_no_trial_may_change(tiny_data, tmp_path, changes):
    open_tiny(tiny_data, tmp_path / "s")
    open_tiny(tiny_data, tmp_path / "s", changes)
    assert load_spec(str(tmp_path / "s" / "study.yaml")) == tiny_spec(changes)
    assert open_study(tmp_path / "s").spec == tiny_spec(changes)


def test_other_data_are_refused_and_nothing_is_changed(tiny_data, tmp_path):
    open_tiny(tiny_data, tmp_path / "s")
    other = shutil.copytree(tiny_data, tmp_path / "other")
    write_pair(other, "one_more")
    message = refusal(open_tiny, other, tmp_path / "s")
    assert message.startswith("study 's' was run on other data (fingerprint ")
    assert read_run_info(tmp_path / "s")["data"] == str(tiny_data)
    assert refusal(open_study, tmp_path / "s", data=other) == message


def test_a_folder_of_other_things_is_refused_and_left_alone(tiny_data, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.doc").write_text("years of work")
    message = refusal(open_tiny, tiny_data, tmp_path / "s")
    assert message.endswith("holds other things than a study; give a new folder")
    assert tree(tmp_path / "s") == ["thesis.doc"]


def test_a_folder_below_a_file_is_refused(tiny_data, tmp_path):
    (tmp_path / "file").write_text("")
    message = refusal(open_tiny, tiny_data, tmp_path / "file" / "s")
    assert message == f"--out: {tmp_path}/file/s cannot be made: {tmp_path}/file is a file"


def test_a_study_that_was_cut_off_while_it_was_made_is_made(tiny_data, tmp_path):
    open_tiny(tiny_data, tmp_path / "s")
    (tmp_path / "s" / "run.json").unlink()  # the last file that is written
    assert open_tiny(tiny_data, tmp_path / "s").name == "s"
    shutil.rmtree(tmp_path / "s")
    (tmp_path / "s").mkdir()
    optuna.create_study(study_name="s", storage=open_storage(sqlite_url(tmp_path / "s")))
    assert open_tiny(tiny_data, tmp_path / "s").split.train
    assert is_study(tmp_path / "s")


def test_a_study_whose_storage_is_gone_is_told_and_none_is_made_in_its_place(tiny_data, tmp_path):
    open_tiny(tiny_data, tmp_path / "s")
    (tmp_path / "s" / "study.db").unlink()
    for call in (
        lambda: load_study(tmp_path / "s"),
        lambda: open_tiny(tiny_data, tmp_path / "s"),
    ):
        message = refusal(call)
        assert "study.db holds no study 's'; was it moved or deleted?" in message
    assert "study.db" not in tree(tmp_path / "s")


def test_a_damaged_run_json_is_no_study(tmp_path):
    (tmp_path / "run.json").write_text('{"study": "x')
    assert "no study here" in refusal(read_run_info, tmp_path)


# --- where it is stored ------------------------------------------------------------------------


def test_an_sqlite_file_elsewhere_is_found_again_without_being_told(tiny_data, tmp_path):
    url = f"sqlite:///{tmp_path}/elsewhere.db"
    first = create_or_resume(tiny_spec(), tiny_data, tmp_path / "s", url)
    first.study.tell(first.study.ask(), 0.5)
    assert read_run_info(tmp_path / "s")["storage"] == url
    assert "study.db" not in tree(tmp_path / "s")
    for again in (
        create_or_resume(tiny_spec(), tiny_data, tmp_path / "s"),
        create_or_resume(tiny_spec(), tiny_data, tmp_path / "s", url),
        open_study(tmp_path / "s"),
    ):
        assert len(again.study.trials) == 1
    assert "study.db" not in tree(tmp_path / "s")


def test_the_environment_does_not_lead_away_from_where_a_study_is(tiny_data, tmp_path, monkeypatch):
    open_tiny(tiny_data, tmp_path / "s")
    monkeypatch.setenv(STORAGE_VARIABLE, f"sqlite:///{tmp_path}/other.db")
    assert load_study(tmp_path / "s").study_name == "s"
    assert open_tiny(tiny_data, tmp_path / "s").name == "s"
    assert not (tmp_path / "other.db").exists()
    # A new study is made where it says.
    open_tiny(tiny_data, tmp_path / "new")
    assert (tmp_path / "other.db").exists()
    assert "study.db" not in tree(tmp_path / "new")


def test_a_storage_that_does_not_hold_the_study_is_refused(tiny_data, tmp_path):
    open_tiny(tiny_data, tmp_path / "s")
    url = f"sqlite:///{tmp_path}/other.db"
    optuna.create_study(storage=url)
    message = refusal(create_or_resume, tiny_spec(), tiny_data, tmp_path / "s", url)
    assert message.endswith("other.db holds no study 's'; was it moved or deleted?")


def test_a_storage_that_cannot_be_reached_leaves_nothing_behind(tiny_data, tmp_path):
    for url in ("postgresql://u:pw@127.0.0.1:1/db", "sqlite:////proc/no/x.db"):
        assert "cannot be used" in refusal(
            create_or_resume, tiny_spec(), tiny_data, tmp_path / "runs" / "s", url
        )
        assert not (tmp_path / "runs").exists()


def test_a_study_on_postgresql_is_found_again_and_its_password_is_not_kept(
    tiny_data, tmp_path, postgres_url, monkeypatch
):
    # This server asks for no password: any will do.
    with_password = postgres_url.replace("postgres@", "postgres:hunter2secret@")
    first = create_or_resume(tiny_spec(), tiny_data, tmp_path / "s", with_password)
    first.study.tell(first.study.ask(), 0.5)
    kept = "".join(p.read_text() for p in (tmp_path / "s").rglob("*") if p.is_file())
    assert "hunter2secret" not in kept
    assert "postgres:***@" in kept
    message = refusal(load_study, tmp_path / "s")
    assert "whose password is not kept; give --storage or set LESIONSEARCH_STORAGE" in message
    # Above all: a resumed study without the password must not begin anew in the folder.
    assert refusal(create_or_resume, tiny_spec(), tiny_data, tmp_path / "s") == message
    assert "study.db" not in tree(tmp_path / "s")
    monkeypatch.setenv(STORAGE_VARIABLE, with_password)
    assert len(open_study(tmp_path / "s").study.trials) == 1
    monkeypatch.delenv(STORAGE_VARIABLE)
    again = create_or_resume(tiny_spec(), tiny_data, tmp_path / "s", with_password)
    assert len(again.study.trials) == 1


def test_another_host_joins_a_study_on_postgresql_and_agrees_on_everything(
    tiny_data, tmp_path, postgres_url
):
    here = create_or_resume(tiny_spec(), tiny_data, tmp_path / "here" / "s", postgres_url)
    there = create_or_resume(tiny_spec(), tiny_data, tmp_path / "there" / "s", postgres_url)
    assert (there.split, there.name) == (here.split, here.name)
    message = refusal(
        create_or_resume, tiny_spec({"seed": 5}), tiny_data, tmp_path / "third" / "s", postgres_url
    )
    assert "another spec: seed differ" in message
    assert not (tmp_path / "third").exists()


# --- workers of other hosts --------------------------------------------------------------------


def joined(url, folder, data) -> OpenStudy:
    return join_study(StudyLocation("s", folder, url, data))


def test_a_worker_joins_by_the_folder_or_by_the_storage_and_agrees_on_everything(
    tiny_data, tmp_path
):
    url = f"sqlite:///{tmp_path}/shared.db"
    kept = tmp_path / "kept"
    here = create_or_resume(tiny_spec(), tiny_data, tmp_path / "here", url, str(kept))
    assert here.name == "here"
    again = join_study(StudyLocation("here", tmp_path / "here"))
    there = join_study(StudyLocation("here", tmp_path / "there" / "mine", url, tiny_data))
    for other in (again, there):
        assert (other.name, other.spec, other.split) == (here.name, here.spec, here.split)
        assert other.material.cache == here.material.cache
        assert other.store.local_path(3, "x") == kept / "here" / "trials" / "3" / "x"
    assert is_study(tmp_path / "there" / "mine")
    assert "study.db" not in tree(tmp_path / "there" / "mine")


def test_a_worker_is_refused_where_it_would_lose_its_work(tiny_data, tmp_path):
    url = f"sqlite:///{tmp_path}/shared.db"
    create_or_resume(tiny_spec(), tiny_data, tmp_path / "s", url)
    assert "holds nothing of the study as this host sees it" in refusal(
        joined, url, tmp_path / "elsewhere" / "s", tiny_data
    )
    other = shutil.copytree(tiny_data, tmp_path / "other")
    write_pair(other, "one_more")
    assert "was run on other data" in refusal(joined, url, tmp_path / "x" / "s", other)
    assert "--data: say where" in refusal(joined, url, tmp_path / "x" / "s", None)
    assert "no --storage that one could be in" in refusal(
        joined, None, tmp_path / "x" / "s", tiny_data
    )
    optuna.create_study(study_name="foreign", storage=open_storage(storage_url(url, tmp_path)))
    assert "was not made by lesionsearch" in refusal(
        join_study, StudyLocation("foreign", tmp_path / "x" / "foreign", url, tiny_data)
    )
    assert not (tmp_path / "x").exists() and not (tmp_path / "elsewhere").exists()


def test_checkpoints_stay_where_the_studys_creator_put_them(tiny_data, tmp_path):
    make = partial(create_or_resume, tiny_spec(), tiny_data)
    first = make(tmp_path / "s", artifacts=str(tmp_path / "kept"))
    assert make(tmp_path / "s").store.local_path(0, "x") == first.store.local_path(0, "x")
    assert make(tmp_path / "s", artifacts=str(tmp_path / "kept")).name == "s"
    message = refusal(make, tmp_path / "s", artifacts=str(tmp_path / "other"))
    assert message == (
        f"--artifacts: study 's' keeps its checkpoints in {tmp_path / 'kept'}, "
        f"got {tmp_path / 'other'}; leave the option out"
    )
    # A path is kept as it is seen from anywhere.
    assert make(tmp_path / "t", artifacts="near").study.user_attrs["artifacts"] == str(
        Path.cwd() / "near"
    )
    assert "artifacts: must be a folder" in refusal(make, tmp_path / "new", artifacts="ftp://a/b")
    assert not (tmp_path / "new").exists()
    twin = tmp_path / "elsewhere" / "s"
    assert "holds another study" in refusal(make, twin, artifacts=str(tmp_path / "kept"))
    assert not twin.exists()


# --- one process at a time ---------------------------------------------------------------------


def test_a_second_process_is_kept_off_a_folder_until_the_first_is_done_or_dead(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            # What lock_study() holds, without its imports.
            "import sys, time, filelock\nlock = filelock.FileLock(sys.argv[1])\nlock.acquire()\n"
            "print('held', flush=True); time.sleep(60)",
            str(tmp_path / ".lock"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another process is at work on this study"):
            lock_study(tmp_path).__enter__()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with lock_study(tmp_path):
            pass
        with lock_study(tmp_path):
            pass
    finally:
        holder.kill()
        holder.stdout.close()


# --- sampling ----------------------------------------------------------------------------------


def test_a_session_does_not_propose_the_trials_of_the_last_one_again(tiny_data, tmp_path):
    digests = []
    for _ in range(3):
        opened = open_tiny(tiny_data, tmp_path / "s")
        for _ in range(3):
            trial = opened.study.ask()
            digests.append(suggest(trial, opened.spec.space).digest())
            opened.study.tell(trial, 0.5)
    assert len(set(digests)) == 9


def test_two_studies_of_one_spec_and_seed_propose_the_same(tiny_data, tmp_path):
    proposed = []
    for name in ("a", "b"):
        opened = open_tiny(tiny_data, tmp_path / name)
        proposed.append([suggest(opened.study.ask(), opened.spec.space).digest() for _ in range(3)])
    assert proposed[0] == proposed[1]


# --- looks at the test images ------------------------------------------------------------------


def test_looks_are_counted_and_kept_with_their_time(tiny_data, tmp_path):
    study = open_tiny(tiny_data, tmp_path / "s").study
    assert list_test_evaluations(study) == []
    assert [record_test_evaluation(study), record_test_evaluation(study)] == [1, 2]
    again = load_study(tmp_path / "s")
    assert len(list_test_evaluations(again)) == 2
    assert all(look.endswith("+00:00") for look in list_test_evaluations(again))


def test_a_spec_without_effect_on_trials_reaches_the_next_session(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 1})
    search(opened)
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 2})
    search(opened)
    assert yaml.safe_load((tmp_path / "s" / "study.yaml").read_text())["budget"]["trials"] == 2
    assert len(opened.study.trials) == 2


def test_prepare_sampling_gives_the_specs_sampler_and_pruner(tiny_data, tmp_path):
    changes = {"sampler.name": "tpe", "pruner": {"name": "median", "min_epochs": 1}}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    prepare_sampling(opened)
    assert isinstance(opened.study.sampler, optuna.samplers.TPESampler)
    assert type(opened.study.pruner) is type(PRUNERS["median"](1, 1, 1))


def test_too_few_images_for_the_split_leave_no_folder(tmp_path):
    data = write_folder(tmp_path / "data", 2)
    assert "would be empty" in refusal(open_tiny, data, tmp_path / "runs" / "s")
    assert not (tmp_path / "runs").exists()
