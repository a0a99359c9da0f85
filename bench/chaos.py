"""A study whose workers and trainings are killed continuously.

Eight worker processes run 200 trials of up to six epochs with a stub training that writes its own
log (``tests.search.stub_training``). Workers, trainings and fork servers are killed by SIGKILL at
random times, workers are frozen by SIGSTOP for longer than the grace period, and the PostgreSQL
server is restarted twice. Afterwards database, log and files are compared. Writes
bench/results/chaos-cpu.md.

    python -m bench.chaos [--seed 0] [--storage sqlite] [--storage postgresql]
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from tests.postgres import PrivatePostgres, binaries
from tests.search.chaos import FULL, ChaosResult, Plan, survive
from tests.search.chaos_checks import Verdict
from tests.search.worker_processes import WorkerProcesses

RESULTS = Path(__file__).parent / "results" / "chaos-cpu.md"
COLUMNS = (
    *("storage", "workers", "trials", "killed workers", "killed trainings", "killed fork servers"),
    *("frozen", "restarts", "complete", "pruned", "failed", "retried", "from a checkpoint"),
    *("lost", "duplicates", "left running", "left waiting", "peak over the budget", "seconds"),
)


@contextlib.contextmanager
def server() -> Iterator[PrivatePostgres]:
    """A PostgreSQL server of our own, running. Raises RuntimeError where none is installed."""
    found = binaries()
    if found is None:
        raise RuntimeError("no initdb on this machine: install PostgreSQL's server")
    folder = Path(tempfile.mkdtemp(prefix="chaos-postgres-"))
    private = PrivatePostgres(folder, found)
    try:
        private.start()
        yield private
    finally:
        private.stop()
        shutil.rmtree(folder, ignore_errors=True)


def measure(kind: str, plan: Plan) -> tuple[Plan, ChaosResult, Verdict]:
    """One study on one kind of storage."""
    with WorkerProcesses() as worker_processes, tempfile.TemporaryDirectory() as folder:
        if kind == "sqlite":
            return (plan, *survive(worker_processes, Path(folder), plan))
        plan = replace(plan, restarts=2)
        pauses = random.Random(plan.seed)
        with server() as private:
            url = private.create("chaos")
            again = lambda: private.restart(pauses.uniform(1, 3))  # noqa: E731
            return (plan, *survive(worker_processes, Path(folder), plan, url, again))


def row(kind: str, plan: Plan, result: ChaosResult, verdict: Verdict) -> list[str]:
    """The values of COLUMNS."""
    states, done = verdict.states, result.done
    values = [kind, plan.workers, plan.trials, done["worker"], done["child"], done["server"]]
    values += [done["freeze"], done["restart"], states["complete"], states["pruned"]]
    values += [states["fail"], verdict.requeued, verdict.resumed, verdict.lost, verdict.duplicates]
    values += [verdict.running, verdict.waiting, max(0, result.peak - plan.trials)]
    return [str(value) for value in values] + [f"{result.seconds:.0f}"]


def write(rows: Sequence[Sequence[str]]) -> None:
    """The table, a storage a column: it is read on narrow screens too."""
    lines = ["| " + " | ".join(cells) + " |" for cells in zip(COLUMNS, *rows, strict=True)]
    lines.insert(1, "|---" * (1 + len(rows)) + "|")
    machine = f"{psutil.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    RESULTS.write_text(
        "# A study whose workers are killed all the time\n\n"
        f"`python -m bench.chaos` on {machine}. Failed trials are those whose training, or its\n"
        "fork server, was killed: that ends a trial. A worker that is killed or frozen for longer\n"
        "than the grace period loses its trial to another one, which goes on from the last\n"
        "checkpoint, if there was one yet.\n\n" + "\n".join(lines) + "\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", action="append", choices=["sqlite", "postgresql"])
    given = parser.parse_args(argv)
    rows = []
    for kind in given.storage or ["sqlite", "postgresql"]:
        plan, result, verdict = measure(kind, replace(FULL, seed=given.seed))
        rows.append(row(kind, plan, result, verdict))
        broken = verdict.violations + result.orphans
        broken += [f"exit code {code}" for code in result.died]
        print(
            *(f"{name}: {value}" for name, value in zip(COLUMNS, rows[-1], strict=True)), sep="\n"
        )
        print(*broken, sep="\n")
    if not given.storage:
        write(rows)


if __name__ == "__main__":
    main()
