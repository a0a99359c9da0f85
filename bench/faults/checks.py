"""Check the invariants of a study after faults.

Database, files and the log of the trainings are compared. The trainings
(``tests.search.stub_training``) write the log to a file that is not affected by faults.
"""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from bench.faults import audit
from search.spec.yaml_loader import load_file
from search.storage.optuna_internals import trial_id
from search.study.opening import load_study
from tests.search import stub_training
from tests.search.stub_training import Line

#: Reasons of trials that cost no budget: requeued, or never trained.
REQUEUED = frozenset({"lost", "interrupted"})
WITHOUT_COST = REQUEUED | {"duplicate", "constraint", "config"}


@dataclass
class Evidence:
    """A study without running workers, and the data that it is compared with.

    database: an SQLite file, or a PostgreSQL URL. killed: process ids of trainings that were
    killed, or whose fork server was. losses: how many faults can have cost a trial an attempt. log:
    the trainings' log.
    """

    folder: Path
    storage: str | None
    budget: int
    epochs: int
    log: Sequence[Line] = ()
    failing_share: float = 0.0
    killed: Collection[int] = ()
    losses: int = 0

    @property
    def database(self) -> Path | str:
        """The database with the study's tables."""
        return self.storage or self.folder / "study.db"


@dataclass
class Verdict:
    """Counts of trials by state or reason, and a line for each violated rule.

    requeued: trials that were requeued; resumed: those that continued from a checkpoint.
    """

    states: Counter[str] = field(default_factory=Counter)
    requeued: int = 0
    resumed: int = 0
    violations: list[str] = field(default_factory=list)


def check(evidence: Evidence) -> Verdict:
    """Check a study after its faults."""
    study = load_study(evidence.folder, storage=evidence.storage)
    trials = {t.number: t for t in study.get_trials()}
    by_digest: dict[str, list[Line]] = defaultdict(list)
    for line in evidence.log:
        by_digest[line.digest].append(line)
    verdict = Verdict(Counter(_state(t) for t in trials.values()))
    verdict.requeued = sum(_state(t) in REQUEUED for t in trials.values())
    verdict.resumed = sum(x.kind == stub_training.STARTED and x.epoch > 0 for x in evidence.log)
    costs = {trial_id(t): _has_cost(t) for t in trials.values()}
    live = audit.fetch_rows(
        evidence.database,
        "SELECT id, state FROM lesionsearch_workers WHERE state NOT IN ('ended', 'lost')",
    )
    verdict.violations = [
        *_check_numbers(trials, evidence.budget),
        *_check_chains(trials),
        *_check_failures(trials, evidence),
        *_check_trainings(trials, by_digest, evidence),
        *_check_values(trials, by_digest, evidence),
        *_check_files(trials, evidence),
        *audit.find_violations(evidence.database, evidence.budget, costs),
        *([f"workers are still registered: {live}"] if live else []),
    ]
    return verdict


def _state(trial: FrozenTrial) -> str:
    reason = trial.user_attrs.get("reason")
    return str(reason) if reason in WITHOUT_COST else trial.state.name.lower()


def _has_cost(trial: FrozenTrial) -> bool:
    return trial.state.is_finished() and trial.user_attrs.get("reason") not in WITHOUT_COST


def _check_numbers(trials: Mapping[int, FrozenTrial], budget: int) -> Iterator[str]:
    """Check that the budget is spent exactly, and no configuration was trained twice."""
    ended = [t for t in trials.values() if _has_cost(t)]
    if len(ended) != budget:
        yield f"{len(ended)} trials ended; the budget is {budget}"
    for state in ("RUNNING", "WAITING"):
        if left := [n for n, t in trials.items() if t.state.name == state]:
            yield f"trials {left} are left {state}"
    digests = Counter(t.user_attrs.get("digest", f"none of {t.number}") for t in ended)
    if twice := [digest for digest, n in digests.items() if n > 1]:
        yield f"configurations ended twice: {twice}"


def _check_chains(trials: Mapping[int, FrozenTrial]) -> Iterator[str]:
    """Check that a trial and its requeued successors end once."""
    chains: dict[int, list[FrozenTrial]] = defaultdict(list)
    for number, trial in sorted(trials.items()):
        chains[trial.user_attrs.get("requeued_from", number)].append(trial)
    for first, chain in chains.items():
        *before, last = chain
        states = [(t.number, _state(t)) for t in chain]
        if any(_state(t) not in REQUEUED for t in before):
            yield f"chain {first} ended more than once: {states}"
        # A trial that was interrupted before it had parameters is not repeated.
        if _state(last) in REQUEUED and (last.params or before):
            yield f"chain {first} was lost: {states}"
        attempts, numbers = last.user_attrs.get("attempts", []), [t.number for t in before][-8:]
        if attempts != numbers:
            yield f"chain {first}: attempts {attempts}, not {numbers}"


