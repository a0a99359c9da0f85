"""From a URL to a storage: who may claim what, and what is said where it cannot be reached."""

import multiprocessing
import re
import socket
import sqlite3
import traceback
from collections import Counter
from urllib.parse import quote

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from lesionseg.errors import InputError
from search.storage.database import (
    STORAGE_FILE_VARIABLE,
    STORAGE_VARIABLE,
    mask_password,
    open_storage,
    redact_password,
    sqlite_url,
    storage_from_environment,
    storage_url,
)
from tests.postgres import GUARDED, free_port, private_postgres

__all__ = ["private_postgres"]  # a fixture

SECRET = "hunter2secret"
#: One that a URL cannot hold as it is, that a template would trip over, and that psycopg escapes.
AWKWARD = "p@:/s?s #{0}{x}%41'\\\"é"


@pytest.fixture(autouse=True)
def _no_file(monkeypatch):
    monkeypatch.delenv(STORAGE_FILE_VARIABLE, raising=False)


# --- URLs --------------------------------------------------------------------------------------


def test_without_a_url_the_study_lies_in_its_folder(tmp_path):
    url = storage_url(None, tmp_path / "mine")
    assert url == sqlite_url(tmp_path / "mine")
    assert url.render_as_string() == f"sqlite:///{tmp_path}/mine/study.db"


def test_a_url_that_is_given_wins_over_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv(STORAGE_VARIABLE, "postgresql://u@h/environment")
    assert storage_url(None, tmp_path).database == "environment"
    assert storage_url("postgresql://u@h/given", tmp_path).database == "given"
    monkeypatch.setenv(STORAGE_VARIABLE, "")
    assert storage_url(None, tmp_path) == sqlite_url(tmp_path)


@pytest.mark.parametrize("end", ["", "\n", " \r\n"])
def test_a_url_is_read_from_a_file(end, monkeypatch, tmp_path):
    file = tmp_path / "secret"
    file.write_text(f"postgresql://u:{SECRET}@h/filed{end}")
    assert storage_url(f"@{file}", tmp_path).password == SECRET
    monkeypatch.setenv(STORAGE_FILE_VARIABLE, str(file))
    assert storage_from_environment() == f"@{file}"
    assert storage_url(None, tmp_path).database == "filed"
    monkeypatch.setenv(STORAGE_VARIABLE, "postgresql://u@h/environment")
    assert storage_url(None, tmp_path).database == "environment"
    monkeypatch.setenv(STORAGE_VARIABLE, f"@{file}")
    assert storage_url(None, tmp_path).database == "filed"


def test_a_file_of_the_home_folder_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "secret").write_text("postgresql://u@h/filed")
    assert storage_url("@~/secret", tmp_path).database == "filed"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "must hold one line, the database's URL"),
        (b" \n", "must hold one line"),
        (f"{SECRET}\n{SECRET}".encode(), "must hold one line"),
        (f"@{SECRET}".encode(), "must hold one line"),
        (b"\xff\xfe" + SECRET.encode(), "cannot be read: not a text file"),
        (SECRET.encode(), "not a database URL"),
    ],
)
def test_a_file_without_a_url_is_told_without_what_it_holds(content, message, tmp_path):
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    with pytest.raises(InputError) as caught:
        storage_url(f"@{tmp_path}/secret", tmp_path)
    assert message in str(caught.value)
    assert SECRET not in str(caught.value)


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
        (f"postgresql://u@h/db?sslpassword={SECRET}", "the password stands in its query"),
        # What follows the first @ would be shown as a host.
        (f"postgresql://u:p@{SECRET}@h/db", "more than one '@'"),
        (f"postgresql://u:p@x/{SECRET}@h/db", "more than one '@'"),
        (f"sqlite://u:{SECRET}@h/study.db", "sqlite://u:***@h/study.db: needs a file"),
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
    assert mask_password(url) == "postgresql+psycopg://u:***@h:1/db?sslmode=require"


# --- passwords ---------------------------------------------------------------------------------


def spellings() -> list[str]:
    escaped = AWKWARD.replace("\\", r"\\").replace("'", r"\'")  # as in a connection string
    return [AWKWARD, quote(AWKWARD), quote(AWKWARD, safe=""), escaped]


