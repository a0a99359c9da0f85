"""API route of the dashboard's first view of a study, fast for thousands of trials.

Fast because each finished trial is serialized once, notes are grouped once per read, and search
spaces are updated incrementally; optuna-dashboard repeats all of it per trial and per request.
The response is the same. ``bench/dashboard.py`` measures it at 5,000 trials.
"""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import bottle
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from search.monitoring.dashboard.dashboard_internals import (
    DETAIL_ROUTE,
    StudySummary,
    serialize_study,
    serialize_trial,
)
from search.storage import artifact_ids, trial_records
from search.storage.note_attrs import group_notes, version_key
from search.storage.optuna_internals import FrozenStudy, study_id, trial_id
from search.storage.retention import trials_with_pictures

#: User attributes that the list of trials omits; the notes contain them.
OMITTED_ATTRS = frozenset(
    {"config", "owner", "trace", "digest", "attempts", "val", "started_at", "ended_at", "message"}
)
#: Seconds for which a read of the storage is used: the notes make it large.
CACHE_S = 5.0


@dataclass
class _StudyCache:
    """One study as it was last read, and the JSON of its finished trials."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    read_at: float = float("-inf")
    study: FrozenStudy | None = None
    trials: list[FrozenTrial] = field(default_factory=list)
    notes: dict[int, dict[str, Any]] = field(default_factory=dict)
    with_picture: set[int] = field(default_factory=set)
    summary: StudySummary = field(default_factory=StudySummary)
    summarized: set[int] = field(default_factory=set)
    #: By trial number: note version and picture at the time, and the JSON.
    trial_json: dict[int, tuple[Any, str]] = field(default_factory=dict)

    def read(self, storage: BaseStorage, study_id_: int) -> None:
        """Read the study unless that was done recently."""
        if time.monotonic() - self.read_at < CACHE_S:
            return
        by_id = {study_id(study): study for study in storage.get_all_studies()}
        study = by_id.get(study_id_)
        self.study = study if study and trial_records.StudyAttr.SPEC in study.user_attrs else None
        if self.study is None:
            return
        self.trials = storage.get_all_trials(study_id_, deepcopy=False)
        self.notes = group_notes(self.study.system_attrs)
        self.with_picture = trials_with_pictures(self.trials)
        new = [t for t in self.trials if t.number not in self.summarized]
        self.summary.add_trials(new)
        self.summarized |= {t.number for t in new if t.state.is_finished()}
        self.read_at = time.monotonic()


class StudyDetailPlugin:
    """Bottle plugin that serves DETAIL_ROUTE for studies of this project.

    It also turns a missing study or artifact into status 404 on all routes.
    """

    name, api = "lesionsearch", 2

    def __init__(self, storage: BaseStorage) -> None:
        self.storage = storage
        self._caches: dict[int, _StudyCache] = {}

    def apply(self, callback: Callable[..., Any], route: bottle.Route) -> Callable[..., Any]:
        """Return the function that serves a route."""

        def serve(**kwargs: Any) -> Any:
            try:
                return callback(**kwargs)
            except (ArtifactNotFound, KeyError):
                return bottle.HTTPResponse("not found", 404)

        if (route.rule, route.method) != (DETAIL_ROUTE, "GET"):
            return serve
        return lambda study_id: self._respond(study_id) or serve(study_id=study_id)

    def study_json(self, study_id: int, after: int = 0) -> str | None:
        """Return a study as JSON, with its trials from a number on; None for other studies."""
        cache = self._caches.setdefault(study_id, _StudyCache())
        with cache.lock:
            cache.read(self.storage, study_id)
            return None if cache.study is None else _study_json(cache, cache.study, after)

    def _respond(self, study_id: int) -> bottle.HTTPResponse | None:
        after = bottle.request.query.get("after", "0")
        text = self.study_json(study_id, int(after)) if after.isdecimal() else None
        if text is None:
            return None
        body, headers = text.encode(), {"Content-Type": "application/json"}
        if "gzip" in bottle.request.headers.get("Accept-Encoding", ""):
            body, headers["Content-Encoding"] = gzip.compress(body, 3), "gzip"
        return bottle.HTTPResponse(body, 200, headers)


def _study_json(cache: _StudyCache, study: FrozenStudy, after: int) -> str:
    fields = {
        **serialize_study(study),
        **cache.summary.to_dict(),
        "objective_names": ["validation Dice"],
    }
    fields["union_user_attrs"] = _without_omitted(fields["union_user_attrs"])

    def array(trials: Iterable[FrozenTrial]) -> str:
        return f"[{','.join(_trial_json(cache, study, t) for t in trials)}]"

    best = trial_records.rank_trials(cache.trials)[:1]
    return (
        f'{json.dumps(fields)[:-1]}, "trials": {array(cache.trials[after:])}'
        f', "best_trials": {array(best)}}}'
    )


def _trial_json(cache: _StudyCache, study: FrozenStudy, trial: FrozenTrial) -> str:
    note = cache.notes.get(trial_id(trial), {})
    has_picture = trial.number in cache.with_picture
    key = (note.get(version_key(trial_id(trial))), has_picture)
    cached_key, text = cache.trial_json.get(trial.number, (None, ""))
    if cached_key == key:
        return text
    fields = serialize_trial(study, trial, note)
    fields["artifacts"] = artifact_ids.list_artifacts(trial.system_attrs, with_picture=has_picture)
    fields["user_attrs"] = _without_omitted(fields["user_attrs"])
    text = json.dumps(fields)
    if trial.state.is_finished():
        cache.trial_json[trial.number] = (key, text)
    return text


def _without_omitted(attrs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [attr for attr in attrs if attr["key"] not in OMITTED_ATTRS]
