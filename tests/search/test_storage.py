"""From a URL to a storage: who may claim what, and what is said where it cannot be reached."""

import multiprocessing
import re
import socket
from collections import Counter

import optuna
import pytest
from optuna.trial import TrialState

from lesionseg.errors import InputError
from search.storage import ENVIRONMENT, local_url, masked, open_storage, storage_url

SECRET = "hunter2secret"


# --- URLs --------------------------------------------------------------------------------------


def test_without_a_url_the_study_lies_in_its_folder(tmp_path):
    url = storage_url(None, tmp_path / "mine")
    assert url == local_url(tmp_path / "mine")
    assert url.render_as_string() == f"sqlite:///{tmp_path}/mine/study.db"


def test_a_url_that_is_given_wins_over_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv(ENVIRONMENT, "postgresql://u@h/environment")
    assert storage_url(None, tmp_path).database == "environment"
    assert storage_url("postgresql://u@h/given", tmp_path).database == "given"
    monkeypatch.setenv(ENVIRONMENT, "")
    assert storage_url(None, tmp_path) == local_url(tmp_path)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_postgresql_is_always_reached_through_psycopg(scheme, tmp_path):
    url = storage_url(f"{scheme}://u:{SECRET}@host:5433/db", tmp_path)
    assert url.render_as_string(hide_password=False) == (
        f"postgresql+psycopg://u:{SECRET}@host:5433/db"
    )


def test_a_relative_sqlite_file_is_meant_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage_url("sqlite:///x.db", tmp_path / "y").database == str(tmp_path / "x.db")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SECRET, "storage: not a database URL; it looks like"),
        (f"postgresql://u:{SECRET}@host:port/db", "storage: not a database URL"),
        (f"postgresql://u:{SECRET}@host:x@y/db", "storage: not a database URL"),
        (
            f"mysql://u:{SECRET}@host/db",
            "storage: mysql://u:***@host/db: must be sqlite or postgresql, got 'mysql'",
        ),
        ("redis://h", "storage: redis://h: must be sqlite or postgresql, got 'redis'"),
        (f"postgresql://h/db?user=u&password={SECRET}", "the password stands in its query"),
        (f"mysql://h/db?password={SECRET}", "the password stands in its query"),
        # In memory, nothing would be left of a study.
        ("sqlite://", "storage: sqlite://: needs a file, such as sqlite:///study.db"),
        ("sqlite:///:memory:", "needs a file"),
    ],
)
def test_what_is_no_usable_url_is_refused_without_its_password(text, message, tmp_path):
    with pytest.raises(InputError) as caught:
        storage_url(text, tmp_path)
    assert message in str(caught.value)
    assert SECRET not in str(caught.value)


# --- databases that cannot be used -------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def refusal(text, tmp_path) -> str:
    with pytest.raises(InputError) as caught:
        open_storage(storage_url(text, tmp_path))
    message = str(caught.value)
    assert "\n" not in message
    assert SECRET not in message
    return message


def test_a_port_where_nothing_listens_is_told_with_the_password_masked(tmp_path):
    port = free_port()
    message = refusal(f"postgresql://u:{SECRET}@127.0.0.1:{port}/db", tmp_path)
    assert message.startswith(
        f"storage: postgresql+psycopg://u:***@127.0.0.1:{port}/db: cannot be used: "
    )
    assert "refused" in message


def test_a_host_that_does_not_exist_is_told(tmp_path):
    message = refusal(f"postgresql://u:{SECRET}@nowhere.invalid/db", tmp_path)
    assert message.startswith("storage: postgresql+psycopg://u:***@nowhere.invalid/db: cannot be ")
    assert "nowhere.invalid" in message.partition("cannot be used: ")[2]


def test_a_database_that_does_not_exist_is_told(postgres_url, tmp_path):
    message = refusal(re.sub("/lesionsearch_.*", "/no_such_database", postgres_url), tmp_path)
    assert message.endswith('FATAL: database "no_such_database" does not exist')


def test_an_sqlite_file_that_cannot_be_is_told(tmp_path):
    assert refusal("sqlite:////proc/no/study.db", tmp_path) == (
        "storage: sqlite:////proc/no/study.db: cannot be used: unable to open database file"
    )
    other = tmp_path / "picture.db"
    other.write_bytes(b"\x89PNG" * 500)
    assert refusal(f"sqlite:///{other}", tmp_path) == (
        f"storage: sqlite:///{other}: cannot be used: file is not a database"
    )
    assert other.read_bytes() == b"\x89PNG" * 500


def test_a_masked_url_shows_everything_but_the_password(tmp_path):
    url = storage_url(f"postgresql://u:{SECRET}@h:1/db?sslmode=require", tmp_path)
    assert masked(url) == "postgresql+psycopg://u:***@h:1/db?sslmode=require"


# --- many workers ------------------------------------------------------------------------------

#: Processes, and trials in the queue for all of them.
WORKERS, QUEUED = 4, 40


def claim(url: str, barrier, told) -> None:
    """A worker: claims queued trials until none is left, reports and tells each."""
    try:
        storage = open_storage(storage_url(url, None))
        study = optuna.load_study(study_name="many", storage=storage)
        claimed = []
        barrier.wait(60)
        while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            trial = study.ask()
            if "queued" not in trial.user_attrs:
                study.tell(trial, state=TrialState.FAIL)  # another one was quicker
                continue
            x = trial.suggest_int("x", 0, QUEUED - 1)
            trial.report(0.5, 1)
            trial.should_prune()
            trial.set_user_attr("x", x)
            study.tell(trial, x)
            claimed.append((trial.number, x))
        told.put(claimed)
    except BaseException as error:
        told.put(repr(error))
        raise


def claim_together(url: str) -> None:
    study = optuna.create_study(study_name="many", storage=open_storage(storage_url(url, None)))
    for i in range(QUEUED):
        study.enqueue_trial({"x": i}, user_attrs={"queued": True})
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(WORKERS), context.Queue()
    workers = [context.Process(target=claim, args=(url, barrier, told)) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    answers = [told.get(timeout=90) for _ in workers]
    for worker in workers:
        worker.join(30)
    assert [a for a in answers if isinstance(a, str)] == []
    claimed = [pair for answer in answers for pair in answer]
    assert Counter(x for _, x in claimed) == Counter(range(QUEUED))
    assert len({number for number, _ in claimed}) == QUEUED
    done = {t.number: t for t in study.trials if t.state == TrialState.COMPLETE}
    assert {n: t.value for n, t in done.items()} == dict(claimed)
    assert all(t.state.is_finished() for t in study.trials)


def test_processes_claim_each_queued_trial_of_one_sqlite_file_once(tmp_path):
    claim_together(f"sqlite:///{tmp_path}/study.db")


def test_processes_claim_each_queued_trial_of_one_postgresql_once(postgres_url):
    claim_together(postgres_url)


def test_a_storage_keeps_a_study_for_the_next_process(tmp_path):
    url = local_url(tmp_path)
    study = optuna.create_study(study_name="s", storage=open_storage(url))
    study.tell(study.ask(), 0.25)
    again = optuna.load_study(study_name="s", storage=open_storage(url))
    assert [t.value for t in again.trials] == [0.25]
