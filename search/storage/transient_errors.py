"""What a database's error means: the connection is lost and will come back, or something else."""

from __future__ import annotations

import re

from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from lesionseg.errors import InputError


class StorageUnreachable(InputError):
    """The first connection failed for a reason that may pass; reason: in the database's words."""

    def __init__(self, told: str, reason: str) -> None:
        super().__init__(told)
        self.reason = reason


#: PostgreSQL's codes of errors that pass: connections that break or are refused for now, and
#: transactions that lost against another one and may simply be repeated.
_PASSING = frozenset(
    {"08000", "08001", "08003", "08006", "57P01", "57P02", "57P03", "57P05", "25P03"}
    | {"53300", "40P01", "40001"}
)
#: SQLite's primary codes for "busy" and "locked".
_BUSY = frozenset({5, 6})

# What fails while a connection is made carries no code, whatever the reason: only its text tells
# a server that restarts from a password that is wrong.
_FINAL_TEXT = re.compile(
    "authentication failed|no password supplied|pg_hba|does not exist|not permitted|permission"
)
_PASSING_TEXT = re.compile(
    "refused|reset by peer|broken pipe|server closed|connection (is|was|has been) (closed|lost)"
    "|timed out|timeout expired|failed to resolve|could not translate|unreachable|no route"
    "|connection abort|eof detected|unexpected eof|consuming input failed|could not (send|receive)"
    "|starting up|shutting down|not (yet )?accepting connections|recovery mode"
    "|too many clients|too many connections|connection slots|terminating connection"
    "|cannot connect to server|query_wait_timeout"
)


def transient_reason(error: BaseException) -> str | None:
    """In one line why an attempt failed that is worth repeating; None where it is not.

    Optuna hides what the database said in its own StorageInternalError: the causes are looked at.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, StorageUnreachable):
            return seen.reason
        if isinstance(seen, PoolTimeout):
            return "no connection became free"
        if isinstance(seen, DBAPIError):
            return _passing(seen.orig, seen.connection_invalidated)
        if hasattr(seen, "sqlstate") or hasattr(seen, "sqlite_errorcode"):
            return _passing(seen, False)
        # A second statement after a break fails for want of a rollback, not of a connection.
        seen = seen.__context__ if isinstance(seen, PendingRollbackError) else seen.__cause__
    return None


def _passing(error: BaseException | None, broken: bool) -> str | None:
    text = str(error).partition("\n")[0].strip()
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return text if code & 0xFF in _BUSY else None
    state, low = getattr(error, "sqlstate", None), str(error).lower()
    if state is not None and not broken:
        return text if state in _PASSING else None
    if _FINAL_TEXT.search(low):
        return None
    return text if broken or _PASSING_TEXT.search(low) else None
