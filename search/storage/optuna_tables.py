"""Optuna's tables: made by one process at a time, and refused where they are another Optuna's."""

from __future__ import annotations

from pathlib import Path

import optuna
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, select

from lesionseg.errors import InputError
from search.storage.optuna_internals import models

#: The advisory lock under which tables are made: any number that nobody else uses.
LOCK = 0x6C6573696F6E


def create_tables(engine: Engine, shown: str) -> None:
    """Makes what is missing of Optuna's tables, in one transaction and one process at a time.

    Optuna looks first and creates then, in several transactions: of two workers that start
    together one would fail.

    engine: of SQLite, it takes the write lock when a transaction begins. shown: the URL, fit to
    be shown. InputError where there are tables of another Optuna, or not of Optuna's.
    """
    with engine.begin() as connection:
        if engine.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
        _refuse_other_schema(connection, shown)
        models.BaseModel.metadata.create_all(connection)
        version = models.VersionInfoModel.__table__
        if connection.execute(select(version)).first() is None:
            row = {"schema_version": models.SCHEMA_VERSION}
            connection.execute(version.insert(), row | {"library_version": optuna.__version__})
        migration = MigrationContext.configure(connection)
        if not migration.get_current_heads():
            migration.stamp(_revisions(), "head")


def _refuse_other_schema(connection: Connection, shown: str) -> None:
    """InputError where the tables are not those of this Optuna; none is touched."""
    tables = set(inspect(connection).get_table_names())
    if "version_info" not in tables:
        foreign = tables & {"alembic_version", "studies", "trials"}
        if foreign:
            raise InputError(
                f"storage: {shown}: has a table {min(foreign)!r} that is not Optuna's; "
                "give the search a database of its own"
            )
        return
    version = models.VersionInfoModel.__table__
    row = connection.execute(select(version.c.schema_version, version.c.library_version)).first()
    if row is None:
        return
    script = _revisions()
    head = str(script.get_current_head())
    found = MigrationContext.configure(connection).get_current_heads()
    if found == (head,) or (not found and row.schema_version == models.SCHEMA_VERSION):
        return
    known = {r.revision for r in script.walk_revisions()}
    older = set(found) <= known if found else row.schema_version < models.SCHEMA_VERSION
    revision = ", ".join(found) or f"schema {row.schema_version}"
    raise InputError(
        f"storage: {shown}: its tables are those of {'an older' if older else 'a newer'} "
        f"Optuna, {row.library_version} ({revision}); this is {optuna.__version__} ({head}): "
        + _mend(shown, row.library_version, older)
    )


def _mend(shown: str, version: str, older: bool) -> str:
    if not older:
        return f"install optuna {version} or later here, or use another database"
    return (
        f"stop its workers, back it up and run 'optuna storage upgrade --storage {shown}' "
        f"with its password, or install optuna {version} here"
    )


def _revisions() -> ScriptDirectory:
    config = Config()
    where = Path(models.__file__).parent / "alembic"
    config.set_main_option("script_location", str(where).replace("%", "%%"))
    return ScriptDirectory.from_config(config)
