"""From a URL to a storage: URLs, error messages, passwords, tables and concurrent processes."""

import multiprocessing
import re
import socket
import sqlite3
import traceback
from urllib.parse import quote

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage

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
from search.storage.optuna_internals import study_id, trial_id
from tests.postgres import GUARDED, free_port, private_postgres

__all__ = ["private_postgres"]  # a fixture

SECRET = "hunter2secret"
#: A password that URLs must quote, that templates would expand, and that psycopg escapes.
AWKWARD = "p@:/s?s #{0}{x}%41'\\\"é"


@pytest.fixture(autouse=True)
def _no_file(monkeypatch):
    monkeypatch.delenv(STORAGE_FILE_VARIABLE, raising=False)


# --- URLs --------------------------------------------------------------------------------------


def test_the_default_is_a_file_in_the_studys_folder(tmp_path):
    url = storage_url(None, tmp_path / "mine")
    assert url == sqlite_url(tmp_path / "mine")
    assert url.render_as_string() == f"sqlite:///{tmp_path}/mine/study.db"


def test_an_argument_overrides_the_environment(monkeypatch, tmp_path):
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


def test_a_file_in_the_home_folder_is_found(monkeypatch, tmp_path):
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
def test_an_invalid_file_is_reported_without_its_content(content, message, tmp_path):
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    with pytest.raises(InputError) as caught:
        storage_url(f"@{tmp_path}/secret", tmp_path)
    assert message in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_postgresql_always_uses_psycopg(scheme, tmp_path):
    url = storage_url(f"{scheme}://u:{SECRET}@host:5433/db", tmp_path)
    assert url.render_as_string(hide_password=False) == (
        f"postgresql+psycopg://u:{SECRET}@host:5433/db"
    )


def test_a_relative_sqlite_file_is_in_the_working_directory(tmp_path, monkeypatch):
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
        # The text after the first @ would be shown as the host.
        (f"postgresql://u:p@{SECRET}@h/db", "more than one '@'"),
        (f"postgresql://u:p@x/{SECRET}@h/db", "more than one '@'"),
        (f"sqlite://u:{SECRET}@h/study.db", "sqlite://u:***@h/study.db: needs a file"),
        # A database in memory does not outlive the process.
        ("sqlite://", "storage: sqlite://: needs a file, such as sqlite:///study.db"),
        ("sqlite:///:memory:", "needs a file"),
    ],
)
def test_an_unusable_url_is_rejected_without_its_password(text, message, tmp_path):
    with pytest.raises(InputError) as caught:
        storage_url(text, tmp_path)
    assert message in str(caught.value)
    assert SECRET not in str(caught.value)


# --- databases that cannot be used -------------------------------------------------------------


def rejection(text, tmp_path) -> str:
    with pytest.raises(InputError) as caught:
        open_storage(storage_url(text, tmp_path))
    message = str(caught.value)
    assert "\n" not in message
    assert SECRET not in message
    return message


def test_a_refused_connection_is_reported_with_the_password_masked(tmp_path):
    port = free_port()
    message = rejection(f"postgresql://u:{SECRET}@127.0.0.1:{port}/db", tmp_path)
    assert message.startswith(
        f"storage: postgresql+psycopg://u:***@127.0.0.1:{port}/db: cannot be used: "
    )
    assert "refused" in message


def test_an_unknown_host_is_reported(tmp_path):
    message = rejection(f"postgresql://u:{SECRET}@nowhere.invalid/db", tmp_path)
    assert message.startswith("storage: postgresql+psycopg://u:***@nowhere.invalid/db: cannot be ")
    assert "nowhere.invalid" in message.partition("cannot be used: ")[2]


def test_a_missing_database_is_reported(postgres_url, tmp_path):
    message = rejection(re.sub("/lesionsearch_.*", "/no_such_database", postgres_url), tmp_path)
    assert message.endswith(
        'FATAL: database "no_such_database" does not exist; '
        "check the database's name, or restore it from a backup"
    )


