"""What a study must look like after chaos: its books read by plain SQL, beside the stub_training's log."""

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

from search.study.opening import load_study
from search.study.location import StudyLocation
from tests.search import stub_training

#: Reasons of trials that cost nothing: they go on under another number, or trained nothing.
CUT_OFF = frozenset({"lost", "interrupted"})
SKIPPED = CUT_OFF | {"duplicate", "constraint", "config"}

_STATES = """
SELECT t.state, a.value_json FROM trials t
LEFT JOIN trial_user_attributes a ON a.trial_id = t.trial_id AND a.key = 'reason'
"""


@dataclass(frozen=True)
class LeaseTransaction:
    """What counts against the budget: ended, and at work; the most of both that was ever seen."""

    ended: int = 0
    running: int = 0
    peak: int = 0
    looks: int = 0


def books(join: StudyLocation) -> Iterator[LeaseTransaction]:
    """The study's books as they are, each time anew; a database that is away is asked again."""
    seen, connection = LeaseTransaction(), None
    while True:
        try:
            connection = connection or _connected(join)
            rows = connection.execute(_STATES).fetchall()
        except (sqlite3.OperationalError, psycopg.OperationalError):
            connection = None
        else:
            ended = sum(_counts(state, reason and json.loads(reason)) for state, reason in rows)
            running = sum(state == "RUNNING" for state, _ in rows)
            seen = LeaseTransaction(ended, running, max(seen.peak, ended + running), seen.looks + 1)
        yield seen


def _counts(state: str, reason: str | None) -> bool:
    return state in {"COMPLETE", "PRUNED", "FAIL"} and reason not in SKIPPED


def _connected(join: StudyLocation) -> Any:
    if join.storage is None:
        return sqlite3.connect(f"file:{join.folder / 'study.db'}?mode=ro", uri=True, timeout=60)
    plain = join.storage.replace("postgresql+psycopg", "postgresql")
    return psycopg.connect(plain, autocommit=True, connect_timeout=5)


def rows_of(join: StudyLocation, query: str) -> list[tuple[Any, ...]]:
    """The rows that one statement gives."""
    connection = _connected(join)
    try:
        return list(connection.execute(query).fetchall())
    finally:
        connection.close()


@dataclass
class Verdict:
    """What came of a study. wrong: every rule that was broken, in words; empty where all is well.

    retried: trials that went on under another number; resumed: of these, from a checkpoint.
    crashed: trials that failed, those aside whose worker died too often. lost: trials that began
    and never ended. spare_weights: files of weights besides the best trials'.
    """

    states: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    crashed: int = 0
    resumed: int = 0
    lost: int = 0
    duplicates: int = 0
    running: int = 0
    waiting: int = 0
    spare_weights: int = 0
    wrong: list[str] = field(default_factory=list)


def judge(join: StudyLocation, trials: int, epochs: int) -> Verdict:
    """Looks at a study that everybody has left."""
    study = load_study(join.folder, storage=join.storage)
    known = {t.number: t for t in study.get_trials()}
    verdict = Verdict()
    verdict.states = Counter(_word(t) for t in known.values())
    verdict.running, verdict.waiting = verdict.states["running"], verdict.states["waiting"]
    failed = [t for t in known.values() if t.state.name == "FAIL" and _ended(t)]
    verdict.crashed = sum("its worker died" not in t.user_attrs["message"] for t in failed)
    _judge_numbers(verdict, known, trials)
    _judge_chains(verdict, known)
    _judge_trainings(verdict, known, stub_training.read_log(join.folder), epochs)
    _judge_files(verdict, known, join.folder)
    live = rows_of(
        join, "SELECT id, state FROM lesionsearch_workers WHERE state NOT IN ('ended', 'lost')"
    )
    _unless(verdict, not live, f"workers are left in the books: {live}")
    return verdict


def _word(trial: FrozenTrial) -> str:
    reason = trial.user_attrs.get("reason")
    return str(reason) if reason in SKIPPED else trial.state.name.lower()


def _ended(trial: FrozenTrial) -> bool:
    return _counts(trial.state.name, trial.user_attrs.get("reason"))


def _unless(verdict: Verdict, right: bool, told: str) -> None:
    if not right:
        verdict.wrong.append(told)


