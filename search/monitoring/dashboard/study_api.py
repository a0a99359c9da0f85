"""The dashboard's first view of a study, quick for thousands of trials.

Optuna-dashboard's own answer looks through all of the study's attributes for every trial, twice,
and through all trials' parameters for every question: with 5,000 trials that takes minutes. This
one says the same and does each part once; what it made of a trial that ended is kept as text.

The names with an underscore that are used here are optuna-dashboard 0.21's; tests hold them.
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
from optuna_dashboard import _custom_plot_data, _note, _serializer
from optuna_dashboard._inmemory_cache import _CachedExtraStudyProperty

from search.storage import artifact_ids, trial_records
from search.storage.optuna_internals import FrozenStudy, trial_id
from search.storage.optuna_internals import study_id as id_of_study
from search.storage.retention import pictured

#: The route that is answered here.
ROUTE = "/api/studies/<study_id:int>"
#: User attributes that are left out of the list: a trial's note tells what is in them.
LEFT_OUT = frozenset(
    {"config", "owner", "trace", "digest", "attempts", "val", "started_at", "ended_at", "message"}
)
#: Seconds for which what was read is good: the attributes of a study are many, with the notes.
FRESH = 5.0


@dataclass
class _Known:
    """What was made of a study so far."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    read: float = float("-inf")
    study: FrozenStudy | None = None
    trials: list[FrozenTrial] = field(default_factory=list)
    notes: dict[int, dict[str, Any]] = field(default_factory=dict)
    shown: set[int] = field(default_factory=set)
    texts: dict[int, tuple[Any, str]] = field(default_factory=dict)
    extra: _CachedExtraStudyProperty = field(default_factory=_CachedExtraStudyProperty)
    counted: set[int] = field(default_factory=set)


class Listing:
    """A plugin of Bottle's: answers ROUTE for studies of ours; 404 for what is not there."""

    name, api = "lesionsearch", 2

    def __init__(self, storage: BaseStorage) -> None:
        self.storage = storage
        self._known: dict[int, _Known] = {}

    def apply(self, callback: Callable[..., Any], route: bottle.Route) -> Callable[..., Any]:
        """What the route's requests are answered by from now on."""

        def answer(**kwargs: Any) -> Any:
            try:
                return callback(**kwargs)
            except (ArtifactNotFound, KeyError):
                return bottle.HTTPResponse("not found", 404)

        if (route.rule, route.method) != (ROUTE, "GET"):
            return answer
        return lambda study_id: self._answer(study_id) or answer(study_id=study_id)

    def detail(self, study_id: int, after: int = 0) -> str | None:
        """The study as JSON with its trials from the given number on; None for none of ours."""
        known = self._known.setdefault(study_id, _Known())
        with known.lock:
            self._read(study_id, known)
            return None if known.study is None else _told(known, study_id, after)

    def _answer(self, study_id: int) -> bottle.HTTPResponse | None:
        after = bottle.request.query.get("after", "0")
        text = self.detail(study_id, int(after)) if after.isdecimal() else None
        if text is None:
            return None
        body, headers = text.encode(), {"Content-Type": "application/json"}
        if "gzip" in bottle.request.headers.get("Accept-Encoding", ""):
            body, headers["Content-Encoding"] = gzip.compress(body, 3), "gzip"
        return bottle.HTTPResponse(body, 200, headers)

    def _read(self, study_id: int, known: _Known) -> None:
        if time.monotonic() - known.read < FRESH:
            return
        of_id = (s for s in self.storage.get_all_studies() if id_of_study(s) == study_id)
        known.study = next((s for s in of_id if "spec" in s.user_attrs), None)
        if known.study is None:
            return
        known.trials = self.storage.get_all_trials(study_id, deepcopy=False)
        known.notes = group_notes(known.study.system_attrs)
        known.shown = pictured(known.trials)
        new = [t for t in known.trials if t.number not in known.counted]
        known.extra.update(new)
        known.counted |= {t.number for t in new if t.state.is_finished()}
        known.read = time.monotonic()


def _told(known: _Known, study_id: int, after: int) -> str:
    """The answer of optuna-dashboard's own ``serialize_study_detail``, put together of texts."""
    study = known.study
    assert study is not None
    attrs = study.system_attrs
    own = {k: v for k, v in attrs.items() if k.startswith(("dashboard:note_", "artifacts:"))}
    best = trial_records.rank_trials(known.trials)[:1]
    head = {
        "name": study.study_name,
        "directions": [d.name.lower() for d in study.directions],
        "user_attrs": _serializer.serialize_attrs(study.user_attrs),
        "artifacts": [],
        "intersection_search_space": _serializer.serialize_search_space(
            known.extra.intersection_search_space
        ),
        "union_search_space": _serializer.serialize_search_space(known.extra.union_search_space),
        "union_user_attrs": [
            {"key": key, "sortable": sortable}
            for key, sortable in known.extra.union_user_attrs
            if key not in LEFT_OUT
        ],
        "has_intermediate_values": known.extra.has_intermediate_values,
        "note": _note.get_note_from_system_attrs(own, None),
        "is_preferential": False,
        "objective_names": ["validation Dice"],
        "feedback_component_type": {"output_type": "note"},
        "plotly_graph_objects": [
            {"id": key, "graph_object": figure}
            for key, figure in sorted(_custom_plot_data.get_plotly_graph_objects(attrs).items())
        ],
    }
    opened = json.dumps(head)[:-1]
    return (
        f'{opened}, "trials": {_array(known, study_id, known.trials[after:])}'
        f', "best_trials": {_array(known, study_id, best)}}}'
    )


def _array(known: _Known, study_id: int, chosen: Iterable[FrozenTrial]) -> str:
    return f"[{','.join(_text(known, study_id, t) for t in chosen)}]"


def _text(known: _Known, study_id: int, trial: FrozenTrial) -> str:
    note, seen = known.notes.get(trial_id(trial), {}), trial.number in known.shown
    # A note that was written anew has another version.
    state = (note.get(version_key(trial_id(trial))), seen)
    kept = known.texts.get(trial.number)
    if kept is not None and kept[0] == state:
        return kept[1]
    told = _serializer.serialize_frozen_trial(study_id, trial, note)
    told["artifacts"] = artifact_ids.list_artifacts(trial.system_attrs, pictured=seen)
    told["user_attrs"] = [a for a in told["user_attrs"] if a["key"] not in LEFT_OUT]
    text = json.dumps(told)
    if trial.state.is_finished():  # until then it changes all the while
        known.texts[trial.number] = (state, text)
    return text
