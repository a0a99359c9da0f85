"""From a URL to Optuna's storage: SQLite in the study's folder, or PostgreSQL for many hosts."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from sqlalchemy import Engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from lesionseg.errors import InputError

#: Where a storage URL is looked for when none is given, so that no password needs to be typed.
ENVIRONMENT = "LESIONSEARCH_STORAGE"


def storage_url(given: str | None, folder: Path) -> URL:
    """The given URL, or that of the environment, or ``study.db`` in the study's folder.

    InputError where it is no URL, or of a database other than an SQLite file and PostgreSQL.
    """
    text = given or os.environ.get(ENVIRONMENT)
    if not text:
        return local_url(folder)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        raise InputError(
            "storage: not a database URL; it looks like "
            "postgresql+psycopg://user:password@host:5432/database or sqlite:///study.db"
        ) from None
    if "password" in url.query:  # it would be shown wherever the URL is
        raise InputError("storage: the password stands in its query; write user:password@host")
    backend = url.get_backend_name()
    if backend not in {"sqlite", "postgresql", "postgres"}:
        raise InputError(f"storage: {masked(url)}: must be sqlite or postgresql, got {backend!r}")
    if backend != "sqlite":
        return url.set(drivername="postgresql+psycopg")
    if url.database in {None, "", ":memory:"}:
        raise InputError(f"storage: {masked(url)}: needs a file, such as sqlite:///study.db")
    return url.set(database=str(Path(str(url.database)).resolve()))


def local_url(folder: Path) -> URL:
    """``study.db`` in the study's folder."""
    return URL.create("sqlite", database=str(folder.resolve() / "study.db"))


def masked(url: URL) -> str:
    """The URL with its password hidden, fit to be shown."""
    return url.render_as_string(hide_password=True)


def open_storage(url: URL) -> RDBStorage:
    """Connects, and makes the tables where there are none.

    InputError, with the password masked, where the database cannot be reached.
    """
    # Its lines speak of "studies created in RDB"; ours say what happened.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = _connect(url)
        if url.get_backend_name() == "sqlite":
            begin_immediate(storage.engine)
        return storage
    except ModuleNotFoundError as error:
        raise InputError(
            f"storage: {masked(url)}: needs the package {error.name}; "
            f"install lesionsearch with its extra 'postgres'"
        ) from None
    except (SQLAlchemyError, NoSuchModuleError, RuntimeError, OSError) as error:
        raise InputError(f"storage: {masked(url)}: cannot be used: {_reason(error, url)}") from None


def begin_immediate(engine: Engine) -> None:
    """Takes SQLite's write lock when a transaction begins, not at its first write.

    Two workers that both read the queue and then write would otherwise claim one trial, or
    fail with "database is locked" at once, whatever the timeout: SQLite cannot wait for a lock
    when what was read may have changed since.
    """

    @event.listens_for(engine, "connect")
    def _own_transactions(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # sqlite3 shall not begin transactions by itself

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections made so far have not heard of it


def _connect(url: URL) -> RDBStorage:
    if url.get_backend_name() == "sqlite":
        kwargs: dict[str, Any] = {"connect_args": {"timeout": 60}}
    else:
        # A worker asks little of its database: few connections, tested before use.
        kwargs = {"pool_pre_ping": True, "pool_size": 2, "connect_args": {"connect_timeout": 10}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=kwargs)


def _reason(error: Exception, url: URL) -> str:
    cause = getattr(error, "orig", None) or error.__cause__ or error
    text = " ".join(str(cause).split()) or type(error).__name__
    if url.password:
        text = text.replace(str(url.password), "***")
    return text[:300]
