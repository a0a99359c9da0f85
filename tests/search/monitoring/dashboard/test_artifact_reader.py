"""Trials' files as Optuna artifacts."""

from __future__ import annotations

import csv
import io
import json
import os

import optuna
import pytest
from optuna.artifacts import download_artifact, get_all_artifact_meta
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import TrialState
from PIL import Image

from search.monitoring.dashboard.artifact_reader import ArtifactReader
from search.storage import artifact_ids, retention, trial_records
from search.storage.retention import HISTORY, PICTURE
from tests.search.helpers import in_memory, make_worker, open_tiny, queue

MARK = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def opened(tiny_data, tmp_path_factory):
    """A study with a complete trial and one that violates a constraint; not to be changed."""
    changes = {
        "constraints.max_params_m": 0.02,
        "search.model": {"unet": {"width": [4, 64], "depth": 1}},
    }
    study = open_tiny(tiny_data, tmp_path_factory.mktemp("g") / "s", changes)
    queue(study)
    queue(study, lr=0.011, width=64)
    worker = make_worker(study)
    for _ in range(2):
        worker.run_one()
    return study


@pytest.fixture
def reader(opened):
    return ArtifactReader(opened.study._storage, lambda name: opened.folder)


def ids(opened, number) -> dict[str, str]:
    """Return the artifacts of a trial by name, as Optuna lists them."""
    trial = opened.study.trials[number]
    found = get_all_artifact_meta(trial, storage=opened.study._storage)
    return {meta.filename: meta.artifact_id for meta in found}


def test_a_trial_has_a_picture_curves_and_a_history(opened):
    assert list(ids(opened, 0)) == [PICTURE, artifact_ids.CURVES, HISTORY]
    meta = get_all_artifact_meta(opened.study.trials[0], storage=opened.study._storage)
    assert [m.mimetype for m in meta] == ["image/jpeg", "image/png", "text/csv"]


def test_a_trial_that_violates_a_constraint_has_no_files(opened):
    refused = opened.study.trials[1]
    assert trial_records.reason_of(refused) == trial_records.EndReason.CONSTRAINT
    assert ids(opened, 1) == {}
    assert refused.user_attrs["constraint.max_params_m"] == pytest.approx(
        refused.constraints["max_params_m"], abs=1e-6
    )
    assert refused.user_attrs["constraint.max_params_m"] > 0
    assert opened.study.trials[0].user_attrs["constraint.max_params_m"] < 0


def test_optuna_downloads_the_files_of_the_store(opened, reader, tmp_path):
    for name, artifact in ids(opened, 0).items():
        download_artifact(
            artifact_store=reader, artifact_id=artifact, file_path=str(tmp_path / name)
        )
    place = opened.folder / "trials" / "0"
    for name in (PICTURE, HISTORY):
        assert (tmp_path / name).read_bytes() == (place / name).read_bytes()
    with Image.open(tmp_path / artifact_ids.CURVES) as curves:
        assert curves.format == "PNG"
    assert {p.name for p in place.iterdir()} == {
        PICTURE,
        HISTORY,
        retention.WEIGHTS,
    }  # nothing twice
    rows = list(csv.DictReader(io.StringIO((tmp_path / HISTORY).read_text())))
    assert [int(r["epoch"]) for r in rows] == [1, 2]


@pytest.mark.parametrize(
    "artifact",
    ["", "..", "../0", f"{MARK}-0-0", f"{MARK}-0-9", "/etc/passwd", f"{MARK}-../../x-0", "0",
     f"{MARK.upper()}-0-0", f"{MARK}-00-0", f"{MARK}-0-0\n", f"{MARK}--1-0", f"{MARK}-0-0-0"],
)  # fmt: skip
def test_invalid_ids_are_not_found(reader, artifact):
    with pytest.raises(ArtifactNotFound):
        reader.open_reader(artifact)


def test_missing_files_and_trials_are_not_found(opened, reader):
    mark = opened.study.user_attrs["uuid"]
    for number in (1, 99):
        for place in range(len(artifact_ids.FILES)):
            with pytest.raises(ArtifactNotFound):
                reader.open_reader(f"{mark}-{number}-{place}")


@pytest.mark.parametrize("what", ["file", "folder", "dangling"])
def test_links_out_of_the_store_are_not_followed(opened, tmp_path, what):
    folder, secret = tmp_path / "s", tmp_path / "secret"
    secret.mkdir()
    (secret / HISTORY).write_text("epoch,train_loss\n1,2\n")
    place = folder / "trials" / "5"
    place.parent.mkdir(parents=True)
    mark = opened.study.user_attrs["uuid"]
    (folder / "trials" / ".study").write_text(mark)
    if what == "folder":
        place.symlink_to(secret)
    else:
        place.mkdir()
        os.symlink(secret / (HISTORY if what == "file" else "no"), place / HISTORY)
    reader = ArtifactReader(opened.study._storage, lambda name: folder)
    for kind in (1, 2):
        with pytest.raises(ArtifactNotFound):
            reader.open_reader(f"{mark}-5-{kind}")


