"""Distinguish transient database errors, such as a lost connection, from permanent ones."""

from __future__ import annotations

import re
from collections.abc import Callable

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from lesionseg.errors import InputError

#: Errors of a database, as SQLAlchemy and as Optuna raise them.
STORAGE_ERRORS = (SQLAlchemyError, StorageInternalError)


class StorageUnreachable(InputError):
    """The first connection failed for a transient reason, which ``reason`` quotes."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


#: Classes of PostgreSQL's codes (SQLSTATE): connections that break (08), transactions that lost
#: against another one (40), a full disk, no memory or no free connection, which an administrator
#: can fix while workers train (53), and a restart, a cancellation or a timeout (57).
_TRANSIENT_CLASSES = frozenset({"08", "40", "53", "57"})
#: 25006: read-only, as a server is during a failover. 25P02: an earlier statement of the
#: transaction failed. 25P03, 25P04: timeouts of a transaction. 55P03: a timeout for a lock. 58030:
#: input or output failed, as of a network file system.
_TRANSIENT_STATES = frozenset({"25006", "25P02", "25P03", "25P04", "55P03", "58030"})
#: 40002: violates a constraint. 53400: exceeds a configured limit. 57P04: a dropped database.
_PERMANENT_STATES = frozenset({"40002", "53400", "57P04"})
#: SQLite's primary codes: busy, locked, input or output failed, disk full, lock protocol.
_TRANSIENT_CODES = frozenset({5, 6, 10, 13, 15})

# The client's own errors carry no code: connections that break, fail or are refused. Only the text
# distinguishes a restarting server from a wrong password.
_CONNECTION_ERRORS = frozenset({"OperationalError", "InterfaceError"})
_CONNECTION_TEXT = re.compile("connection in transaction status|lost synchronization|server closed")
_PERMANENT_TEXT = re.compile(
    "authentication (failed|method)|no password supplied|pg_hba|does not exist|not permitted"
    '|permission|certificate|does not support|invalid (uri|connection|port|integer|ssl)|missing "="'
)

#: What to do about permanent errors, by a pattern for the code and the text.
_REMEDIES = (
    ("^42P01|no such table", "a table was dropped; restore the database from a backup"),
    ("^42703|no such column|has no column",
     "a column was dropped; restore the database from a backup"),
    ("^42501|permission denied", "grant the role SELECT, INSERT, UPDATE and DELETE on all tables"),
    ("^28|authentication failed|no password supplied", "check user and password of the storage"),
    ("^3D000|^57P04|database .* does not exist",
     "check the database's name, or restore it from a backup"),
    ("readonly database", "make the file and its folder writable, if they are still there"),
    ("unable to open database file", "check that the file's folder exists and is writable"),
    ("malformed|not a database", "restore the file from a backup, or with sqlite3's `.recover`"),
)  # fmt: skip


def transient_reason(error: BaseException) -> str | None:
    """Return the reason in one line if the error is transient; None for other errors.

    The database's error may be wrapped by SQLAlchemy, and that one by Optuna, whose rollback may
    fail in turn: the first known error in the chain of causes decides.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, StorageUnreachable):
            return cause.reason
        if isinstance(cause, PoolTimeout):
            return "no connection became free"
        if isinstance(cause, DBAPIError) and cause.orig is not None:
            return _driver_reason(cause.orig, cause.connection_invalidated)
        if hasattr(cause, "sqlstate") or hasattr(cause, "sqlite_errorcode"):
            return _driver_reason(cause, False)
        before = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
        if isinstance(cause, PendingRollbackError) and before is None:
            return "the transaction failed before"  # whose error was caught elsewhere
        cause = before if isinstance(cause, STORAGE_ERRORS) else cause.__cause__
    return None


def describe_error(error: BaseException, redact: Callable[[str], str] = str) -> str:
    """Return the database's message of a permanent error and what to do, in one line.

    redact: removes secrets from the message.
    """
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    original = getattr(cause, "orig", None) or cause or error
    message = getattr(getattr(original, "diag", None), "message_primary", None) or str(original)
    text = redact(" ".join(message.split()))[:300] or type(original).__name__
    key = f"{getattr(original, 'sqlstate', None) or ''} {text}"
    remedies = (remedy for pattern, remedy in _REMEDIES if re.search(pattern, key))
    return "; ".join([text, *list(remedies)[:1]])


def _driver_reason(error: BaseException, is_broken: bool) -> str | None:
    text = str(error).partition("\n")[0].strip()
    sqlite_code = getattr(error, "sqlite_errorcode", None)
    if sqlite_code is not None:
        return text if sqlite_code & 0xFF in _TRANSIENT_CODES else None
    sqlstate, lower = getattr(error, "sqlstate", None), str(error).lower()
    if sqlstate is not None:
        is_transient = is_broken or sqlstate[:2] in _TRANSIENT_CLASSES
        is_transient = is_transient or sqlstate in _TRANSIENT_STATES
        return text if is_transient and sqlstate not in _PERMANENT_STATES else None
    is_of_connection = bool(
        is_broken
        or (hasattr(error, "sqlstate") and _CONNECTION_ERRORS & _class_names(error))
        or _CONNECTION_TEXT.search(lower)
    )
    return text if is_of_connection and not _PERMANENT_TEXT.search(lower) else None


def _class_names(error: BaseException) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}
