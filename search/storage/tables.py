"""The tables of a database: Optuna's, and this project's own table of workers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import optuna
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, Enum, ForeignKey, String, inspect, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from lesionseg.errors import InputError
from search.storage.optuna_internals import models

#: The advisory lock under which tables are created: a number that no other program uses.
_LOCK = 0x6C6573696F6E


class WorkerState(StrEnum):
    """A worker's state. LOST: taken for dead by another worker. ENDED: deregistered by itself."""

    IDLE = "idle"
    TRAINING = "training"
    LOST = "lost"
    ENDED = "ended"


class _Base(DeclarativeBase):
    pass


class WorkerRow(_Base):
    """A worker, and its lease on the trial with the id ``trial_id``.

    heartbeat_at: seconds since 1970 by the database's clock. start_time, pid_namespace: see
    ``ProcessId``. device, threads, share, memory_gb: see ``Slot``.
    """

    __tablename__ = "lesionsearch_workers"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    # Deleting a study, for example in the dashboard, deletes its workers' rows.
    study_id: Mapped[int] = mapped_column(
        ForeignKey(models.StudyModel.__table__.c.study_id, ondelete="CASCADE"), index=True
    )
    ordinal: Mapped[int]
    state: Mapped[WorkerState] = mapped_column(
        Enum(WorkerState, native_enum=False, length=16, values_callable=list)
    )
    trial_id: Mapped[int | None] = mapped_column(index=True)
    trial_number: Mapped[int | None]
    epoch: Mapped[int]
    heartbeat_at: Mapped[float]
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    start_time: Mapped[float]
    pid_namespace: Mapped[str] = mapped_column(String(255))
    device: Mapped[str] = mapped_column(String(64))
    threads: Mapped[int]
    share: Mapped[float]
    memory_gb: Mapped[float | None]


def create_tables(engine: Engine, masked_url: str) -> None:
    """Create the missing tables, in one transaction and one process at a time.

    Optuna checks and creates in several transactions: of two workers that start together, one
    would fail.

    Args:
        engine: of SQLite, it takes the write lock when a transaction begins.
        masked_url: for messages.

    Raises:
        InputError: the tables are those of another version of Optuna, or not Optuna's.
    """
    with engine.begin() as connection:
        if engine.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        _check_version(connection, masked_url)
        models.BaseModel.metadata.create_all(connection)
        _Base.metadata.create_all(connection)
        version = models.VersionInfoModel.__table__
        if connection.execute(select(version)).first() is None:
            row = {"schema_version": models.SCHEMA_VERSION}
            connection.execute(version.insert(), row | {"library_version": optuna.__version__})
        migration = MigrationContext.configure(connection)
        if not migration.get_current_heads():
            migration.stamp(_revisions(), "head")


def _check_version(connection: Connection, masked_url: str) -> None:
    """Raise InputError where there are tables that are not those of this Optuna."""
    names = set(inspect(connection).get_table_names())
    if "version_info" not in names:
        foreign = names & {"alembic_version", "studies", "trials"}
        if foreign:
            raise InputError(
                f"storage: {masked_url}: has a table {min(foreign)!r} that is not Optuna's; "
                "give the search a database of its own"
            )
        return
    version = models.VersionInfoModel.__table__
    row = connection.execute(select(version.c.schema_version, version.c.library_version)).first()
    if row is None:
        return
    script = _revisions()
    head = str(script.get_current_head())
    heads = MigrationContext.configure(connection).get_current_heads()
    if heads == (head,) or (not heads and row.schema_version == models.SCHEMA_VERSION):
        return
    known = {revision.revision for revision in script.walk_revisions()}
    is_older = set(heads) <= known if heads else row.schema_version < models.SCHEMA_VERSION
    revision = ", ".join(heads) or f"schema {row.schema_version}"
    raise InputError(
        f"storage: {masked_url}: its tables are those of {'an older' if is_older else 'a newer'} "
        f"Optuna, {row.library_version} ({revision}); this is {optuna.__version__} ({head}): "
        + _upgrade_advice(masked_url, row.library_version, is_older)
    )


def _upgrade_advice(masked_url: str, version: str, is_older: bool) -> str:
    if not is_older:
        return f"install optuna {version} or later here, or use another database"
    return (
        "stop its workers, back it up and run 'optuna storage upgrade "
        f"--storage {masked_url}' with its password, or install optuna {version} here"
    )


def _revisions() -> ScriptDirectory:
    folder = Path(models.__file__).parent / "alembic"
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    return ScriptDirectory.from_config(config)
