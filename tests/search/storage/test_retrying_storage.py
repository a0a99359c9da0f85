"""A storage whose database is interrupted: what is retried, and that it is done once."""

import inspect
import multiprocessing
import pickle
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import FloatDistribution
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from search.storage.database import begin_immediate, open_storage, sqlite_url, storage_url
from search.storage.leases import TrialLeases
from search.storage.optuna_internals import OptunaStorage, study_id
from search.storage.retrying_storage import (
    RetryingStorage,
    StorageUnavailable,
    backend_of,
    bind_storage,
    retry_transient,
)
from search.storage.transient_errors import STORAGE_ERRORS, StorageUnreachable, describe_error
from search.trial_process.slot import Slot
from tests.postgres import GUARDED, CommitProxy, private_postgres

__all__ = ["private_postgres"]  # a fixture

UP = [StudyDirection.MAXIMIZE]
X = FloatDistribution(0.0, 1.0)


@pytest.fixture(scope="module")
def database(private_postgres):
    private_postgres.create("retries")
    return private_postgres


@pytest.fixture(scope="module")
def direct(database):
    """The database without a proxy in between: what it really contains."""
    return open_storage(storage_url(database.url("retries"), None))


@pytest.fixture(scope="module")
def proxied(database):
    """A proxy that may be cut, and a storage behind it."""
    proxy = CommitProxy(database.port)
    yield proxy, open_storage(storage_url(database.url("retries", proxy.port), None))
    proxy.close()


@pytest.fixture
def proxy(proxied):
    proxied[0].cuts = 0
    return proxied[0]


@pytest.fixture
def messages():
    return []


@pytest.fixture
def storage(proxied, messages):
    _, storage = proxied
    storage.on_wait = messages.append
    yield storage
    storage.on_wait = storage.stop_event = None


@pytest.fixture
def unreachable(database, messages):
    """A storage with a password that was opened before its server became unreachable."""
    proxy = CommitProxy(database.port)
    url = database.url("retries", proxy.port).replace("postgres@", "postgres:s%40cr%2Fet@")
    storage = open_storage(storage_url(url, None))
    storage.on_wait = messages.append
    proxy.close()
    storage.engine.dispose()
    return storage


# --- each operation, interrupted ---------------------------------------------------------------


@dataclass
class Made:
    """A study with a running trial that has every kind of field, and a waiting one."""

    name: str
    study: int
    trial: int
    waiting: int


def make(storage, name) -> Made:
    study = storage.create_new_study(UP, name)
    storage.set_study_user_attr(study, "a", 1)
    storage.set_study_system_attr(study, "b", 2)
    trial = storage.create_new_trial(study)
    storage.set_trial_param(trial, "x", 0.5, X)
    storage.set_trial_user_attr(trial, "c", 3)
    storage.set_trial_system_attr(trial, "d", 4)
    storage.set_trial_intermediate_value(trial, 1, 0.25)
    done = create_trial(value=0.75, params={"x": 0.1}, distributions={"x": X})
    storage.create_new_trial(study, done)
    waiting = storage.create_new_trial(study, create_trial(state=TrialState.WAITING))
    return Made(name, study, trial, waiting)


#: A write and a check of its result; both get the storage and ``Made``.
WRITES = {
    "create_study": (
        lambda s, m: study_id(
            optuna.create_study(study_name=m.name + " 2", storage=s, load_if_exists=True)
        ),
        lambda s, m, got: s.get_study_id_from_name(m.name + " 2") == got,
    ),
    "set_study_user_attr": (
        lambda s, m: s.set_study_user_attr(m.study, "k", [1]),
        lambda s, m, got: s.get_study_user_attrs(m.study) == {"a": 1, "k": [1]},
    ),
    "set_study_system_attr": (
        lambda s, m: s.set_study_system_attr(m.study, "k", [1]),
        lambda s, m, got: s.get_study_system_attrs(m.study) == {"b": 2, "k": [1]},
    ),
    "set_trial_param": (
        lambda s, m: s.set_trial_param(m.trial, "y", 0.125, X),
        lambda s, m, got: s.get_trial(m.trial).params == {"x": 0.5, "y": 0.125},
    ),
    "set_trial_intermediate_value": (
        lambda s, m: s.set_trial_intermediate_value(m.trial, 2, 0.5),
        lambda s, m, got: s.get_trial(m.trial).intermediate_values == {1: 0.25, 2: 0.5},
    ),
    "set_trial_user_attr": (
        lambda s, m: s.set_trial_user_attr(m.trial, "c", 33),
        lambda s, m, got: s.get_trial_user_attrs(m.trial) == {"c": 33},
    ),
    "set_trial_system_attr": (
        lambda s, m: s.set_trial_system_attr(m.trial, "d", 44),
        lambda s, m, got: s.get_trial_system_attrs(m.trial) == {"d": 44},
    ),
}

