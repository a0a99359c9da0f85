"""Checks of a study after chaos: plain SQL on its tables, compared with the trainings' log."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from optuna.trial import FrozenTrial

from search.study.location import StudyLocation
from search.study.opening import load_study
from tests.search import stub_training

#: Reasons of trials that cost no budget: requeued, or never trained.
REQUEUED = frozenset({"lost", "interrupted"})
SKIPPED = REQUEUED | {"duplicate", "constraint", "config"}

_STATES = """
SELECT t.state, a.value_json FROM trials t
LEFT JOIN trial_user_attributes a ON a.trial_id = t.trial_id AND a.key = 'reason'
"""


@dataclass(frozen=True)
class BudgetSample:
    """Trials that count against the budget, and the largest sum so far. count: samples so far."""

    ended: int = 0
    running: int = 0
    peak: int = 0
    count: int = 0


def sample_budget(location: StudyLocation) -> Iterator[BudgetSample]:
    """Yield the current state each time; a database that is unavailable is tried again."""
    sample, connection = BudgetSample(), None
    while True:
        try:
            connection = connection or _connect(location)
            rows = connection.execute(_STATES).fetchall()
        except (sqlite3.OperationalError, psycopg.OperationalError):
            connection = None
        else:
            ended = sum(_counts(state, reason and json.loads(reason)) for state, reason in rows)
            running = sum(state == "RUNNING" for state, _ in rows)
            peak = max(sample.peak, ended + running)
            sample = BudgetSample(ended, running, peak, sample.count + 1)
        yield sample


def _counts(state: str, reason: str | None) -> bool:
    return state in {"COMPLETE", "PRUNED", "FAIL"} and reason not in SKIPPED


def _connect(location: StudyLocation) -> Any:
    if location.storage is None:
        return sqlite3.connect(f"file:{location.folder / 'study.db'}?mode=ro", uri=True, timeout=60)
    plain = location.storage.replace("postgresql+psycopg", "postgresql")
    return psycopg.connect(plain, autocommit=True, connect_timeout=5)


def fetch_rows(location: StudyLocation, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    connection = _connect(location)
    try:
        return list(connection.execute(query).fetchall())
    finally:
        connection.close()


@dataclass
class Verdict:
    """Counts, and a line for each violated rule.

    requeued: trials that were requeued; resumed: those of them that had a checkpoint. crashed:
    failed trials, without those whose worker died too often. lost: trials that never ended.
    spare_weights: files of weights of trials that are not among the best.
    """

    states: Counter[str] = field(default_factory=Counter)
    requeued: int = 0
    crashed: int = 0
    resumed: int = 0
    lost: int = 0
    duplicates: int = 0
    running: int = 0
    waiting: int = 0
    spare_weights: int = 0
    violations: list[str] = field(default_factory=list)


def check_study(location: StudyLocation, trials: int, epochs: int) -> Verdict:
    """Check a study on which no worker is running."""
    study = load_study(location.folder, storage=location.storage)
    by_number = {t.number: t for t in study.get_trials()}
    verdict = Verdict()
    verdict.states = Counter(_state(t) for t in by_number.values())
    verdict.running, verdict.waiting = verdict.states["running"], verdict.states["waiting"]
    failed = [t for t in by_number.values() if t.state.name == "FAIL" and _ended(t)]
    verdict.crashed = sum("its worker died" not in t.user_attrs["message"] for t in failed)
    _check_numbers(verdict, by_number, trials)
    _check_chains(verdict, by_number)
    _check_trainings(verdict, by_number, stub_training.read_log(location.folder), epochs)
    _check_files(verdict, by_number, location.folder)
    live = fetch_rows(
        location, "SELECT id, state FROM lesionsearch_workers WHERE state NOT IN ('ended', 'lost')"
    )
    _require(verdict, not live, f"workers are still registered: {live}")
    return verdict


def _state(trial: FrozenTrial) -> str:
    reason = trial.user_attrs.get("reason")
    return str(reason) if reason in SKIPPED else trial.state.name.lower()


def _ended(trial: FrozenTrial) -> bool:
    return _counts(trial.state.name, trial.user_attrs.get("reason"))


def _require(verdict: Verdict, condition: bool, message: str) -> None:
    if not condition:
        verdict.violations.append(message)


def _check_numbers(verdict: Verdict, by_number: Mapping[int, FrozenTrial], trials: int) -> None:
    ended = [t for t in by_number.values() if _ended(t)]
    _require(verdict, len(ended) == trials, f"{len(ended)} trials ended instead of {trials}")
    _require(verdict, verdict.running == 0, f"{verdict.running} trials are left running")
    _require(verdict, verdict.waiting == 0, f"{verdict.waiting} trials are left waiting")
    trained = Counter(t.user_attrs["digest"] for t in ended if "digest" in t.user_attrs)
    twice = [digest for digest, n in trained.items() if n > 1]
    verdict.duplicates = len(twice)
    _require(verdict, not twice, f"configurations ended twice: {twice}")


def _check_chains(verdict: Verdict, by_number: Mapping[int, FrozenTrial]) -> None:
    """Check that a trial and its requeued successors end once."""
    chains: dict[int, list[FrozenTrial]] = defaultdict(list)
    for number, trial in sorted(by_number.items()):
        chains[trial.user_attrs.get("requeued_from", number)].append(trial)
    for first, chain in chains.items():
        *before, last = chain
        verdict.requeued += len(before)
        _require(
            verdict,
            all(_state(t) in REQUEUED for t in before),
            f"chain {first} ended more than once: {[(t.number, _state(t)) for t in chain]}",
        )
        # A trial that was interrupted before it had parameters is not repeated.
        if _state(last) in REQUEUED and (last.params or len(chain) > 1):
            verdict.lost += 1
            verdict.violations.append(
                f"chain {first} was lost: {[(t.number, _state(t)) for t in chain]}"
            )
        attempts = last.user_attrs.get("attempts", [])
        numbers = [t.number for t in before][-8:]
        _require(verdict, attempts == numbers, f"chain {first}: attempts {attempts}, not {numbers}")


def _check_trainings(
    verdict: Verdict,
    by_number: Mapping[int, FrozenTrial],
    log: Sequence[stub_training.Line],
    epochs: int,
) -> None:
    """Check that no saved epoch of a configuration was trained twice."""
    by_digest: dict[str, list[stub_training.Line]] = defaultdict(list)
    for line in log:
        by_digest[line.digest].append(line)
    for digest, lines in by_digest.items():
        _check_lines(verdict, digest, lines)
    for number, trial in by_number.items():
        if trial.state.name == "COMPLETE":
            digest = trial.user_attrs["digest"]
            truth = {e: stub_training.value(digest, e) for e in range(1, epochs + 1)}
            values = trial.intermediate_values
            _require(verdict, values == truth, f"trial {number} holds {values}, not {truth}")
            best = max(truth.values())
            _require(verdict, trial.value == best, f"trial {number}: {trial.value}, not {best}")
            trained = {x.epoch for x in by_digest[digest] if x.kind == stub_training.EPOCH}
            _require(verdict, trained == set(truth), f"trial {number}: trained {trained}")


def _check_lines(verdict: Verdict, digest: str, lines: Sequence[stub_training.Line]) -> None:
    saved = at = 0
    pid: int | None = None
    for line in lines:
        if line.kind == stub_training.STARTED:
            message = (
                f"{digest}: trial {line.trial} starts after {line.epoch} epochs, saved: {saved}"
            )
            _require(verdict, line.epoch >= saved, message)
            verdict.resumed += line.epoch > 0
            pid, at, saved = line.pid, line.epoch, max(saved, line.epoch)
        elif line.pid != pid:
            verdict.violations.append(f"{digest}: process {line.pid} trains beside {pid}: {line}")
        elif line.kind == stub_training.EPOCH:
            _require(verdict, line.epoch == at + 1, f"{digest}: {line} comes after epoch {at}")
            at = line.epoch
        elif line.kind == stub_training.SAVED:
            saved = line.epoch


def _check_files(verdict: Verdict, by_number: Mapping[int, FrozenTrial], folder: Path) -> None:
    files = [p for p in (folder / "trials").rglob("*") if p.is_file()]
    partial = [p for p in files if p.name.endswith(".partial") or p.name.startswith(".part-")]
    states = [p for p in files if p.name == "state.pt"]
    _require(verdict, not partial, f"half-written files are left: {partial}")
    _require(verdict, not states, f"states of ended trials are left: {states}")
    complete = [t for t in by_number.values() if t.state.name == "COMPLETE"]
    best = sorted(complete, key=lambda t: (-(t.value or 0), t.number))[:3]
    weights = {int(p.parent.name) for p in files if p.name == "model.safetensors"}
    lacking = {t.number for t in best} - weights
    _require(verdict, not lacking, f"the best trials {lacking} have no weights")
    verdict.spare_weights = len(weights) - len(best)
