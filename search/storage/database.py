"""From a URL to Optuna's storage: SQLite in the study's folder, or PostgreSQL for many hosts."""

from __future__ import annotations

import logging
import os
import urllib.parse
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from lesionseg.errors import InputError
from search.storage.retrying_storage import RetryingStorage
from search.storage.tables import create_tables
from search.storage.transient_errors import (
    STORAGE_ERRORS,
    StorageUnreachable,
    describe_error,
    transient_reason,
)

#: The storage's URL where none is given, so that no password needs to be typed; or the path of a
#: file that contains it, as secrets are passed to containers.
STORAGE_VARIABLE = "LESIONSEARCH_STORAGE"
STORAGE_FILE_VARIABLE = "LESIONSEARCH_STORAGE_FILE"

#: A worker sends few queries, and a server accepts 100 connections by default: one is kept, others
#: are opened while it is busy. Connections are tested before use and are renewed before firewalls
#: and servers usually close them.
_POOL = {"pool_size": 1, "max_overflow": 3, "pool_pre_ping": True, "pool_recycle": 1800}
#: Seconds (tcp_user_timeout: milliseconds) after which a silent host is given up.
_CONNECTION: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
    "application_name": "lesionsearch",
    # A worker that is stopped in the middle of a transaction must not block all others.
    "options": "-c idle_in_transaction_session_timeout=60000",
}


def storage_url(text: str | None, folder: Path) -> URL:
    """Return the URL of a study's storage.

    Args:
        text: a URL, or ``@path`` for the URL in that file; None for that of the environment or, if
            there is none, ``study.db`` in the study's folder.
        folder: the study's folder.

    Raises:
        InputError: the text is no URL of an SQLite file or a PostgreSQL database.
    """
    text = text or storage_from_environment()
    if not text:
        return sqlite_url(folder)
    if text.startswith("@"):
        text = _read_secret(Path(text[1:]).expanduser())
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # ValueError: the port is no number
        raise InputError(
            "storage: not a database URL; it looks like "
            "postgresql+psycopg://user:password@host:5432/database or sqlite:///study.db"
        ) from None
    if any("password" in key for key in url.query):  # where masking the URL would leave it
        raise InputError("storage: the password stands in its query; write user:password@host")
    if "@" in f"{url.host or ''}{url.database or ''}" and url.get_backend_name() != "sqlite":
        raise InputError("storage: more than one '@'; in a user or a password write %40 for it")
    backend = url.get_backend_name()
    if backend not in {"sqlite", "postgresql", "postgres"}:
        raise InputError(
            f"storage: {mask_password(url)}: must be sqlite or postgresql, got {backend!r}"
        )
    if backend != "sqlite":
        return url.set(drivername="postgresql+psycopg")
    if url.host or url.database in {None, "", ":memory:"}:
        raise InputError(f"storage: {mask_password(url)}: needs a file, such as sqlite:///study.db")
    return url.set(database=str(Path(str(url.database)).resolve()))


def storage_from_environment() -> str | None:
    """Return the URL in the environment, or ``@path`` for that in a file; None without either."""
    text, file = os.environ.get(STORAGE_VARIABLE), os.environ.get(STORAGE_FILE_VARIABLE)
    return text or (f"@{file}" if file else None)


def sqlite_url(folder: Path) -> URL:
    """Return the URL of ``study.db`` in a study's folder."""
    return URL.create("sqlite", database=str(folder.resolve() / "study.db"))


def mask_password(url: URL) -> str:
    """Return a URL for messages, with its password hidden."""
    return url.render_as_string(hide_password=True)


def redact_password(url: URL, text: str) -> str:
    """Hide a URL's password in a text, in each spelling that it may have there."""
    password = str(url.password or "")
    quoted = {urllib.parse.quote(password, safe=safe) for safe in ("", "/", " +")}
    escaped = {password.replace("\\", r"\\").replace("'", r"\'"), repr(password)[1:-1]}
    spellings = {password, urllib.parse.quote_plus(password)} | quoted | escaped
    for spelling in sorted(spellings - {""}, key=len, reverse=True):
        text = text.replace(spelling, "***")
    return text


def open_storage(url: URL) -> RetryingStorage:
    """Connect to a database, and create the tables that are missing.

    This first connection is not retried.

    Raises:
        InputError: the database cannot be reached, or its tables are those of another version of
            Optuna; the password is masked. StorageUnreachable, a subclass, for transient errors.
    """
    options: dict[str, Any] = {"connect_args": {"timeout": 60}}
    if url.get_backend_name() != "sqlite":
        connect_args = {key: value for key, value in _CONNECTION.items() if key not in url.query}
        options = {**_POOL, "connect_args": connect_args}
    # Optuna's messages speak of "studies created in RDB". SQLAlchemy logs a traceback when it
    # discards a broken connection, after the error itself was raised.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    masked = mask_password(url)
    try:
        engine = begin_immediate(create_engine(url, **options))
        create_tables(engine, masked)
        engine.dispose()
        storage = _connect(url, options)
    except ModuleNotFoundError as error:
        raise InputError(
            f"storage: {masked}: needs the package {error.name}; "
            f"install lesionsearch with its extra 'postgres'"
        ) from None
    except (*STORAGE_ERRORS, RuntimeError, OSError) as error:
        reason = describe_error(error, partial(redact_password, url))
        message = f"storage: {masked}: cannot be used: {reason}"
        if transient_reason(error):
            raise StorageUnreachable(message, reason) from None
        raise InputError(message) from None
    begin_immediate(storage.engine)
    return storage


def open_for_reading(other: RetryingStorage) -> RetryingStorage:
    """Open a storage with its own connections, whose reads do not lock an SQLite file."""
    settings = {"connect_args": {"timeout": 60}} if other.engine.name == "sqlite" else {}
    return _connect(other.engine.url, {"pool_pre_ping": True, **settings})


def _connect(url: URL, options: dict[str, Any]) -> RetryingStorage:
    full_url = url.render_as_string(hide_password=False)
    storage = RetryingStorage(full_url, engine_kwargs=options, skip_table_creation=True)
    storage.redact = partial(redact_password, url)
    return storage


def begin_immediate(engine: Engine) -> Engine:
    """Take SQLite's write lock when a transaction begins, not at its first write.

    Otherwise two workers that both read the queue and then write would claim the same trial, or
    fail with "database is locked" at once, whatever the timeout: SQLite cannot wait for a lock
    when what was read may have changed since.

    The journal mode stays as it is, by default a rollback journal. With eight processes a
    write-ahead log (synchronous=NORMAL) gave 9.9 instead of 8.1 trials a second, where a training
    takes minutes; but it does not work on network file systems, loses the last trials in a power
    cut, and leaves files that must be copied with the database.
    """
    if engine.name != "sqlite":
        return engine

    @event.listens_for(engine, "connect")
    def _disable_implicit_transactions(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # existing connections lack the first listener's setting
    return engine


def _read_secret(path: Path) -> str:
    """Read a file that consists of one line."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"storage: {path}: cannot be read: {reason}") from None
    if not text or len(text.splitlines()) > 1 or text.startswith("@"):
        raise InputError(f"storage: {path}: must hold one line, the database's URL")
    return text
