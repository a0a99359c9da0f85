"""A storage whose database goes away: what is waited for, and that all is done once."""

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
from search.storage.optuna_internals import OptunaStorage
from search.storage.retrying_storage import (
    RetryingStorage,
    StorageUnavailable,
    retry_transient,
)
from tests.postgres import GUARDED, Wire, private_postgres

__all__ = ["private_postgres"]  # a fixture

UP = [StudyDirection.MAXIMIZE]
X = FloatDistribution(0.0, 1.0)


@pytest.fixture(scope="module")
def database(private_postgres):
    private_postgres.create("patience")
    return private_postgres


@pytest.fixture(scope="module")
def straight(database):
    """The database without a wire in between: what is really there."""
    return open_storage(storage_url(database.url("patience"), None))


@pytest.fixture(scope="module")
def wired(database):
    """A wire that may be cut, and a storage that is at its end."""
    wire = Wire(database.port)
    yield wire, open_storage(storage_url(database.url("patience", wire.port), None))
    wire.close()


@pytest.fixture
def wire(wired):
    wired[0].cuts = 0
    return wired[0]


@pytest.fixture
def told():
    return []


@pytest.fixture
def storage(wired, told):
    _, storage = wired
    storage.on_wait = told.append
    yield storage
    storage.on_wait = storage.stop_event = None


@pytest.fixture
def severed(database, told):
    """A storage that was open before its server went out of reach; with a password."""
    wire = Wire(database.port)
    url = database.url("patience", wire.port).replace("postgres@", "postgres:s%40cr%2Fet@")
    storage = open_storage(storage_url(url, None))
    storage.on_wait = told.append
    wire.close()
    storage.engine.dispose()
    return storage


# --- each operation, cut off in the middle -----------------------------------------------------


@dataclass
class Made:
    """A study with a running trial that has a bit of everything, and a waiting one."""

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


