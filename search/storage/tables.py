"""The tables of a database: Optuna's, and this project's own table of workers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import optuna
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, Enum, ForeignKey, MetaData, String, inspect
from sqlalchemy.orm import DeclarativeBase, Mapped, composite, mapped_column, query_expression

from lesionseg.errors import InputError
from search.storage.lease_types import ProcessId
from search.storage.optuna_internals import models
from search.trial_process.slot import Slot

#: The advisory lock under which tables are created: a number that no other program uses.
_LOCK = 0x6C6573696F6E


class WorkerState(StrEnum):
    """A worker's state. LOST: taken for dead by another worker. ENDED: deregistered by itself."""

    IDLE = "idle"
    TRAINING = "training"
    LOST = "lost"
    ENDED = "ended"


#: States of workers that hold no lease.
GONE = (WorkerState.LOST, WorkerState.ENDED)


class _Base(DeclarativeBase):
    pass


class WorkerRow(_Base):
    """A registered worker, and its lease on the trial with the id ``trial_id``.

    trial: the number of that trial. ordinal: how many workers came before it. heartbeat_at: seconds
    since 1970 by the database's clock. heartbeat_age_s: as ``StudyRows.select_workers`` reads it.
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
    trial: Mapped[int | None] = mapped_column("trial_number")
    epoch: Mapped[int]
    heartbeat_at: Mapped[float]
    heartbeat_age_s: Mapped[float] = query_expression()
    # Columns with the names of the fields.
    process: Mapped[ProcessId] = composite(ProcessId)
    slot: Mapped[Slot] = composite(Slot)


def _optuna_tables() -> MetaData:
    """Return Optuna's tables; SQLite does not reuse their ids of studies and trials."""
    tables = MetaData()
    for table in models.BaseModel.metadata.tables.values():
        copied = table.to_metadata(tables)
        if table in {models.StudyModel.__table__, models.TrialModel.__table__}:
            copied.dialect_options["sqlite"]["autoincrement"] = True
    return tables


def create_tables(engine: Engine, masked_url: str) -> None:
    """Create the missing tables, in one transaction and one process at a time.

    Optuna creates them in several transactions: of two workers that start together, one would
    fail. It checks existing ones when its storage is opened.

    engine: of SQLite, it takes the write lock when a transaction begins. InputError if the
    tables are another program's.
    """
    with engine.begin() as connection:
        if engine.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        names = set(inspect(connection).get_table_names())
        if "version_info" not in names:
            if foreign := names & {"alembic_version", "studies", "trials"}:
                raise InputError(
                    f"storage: {masked_url}: has a table {min(foreign)!r} that is not Optuna's; "
                    "give the search a database of its own"
                )
            _optuna_tables().create_all(connection)
            version = {"schema_version": models.SCHEMA_VERSION}
            table = models.VersionInfoModel.__table__
            connection.execute(table.insert(), version | {"library_version": optuna.__version__})
            revisions = ScriptDirectory(str(Path(models.__file__).parent / "alembic"))
            MigrationContext.configure(connection).stamp(revisions, "head")
        _Base.metadata.create_all(connection)
