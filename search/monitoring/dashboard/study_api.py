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
from typing import Any

import bottle
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from search.monitoring.dashboard.dashboard_internals import (
    StudySummary,
    read_figures,
    serialize_frozen_trial,
    serialize_study_detail,
)
from search.storage import artifact_ids, trial_records
from search.storage.note_attrs import group_notes, version_key
from search.storage.optuna_internals import FrozenStudy, study_id, trial_id
from search.storage.retention import trials_with_pictures
from search.storage.trial_records import TrialAttr

#: Route of optuna-dashboard's API that returns a study with its trials.
DETAIL_ROUTE = "/api/studies/<study_id:int>"
#: User attributes that the list of trials omits; the notes contain them.
OMITTED_ATTRS = frozenset(
    {"config", "owner", "trace", "digest", "attempts", "val", "started_at", "ended_at", "message"}
    | {TrialAttr.TRAINING_START, TrialAttr.TRAINING_END}
)
#: Seconds for which a read of the storage is used: the notes make it large.
CACHE_S = 5.0


class StudyCache:
    """One study as it was last read, and the JSON of its finished trials."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.read_at = float("-inf")
        self.study: FrozenStudy | None = None
        self.trials: list[FrozenTrial] = []
        self.notes: dict[int, dict[str, Any]] = {}
        self.with_picture: set[int] = set()
        self.summary = StudySummary()
        self.summarized: set[int] = set()
        #: By trial number: note version and picture at the time, and the JSON.
        self._trial_json: dict[int, tuple[Any, str]] = {}

    def read(self, storage: BaseStorage, id_: int) -> None:
        """Read the study unless that was done recently."""
        if time.monotonic() - self.read_at < CACHE_S:
            return
        by_id = {study_id(study): study for study in storage.get_all_studies()}
        study = by_id.get(id_)
        self.study = study if study and trial_records.StudyAttr.SPEC in study.user_attrs else None
        if self.study is None:
            return
        self.trials = storage.get_all_trials(id_, deepcopy=False)
        self.notes = group_notes(self.study.system_attrs)
        self.with_picture = trials_with_pictures(self.trials)
        new = [t for t in self.trials if t.number not in self.summarized]
        self.summary.update(new)
        self.summarized |= {t.number for t in new if t.state.is_finished()}
        self.read_at = time.monotonic()

    def to_json(self, after: int) -> str | None:
        """Return the study with its trials from a number on; None if it is not this project's."""
        study = self.study
        if study is None:
            return None
        summary, figures = self.summary, read_figures(study.system_attrs)
        fields: dict[str, Any] = serialize_study_detail(
            study, [], [], summary.intersection_search_space, summary.union_search_space,
            summary.union_user_attrs, summary.has_intermediate_values,
            dict(sorted(figures.items())), skipped_trial_numbers=[],
        )  # fmt: skip
        fields["objective_names"] = ["validation Dice"]
        fields["union_user_attrs"] = _without_omitted(fields["union_user_attrs"])
        best = trial_records.rank_trials(self.trials)[:1]
        parts = {key: json.dumps(value) for key, value in fields.items()}
        for key, trials in (("trials", self.trials[after:]), ("best_trials", best)):
            parts[key] = f"[{','.join(self._serialize_trial(study, t) for t in trials)}]"
        return f"{{{', '.join(f'{json.dumps(key)}: {text}' for key, text in parts.items())}}}"

    def _serialize_trial(self, study: FrozenStudy, trial: FrozenTrial) -> str:
        note = self.notes.get(trial_id(trial), {})
        has_picture = trial.number in self.with_picture
        key = (note.get(version_key(trial_id(trial))), has_picture)
        cached_key, text = self._trial_json.get(trial.number, (None, ""))
        if cached_key == key:
            return text
        fields = serialize_frozen_trial(study_id(study), trial, note)
        fields["artifacts"] = artifact_ids.list_artifacts(
            trial.system_attrs, with_picture=has_picture
        )
        fields["user_attrs"] = _without_omitted(fields["user_attrs"])
        text = json.dumps(fields)
        if trial.state.is_finished():
            self._trial_json[trial.number] = (key, text)
        return text


class StudyDetailPlugin:
    """Bottle plugin that serves DETAIL_ROUTE for studies of this project.

    It also turns a missing study or artifact into status 404 on all routes.
    """

    name, api = "lesionsearch", 2

    def __init__(self, storage: BaseStorage) -> None:
        self.storage = storage
        self._caches: dict[int, StudyCache] = {}

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
        cache = self._caches.setdefault(study_id, StudyCache())
        with cache.lock:
            cache.read(self.storage, study_id)
            return cache.to_json(after)

    def _respond(self, study_id: int) -> bottle.HTTPResponse | None:
        after = bottle.request.query.get("after", "0")
        text = self.study_json(study_id, int(after)) if after.isdecimal() else None
        if text is None:
            return None
        body, headers = text.encode(), {"Content-Type": "application/json"}
        if "gzip" in bottle.request.headers.get("Accept-Encoding", ""):
            body, headers["Content-Encoding"] = gzip.compress(body, 3), "gzip"
        return bottle.HTTPResponse(body, 200, headers)


def _without_omitted(attrs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [attr for attr in attrs if attr["key"] not in OMITTED_ATTRS]
