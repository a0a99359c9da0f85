"""Classification of transient errors, as wrapped by SQLAlchemy and Optuna."""

import sqlite3

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, PendingRollbackError, ResourceClosedError

from search.storage.transient_errors import describe_error, transient_reason

#: PostgreSQL's codes.
TRANSIENT = [
    *("08000", "08001", "08003", "08006", "08P01", "40001", "40003", "40P01"),
    *("53000", "53100", "53200", "53300", "57014", "57P01", "57P02", "57P03", "57P05"),
    *("25006", "25P02", "25P03", "55P03", "58030"),
]
PERMANENT = [
    *("22021", "23503", "23505", "28000", "28P01", "3D000", "42501", "42601", "42703", "42P01"),
    *("53400", "57P04", "XX000"),
]

#: Messages of the client's own errors.
LOST = (
    "connection socket closed",
    "sending query failed: another command is already in progress",
    "sending prepared query failed: no connection to the server",
    "consuming input failed: SSL SYSCALL error: EOF detected",
    "the connection is lost",
    "connection timeout expired",
    "connection failed: FATAL: sorry, too many clients already",
    "connection failed: FATAL: could not fork new process for connection",
)
REFUSED = (
    'connection failed: FATAL: password authentication failed for user "u"',
    'connection failed: FATAL: database "d" does not exist',
    'connection failed: FATAL: role "u" is not permitted to log in',
    'connection failed: FATAL: no pg_hba.conf entry for host "h"',
    "connection failed: server does not support SSL, but SSL was required",
    'invalid sslmode value: "nonsense"',
)


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("message")
    error.sqlite_errorcode = code
    return error


#: Errors of drivers, and whether they are transient. A code of SQLite may have an extension.
DRIVER_ERRORS = [
    *((psycopg.errors.lookup(c)("message"), True) for c in TRANSIENT),
    *((psycopg.errors.lookup(c)("message"), False) for c in PERMANENT),
    *((psycopg.OperationalError(text), True) for text in LOST),
    *((psycopg.OperationalError(text), False) for text in REFUSED),
    (psycopg.InterfaceError("the connection is closed"), True),
    (psycopg.ProgrammingError("connection in transaction status UNKNOWN"), True),
    (psycopg.ProgrammingError("the query has 1 placeholder but 2 parameters were passed"), False),
    *((sqlite_error(code | 3 << 8), True) for code in (5, 6, 10, 13, 15)),
    *((sqlite_error(code | 3 << 8), False) for code in (1, 8, 11, 14, 19, 26)),
    (sqlite3.ProgrammingError("Cannot operate on a closed database."), False),
]


def raised(error, cause=None, context=None):
    """Return an error with the cause and context of a raised one."""
    error.__cause__, error.__context__ = cause, context or cause
    error.__suppress_context__ = cause is not None
    return error


def by_sqlalchemy(error):
    driver = sqlite3 if isinstance(error, sqlite3.Error) else psycopg
    return raised(DBAPIError.instance("SELECT 1", {}, error, driver.Error), cause=error)


#: How SQLAlchemy and Optuna wrap an error.
WRAPPERS = [
    by_sqlalchemy,
    lambda e: raised(StorageInternalError("during the commit"), cause=e),
    lambda e: raised(PendingRollbackError("rolled back"), context=e),
    lambda e: raised(ResourceClosedError("This Connection is closed"), context=e),
    lambda e: raised(
        StorageInternalError("during the commit"),
        cause=raised(PendingRollbackError("rolled back"), context=e),
    ),
]


@given(st.sampled_from(DRIVER_ERRORS), st.lists(st.sampled_from(WRAPPERS), max_size=3))
def test_an_error_is_transient_however_it_is_wrapped(driver_error, wrappers):
    original, is_transient = driver_error
    error = by_sqlalchemy(original) if wrappers else original
    for wrap in wrappers:
        error = error if wrap is by_sqlalchemy else wrap(error)
    assert (transient_reason(error) is not None) == is_transient
    assert "\n" not in describe_error(error)


def test_an_error_that_others_raise_is_not_transient_because_of_an_earlier_one():
    lost = by_sqlalchemy(psycopg.OperationalError("the connection is lost"))
    assert transient_reason(raised(KeyError("x"), context=lost)) is None
    assert transient_reason(raised(ValueError("x"), context=lost)) is None
    missing = by_sqlalchemy(psycopg.errors.UndefinedTable("no such"))
    assert transient_reason(raised(missing, context=lost)) is None


def test_a_rollback_that_fails_after_a_break_is_transient():
    lost = by_sqlalchemy(psycopg.OperationalError("connection socket closed"))
    rollback = by_sqlalchemy(psycopg.OperationalError("another command is already in progress"))
    assert transient_reason(raised(rollback, context=lost))
    assert transient_reason(PendingRollbackError("its error was caught elsewhere"))


def test_a_password_is_removed_before_a_message_is_cut():
    error = psycopg.OperationalError("x" * 290 + "secret")
    assert "sec" not in describe_error(error, lambda text: text.replace("secret", "***"))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (sqlite_error(11), "message"),
        (sqlite3.DatabaseError("database disk image is malformed"),
         "database disk image is malformed; restore the file from a backup, or with sqlite3's "
         "`.recover`"),
        (sqlite3.OperationalError("no such table: trials"),
         "no such table: trials; a table was dropped; restore the database from a backup"),
        (psycopg.errors.InvalidPassword("rejected"),
         "rejected; check user and password of the storage"),
    ],
)  # fmt: skip
def test_a_permanent_error_says_what_to_do(error, line):
    assert describe_error(by_sqlalchemy(error)) == line
