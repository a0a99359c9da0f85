"""``lesionsearch pause``, ``resume`` and ``stop``: commands to all workers of a study."""

from __future__ import annotations

from search.commands.common import Storage, StudyName, load_study


def pause(name: StudyName, storage: Storage = None) -> None:
    """Pause a study: its workers save and requeue their trials, then wait."""
    _send(name, storage, "pause")


def resume(name: StudyName, storage: Storage = None) -> None:
    """Resume a paused study."""
    _send(name, storage, "run")


def stop(name: StudyName, storage: Storage = None) -> None:
    """Stop a study: its workers save and requeue their trials, then exit; `run` resumes it."""
    _send(name, storage, "stop")


def _send(name: str, storage: str | None, command: str) -> None:
    from search.storage.lease_types import Command
    from search.storage.leases import TrialLeases

    leases = TrialLeases(load_study(name, storage))
    leases.command = Command(command)
    n_workers = len(leases.list_workers())
    print(f"{name}: sent '{command}' to {n_workers} worker{'s' if n_workers != 1 else ''}")