@pytest.fixture
def guarded(private_postgres):
    """A database that asks for a password, and that password."""
    name = f"guarded_{len(private_postgres.run('SELECT 1 FROM pg_database'))}"
    url = private_postgres.create(name)
    private_postgres.run(f"ALTER DATABASE {name} OWNER TO {GUARDED}")
    literal = AWKWARD.replace("'", "''")
    private_postgres.run(f"ALTER ROLE {GUARDED} PASSWORD '{literal}'")
    yield sa.make_url(url).set(username=GUARDED)
    private_postgres.run(f"ALTER ROLE {GUARDED} PASSWORD 'right'")


def as_given(url, password, database=None) -> str:
    url = url.set(password=password, database=database or url.database)
    return url.render_as_string(hide_password=False)


def test_a_password_of_awkward_characters_opens_its_database(guarded, tmp_path):
    (tmp_path / "secret").write_text(as_given(guarded, AWKWARD) + "\n")
    storage = open_storage(storage_url(f"@{tmp_path}/secret", tmp_path))
    optuna.create_study(study_name="s", storage=storage)
    assert not [s for s in spellings() if s in repr(storage) + repr(storage.engine)]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda url: as_given(url, AWKWARD + "x"),
        lambda url: as_given(url, AWKWARD, "no_such_database"),
        lambda url: as_given(url.set(port=1), AWKWARD),
        lambda url: as_given(url, AWKWARD) + "&nonsense=1",
        lambda url: as_given(url, AWKWARD) + "&target_session_attrs=nonsense",
        lambda url: as_given(url, AWKWARD).replace("sslmode=disable", "sslmode=require"),
        lambda url: as_given(url, AWKWARD).replace("sslmode=disable", "sslmode=nonsense"),
    ],
)
def test_no_error_shows_the_password_in_any_spelling(spoil, guarded, tmp_path, capfd):
    with pytest.raises(InputError) as caught:
        open_storage(storage_url(spoil(guarded), tmp_path))
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    # Of a traceback the lines of code are not meant.
    told = [*shown.splitlines(), *"".join(capfd.readouterr()).splitlines()]
    assert not [line for line in told for s in spellings() if s in line]
    assert "***" in str(caught.value)


@pytest.mark.parametrize("spelling", spellings())
def test_a_password_is_hidden_in_every_spelling(spelling):
    url = sa.make_url("postgresql://u@h/d").set(password=AWKWARD)
    assert redact_password(url, f"a {spelling} b") == "a *** b"
    assert redact_password(sa.make_url("postgresql://u@h/d"), "a b") == "a b"


# --- connections -------------------------------------------------------------------------------


def test_a_worker_holds_few_connections_and_notices_a_silent_host(private_postgres, tmp_path):
    storage = open_storage(storage_url(private_postgres.create("pool"), tmp_path))
    assert storage.engine.pool.size() == 1
    with storage.engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW application_name").scalar() == "lesionsearch"
        with socket.socket(fileno=connection.connection.fileno()) as line:
            options = [
                line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                line.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
            ]
            line.detach()
    assert options == [1, 30, 60_000]
    held = [storage.engine.connect() for _ in range(4)]
    storage.engine.pool._timeout = 0.01
    with pytest.raises(sa.exc.TimeoutError):
        storage.engine.connect()
    for connection in held:
        connection.close()


def test_what_the_url_says_of_its_connections_counts(private_postgres, tmp_path):
    url = private_postgres.create("named") + "&application_name=mine"
    with open_storage(storage_url(url, tmp_path)).engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW application_name").scalar() == "mine"


# --- another Optuna's tables -------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def made(request, tmp_path):
    """The URL of a database with Optuna's tables and a study."""
    if request.param == "sqlite":
        url = sqlite_url(tmp_path)
    else:
        server = request.getfixturevalue("private_postgres")
        count = len(server.run("SELECT 1 FROM pg_database"))
        url = storage_url(server.create(f"tables_{count}"), tmp_path)
    storage = open_storage(url)
    optuna.create_study(study_name="kept", storage=storage)
    storage.engine.dispose()
    return url


def change(url, *statements) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def tables(url) -> dict[str, list]:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        names = sa.inspect(connection).get_table_names()
        found = {n: connection.exec_driver_sql(f"SELECT * FROM {n}").all() for n in names}
    engine.dispose()
    return found