def test_the_folder_of_a_study_may_be_a_link(opened, tmp_path):
    (tmp_path / "link").symlink_to(opened.folder)
    reader = ArtifactReader(opened.study._storage, lambda name: tmp_path / "link")
    assert reader.open_reader(ids(opened, 0)[HISTORY]).read().startswith(b"epoch,")


def test_the_store_of_another_study_is_not_read(opened, tmp_path):
    folder = tmp_path / "s"
    (folder / "trials" / "0").mkdir(parents=True)
    (folder / "trials" / ".study").write_text(MARK)
    (folder / "trials" / "0" / HISTORY).write_text("epoch\n1\n")
    reader = ArtifactReader(opened.study._storage, lambda name: folder)
    with pytest.raises(ArtifactNotFound):
        reader.open_reader(ids(opened, 0)[HISTORY])


@pytest.mark.parametrize(
    "text",
    ["", "epoch\n", "no,table\n1,2\n", "epoch,dice\n1,x\n", "epoch\n1,2\n", 'epoch,"dice\n'],
)
def test_an_invalid_history_has_no_curves(opened, tmp_path, text):
    mark = opened.study.user_attrs["uuid"]
    place = tmp_path / "s" / "trials" / "0"
    place.mkdir(parents=True)
    (place.parent / ".study").write_text(mark)
    (place / HISTORY).write_text(text)
    reader = ArtifactReader(opened.study._storage, lambda name: tmp_path / "s")
    with pytest.raises(ArtifactNotFound):
        reader.open_reader(f"{mark}-0-1")


def test_the_reader_does_not_write_or_delete(reader):
    with pytest.raises(PermissionError):
        reader.write("x", io.BytesIO(b""))
    with pytest.raises(PermissionError):
        reader.remove("x")


# --- pictures that are kept -------------------------------------------------------------------


def study_of(values) -> optuna.Study:
    """Return a study with complete trials of these values; None for a pruned trial."""
    study = in_memory()
    for value in values:
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        study.add_trial(optuna.trial.create_trial(state=state, value=value))
    return study


def test_pictures_of_the_best_and_latest_trials_are_kept():
    best = [0.9] * retention.BEST_PICTURES
    known = study_of([*best, *[0.5] * 50, *[None] * 10]).trials
    latest = range(len(known) - retention.LATEST_PICTURES, len(known))
    assert retention.trials_with_pictures(known) == {*range(retention.BEST_PICTURES), *latest}


def test_old_pictures_are_deleted_after_each_trial(tmp_path):
    """Compare with the rule, applied to all trials at each step."""
    import random

    from search.storage.artifact_store import FolderArtifactStore

    rng, study, store = random.Random(0), in_memory(), FolderArtifactStore(tmp_path)
    for number in range(150):
        value = rng.choice([None, rng.random()])
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        study.add_trial(optuna.trial.create_trial(state=state, value=value))
        store.local_path(number, PICTURE).touch()
        retention.delete_old_pictures(store, study.trials)
        remaining = {n for n in store.list_trials() if PICTURE in store.list_files(n)}
        assert remaining == retention.trials_with_pictures(study.trials)
    assert len(remaining) <= retention.BEST_PICTURES + retention.LATEST_PICTURES


def test_leftover_pictures_are_deleted(tmp_path):
    from search.storage.artifact_store import FolderArtifactStore

    study, store = study_of([0.5 - i / 1000 for i in range(60)]), FolderArtifactStore(tmp_path)
    for number in range(60):
        store.local_path(number, PICTURE).touch()
    retention.delete_unneeded_files(store, study.trials)
    assert {
        n for n in store.list_trials() if store.list_files(n)
    } == retention.trials_with_pictures(study.trials)


def test_deleted_pictures_are_not_listed():
    attrs = artifact_ids.artifact_attrs(MARK, 3, [HISTORY, PICTURE])
    names = [m["filename"] for m in artifact_ids.list_artifacts(attrs, with_picture=False)]
    assert names == [artifact_ids.CURVES, HISTORY]
    shuffled = dict(reversed(attrs.items()))
    names = [m["filename"] for m in artifact_ids.list_artifacts(shuffled, with_picture=True)]
    assert names == [PICTURE, artifact_ids.CURVES, HISTORY]


def test_artifacts_of_other_programs_are_listed_unless_deleted():
    attrs = {"artifacts:1": json.dumps({"artifact_id": "1", "filename": "x.txt"}),
             "artifacts:2": "null", "other": 3}  # fmt: skip
    assert [m["artifact_id"] for m in artifact_ids.list_artifacts(attrs, with_picture=True)] == [
        "1"
    ]
