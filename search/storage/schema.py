"""The one table of ours beside Optuna's: the workers of each study."""

from __future__ import annotations

from sqlalchemy import Engine, ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from search.storage.optuna_internals import models
from search.storage.optuna_tables import LOCK


class _Base(DeclarativeBase):
    pass


class Worker(_Base):
    """A worker's row, which is also its lease on the trial at ``trial_id``.

    state: idle, training, lost (others took it for dead) or ended (it went by itself). trial: the
    number of that trial. beat: seconds since 1970 by the database's clock.
    """

    __tablename__ = "lesionsearch_workers"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    # Deleting a study, in the dashboard say, takes its workers' rows along.
    study_id: Mapped[int] = mapped_column(
        ForeignKey(models.StudyModel.__table__.c.study_id, ondelete="CASCADE"), index=True
    )
    ordinal: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    trial_id: Mapped[int | None] = mapped_column(index=True)
    trial: Mapped[int | None]
    epoch: Mapped[int]
    beat: Mapped[float]
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    since: Mapped[float]
    space: Mapped[str] = mapped_column(String(255))
    device: Mapped[str] = mapped_column(String(64))
    threads: Mapped[int]
    share: Mapped[float]
    memory_gb: Mapped[float | None]


def create(engine: Engine) -> None:
    """Makes the table where it is not, one process at a time."""
    with engine.begin() as connection:
        if engine.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
        _Base.metadata.create_all(connection)
