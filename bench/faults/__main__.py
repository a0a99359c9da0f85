"""Fault injection: run studies under random faults and check their invariants, similar to Jepsen.

Each seed is one study of 12 trials with a stub training on SQLite (even seeds) or PostgreSQL (odd
ones). Three workers run it while processes are killed and stopped, clocks stepped, disks filled,
files damaged, and the database is restarted, locked or unreachable. Afterwards the study, its
files, the log of the trainings and the audit table of the database are compared. A failing schedule
is reduced to the faults that are needed for the failure.

    python -m bench.faults --seeds 0:200 --jobs 3 --out bench/results/faults-cpu.md
    python -m bench.faults --seed 17              # one schedule
    python -m bench.faults --seed 17 --only 0,3   # two of its faults
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import chain, repeat
from multiprocessing import get_context
from pathlib import Path

import psutil

from bench.faults.kinds import KINDS, Storage
from bench.faults.run import FAILING_SHARE, Outcome, Site, run_schedule
from bench.faults.schedule import LONG, Fault, Schedule, Shape, draw
from bench.faults.shrink import shrink

#: Runs of each part of a failing schedule: failures may depend on timing.
REPEATS = 2


def shrink_schedule(
    site: Site, schedule: Schedule, setup: str | None = None, repeats: int = REPEATS
) -> Schedule:
    """Return a failing schedule with as few faults as possible."""

    def fails(faults: Sequence[Fault]) -> bool:
        part = replace(schedule, faults=tuple(faults))
        return any(run_schedule(site, part, setup).violations for _ in range(repeats))

    return replace(schedule, faults=tuple(shrink(schedule.faults, fails)))


def describe_failure(full: Schedule, minimal: Schedule, violations: Sequence[str]) -> str:
    """Return the violations, the minimal faults, and the command that repeats the run."""
    positions = ",".join(str(full.faults.index(fault)) for fault in minimal.faults)
    return "\n".join(
        [
            f"seed {full.seed} on {full.storage}: {len(violations)} violations",
            *(f"  {line}" for line in violations),
            f"needs {len(minimal.faults)} of {len(full.faults)} faults:",
            *(f"  {fault}" for fault in minimal.faults),
            f"repeat: python -m bench.faults --seed {full.seed} --storage {full.storage} "
            f"--only {positions or 'none'}",
        ]
    )


def summarize(outcomes: Sequence[Outcome], lacking: dict[str, str]) -> str:
    """Return the results as a Markdown table with one column for each storage."""
    storages = sorted({o.schedule.storage for o in outcomes}, reverse=True)
    columns = [[o for o in outcomes if o.schedule.storage == storage] for storage in storages]
    applied = [sum((o.applied for o in column), Counter[str]()) for column in columns]
    states = [sum((o.verdict.states for o in column), Counter[str]()) for column in columns]

    def total(column: Sequence[Outcome], name: str) -> int:
        return sum(getattr(o.verdict, name) for o in column)

    rows: list[tuple[str, list[int]]] = [
        ("seeds", [len(column) for column in columns]),
        *((f"*{kind}*", [found[kind] for found in applied]) for kind in KINDS),
        *((f"trials {s}", [found[s] for found in states]) for s in ("complete", "pruned", "fail")),
        ("trials requeued", [total(column, "requeued") for column in columns]),
        ("of them from a checkpoint", [total(column, "resumed") for column in columns]),
        ("violations", [sum(len(o.violations) for o in column) for column in columns]),
        ("seconds", [round(sum(o.seconds for o in column)) for column in columns]),
        ("longest run in seconds", [round(max(o.seconds for o in column)) for column in columns]),
    ]
    machine = f"{psutil.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    seeds = [o.schedule.seed for o in outcomes]
    notes = [f"*{kind}* was left out: {reason}.\n" for kind, reason in lacking.items()]
    table = [
        f"| | {' | '.join(storages)} |",
        f"|---{'|---' * len(storages)}|",
        *(f"| {name} | {' | '.join(map(str, cells))} |" for name, cells in rows),
    ]
    shape = outcomes[0].schedule.shape
    return (
        f"# Studies under random faults\n\n"
        f"`python -m bench.faults --seeds {min(seeds)}:{max(seeds) + 1}` on {machine}. "
        f"{shape.workers} workers\nrun {shape.trials} trials of {shape.epochs} epochs with a stub "
        f"training under {shape.faults[0]} to {shape.faults[1]} faults. Kinds of faults are in\n"
        f"italics, with the number of those that found a target. {100 * FAILING_SHARE:.0f}% of the "
        f"configurations fail by themselves;\na training that is killed, or whose fork server is, "
        f"has failed too.\n\n" + "\n".join([*notes, *table]) + "\n"
    )


def run_seeds(seeds: Sequence[int], options: argparse.Namespace) -> list[Outcome]:
    """Run the schedules of some seeds, print them, and shrink those that fail."""
    shape, outcomes = LONG if options.long else Shape(), []
    with Site() as site:
        for seed in seeds:
            full = draw(seed, shape, options.storage)
            schedule = full
            if options.only is not None:
                positions = [] if options.only == "none" else map(int, options.only.split(","))
                schedule = replace(full, faults=tuple(full.faults[i] for i in sorted(positions)))
            schedule = schedule.without(site.lacking())
            outcome = run_schedule(site, schedule)
            outcomes.append(outcome)
            print(
                f"seed {seed} {schedule.storage} {outcome.seconds:.1f} s: "
                f"{dict(outcome.verdict.states)}, {', '.join(map(str, schedule.faults))}",
                flush=True,
            )
            if outcome.violations:
                minimal = schedule if options.no_shrink else shrink_schedule(site, schedule)
                print(describe_failure(full, minimal, outcome.violations), outcome.logs, sep="\n")
    return outcomes


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.faults")
    parser.add_argument("--seeds", help="FIRST:END")
    parser.add_argument("--out", type=Path, help="file for the table of the results")
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--storage", type=Storage, choices=list(Storage))
    parser.add_argument("--only", help="positions of the schedule's faults, or none")
    parser.add_argument("--long", action="store_true", help="200 trials, 8 workers, 60 faults")
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="studies at the same time")
    options = parser.parse_args(argv)
    first, end = (int(part) for part in (options.seeds or "0:0").split(":"))
    seeds = range(first, end) if options.seed is None else [options.seed]
    shares = [seeds[i :: options.jobs] for i in range(options.jobs)]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("fork")) as pool:
        results = pool.map(run_seeds, shares, repeat(options))
        outcomes = sorted(chain(*results), key=lambda outcome: outcome.schedule.seed)
    if options.out:
        with Site() as site:
            options.out.write_text(summarize(outcomes, site.lacking()))
    return int(any(outcome.violations for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