def told_of_tables(url) -> str:
    before = tables(url)
    with pytest.raises(InputError) as caught:
        open_storage(url)
    assert tables(url) == before  # and none was made
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"storage: {mask_password(url)}: ")
    return str(caught.value)


def test_tables_of_an_older_optuna_are_told_and_opened_after_the_upgrade(made):
    # The last step of Optuna's own migrations, undone.
    change(
        made, "DROP INDEX ix_trials_study_id", "UPDATE alembic_version SET version_num = 'v3.0.0.d'"
    )
    change(made, "UPDATE version_info SET library_version = '3.1.0'")
    assert told_of_tables(made) == (
        f"storage: {mask_password(made)}: its tables are those of an older Optuna, 3.1.0 (v3.0.0.d); "
        f"this is {optuna.__version__} (v3.2.0.a): stop its workers, back it up and run 'optuna "
        f"storage upgrade --storage {mask_password(made)}' with its password, or install optuna 3.1.0 here"
    )
    RDBStorage(made.render_as_string(hide_password=False), skip_compatibility_check=True).upgrade()
    assert optuna.get_all_study_names(open_storage(made)) == ["kept"]


def test_tables_of_a_newer_optuna_are_told(made):
    change(
        made,
        "UPDATE version_info SET library_version = '7.0.0'",
        "UPDATE alembic_version SET version_num = 'v7.0.0.a'",
    )
    message = told_of_tables(made)
    assert "its tables are those of a newer Optuna, 7.0.0 (v7.0.0.a); this is" in message
    assert message.endswith("install optuna 7.0.0 or later here, or use another database")


@pytest.mark.parametrize(("schema", "age"), [(11, "an older"), (13, "a newer")])
def test_tables_that_know_no_revision_are_told_by_their_schema(schema, age, made):
    change(
        made,
        f"UPDATE version_info SET schema_version = {schema}, library_version = '0.8.0'",
        "DROP TABLE alembic_version",
    )
    assert f"those of {age} Optuna, 0.8.0 (schema {schema})" in told_of_tables(made)


def test_tables_that_a_killed_process_left_unstamped_are_finished(made):
    change(made, "DELETE FROM alembic_version")
    assert optuna.get_all_study_names(open_storage(made)) == ["kept"]
    assert len(tables(made)["alembic_version"]) == 1


@pytest.mark.parametrize("name", ["studies", "alembic_version"])
def test_tables_of_another_program_are_left_alone(name, tmp_path):
    url = sqlite_url(tmp_path)
    change(url, f"CREATE TABLE {name} (a INTEGER)", "CREATE TABLE other (b INTEGER)")
    assert f"has a table '{name}' that is not Optuna's" in told_of_tables(url)


def test_tables_that_do_not_collide_bear_ours_beside_them(tmp_path):
    change(sqlite_url(tmp_path), "CREATE TABLE other (b INTEGER)")
    open_storage(sqlite_url(tmp_path))
    assert {"other", "studies", "alembic_version"} <= set(tables(sqlite_url(tmp_path)))


def open_at_once(urls, barrier, told) -> None:
    for url in urls:
        try:
            barrier.wait(60)
            open_storage(storage_url(url, None)).engine.dispose()
            told.put(None)
        except BaseException as error:
            told.put(repr(error))


def test_processes_may_make_the_tables_at_the_same_instant(private_postgres, tmp_path):
    urls = [f"sqlite:///{tmp_path}/{i}.db" for i in range(3)]
    urls += [private_postgres.create(f"at_once_{i}") for i in range(3)]
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(2), context.Queue()
    processes = [context.Process(target=open_at_once, args=(urls, barrier, told)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [told.get(timeout=60) for _ in range(2 * len(urls))] == [None] * 2 * len(urls)
    for process in processes:
        process.join(30)
    for url in urls:
        found = tables(storage_url(url, tmp_path))
        assert [len(found[t]) for t in ("version_info", "alembic_version")] == [1, 1]


def test_an_sqlite_file_keeps_its_rollback_journal(tmp_path):
    open_storage(sqlite_url(tmp_path))
    with sqlite3.connect(tmp_path / "study.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


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
    url = sqlite_url(tmp_path)
    study = optuna.create_study(study_name="s", storage=open_storage(url))
    study.tell(study.ask(), 0.25)
    again = optuna.load_study(study_name="s", storage=open_storage(url))
    assert [t.value for t in again.trials] == [0.25]
