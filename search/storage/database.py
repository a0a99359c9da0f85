"""From a URL to Optuna's storage: SQLite in the study's folder, or PostgreSQL for many hosts."""

from __future__ import annotations

import os
import urllib.parse
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from lesionseg.errors import InputError
from search.storage.retrying_storage import RetryingStorage
from search.storage.tables import create_tables
from search.storage.transient_errors import StorageUnreachable, transient_reason

#: Where a storage URL is looked for when none is given, so that no password needs to be typed:
#: the URL itself or, where that is not set, the path of a file that holds it, as secrets are
#: handed to containers.
STORAGE_VARIABLE = "LESIONSEARCH_STORAGE"
STORAGE_FILE_VARIABLE = "LESIONSEARCH_STORAGE_FILE"

#: A worker asks little of its database, and a server has room for 100 connections unless it is
#: told otherwise: one is kept, and others are made while that is busy. They are tested before use
#: and are not kept for longer than firewalls and servers usually bear.
_POOL = {"pool_size": 1, "max_overflow": 3, "pool_pre_ping": True, "pool_recycle": 1800}
#: Seconds (tcp_user_timeout: milliseconds) after which a host that went silent is given up.
_LINK: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
    "application_name": "lesionsearch",
    # A worker that is stopped in the middle of a transaction must not hold up all others.
    "options": "-c idle_in_transaction_session_timeout=60000",
}


def storage_url(given: str | None, folder: Path) -> URL:
    """The given URL, or that of the environment, or ``study.db`` in the study's folder.

    ``@path`` stands for the URL in that file.

    InputError where it is no URL, or of a database other than an SQLite file and PostgreSQL.
    """
    text = given or storage_from_environment()
    if not text:
        return sqlite_url(folder)
    if text.startswith("@"):
        text = _read(Path(text[1:]).expanduser())
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        raise InputError(
            "storage: not a database URL; it looks like "
            "postgresql+psycopg://user:password@host:5432/database or sqlite:///study.db"
        ) from None
    _refuse_open_secret(url)
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
    """What the environment says about the storage: a URL, else ``@path``, or None."""
    text, file = os.environ.get(STORAGE_VARIABLE), os.environ.get(STORAGE_FILE_VARIABLE)
    return text or (f"@{file}" if file else None)


def sqlite_url(folder: Path) -> URL:
    """``study.db`` in the study's folder."""
    return URL.create("sqlite", database=str(folder.resolve() / "study.db"))


def mask_password(url: URL) -> str:
    """The URL with its password hidden, fit to be shown."""
    return url.render_as_string(hide_password=True)


def redact_password(url: URL, text: str) -> str:
    """The text with the URL's password hidden, in each of the spellings it may have there."""
    secret = str(url.password or "")
    quoted = {urllib.parse.quote(secret, safe=s) for s in ("", "/", " +")}
    escaped = {secret.replace("\\", r"\\").replace("'", r"\'"), repr(secret)[1:-1]}
    known = {secret, urllib.parse.quote_plus(secret)} | quoted | escaped
    for spelling in sorted(known - {""}, key=len, reverse=True):
        text = text.replace(spelling, "***")
    return text


def open_storage(url: URL) -> RetryingStorage:
    """Connects, and makes the tables where there are none.

    This first connection is not waited for. InputError, with the password mask_password, where the
    database cannot be reached or holds the tables of another Optuna; StorageAway, which is one,
    where it might be reached later.
    """
    # Its lines speak of "studies created in RDB"; ours say what happened.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        _prepare(url)
        storage = _connect(url)
        if url.get_backend_name() == "sqlite":
            begin_immediate(storage.engine)
        return storage
    except ModuleNotFoundError as error:
        raise InputError(
            f"storage: {mask_password(url)}: needs the package {error.name}; "
            f"install lesionsearch with its extra 'postgres'"
        ) from None
    except (SQLAlchemyError, NoSuchModuleError, RuntimeError, OSError) as error:
        reason = _reason(error, url)
        told = f"storage: {mask_password(url)}: cannot be used: {reason}"
        raise (
            StorageUnreachable(told, reason) if transient_reason(error) else InputError(told)
        ) from None


def begin_immediate(engine: Engine) -> None:
    """Takes SQLite's write lock when a transaction begins, not at its first write.

    Two workers that both read the queue and then write would otherwise claim one trial, or
    fail with "database is locked" at once, whatever the timeout: SQLite cannot wait for a lock
    when what was read may have changed since.

    The journal stays what it is, a rollback journal unless somebody chose otherwise. With eight
    processes a write-ahead log (synchronous=NORMAL) gave 9.9 trials a second instead of 8.1,
    where a training takes minutes; for that it cannot lie on a network file system, loses the
    last trials in a power cut, and leaves behind files that must be copied along.
    """

    @event.listens_for(engine, "connect")
    def _own_transactions(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # sqlite3 shall not begin transactions by itself

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections made so far have not heard of it


def _engine_kwargs(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": 60}}
    return {**_POOL, "connect_args": {k: v for k, v in _LINK.items() if k not in url.query}}


def _connect(url: URL) -> RetryingStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = RetryingStorage(
            url.render_as_string(hide_password=False),
            engine_kwargs=_engine_kwargs(url),
            skip_table_creation=True,
        )
    storage.redact = partial(redact_password, url)
    return storage


def _prepare(url: URL) -> None:
    engine = create_engine(url, **_engine_kwargs(url))
    try:
        if engine.name == "sqlite":
            begin_immediate(engine)
        create_tables(engine, mask_password(url))
    finally:
        engine.dispose()


def _read(path: Path) -> str:
    """The one line of a file that holds a secret."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"storage: {path}: cannot be read: {reason}") from None
    if not text or len(text.splitlines()) > 1 or text.startswith("@"):
        raise InputError(f"storage: {path}: must hold one line, the database's URL")
    return text


def _refuse_open_secret(url: URL) -> None:
    """InputError for a URL that would be shown with its password, or with a part of it."""
    if any("password" in key for key in url.query):
        raise InputError("storage: the password stands in its query; write user:password@host")
    if "@" in f"{url.host or ''}{url.database or ''}" and url.get_backend_name() != "sqlite":
        raise InputError("storage: more than one '@'; in a user or a password write %40 for it")


def _reason(error: Exception, url: URL) -> str:
    cause = getattr(error, "orig", None) or error.__cause__ or error
    text = " ".join(str(cause).split()) or type(error).__name__
    return redact_password(url, text)[:300]