#: What is asked of a storage, and what must then be there; both get the storage and ``Made``.
WRITES = {
    "create_new_study": (
        lambda s, m: s.create_new_study(UP, m.name + " 2"),
        lambda s, m, got: s.get_study_id_from_name(m.name + " 2") == got,
    ),
    "create_new_study, unnamed": (
        lambda s, m: s.create_new_study(UP),
        lambda s, m, got: s.get_study_name_from_id(got).startswith("no-name-"),
    ),
    "delete_study": (
        lambda s, m: s.delete_study(m.study),
        lambda s, m, got: m.study not in {x._study_id for x in s.get_all_studies()},
    ),
    "create_new_trial": (
        lambda s, m: s.create_new_trial(m.study),
        lambda s, m, got: (
            len(trials := s.get_all_trials(m.study)) == 4
            and trials[3]._trial_id == got
            and trials[3].number == 3
            and trials[3].state == TrialState.RUNNING
        ),
    ),
    "create_new_trial, queued": (
        lambda s, m: s.create_new_trial(
            m.study, create_trial(state=TrialState.WAITING, user_attrs={"q": 1})
        ),
        lambda s, m, got: (
            [t.user_attrs.get("q") for t in s.get_all_trials(m.study)] == [None, None, None, 1]
        ),
    ),
    "set_trial_state_values, complete": (
        lambda s, m: s.set_trial_state_values(m.trial, TrialState.COMPLETE, [0.5]),
        lambda s, m, got: (
            got is True
            and s.get_trial(m.trial).values == [0.5]
            and s.get_trial(m.trial).state == TrialState.COMPLETE
        ),
    ),
    "set_trial_state_values, failed": (
        lambda s, m: s.set_trial_state_values(m.trial, TrialState.FAIL),
        lambda s, m, got: got is True and s.get_trial(m.trial).state == TrialState.FAIL,
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
    "get_all_studies": lambda s, m: m.study in {x._study_id for x in s.get_all_studies()},
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
def test_a_write_is_done_once_whether_its_commit_or_the_answer_was_lost(
    name, when, storage, straight, wire, told
):
    made = make(straight, f"{name} {when}")
    act, is_there = WRITES[name]
    wire.cut(when)
    got = act(storage, made)
    assert wire.cuts == 1
    assert is_there(straight, made, got)
    assert len(told) == 2
    assert told[0].startswith("storage lost: ")
    assert told[0].endswith("; waiting")
    assert re.fullmatch(r"storage back after \d+\.\d s", told[1])


@pytest.mark.parametrize("name", READS)
def test_a_read_that_was_cut_off_is_read_again(name, storage, straight, wire, capfd):
    made = make(straight, name)
    wire.cut("before")
    assert READS[name](storage, made) == READS[name](straight, made)
    assert wire.cuts == 1
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
def test_operations_wait_through_a_restart_together(database, straight, private_postgres):
    storage = open_storage(storage_url(database.url("patience"), None))
    actions = [(n, act, check) for n, (act, check) in WRITES.items()]
    actions += [(n, act, lambda s, m, got, a=act: got == a(s, m)) for n, act in READS.items()]
    made = {n: make(storage, f"restart {n}") for n, _, _ in actions}
    private_postgres.stop("immediate")
    start = threading.Timer(2.0, private_postgres.start)
    began = time.monotonic()
    start.start()
    with ThreadPoolExecutor(len(actions)) as pool:
        results = [(pool.submit(act, storage, made[n]), n, check) for n, act, check in actions]
    start.join()
    assert time.monotonic() - began >= 2.0
    assert [n for future, n, check in results if not check(storage, made[n], future.result())] == []


# --- what is somebody else's -------------------------------------------------------------------


def test_a_study_that_another_made_is_not_taken_for_ones_own(storage, straight, wire):
    straight.create_new_study(UP, "taken")
    wire.cut("before")
    storage.get_all_studies()
    with pytest.raises(DuplicatedStudyError, match="'taken'"):
        storage.create_new_study(UP, "taken")


@pytest.mark.parametrize("ended", [(TrialState.COMPLETE, [0.25]), (TrialState.FAIL, None)])
def test_a_trial_that_another_ended_otherwise_meanwhile_is_told(ended, storage, straight, wire):
    made = make(straight, f"ended {ended}")
    storage.on_wait = lambda _: (
        straight.get_trial(made.trial).state.is_finished()
        or (straight.set_trial_state_values(made.trial, *ended))
    )
    wire.cut("before")
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_state_values(made.trial, TrialState.COMPLETE, [0.5])
    assert straight.get_trial(made.trial).values == ended[1]


def test_a_trial_that_was_ended_before_the_call_is_told_without_a_break(storage, straight):
    made = make(straight, "ended before")
    straight.set_trial_state_values(made.trial, TrialState.COMPLETE, [0.5])
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_state_values(made.trial, TrialState.COMPLETE, [0.5])


def test_a_claim_whose_answer_was_lost_counts_as_somebody_elses(storage, straight, wire):
    made = make(straight, "claim")
    wire.cut("after")
    assert storage.set_trial_state_values(made.waiting, TrialState.RUNNING) is False
    other = make(straight, "claim again")
    wire.cut("before")
    assert storage.set_trial_state_values(other.waiting, TrialState.RUNNING) is True


def test_a_study_that_is_not_there_is_not_deleted_twice(storage):
    with pytest.raises(KeyError):
        storage.delete_study(-1)


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
def test_a_writer_and_a_reader_go_on_through_two_restarts(private_postgres):
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
    told = []
    for _ in range(2):
        told += [written.get(timeout=60) for _ in range(10)]
        private_postgres.restart(0.5)
    told += [written.get(timeout=60) for _ in range(10)]
    stop.set()
    told += iter(lambda: written.get(timeout=60), None)
    assert seen.get(timeout=60) > 0
    for process in processes:
        process.join(30)
    assert [p.exitcode for p in processes] == [0, 0]
    trials = study.get_trials()
    assert [(t.number, t.value) for t in trials] == told
    assert all(t.state == TrialState.COMPLETE and t.params["x"] == t.value for t in trials)


# --- what passes, and what does not ------------------------------------------------------------


def test_a_deadlock_is_repeated(private_postgres):
    url = private_postgres.create("deadlock")
    private_postgres.run("ALTER DATABASE deadlock SET deadlock_timeout = '20ms'")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (id int PRIMARY KEY, n int)")
        connection.exec_driver_sql("INSERT INTO t VALUES (1, 0), (2, 0)")
    both, told = threading.Barrier(2), []

    def add(first, second):
        attempts = []

        def work():
            attempts.append(first)
            with engine.begin() as connection:
                connection.exec_driver_sql(f"UPDATE t SET n = n + 1 WHERE id = {first}")
                if len(attempts) == 1:
                    both.wait(10)
                connection.exec_driver_sql(f"UPDATE t SET n = n + 1 WHERE id = {second}")

        retry_transient(work, on_wait=told.append)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(add, 1, 2), pool.submit(add, 2, 1)]:
            future.result()
    assert private_postgres.run("SELECT n FROM t", "deadlock") == [(2,), (2,)]
    assert "deadlock detected" in told[0]


def test_a_transaction_that_lost_against_another_is_repeated(private_postgres):
    url = private_postgres.create("serial")
    private_postgres.run("CREATE TABLE t (n int)", "serial")
    private_postgres.run("INSERT INTO t VALUES (0)", "serial")
    engine = sa.create_engine(url, isolation_level="REPEATABLE READ")
    told, attempts = [], []

    def work():
        attempts.append(1)
        with engine.begin() as connection:
            connection.exec_driver_sql("SELECT n FROM t").all()
            if len(attempts) == 1:
                private_postgres.run("UPDATE t SET n = n + 10", "serial")
            connection.exec_driver_sql("UPDATE t SET n = n + 1")

    retry_transient(work, on_wait=told.append)
    assert private_postgres.run("SELECT n FROM t", "serial") == [(11,)]
    assert "could not serialize" in told[0]


def test_a_server_without_a_free_connection_is_waited_for(private_postgres):
    private_postgres.run("CREATE ROLE single LOGIN CONNECTION LIMIT 1")
    url = private_postgres.url().replace("postgres@", "single@")
    first = sa.create_engine(url).connect()
    second = sa.create_engine(url, poolclass=sa.NullPool)
    told = []

    def on_wait(text):
        told.append(text)
        first.close()
        first.engine.dispose()

    with retry_transient(second.connect, on_wait=on_wait):
        assert "too many connections" in told[0]


def test_a_locked_sqlite_file_is_waited_for(tmp_path):
    storage = open_storage(sqlite_url(tmp_path))
    study = storage.create_new_study(UP, "s")
    hasty = RetryingStorage(f"sqlite:///{tmp_path}/study.db", {"connect_args": {"timeout": 0.01}})
    begin_immediate(hasty.engine)
    told = []
    with storage.engine.connect() as other:
        other.exec_driver_sql("UPDATE studies SET study_name = 's'")

        def on_wait(text):
            told.append(text)
            other.rollback()

        hasty.on_wait = on_wait
        hasty.set_study_user_attr(study, "k", 1)
    assert told[0] == "storage lost: database is locked; waiting"
    assert storage.get_study_user_attrs(study) == {"k": 1}


def refused(storage, work, told) -> str:
    """What the database said to work that is not repeated."""
    with pytest.raises(StorageInternalError) as caught:
        work()
    assert told == []
    return str(caught.value.__cause__.orig)


def test_a_password_that_became_wrong_is_not_waited_for(private_postgres, told):
    private_postgres.create("guarded_db")
    private_postgres.run(f"ALTER DATABASE guarded_db OWNER TO {GUARDED}")
    url = private_postgres.url("guarded_db").replace("postgres@", f"{GUARDED}:right@")
    storage = open_storage(storage_url(url, None))
    storage.on_wait = told.append
    private_postgres.run(f"ALTER ROLE {GUARDED} PASSWORD 'another'")
    storage.engine.dispose()
    try:
        said = refused(storage, storage.get_all_studies, told)
    finally:
        private_postgres.run(f"ALTER ROLE {GUARDED} PASSWORD 'right'")
    assert f'password authentication failed for user "{GUARDED}"' in said


def test_a_database_that_was_dropped_is_not_waited_for(private_postgres, told):
    storage = open_storage(storage_url(private_postgres.create("dropped"), None))
    storage.on_wait = told.append
    private_postgres.run("DROP DATABASE dropped WITH (FORCE)")
    assert 'database "dropped" does not exist' in refused(storage, storage.get_all_studies, told)


def test_a_database_that_takes_no_writes_is_not_waited_for(private_postgres, told):
    storage = open_storage(storage_url(private_postgres.create("frozen"), None))
    study = storage.create_new_study(UP, "s")
    storage.on_wait = told.append
    private_postgres.run("ALTER DATABASE frozen SET default_transaction_read_only = on")
    storage.engine.dispose()
    said = refused(storage, lambda: storage.set_study_user_attr(study, "k", 1), told)
    assert "read-only transaction" in said


@pytest.mark.parametrize(
    ("pragma", "message"),
    [("query_only = ON", "readonly database"), ("max_page_count = 1", "disk is full")],
)
def test_an_sqlite_file_that_takes_no_writes_is_not_waited_for(pragma, message, tmp_path, told):
    storage = open_storage(sqlite_url(tmp_path))
    study = storage.create_new_study(UP, "s")
    storage.on_wait = told.append
    sa.event.listen(storage.engine, "connect", lambda c, _: c.execute(f"PRAGMA {pragma}"))
    storage.engine.dispose()
    act = lambda: storage.set_study_user_attr(study, "k", "x" * 100_000)  # noqa: E731
    assert message in refused(storage, act, told)


@pytest.mark.parametrize("statement", ["SELEC 1", "INSERT INTO studies VALUES (1, 's')"])
def test_a_statement_that_is_wrong_is_not_repeated(statement, tmp_path, private_postgres, told):
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


# --- an end to patience ------------------------------------------------------------------------


def test_patience_ends_in_one_line_without_the_password(severed, told):
    severed.timeout_s = 0.3
    began = time.monotonic()
    with pytest.raises(StorageUnavailable) as caught:
        severed.get_all_studies()
    assert 0.3 <= time.monotonic() - began < 1.5
    assert re.match("storage lost for 0.3 s: connection failed: .*refused$", str(caught.value))
    assert caught.value.__cause__ is None
    assert len(told) == 1  # it never came back
    assert not [t for t in [*told, str(caught.value)] if "s@cr" in t or "cr%2Fet" in t]


def test_the_wait_ends_soon_after_it_is_asked_to(severed):
    stopping, waiting = threading.Event(), threading.Event()
    severed.stop_event, severed.on_wait = stopping, lambda _: waiting.set()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(severed.get_all_studies)
        assert waiting.wait(10)
        began = time.monotonic()
        stopping.set()
        with pytest.raises(StorageUnavailable, match="asked to stop"):
            future.result(10)
    assert time.monotonic() - began < 0.5


def test_one_that_is_to_stop_still_writes_what_it_can(storage, straight, wire):
    made = make(straight, "stopping")
    storage.stop_event = threading.Event()
    storage.stop_event.set()
    storage.set_trial_user_attr(made.trial, "c", 5)
    assert straight.get_trial_user_attrs(made.trial) == {"c": 5}
    wire.cut("before")
    with pytest.raises(StorageUnavailable):
        storage.set_trial_user_attr(made.trial, "c", 6)


def test_pauses_grow_from_a_tenth_of_a_second_to_ten(private_postgres):
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


def test_a_storage_is_not_pickled_with_its_password(storage):
    with pytest.raises(TypeError, match="open it in each process"):
        pickle.dumps(storage)


def test_the_start_of_a_trial_is_kept(storage):
    study = storage.create_new_study(UP, "start")
    before = datetime.now()
    trial = storage.get_trial(storage.create_new_trial(study))
    assert before <= trial.datetime_start <= datetime.now()