READS = {
    "get_study_id_from_name": lambda s, m: s.get_study_id_from_name(m.name),
    "get_study_name_from_id": lambda s, m: s.get_study_name_from_id(m.study),
    "get_study_directions": lambda s, m: s.get_study_directions(m.study),
    "get_study_user_attrs": lambda s, m: s.get_study_user_attrs(m.study),
    "get_study_system_attrs": lambda s, m: s.get_study_system_attrs(m.study),
    "get_all_studies": lambda s, m: m.study in {study_id(x) for x in s.get_all_studies()},
    "get_trial": lambda s, m: s.get_trial(m.trial),
    "get_all_trials": lambda s, m: s.get_all_trials(m.study),
    "get_best_trial": lambda s, m: s.get_best_trial(m.study),
    "get_n_trials": lambda s, m: s.get_n_trials(m.study),
    "get_trial_id_from_study_id_trial_number": lambda s, m: (
        s.get_trial_id_from_study_id_trial_number(m.study, 0)
    ),
    "get_trial_param": lambda s, m: s.get_trial_param(m.trial, "x"),
    "get_trial_user_attrs": lambda s, m: s.get_trial_user_attrs(m.trial),
    "get_trial_system_attrs": lambda s, m: s.get_trial_system_attrs(m.trial),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", WRITES)
def test_a_write_is_done_once_whether_commit_or_acknowledgement_was_lost(
    name, when, storage, direct, proxy, messages
):
    made = make(direct, f"{name} {when}")
    operation, is_there = WRITES[name]
    proxy.cut(when)
    got = operation(storage, made)
    assert proxy.cuts == 1
    assert is_there(direct, made, got)
    assert len(messages) == 2
    assert messages[0].startswith("storage lost: ")
    assert messages[0].endswith("; waiting")
    assert re.fullmatch(r"storage back after \d+\.\d s", messages[1])


@pytest.mark.parametrize("when", ["before", "after"])
def test_trials_are_queued_once_whether_commit_or_acknowledgement_was_lost(
    when, storage, direct, proxy
):
    made = make(direct, f"enqueue {when}")
    leases = TrialLeases(optuna.load_study(study_name=made.name, storage=storage))
    proxy.cut(when)
    assert leases.enqueue([({}, {"q": 1}), ({"x": 0.5}, {"q": 2})]) == [3, 4]
    assert proxy.cuts == 1
    queued = direct.get_all_trials(made.study)[3:]
    assert [(t.state, t.user_attrs) for t in queued] == [
        (TrialState.WAITING, {"q": 1}), (TrialState.WAITING, {"q": 2}),
    ]  # fmt: skip


@pytest.mark.parametrize("name", READS)
def test_an_interrupted_read_is_repeated(name, storage, direct, proxy, capfd):
    made = make(direct, name)
    proxy.cut("before")
    assert READS[name](storage, made) == READS[name](direct, made)
    assert proxy.cuts == 1
    assert capfd.readouterr() == ("", "")


def test_every_operation_of_optuna_is_retried():
    operations = {
        name
        for name, method in inspect.getmembers(RDBStorage, inspect.isfunction)
        if "_create_scoped_session(" in inspect.getsource(method)
    }
    heartbeat = {"record_heartbeat", "_get_stale_trial_ids"}  # switched off
    assert operations - heartbeat <= {*vars(RetryingStorage), *vars(OptunaStorage)}


@pytest.mark.slow
def test_concurrent_operations_wait_for_a_restart(database, direct, private_postgres):
    storage = open_storage(storage_url(database.url("retries"), None))
    actions = [(n, operation, check) for n, (operation, check) in WRITES.items()]
    actions += [
        (n, operation, lambda s, m, got, a=operation: got == a(s, m))
        for n, operation in READS.items()
    ]
    made = {n: make(storage, f"restart {n}") for n, _, _ in actions}
    private_postgres.stop()
    start = threading.Timer(2.0, private_postgres.start)
    began = time.monotonic()
    start.start()
    with ThreadPoolExecutor(len(actions)) as pool:
        results = [
            (pool.submit(operation, storage, made[n]), n, check) for n, operation, check in actions
        ]
    start.join()
    assert time.monotonic() - began >= 2.0
    assert [n for future, n, check in results if not check(storage, made[n], future.result())] == []


# --- conflicts with other processes ------------------------------------------------------------


def test_a_study_of_another_process_is_a_duplicate(storage, direct, proxy):
    direct.create_new_study(UP, "taken")
    proxy.cut("before")
    storage.get_all_studies()
    with pytest.raises(DuplicatedStudyError):
        storage.create_new_study(UP, "taken")


@pytest.mark.parametrize("ended", [(TrialState.COMPLETE, [0.25]), (TrialState.FAIL, None)])
def test_a_trial_that_another_process_ended_meanwhile_is_an_error(ended, storage, direct, proxy):
    made = make(direct, f"ended {ended}")
    storage.on_wait = lambda _: (
        direct.get_trial(made.trial).state.is_finished()
        or (direct.set_trial_state_values(made.trial, *ended))
    )
    proxy.cut("before")
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_state_values(made.trial, TrialState.COMPLETE, [0.5])
    assert direct.get_trial(made.trial).values == ended[1]


def test_a_trial_that_has_ended_cannot_end_again(storage, direct):
    made = make(direct, "ended before")
    direct.set_trial_state_values(made.trial, TrialState.COMPLETE, [0.5])
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_state_values(made.trial, TrialState.COMPLETE, [0.5])


def test_an_unacknowledged_claim_counts_as_another_processs(storage, direct, proxy):
    made = make(direct, "claim")
    proxy.cut("after")
    assert storage.set_trial_state_values(made.waiting, TrialState.RUNNING) is False
    other = make(direct, "claim again")
    proxy.cut("before")
    assert storage.set_trial_state_values(other.waiting, TrialState.RUNNING) is True


# --- two processes and two restarts ------------------------------------------------------------


def write(url: str, stop, written) -> None:
    study = optuna.load_study(study_name="loop", storage=open_storage(storage_url(url, None)))
    while not stop.is_set():
        trial = study.ask()
        x = trial.suggest_float("x", 0, 1)
        trial.report(x, 1)
        study.tell(trial, x)
        written.put((trial.number, x))
    written.put(None)


def read(url: str, stop, seen) -> None:
    study = optuna.load_study(study_name="loop", storage=open_storage(storage_url(url, None)))
    most, reads = 0, 0
    while not stop.is_set():
        numbers = [t.number for t in study.get_trials(deepcopy=False)]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= most
        most, reads = len(numbers), reads + 1
    seen.put(reads)


@pytest.mark.slow
def test_a_writer_and_a_reader_continue_through_two_restarts(private_postgres):
    url = private_postgres.create("loop")
    study = optuna.create_study(study_name="loop", storage=open_storage(storage_url(url, None)))
    context = multiprocessing.get_context("spawn")
    stop, written, seen = context.Event(), context.Queue(), context.Queue()
    processes = [
        context.Process(target=write, args=(url, stop, written)),
        context.Process(target=read, args=(url, stop, seen)),
    ]
    for process in processes:
        process.start()
    messages = []
    for _ in range(2):
        messages += [written.get(timeout=60) for _ in range(10)]
        private_postgres.restart(0.5)
    messages += [written.get(timeout=60) for _ in range(10)]
    stop.set()
    messages += iter(lambda: written.get(timeout=60), None)
    assert seen.get(timeout=60) > 0
    for process in processes:
        process.join(30)
    assert [p.exitcode for p in processes] == [0, 0]
    trials = study.get_trials()
    assert [(t.number, t.value) for t in trials] == messages
    assert all(t.state == TrialState.COMPLETE and t.params["x"] == t.value for t in trials)


# --- transient and other errors ----------------------------------------------------------------


def test_a_deadlock_is_retried(private_postgres):
    url = private_postgres.create("deadlock")
    private_postgres.run("ALTER DATABASE deadlock SET deadlock_timeout = '20ms'")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (id int PRIMARY KEY, n int)")
        connection.exec_driver_sql("INSERT INTO t VALUES (1, 0), (2, 0)")
    both, messages = threading.Barrier(2), []

    def add(first, second):
        attempts = []

        def work():
            attempts.append(first)
            with engine.begin() as connection:
                connection.exec_driver_sql(f"UPDATE t SET n = n + 1 WHERE id = {first}")
                if len(attempts) == 1:
                    both.wait(10)
                connection.exec_driver_sql(f"UPDATE t SET n = n + 1 WHERE id = {second}")

        retry_transient(work, on_wait=messages.append)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(add, 1, 2), pool.submit(add, 2, 1)]:
            future.result()
    assert private_postgres.run("SELECT n FROM t", "deadlock") == [(2,), (2,)]
    assert "deadlock detected" in messages[0]


