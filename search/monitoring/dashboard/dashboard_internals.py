"""The private names of optuna-dashboard that this project uses.

No other module uses them. The tests of ``study_api`` compare its responses with those of the
installed version.
"""

from optuna_dashboard._custom_plot_data import get_plotly_graph_objects as read_figures
from optuna_dashboard._inmemory_cache import _CachedExtraStudyProperty as StudySummary
from optuna_dashboard._note import get_note_from_system_attrs as read_note
from optuna_dashboard._serializer import serialize_frozen_trial, serialize_study_detail

__all__ = [
    "StudySummary",
    "read_figures",
    "read_note",
    "serialize_frozen_trial",
    "serialize_study_detail",
]
