"""What every launcher gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from search.study.location import StudyLocation
from search.trial_process.slot import StopEvent
from search.workers.launchers.restart_policy import RestartPolicy


@dataclass(frozen=True)
class LaunchContext:
    """A study to run workers for, and callbacks.

    Attributes:
        is_done: whether the study needs no worker.
        count_finished: number of the study's finished trials.
        on_poll: called several times per minute.
        on_event: called with one line about a worker.
        restart_policy: settings that are copied for each worker.
    """

    location: StudyLocation
    stop_event: StopEvent
    is_done: Callable[[], bool] = lambda: False
    count_finished: Callable[[], int] = lambda: 0
    on_poll: Callable[[], None] = lambda: None
    on_event: Callable[[str], None] = lambda message: None
    restart_policy: RestartPolicy = field(default_factory=RestartPolicy)

    def must_stop(self) -> bool:
        """Return whether all workers must end."""
        self.on_poll()
        return self.stop_event.is_set() or self.is_done()

    def new_restart_policy(self) -> RestartPolicy:
        """Return the restart policy of another worker."""
        return replace(self.restart_policy)
