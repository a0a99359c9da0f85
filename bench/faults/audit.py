"""An audit table of all writes to trials, filled by triggers, and checks of these writes.

The triggers record each write with the trial's state and the holder of its lease. They run in the
worker's transaction, so that the table agrees with the database.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

_TABLE = {
    "sqlite": "CREATE TABLE fault_audit (id INTEGER PRIMARY KEY AUTOINCREMENT, {columns})",
    "postgresql": "CREATE TABLE fault_audit (id BIGSERIAL PRIMARY KEY, {columns})",
}
_COLUMNS = "what TEXT, trial_id BIGINT, old TEXT, new TEXT, holder TEXT"
_HOLDER = "(SELECT max(id) FROM lesionsearch_workers WHERE trial_id = NEW.trial_id)"
_STATE = "(SELECT state FROM trials WHERE trial_id = NEW.trial_id)"
#: Name, event, condition, and the audit's row.
_TRIGGERS = [
    ("added", "INSERT ON trials", "", "'state', NEW.trial_id, NULL, NEW.state"),
    ("moved", "UPDATE ON trials", "WHEN (OLD.state <> NEW.state)",
     "'state', NEW.trial_id, OLD.state, NEW.state"),
]  # fmt: skip
for _table, _what, _new in (
    ("trial_intermediate_values", "epoch", "CAST(NEW.step AS TEXT)"),
    ("trial_values", "value", "CAST(NEW.value AS TEXT)"),
    ("trial_params", "param", "NEW.param_name"),
    ("trial_user_attributes", "attr", "NEW.key"),
):
    _row = f"'{_what}', NEW.trial_id, {_STATE}, {_new}"
    _TRIGGERS += [
        (f"{_what}_{e.lower()}", f"{e} ON {_table}", "", _row) for e in ("INSERT", "UPDATE")
    ]

#: Allowed transitions between the states of a trial; None: it does not exist yet.
_TRANSITIONS = {
    (None, "WAITING"), (None, "RUNNING"), ("WAITING", "RUNNING"),
    ("RUNNING", "COMPLETE"), ("RUNNING", "PRUNED"), ("RUNNING", "FAIL"),
}  # fmt: skip

_ENDED = {"COMPLETE", "PRUNED", "FAIL"}
#: Attributes that a worker writes in the transaction in which it closes another's lost trial.
_OF_REQUEUE = {"reason", "ended_at", "requeued_as", "message"}


class Write(NamedTuple):
    """One write. old: the trial's state before it. holder: the worker that had its lease."""

    what: str
    trial_id: int
    old: str | None
    new: str
    holder: str | None


def connect(database: Path | str) -> Any:
    """Connect to an SQLite file or a PostgreSQL URL; each statement is a transaction."""
    if isinstance(database, Path):
        return sqlite3.connect(database, timeout=60, isolation_level=None)
    plain = database.replace("postgresql+psycopg", "postgresql")
    return psycopg.connect(plain, autocommit=True, connect_timeout=5)


def fetch_rows(database: Path | str, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    connection = connect(database)
    try:
        return list(connection.execute(query).fetchall())
    finally:
        connection.close()


def install(database: Path | str) -> None:
    """Create the table and the triggers, in a database that has a study."""
    dialect = "sqlite" if isinstance(database, Path) else "postgresql"
    connection = connect(database)
    try:
        connection.execute(_TABLE[dialect].format(columns=_COLUMNS))
        for name, event, condition, row in _TRIGGERS:
            insert = (
                "INSERT INTO fault_audit (what, trial_id, old, new, holder) "
                f"SELECT {row}, {_HOLDER};"
            )
            action = f"BEGIN {insert} END"
            if dialect == "postgresql":
                connection.execute(
                    f"CREATE FUNCTION audit_{name}() RETURNS trigger LANGUAGE plpgsql "
                    "SECURITY DEFINER "
                    f"AS $$ BEGIN {insert} RETURN NULL; END $$"
                )
                action = f"EXECUTE FUNCTION audit_{name}()"
            statement = f"CREATE TRIGGER audit_{name} AFTER {event} FOR EACH ROW {condition} "
            connection.execute(statement + action)
    finally:
        connection.close()


def find_violations(database: Path | str, budget: int, costs: dict[int, bool]) -> Iterator[str]:
    """Yield a line for each write that breaks a rule. costs: whether a trial's end costs budget."""
    rows = fetch_rows(
        database, "SELECT what, trial_id, old, new, holder FROM fault_audit ORDER BY id"
    )
    writes = list(_without_detours([Write(*row) for row in rows]))
    if not writes:
        yield "the audit is empty: its triggers are gone"
    yield from _check_budget(writes, budget, costs)
    holders: dict[int, set[str]] = defaultdict(set)
    for write in writes:
        if write.what == "state":
            if (write.old, write.new) not in _TRANSITIONS:
                yield f"trial id {write.trial_id} went from {write.old} to {write.new}"
        elif write.what == "epoch":
            if write.old != "RUNNING" or write.holder is None:
                yield f"a write without a lease: {write}"
            elif write.holder is not None:
                holders[write.trial_id].add(write.holder)
        elif write.old in _ENDED and write.holder is None and write.new not in _OF_REQUEUE:
            yield f"a write to an ended trial: {write}"
    for trial_id, names in holders.items():
        if len(names) > 1:
            yield f"trial id {trial_id} was written by several workers: {sorted(names)}"


def _without_detours(writes: Sequence[Write]) -> Iterator[Write]:
    """Merge the two writes by which Optuna adds a waiting trial: first as running, then waiting."""
    added: dict[int, Write] = {}
    for write in writes:
        if write.what == "state":
            previous = added.pop(write.trial_id, None)
            if previous and (write.old, write.new) == ("RUNNING", "WAITING"):
                yield write._replace(old=None)
                continue
            if previous:
                yield previous
            if write.old is None and write.new == "RUNNING":
                added[write.trial_id] = write
                continue
        yield write
    yield from added.values()


def _check_budget(writes: Sequence[Write], budget: int, costs: dict[int, bool]) -> Iterator[str]:
    """Check that running trials and ended ones with a cost never exceeded the budget together."""
    running: set[int] = set()
    ended = peak = 0
    for write in writes:
        if write.what != "state":
            continue
        if write.new == "RUNNING":
            running.add(write.trial_id)
        elif write.new != "WAITING":
            running.discard(write.trial_id)
            ended += costs.get(write.trial_id, True)
        peak = max(peak, ended + len(running))
    if peak > budget:
        yield f"{peak} trials counted against the budget of {budget} at one time"