def test_a_serialization_failure_is_retried(private_postgres):
    url = private_postgres.create("serial")
    private_postgres.run("CREATE TABLE t (n int)", "serial")
    private_postgres.run("INSERT INTO t VALUES (0)", "serial")
    engine = sa.create_engine(url, isolation_level="REPEATABLE READ")
    messages, attempts = [], []

    def work():
        attempts.append(1)
        with engine.begin() as connection:
            connection.exec_driver_sql("SELECT n FROM t").all()
            if len(attempts) == 1:
                private_postgres.run("UPDATE t SET n = n + 10", "serial")
            connection.exec_driver_sql("UPDATE t SET n = n + 1")

    retry_transient(work, on_wait=messages.append)
    assert private_postgres.run("SELECT n FROM t", "serial") == [(11,)]
    assert "could not serialize" in messages[0]


def test_too_many_connections_are_retried(private_postgres):
    private_postgres.run("CREATE ROLE single LOGIN CONNECTION LIMIT 1")
    url = private_postgres.url().replace("postgres@", "single@")
    first = sa.create_engine(url).connect()
    second = sa.create_engine(url, poolclass=sa.NullPool)
    messages = []

    def on_wait(text):
        messages.append(text)
        first.close()
        first.engine.dispose()

    with retry_transient(second.connect, on_wait=on_wait):
        assert "too many connections" in messages[0]