def _check_failures(trials: Mapping[int, FrozenTrial], evidence: Evidence) -> Iterator[str]:
    """Check that each failed trial has a failing configuration, or was killed or lost too often."""
    pids = defaultdict(set)
    for line in evidence.log:
        pids[line.trial].add(line.pid)
    unknown = len(set(evidence.killed) - {line.pid for line in evidence.log})
    for number, trial in trials.items():
        message = str(trial.user_attrs.get("message", ""))
        digest = trial.user_attrs.get("digest", "")
        own = stub_training.own_failure(digest, evidence.failing_share) if digest else None
        if trial.state.name == "COMPLETE" and own:
            yield f"trial {number} is complete, but its configuration fails: {own}"
        if trial.state.name != "FAIL" or not _has_cost(trial):
            continue
        if own and own in message:
            continue
        if pids[number] & set(evidence.killed):
            continue
        if not pids[number] and unknown:  # killed before its first line
            unknown -= 1
            continue
        if "its worker died" in message and evidence.losses > 3:
            continue
        yield f"trial {number} failed for a cause that is not its own: {message!r}"


def _check_trainings(
    trials: Mapping[int, FrozenTrial], by_digest: Mapping[str, Sequence[Line]], evidence: Evidence
) -> Iterator[str]:
    """Check that each attempt continues from the last checkpoint, and no two run at the same time.

    An attempt that was suspended with its whole host may end the epoch that it was in.
    """
    for digest, lines in by_digest.items():
        pid, trial, at, saved = 0, -1, 0, 0
        for line in lines:
            where = f"{digest}: trial {line.trial}, process {line.pid}"
            if line.kind == stub_training.DATA:
                yield f"{where} read other images than those of the study"
            elif line.kind == stub_training.STARTED:
                if line.trial < trial:
                    yield f"{where} starts after trial {trial} did"
                if line.epoch < saved:
                    yield f"{where} starts after {line.epoch} epochs; saved: {saved}"
                pid, trial, at, saved = line.pid, line.trial, line.epoch, max(saved, line.epoch)
            elif line.kind == stub_training.BEGUN or line.trial < trial:
                pass  # the second is not written to the database, which the audit checks
            elif line.pid != pid:
                yield f"{where} trains beside process {pid}"
            elif line.kind == stub_training.EPOCH:
                if line.epoch != at + 1:
                    yield f"{where}: epoch {line.epoch} follows epoch {at}"
                at = line.epoch
            elif line.kind == stub_training.SAVED:
                saved = line.epoch


def _check_values(
    trials: Mapping[int, FrozenTrial], by_digest: Mapping[str, Sequence[Line]], evidence: Evidence
) -> Iterator[str]:
    """Check that the values equal those of a training without faults, and that it took place."""
    for number, trial in trials.items():
        digest, epochs = trial.user_attrs.get("digest", ""), trial.intermediate_values
        truth = {e: stub_training.value(digest, e) for e in range(1, evidence.epochs + 1)}
        trained = {line.epoch for line in by_digest[digest] if line.kind == stub_training.EPOCH}
        if wrong := {e: v for e, v in epochs.items() if v != truth.get(e)}:
            yield f"trial {number} holds {wrong}, not {truth}"
        if trial.state.name in {"COMPLETE", "PRUNED"} and sorted(epochs) != list(
            range(1, len(epochs) + 1)
        ):
            yield f"trial {number} lacks epochs: {sorted(epochs)}"
        if trial.state.name == "COMPLETE":
            if len(epochs) != evidence.epochs:
                yield f"trial {number} is complete after epochs {sorted(epochs)}"
            if trial.value != max(truth.values()):
                yield f"trial {number} has the value {trial.value}, not {max(truth.values())}"
            if trained != set(truth):
                yield f"trial {number} is complete; trained epochs: {trained}"


def _check_files(trials: Mapping[int, FrozenTrial], evidence: Evidence) -> Iterator[str]:
    """Check that files can be read, agree with the trials, and no temporary one is left."""
    folder = evidence.folder
    files = [p for p in folder.rglob("*") if p.is_file()]
    if left := [
        p.name for p in files if p.name.endswith((".partial", ".tmp")) or ".part-" in p.name
    ]:
        yield f"temporary files are left: {left}"
    if states := [p.parent.name for p in files if p.name == "state.pt"]:
        yield f"trials {states} have ended and left a checkpoint"
    readers: dict[str, Any] = {".json": lambda p: json.loads(p.read_text()), ".yaml": load_file}
    for path in files:
        if path.suffix in readers:
            try:
                readers[path.suffix](path)
            except Exception as error:
                yield f"{path.relative_to(folder)} cannot be read: {error}"
        elif path.name == "history.csv":
            yield from _check_history(path, trials)
    complete = [t for t in trials.values() if t.state.name == "COMPLETE"]
    for trial in sorted(complete, key=lambda t: (-(t.value or 0), t.number))[:3]:
        path = folder / "trials" / str(trial.number) / "model.safetensors"
        expected = f"weights of {trial.user_attrs['digest']}"
        if not path.is_file() or path.read_text() != expected:
            yield f"trial {trial.number} is among the best and has no weights"


def _check_history(path: Path, trials: Mapping[int, FrozenTrial]) -> Iterator[str]:
    number = int(path.parent.name)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        values = {int(row["epoch"]): float(row["dice"]) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        yield f"the history of trial {number} cannot be read: {error!r}"
        return
    trial = trials.get(number)
    digest = trial.user_attrs.get("digest", "") if trial else ""
    if values != {e: stub_training.value(digest, e) for e in values} or len(values) != len(rows):
        yield f"the history of trial {number} holds other values: {rows}"
    if trial and trial.state.name == "COMPLETE" and values != trial.intermediate_values:
        yield f"the history of trial {number} differs from the database: {sorted(values)}"
