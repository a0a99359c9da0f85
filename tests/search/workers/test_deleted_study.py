"""A study is deleted while a worker runs, and another one is created in the same database."""

import re

import optuna
import pytest
from sqlalchemy import make_url

from lesionseg.errors import InputError
from search.storage.database import open_storage
from search.storage.leases import TrialLeases
from search.storage.optuna_internals import study_id
from search.study.creation import create_or_resume
from search.study.location import StudyLocation
from search.study.opening import load_study
from tests.search import stub_training
from tests.search.helpers import LONG_WAIT_S, SLOT, tiny_spec, wait_until
from tests.search.worker_processes import WorkerProcesses

LONG = tiny_spec({"budget.epochs": 400})


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "sqlite of optuna", "postgresql"])
def test_a_worker_of_a_deleted_study_ends_and_leaves_the_next_study_alone(
    database, request, tiny_data, tmp_path
):
    url = f"sqlite:///{tmp_path}/shared.db"
    if database == "postgresql":
        url = request.getfixturevalue("postgres_url")
    elif database == "sqlite of optuna":
        optuna.storages.RDBStorage(url)  # SQLite uses the ids of these tables again
    first = create_or_resume(LONG, tiny_data, tmp_path / "a", url).study
    with WorkerProcesses() as processes:
        processes.start(
            StudyLocation("a", tmp_path / "a", url),
            tmp_path / "log",
            {stub_training.SECONDS: "0.05 0.05"},
        )
        assert wait_until(lambda: len(stub_training.read_log(tmp_path / "a")) > 5, LONG_WAIT_S)
        optuna.delete_study(study_name="a", storage=open_storage(make_url(url)))
        opened = create_or_resume(LONG, tiny_data, tmp_path / "b", url)
        leases = TrialLeases(opened.study)
        claim = leases.claim(leases.register_worker(SLOT))
        before = opened.study.get_trials()
        assert (study_id(opened.study) == study_id(first)) == (database == "sqlite of optuna")
        ended = {}
        assert wait_until(lambda: ended.update(processes.ended()) or ended, LONG_WAIT_S)
        assert wait_until(lambda: not processes.descendants(), LONG_WAIT_S)
    assert list(ended.values()) == [1]
    lines = (tmp_path / "log").read_text().splitlines()
    assert re.fullmatch(
        "lesionsearch: the study was deleted: .* no longer holds the study 'a' that this process "
        "opened; restore the database from a backup, or start a new study",
        lines[-1],
    )
    assert not [line for line in lines if "Traceback" in line or "storage lost" in line]
    assert opened.study.get_trials() == before
    assert [worker.trial for worker in leases.list_workers()] == [claim.number]
    with pytest.raises(InputError, match="holds no study 'a'; it may have been moved"):
        load_study(tmp_path / "a")
