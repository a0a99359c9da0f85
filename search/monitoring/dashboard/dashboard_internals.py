"""The private names of optuna-dashboard that this project uses.

No other module uses them. A test checks ``PRIVATE_SYMBOLS`` and ``DETAIL_ROUTE`` against the
installed version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial
from optuna_dashboard import _custom_plot_data, _note, _serializer
from optuna_dashboard._inmemory_cache import _CachedExtraStudyProperty

from search.storage.optuna_internals import FrozenStudy, study_id

#: Private names by module. ``Class()`` stands for an instance.
PRIVATE_SYMBOLS = {
    "optuna_dashboard._custom_plot_data": ("get_plotly_graph_objects",),
    "optuna_dashboard._inmemory_cache": (
        *("_CachedExtraStudyProperty.update", "_CachedExtraStudyProperty.union_search_space"),
        "_CachedExtraStudyProperty.intersection_search_space",
        "_CachedExtraStudyProperty.union_user_attrs",
        "_CachedExtraStudyProperty().has_intermediate_values",
    ),
    "optuna_dashboard._note": ("get_note_from_system_attrs",),
    "optuna_dashboard._serializer": (
        *("serialize_attrs", "serialize_frozen_trial", "serialize_search_space"),
    ),
}
#: Route of the API that returns a study with its trials.
DETAIL_ROUTE = "/api/studies/<study_id:int>"


class StudySummary:
    """Search space and attribute names of a study's trials; each trial is added once."""

    def __init__(self) -> None:
        self._property = _CachedExtraStudyProperty()

    def add_trials(self, trials: Sequence[FrozenTrial]) -> None:
        """Add trials that are new or have changed."""
        self._property.update(list(trials))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that optuna-dashboard's API derives from all trials."""
        serialize = _serializer.serialize_search_space
        return {
            "intersection_search_space": serialize(self._property.intersection_search_space),
            "union_search_space": serialize(self._property.union_search_space),
            "union_user_attrs": [
                {"key": key, "sortable": is_sortable}
                for key, is_sortable in self._property.union_user_attrs
            ],
            "has_intermediate_values": self._property.has_intermediate_values,
        }


def serialize_study(study: FrozenStudy) -> dict[str, Any]:
    """Return a study as in optuna-dashboard's API, without what depends on its trials."""
    attrs = study.system_attrs
    return {
        "name": study.study_name,
        "directions": [d.name.lower() for d in study.directions],
        "user_attrs": _serializer.serialize_attrs(study.user_attrs),
        "artifacts": [],
        "note": read_note(attrs, None),
        "is_preferential": False,
        "feedback_component_type": {"output_type": "note"},
        "plotly_graph_objects": [
            {"id": figure_id, "graph_object": figure}
            for figure_id, figure in sorted(read_figures(attrs).items())
        ],
    }


def serialize_trial(
    study: FrozenStudy, trial: FrozenTrial, note_attrs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a trial as in optuna-dashboard's API, which searches ``note_attrs`` for its note."""
    serialized: dict[str, Any] = _serializer.serialize_frozen_trial(
        study_id(study), trial, dict(note_attrs)
    )
    return serialized


def read_note(system_attrs: Mapping[str, Any], trial_id: int | None) -> dict[str, Any]:
    """Return ``version`` and ``body`` of a note; trial_id is None for the study's own note."""
    return dict(_note.get_note_from_system_attrs(dict(system_attrs), trial_id))


def read_figures(system_attrs: Mapping[str, Any]) -> dict[str, str]:
    """Return a study's own figures as JSON, by id."""
    figures: dict[str, str] = _custom_plot_data.get_plotly_graph_objects(dict(system_attrs))
    return figures
