"""What a worker needs to run trials of one study."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import optuna

from lesionseg.models import MODELS, required_imports
from search.spec.study_spec import StudySpec
from search.storage.artifact_store import ArtifactStore
from search.storage.leases import TrialLeases
from search.study.opening import OpenStudy
from search.study.trial_data import TrialData
from search.trial_process.protocol import CHILD_PROGRAM
from search.trial_process.slot import Slot, StopEvent
from search.workers.heartbeat import Heartbeat
from search.workers.listener import NullListener, TrialListener


@dataclass
class TrialContext:
    """Study, data, resources and stop conditions of a worker.

    stop_event: set when the running trial must be requeued. is_out_of_time: whether the study's
    time budget is spent. program: module that trains. imports: what the fork server imports for
    the study's models.
    """

    study: optuna.Study
    spec: StudySpec
    data: TrialData
    store: ArtifactStore
    slot: Slot
    leases: TrialLeases
    listener: TrialListener = field(default_factory=NullListener)
    stop_event: StopEvent = field(default_factory=threading.Event)
    is_out_of_time: Callable[[], bool] = lambda: False
    program: str = CHILD_PROGRAM
    heartbeat: Heartbeat = field(init=False)
    imports: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.heartbeat = Heartbeat(self.leases, self.slot)
        baselines = MODELS if self.spec.warm_start else ()
        self.imports = required_imports([*self.spec.space.families["model"], *baselines])

    @classmethod
    def for_study(
        cls, opened: OpenStudy, slot: Slot, leases: TrialLeases | None = None, **options: Any
    ) -> TrialContext:
        """Return a context for an open study. options: the remaining fields."""
        study, store = opened.study, opened.artifact_store
        leases = leases or TrialLeases(study)
        return cls(study, opened.spec, opened.trial_data, store, slot, leases, **options)