def test_a_locked_sqlite_file_is_retried(tmp_path):
    storage = open_storage(sqlite_url(tmp_path))
    study = storage.create_new_study(UP, "s")
    impatient = RetryingStorage(
        f"sqlite:///{tmp_path}/study.db", {"connect_args": {"timeout": 0.01}}
    )
    begin_immediate(impatient.engine)
    messages = []
    with storage.engine.connect() as other:
        other.exec_driver_sql("UPDATE studies SET study_name = 's'")

        def on_wait(text):
            messages.append(text)
            other.rollback()

        impatient.on_wait = on_wait
        impatient.set_study_user_attr(study, "k", 1)
    assert messages[0] == "storage lost: database is locked; waiting"
    assert storage.get_study_user_attrs(study) == {"k": 1}


def refused(storage, work, messages) -> str:
    """The database's message for work that is not retried."""
    with pytest.raises(StorageInternalError) as caught:
        work()
    assert messages == []
    return str(caught.value.__cause__.orig)


def test_a_changed_password_is_not_retried(private_postgres, messages):
    private_postgres.create("guarded_db")
    private_postgres.run(f"ALTER DATABASE guarded_db OWNER TO {GUARDED}")
    url = private_postgres.url("guarded_db").replace("postgres@", f"{GUARDED}:right@")
    storage = open_storage(storage_url(url, None))
    storage.on_wait = messages.append
    private_postgres.run(f"ALTER ROLE {GUARDED} PASSWORD 'another'")
    storage.engine.dispose()
    try:
        message = refused(storage, storage.get_all_studies, messages)
    finally:
        private_postgres.run(f"ALTER ROLE {GUARDED} PASSWORD 'right'")
    assert f'password authentication failed for user "{GUARDED}"' in message