def test_an_unusable_sqlite_file_is_reported(tmp_path):
    assert rejection("sqlite:////proc/no/study.db", tmp_path) == (
        "storage: sqlite:////proc/no/study.db: cannot be used: unable to open database file; "
        "check that the file's folder exists and is writable"
    )
    other = tmp_path / "picture.db"
    other.write_bytes(b"\x89PNG" * 500)
    assert rejection(f"sqlite:///{other}", tmp_path) == (
        f"storage: sqlite:///{other}: cannot be used: file is not a database; "
        "restore the file from a backup, or with sqlite3's `.recover`"
    )
    assert other.read_bytes() == b"\x89PNG" * 500


def test_a_masked_url_hides_only_the_password(tmp_path):
    url = storage_url(f"postgresql://u:{SECRET}@h:1/db?sslmode=require", tmp_path)
    assert mask_password(url) == "postgresql+psycopg://u:***@h:1/db?sslmode=require"


# --- passwords ---------------------------------------------------------------------------------


def spellings() -> list[str]:
    escaped = AWKWARD.replace("\\", r"\\").replace("'", r"\'")  # as in a connection string
    return [AWKWARD, quote(AWKWARD), quote(AWKWARD, safe=""), escaped]


@pytest.fixture
def guarded(private_postgres):
    """The URL of a database whose password is AWKWARD."""
    name = f"guarded_{len(private_postgres.run('SELECT 1 FROM pg_database'))}"
    url = private_postgres.create(name)
    private_postgres.run(f"ALTER DATABASE {name} OWNER TO {GUARDED}")
    literal = AWKWARD.replace("'", "''")
    private_postgres.run(f"ALTER ROLE {GUARDED} PASSWORD '{literal}'")
    yield sa.make_url(url).set(username=GUARDED)
    private_postgres.run(f"ALTER ROLE {GUARDED} PASSWORD 'right'")


def render(url, password, database=None) -> str:
    url = url.set(password=password, database=database or url.database)
    return url.render_as_string(hide_password=False)


def test_a_password_with_special_characters_works(guarded, tmp_path):
    (tmp_path / "secret").write_text(render(guarded, AWKWARD) + "\n")
    storage = open_storage(storage_url(f"@{tmp_path}/secret", tmp_path))
    optuna.create_study(study_name="s", storage=storage)
    assert not [s for s in spellings() if s in repr(storage) + repr(storage.engine)]


@pytest.mark.parametrize(
    "modify",
    [
        lambda url: render(url, AWKWARD + "x"),
        lambda url: render(url, AWKWARD, "no_such_database"),
        lambda url: render(url.set(port=1), AWKWARD),
        lambda url: render(url, AWKWARD) + "&nonsense=1",
        lambda url: render(url, AWKWARD) + "&target_session_attrs=nonsense",
        lambda url: render(url, AWKWARD).replace("sslmode=disable", "sslmode=require"),
        lambda url: render(url, AWKWARD).replace("sslmode=disable", "sslmode=nonsense"),
    ],
)
def test_no_error_contains_the_password(modify, guarded, tmp_path, capfd):
    with pytest.raises(InputError) as caught:
        open_storage(storage_url(modify(guarded), tmp_path))
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    results = [*shown.splitlines(), *"".join(capfd.readouterr()).splitlines()]
    assert not [line for line in results for s in spellings() if s in line]
    assert "***" in str(caught.value)


@pytest.mark.parametrize("spelling", spellings())
def test_a_password_is_redacted_in_every_spelling(spelling):
    url = sa.make_url("postgresql://u@h/d").set(password=AWKWARD)
    assert redact_password(url, f"a {spelling} b") == "a *** b"
    assert redact_password(sa.make_url("postgresql://u@h/d"), "a b") == "a b"


# --- connections -------------------------------------------------------------------------------


def test_connections_are_few_and_detect_a_silent_host(private_postgres, tmp_path):
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
    connections = [storage.engine.connect() for _ in range(4)]
    storage.engine.pool._timeout = 0.01
    with pytest.raises(sa.exc.TimeoutError):
        storage.engine.connect()
    for connection in connections:
        connection.close()


def test_options_in_the_url_override_the_defaults(private_postgres, tmp_path):
    url = private_postgres.create("named") + "&application_name=mine"
    with open_storage(storage_url(url, tmp_path)).engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW application_name").scalar() == "mine"


