"""Distinguish transient database errors, such as a lost connection, from permanent ones."""

from __future__ import annotations

import re

from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from lesionseg.errors import InputError


class StorageUnreachable(InputError):
    """The first connection failed for a transient reason, which ``reason`` quotes."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


#: PostgreSQL's codes of transient errors: connections that break or are refused for now, and
#: transactions that lost against another one and may be repeated.
_TRANSIENT = frozenset(
    {"08000", "08001", "08003", "08006", "57P01", "57P02", "57P03", "57P05", "25P03"}
    | {"53300", "40P01", "40001"}
)
#: SQLite's primary codes for "busy" and "locked".
_BUSY = frozenset({5, 6})

# Errors during connection carry no code: only the message distinguishes a restarting server from
# a wrong password.
_PERMANENT_TEXT = re.compile(
    "authentication failed|no password supplied|pg_hba|does not exist|not permitted|permission"
)
_TRANSIENT_TEXT = re.compile(
    "refused|reset by peer|broken pipe|server closed|connection (is|was|has been) (closed|lost)"
    "|timed out|timeout expired|failed to resolve|could not translate|unreachable|no route"
    "|connection abort|eof detected|unexpected eof|consuming input failed|could not (send|receive)"
    "|starting up|shutting down|not (yet )?accepting connections|recovery mode"
    "|too many clients|too many connections|connection slots|terminating connection"
    "|cannot connect to server|query_wait_timeout"
)


def transient_reason(error: BaseException) -> str | None:
    """Return the reason in one line if the error is transient; None for other errors.

    Optuna wraps the database's error in its StorageInternalError: causes are examined too.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, StorageUnreachable):
            return cause.reason
        if isinstance(cause, PoolTimeout):
            return "no connection became free"
        if isinstance(cause, DBAPIError):
            return _driver_reason(cause.orig, cause.connection_invalidated)
        if hasattr(cause, "sqlstate") or hasattr(cause, "sqlite_errorcode"):
            return _driver_reason(cause, False)
        # After a break, a second statement fails because there was no rollback.
        cause = cause.__context__ if isinstance(cause, PendingRollbackError) else cause.__cause__
    return None


def _driver_reason(error: BaseException | None, is_broken: bool) -> str | None:
    text = str(error).partition("\n")[0].strip()
    sqlite_code = getattr(error, "sqlite_errorcode", None)
    if sqlite_code is not None:
        return text if sqlite_code & 0xFF in _BUSY else None
    sqlstate, lower = getattr(error, "sqlstate", None), str(error).lower()
    if sqlstate is not None and not is_broken:
        return text if sqlstate in _TRANSIENT else None
    if _PERMANENT_TEXT.search(lower):
        return None
    return text if is_broken or _TRANSIENT_TEXT.search(lower) else None