def test_a_dropped_database_is_not_retried(private_postgres, messages):
    storage = open_storage(storage_url(private_postgres.create("dropped"), None))
    storage.on_wait = messages.append
    private_postgres.run("DROP DATABASE dropped WITH (FORCE)")
    assert 'database "dropped" does not exist' in refused(
        storage, storage.get_all_studies, messages
    )


#: By name: a setting of the database that makes writes fail, and the message.
HURDLES = {
    "lock_timeout": ("lock_timeout = '20ms'", "canceling statement due to lock timeout"),
    "statement_timeout": ("statement_timeout = '20ms'", "due to statement timeout"),
    "cancel": (None, "canceling statement due to user request"),
    "read_only": ("default_transaction_read_only = on", "in a read-only transaction"),
}

#: Writes through Optuna's session and through one of ``TrialLeases``.
WAYS = {
    "optuna": lambda study: study.set_user_attr("k", 1),
    "leases": lambda study: TrialLeases(study, on_wait=backend_of(study).on_wait).run(
        lambda rows: rows.set_study_attrs({"k": 1})
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", HURDLES)
def test_a_server_that_refuses_writes_for_a_while_is_retried(name, way, private_postgres, messages):
    (setting, message), db = HURDLES[name], f"hurdle_{name}_{way}"
    storage = open_storage(storage_url(private_postgres.create(db), None))
    study = optuna.create_study(study_name="s", storage=storage)
    if setting:
        private_postgres.run(f"ALTER DATABASE {db} SET {setting}")
    storage.engine.dispose()
    with sa.create_engine(private_postgres.url(db)).connect() as other:
        if name != "read_only":
            other.exec_driver_sql("LOCK TABLE studies IN ACCESS EXCLUSIVE MODE")

        def on_wait(text):
            messages.append(text)
            private_postgres.run(f"ALTER DATABASE {db} RESET ALL")
            other.rollback()

        storage.on_wait, storage.timeout_s = on_wait, 20
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(WAYS[way], study)
            while name == "cancel" and not messages and not future.done():
                private_postgres.run(
                    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity "
                    f"WHERE datname = '{db}' AND wait_event_type = 'Lock'"
                )
            future.result(60)
    assert study.user_attrs == {"k": 1}
    assert message in messages[0] and messages[0].endswith("; waiting")


def test_a_transaction_that_was_idle_for_too_long_is_retried(private_postgres, messages):
    url = private_postgres.create("idle") + "&options=-c idle_in_transaction_session_timeout=500"
    study = optuna.create_study(study_name="s", storage=open_storage(storage_url(url, None)))
    attempts = []

    def work(rows):
        attempts.append(1)
        rows.study_attr("k")
        time.sleep(0.8 if len(attempts) == 1 else 0)
        rows.set_study_attrs({"k": 1})

    TrialLeases(study, on_wait=messages.append).run(work)
    assert study.user_attrs == {"k": 1}
    assert len(attempts) == 2
    assert "idle-in-transaction timeout" in messages[0]


def test_a_read_only_sqlite_file_is_not_retried(tmp_path, messages):
    storage = open_storage(sqlite_url(tmp_path))
    study = storage.create_new_study(UP, "s")
    storage.on_wait = messages.append
    sa.event.listen(storage.engine, "connect", lambda c, _: c.execute("PRAGMA query_only = ON"))
    storage.engine.dispose()
    operation = lambda: storage.set_study_user_attr(study, "k", 1)  # noqa: E731
    assert "readonly database" in refused(storage, operation, messages)


def test_a_full_disk_under_an_sqlite_file_is_waited_for(tmp_path):
    storage = open_storage(sqlite_url(tmp_path))
    study = storage.create_new_study(UP, "s")
    pages, messages = [1], []
    sa.event.listen(
        storage.engine, "connect", lambda c, _: c.execute(f"PRAGMA max_page_count = {pages[0]}")
    )
    storage.engine.dispose()

    def on_wait(text):
        messages.append(text)
        pages[0] = 10_000

    storage.on_wait = on_wait
    storage.set_study_user_attr(study, "k", "x" * 100_000)
    assert messages[0] == "storage lost: database or disk is full; waiting"
    assert storage.get_study_user_attrs(study) == {"k": "x" * 100_000}


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "DROP TABLE trial_user_attributes",
            'relation "trial_user_attributes" does not exist; '
            "a table was dropped; restore the database from a backup",
        ),
        (
            "ALTER TABLE trial_user_attributes DROP COLUMN value_json",
            "column .*value_json.* does not exist; "
            "a column was dropped; restore the database from a backup",
        ),
        (
            "REVOKE ALL ON trial_user_attributes FROM PUBLIC, reader",
            "permission denied for table trial_user_attributes; "
            "grant the role SELECT, INSERT, UPDATE and DELETE on all tables",
        ),
    ],
)
def test_an_error_that_stays_ends_with_a_line_that_says_what_to_do(
    statement, message, private_postgres, messages
):
    db = f"broken_{statement.split()[0].lower()}"
    url = private_postgres.create(db)
    private_postgres.run(
        "DO $$ BEGIN CREATE ROLE reader LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    )
    study = open_storage(storage_url(url, None)).create_new_study(UP, "s")
    private_postgres.run("GRANT ALL ON ALL TABLES IN SCHEMA public TO reader", db)
    private_postgres.run("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO reader", db)
    storage = open_storage(storage_url(url.replace("postgres@", "reader@"), None))
    trial = storage.create_new_trial(study)
    storage.on_wait = messages.append
    private_postgres.run(statement, db)
    for operation in (
        lambda: storage.get_trial_user_attrs(trial),
        lambda: storage.set_trial_user_attr(trial, "k", 1),
        lambda: storage.get_all_trials(study),
    ):
        with pytest.raises(STORAGE_ERRORS) as caught:
            operation()
        assert re.fullmatch(message, describe_error(caught.value))
    assert messages == []


@pytest.mark.parametrize("statement", ["SELEC 1", "INSERT INTO studies VALUES (1, 's')"])
def test_an_invalid_statement_is_not_retried(statement, tmp_path, private_postgres, messages):
    private_postgres.create(f"wrong_{len(statement)}")
    urls = [
        sqlite_url(tmp_path),
        storage_url(private_postgres.url(f"wrong_{len(statement)}"), None),
    ]
    for storage in map(open_storage, urls):
        storage.create_new_study(UP, "s")
        attempts = []

        def work(storage=storage, attempts=attempts):
            attempts.append(1)
            with storage.engine.begin() as connection:
                connection.exec_driver_sql(statement)

        with pytest.raises(sa.exc.DBAPIError):
            storage.retry_transient(work)
        assert len(attempts) == 1


def test_a_first_connection_that_is_refused_for_a_while_is_reported(private_postgres):
    url = storage_url(private_postgres.create("first"), None)
    open_storage(url)
    private_postgres.run("ALTER DATABASE first SET lock_timeout = '20ms'")
    with sa.create_engine(url).connect() as other:
        other.exec_driver_sql("LOCK TABLE version_info IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(StorageUnreachable, match="cannot be used: canceling statement due to"):
            open_storage(url)
        other.rollback()


def test_a_connection_that_breaks_at_its_end_logs_nothing(private_postgres, caplog):
    storage = open_storage(storage_url(private_postgres.create("breaking"), None))
    connection = storage.engine.raw_connection()
    (pid,) = connection.cursor().execute("SELECT pg_backend_pid()").fetchone()
    private_postgres.run(f"SELECT pg_terminate_backend({pid})")
    connection.close()  # its rollback fails
    assert caplog.records == []


@pytest.mark.slow
def test_terminated_connections_reach_no_caller(private_postgres, caplog):
    url = private_postgres.create("terminated")
    study = optuna.create_study(study_name="s", storage=open_storage(storage_url(url, None)))
    study.set_user_attr("spec", {"budget": {"trials": 1_000_000}})
    until, done = time.monotonic() + 6, []

    def work():
        opened = retry_transient(lambda: open_storage(storage_url(url, None)))
        ours = optuna.load_study(study_name="s", storage=opened)
        leases = TrialLeases(bind_storage(ours))
        worker = leases.register_worker(Slot("cpu", 1))
        while time.monotonic() < until:
            claim = leases.claim(worker)
            ours.get_trials(deepcopy=False)
            trial = optuna.Trial(ours, claim.trial_id)
            trial.report(trial.suggest_float("x", 0, 1), 1)
            trial.set_user_attr("a", claim.number)
            leases.heartbeat(worker, claim, 1)
            leases.record_training_time(claim)
            assert leases.finish(claim, TrialState.COMPLETE, 0.5)
            done.append(claim.number)

    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(work) for _ in range(6)]
        while time.monotonic() < until:
            private_postgres.run(
                "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity "
                "WHERE datname = 'terminated' ORDER BY random() LIMIT 1) x"
            )
            time.sleep(0.03)
        for future in futures:
            future.result(60)
    assert len(done) > 10
    trials = study.get_trials()
    assert sorted(done) == [t.number for t in trials]
    assert all(t.state == TrialState.COMPLETE and t.user_attrs["a"] == t.number for t in trials)
    assert [record for record in caplog.records if record.name.startswith("sqlalchemy")] == []


# --- timeout and stop event --------------------------------------------------------------------


def test_the_timeout_raises_one_line_without_the_password(unreachable, messages):
    unreachable.timeout_s = 0.3
    began = time.monotonic()
    with pytest.raises(StorageUnavailable) as caught:
        unreachable.get_all_studies()
    assert 0.3 <= time.monotonic() - began < 1.5
    assert re.match("storage lost for 0.3 s: connection failed: .*refused$", str(caught.value))
    assert caught.value.__cause__ is None
    assert len(messages) == 1  # the storage did not come back
    assert not [t for t in [*messages, str(caught.value)] if "s@cr" in t or "cr%2Fet" in t]


def test_the_stop_event_ends_the_waiting(unreachable):
    stopping, waiting = threading.Event(), threading.Event()
    unreachable.stop_event, unreachable.on_wait = stopping, lambda _: waiting.set()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(unreachable.get_all_studies)
        assert waiting.wait(10)
        began = time.monotonic()
        stopping.set()
        with pytest.raises(StorageUnavailable, match="stopped while waiting"):
            future.result(10)
    assert time.monotonic() - began < 0.5


def test_work_is_tried_once_after_the_stop_event(storage, direct, proxy):
    made = make(direct, "stopping")
    storage.stop_event = threading.Event()
    storage.stop_event.set()
    storage.set_trial_user_attr(made.trial, "c", 5)
    assert direct.get_trial_user_attrs(made.trial) == {"c": 5}
    proxy.cut("before")
    with pytest.raises(StorageUnavailable):
        storage.set_trial_user_attr(made.trial, "c", 6)


def test_pauses_grow_from_a_tenth_of_a_second_to_ten_seconds(private_postgres):
    url = f"{private_postgres.url('patience', 1)}"  # a port where nothing listens
    engine, pauses = sa.create_engine(url), []

    class Counting:
        def is_set(self):
            return len(pauses) == 12

        def wait(self, seconds):
            pauses.append(seconds)
            return False

    with pytest.raises(StorageUnavailable):
        retry_transient(engine.connect, stop_event=Counting())
    longest = [min(10, 0.1 * 2**n) for n in range(12)]
    assert all(n / 2 <= p <= n for p, n in zip(pauses, longest, strict=True))
    assert len({p / n for p, n in zip(pauses, longest, strict=True)}) == 12


def test_a_storage_cannot_be_pickled(storage):
    with pytest.raises(TypeError, match="open it in each process"):
        pickle.dumps(storage)


def test_a_trials_start_is_stored(storage):
    study = storage.create_new_study(UP, "start")
    before = datetime.now()
    trial = storage.get_trial(storage.create_new_trial(study))
    assert before <= trial.datetime_start <= datetime.now()