# --- tables ------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def created(request, tmp_path):
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
        rows = {n: connection.exec_driver_sql(f"SELECT * FROM {n}").all() for n in names}
    engine.dispose()
    return rows


def rejection_of_tables(url) -> str:
    before = tables(url)
    with pytest.raises(InputError) as caught:
        open_storage(url)
    assert tables(url) == before  # nothing was created
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"storage: {mask_password(url)}: ")
    return str(caught.value)


def test_tables_of_an_older_optuna_are_rejected_until_the_upgrade(created):
    # Undo the last of Optuna's migrations.
    change(
        created,
        "DROP INDEX ix_trials_study_id",
        "UPDATE alembic_version SET version_num = 'v3.0.0.d'",
    )
    change(created, "UPDATE version_info SET library_version = '3.1.0'")
    message = rejection_of_tables(created)
    assert "table schema (set up by optuna 3.1.0). Please execute `$ optuna storage up" in message
    RDBStorage(
        created.render_as_string(hide_password=False), skip_compatibility_check=True
    ).upgrade()
    assert optuna.get_all_study_names(open_storage(created)) == ["kept"]


def test_tables_of_a_newer_optuna_are_rejected(created):
    change(
        created,
        "UPDATE version_info SET library_version = '7.0.0'",
        "UPDATE alembic_version SET version_num = 'v7.0.0.a'",
    )
    message = rejection_of_tables(created)
    assert "(set up by optuna 7.0.0). Please try updating optuna" in message


def test_a_missing_revision_is_completed(created):
    change(created, "DELETE FROM alembic_version")
    assert optuna.get_all_study_names(open_storage(created)) == ["kept"]
    assert len(tables(created)["alembic_version"]) == 1


@pytest.mark.parametrize("name", ["studies", "alembic_version"])
def test_tables_of_another_program_are_not_touched(name, tmp_path):
    url = sqlite_url(tmp_path)
    change(url, f"CREATE TABLE {name} (a INTEGER)", "CREATE TABLE other (b INTEGER)")
    assert f"has a table '{name}' that is not Optuna's" in rejection_of_tables(url)


def test_ids_of_deleted_studies_and_trials_are_not_used_again(created):
    storage = open_storage(created)
    ids = []
    for _ in range(2):
        study = optuna.create_study(study_name="brief", storage=storage)
        ids.append((study_id(study), trial_id(study.ask())))
        optuna.delete_study(study_name="brief", storage=storage)
    (first_study, first_trial), (second_study, second_trial) = ids
    assert second_study > first_study and second_trial > first_trial


def test_unrelated_tables_are_no_obstacle(tmp_path):
    change(sqlite_url(tmp_path), "CREATE TABLE other (b INTEGER)")
    open_storage(sqlite_url(tmp_path))
    assert {"other", "studies", "alembic_version"} <= set(tables(sqlite_url(tmp_path)))


def open_at_once(urls, barrier, results) -> None:
    for url in urls:
        try:
            barrier.wait(60)
            open_storage(storage_url(url, None)).engine.dispose()
            results.put(None)
        except BaseException as error:
            results.put(repr(error))


def test_processes_may_create_the_tables_at_the_same_time(private_postgres, tmp_path):
    urls = [f"sqlite:///{tmp_path}/{i}.db" for i in range(3)]
    urls += [private_postgres.create(f"at_once_{i}") for i in range(3)]
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=open_at_once, args=(urls, barrier, results)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in range(2 * len(urls))] == [None] * 2 * len(urls)
    for process in processes:
        process.join(30)
    for url in urls:
        rows = tables(storage_url(url, tmp_path))
        assert [len(rows[t]) for t in ("version_info", "alembic_version")] == [1, 1]


def test_an_sqlite_file_keeps_its_rollback_journal(tmp_path):
    open_storage(sqlite_url(tmp_path))
    with sqlite3.connect(tmp_path / "study.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_a_study_is_there_for_the_next_process(tmp_path):
    url = sqlite_url(tmp_path)
    study = optuna.create_study(study_name="s", storage=open_storage(url))
    study.tell(study.ask(), 0.25)
    reloaded = optuna.load_study(study_name="s", storage=open_storage(url))
    assert [t.value for t in reloaded.trials] == [0.25]