def _judge_numbers(verdict: Verdict, known: Mapping[int, FrozenTrial], trials: int) -> None:
    ended = [t for t in known.values() if _ended(t)]
    _unless(verdict, len(ended) == trials, f"{len(ended)} trials ended instead of {trials}")
    _unless(verdict, verdict.running == 0, f"{verdict.running} trials are left running")
    _unless(verdict, verdict.waiting == 0, f"{verdict.waiting} trials are left waiting")
    trained = Counter(t.user_attrs["digest"] for t in ended if "digest" in t.user_attrs)
    twice = [digest for digest, n in trained.items() if n > 1]
    verdict.duplicates = len(twice)
    _unless(verdict, not twice, f"configurations ended twice: {twice}")


def _judge_chains(verdict: Verdict, known: Mapping[int, FrozenTrial]) -> None:
    """A trial and all that went on for it are one: they end once."""
    chains: dict[int, list[FrozenTrial]] = defaultdict(list)
    for number, trial in sorted(known.items()):
        chains[trial.user_attrs.get("retry_of", number)].append(trial)
    for first, chain in chains.items():
        *before, last = chain
        verdict.retried += len(before)
        _unless(
            verdict,
            all(_word(t) in CUT_OFF for t in before),
            f"chain {first} ended more than once: {[(t.number, _word(t)) for t in chain]}",
        )
        # One that was cut off before it drew anything has nothing to be repeated.
        if _word(last) in CUT_OFF and (last.params or len(chain) > 1):
            verdict.lost += 1
            verdict.wrong.append(f"chain {first} was lost: {[(t.number, _word(t)) for t in chain]}")
        attempts = last.user_attrs.get("attempts", [])
        numbers = [t.number for t in before][-8:]
        _unless(verdict, attempts == numbers, f"chain {first}: attempts {attempts}, not {numbers}")


def _judge_trainings(
    verdict: Verdict,
    known: Mapping[int, FrozenTrial],
    log: Sequence[stub_training.Line],
    epochs: int,
) -> None:
    """The log's lines of a configuration, in the order of time: no epoch twice that was saved."""
    by_digest: dict[str, list[stub_training.Line]] = defaultdict(list)
    for line in log:
        by_digest[line.digest].append(line)
    for digest, lines in by_digest.items():
        _judge_lines(verdict, digest, lines)
    for number, trial in known.items():
        if trial.state.name == "COMPLETE":
            digest = trial.user_attrs["digest"]
            truth = {e: stub_training.value(digest, e) for e in range(1, epochs + 1)}
            values = trial.intermediate_values
            _unless(verdict, values == truth, f"trial {number} holds {values}, not {truth}")
            best = max(truth.values())
            _unless(verdict, trial.value == best, f"trial {number}: {trial.value}, not {best}")
            trained = {x.epoch for x in by_digest[digest] if x.what == stub_training.EPOCH}
            _unless(verdict, trained == set(truth), f"trial {number}: trained {trained}")


def _judge_lines(verdict: Verdict, digest: str, lines: Sequence[stub_training.Line]) -> None:
    saved = at = 0
    pid: int | None = None
    for line in lines:
        if line.what == stub_training.UNFINISHED_FILES:
            told = f"{digest}: trial {line.trial} begins after {line.epoch} epochs, saved: {saved}"
            _unless(verdict, line.epoch >= saved, told)
            verdict.resumed += line.epoch > 0
            pid, at, saved = line.pid, line.epoch, max(saved, line.epoch)
        elif line.pid != pid:
            verdict.wrong.append(f"{digest}: process {line.pid} trains beside {pid}: {line}")
        elif line.what == stub_training.EPOCH:
            _unless(verdict, line.epoch == at + 1, f"{digest}: {line} comes after epoch {at}")
            at = line.epoch
        elif line.what == stub_training.SAVED:
            saved = line.epoch


def _judge_files(verdict: Verdict, known: Mapping[int, FrozenTrial], folder: Path) -> None:
    files = [p for p in (folder / "trials").rglob("*") if p.is_file()]
    partial = [p for p in files if p.name.endswith(".partial") or p.name.startswith(".part-")]
    states = [p for p in files if p.name == "state.pt"]
    _unless(verdict, not partial, f"half-written files are left: {partial}")
    _unless(verdict, not states, f"states of ended trials are left: {states}")
    complete = [t for t in known.values() if t.state.name == "COMPLETE"]
    best = sorted(complete, key=lambda t: (-(t.value or 0), t.number))[:3]
    weights = {int(p.parent.name) for p in files if p.name == "model.safetensors"}
    lacking = {t.number for t in best} - weights
    _unless(verdict, not lacking, f"the best trials {lacking} have no weights")
    verdict.spare_weights = len(weights) - len(best)
