"""The line of a finished trial."""

import io

import pytest
from optuna.trial import TrialState, create_trial
from rich.console import Console

from lesionseg.config import TrialConfig
from search.monitoring.live import TrialLog
from search.storage.trial_records import EndReason


def log_line(state=TrialState.COMPLETE, value=None, steps=(), **attrs):
    """Return the printed line of trial 7."""
    values = dict(enumerate(steps, 1))
    trial = create_trial(state=state, value=value, user_attrs=attrs, intermediate_values=values)
    trial.number = 7
    file = io.StringIO()
    TrialLog(Console(file=file, highlight=False, width=240, soft_wrap=True)).trial_ended(
        trial, None
    )
    (line,) = file.getvalue().splitlines()
    return line


@pytest.mark.parametrize(
    ("trial", "beginning"),
    [
        (
            {"value": 0.875, "epochs": 12, "seconds": 3.21, "config": TrialConfig().to_dict()},
            "trial   7  complete  0.8750   12 epochs    3.2 s  unet · ",
        ),
        (
            {"state": TrialState.FAIL, "reason": "oom", "message": "MemoryError: [9 GiB] [/b]"},
            "trial   7  failed         -  MemoryError: [9 GiB] [/b]",
        ),
        ({"state": TrialState.PRUNED, "steps": (0.25, 0.5)}, "trial   7  pruned    0.5000  "),
        (
            {"state": TrialState.FAIL, "reason": EndReason.DUPLICATE, "message": "same as 2"},
            "trial   7  closed         -  same as 2",
        ),
        (
            {"state": TrialState.FAIL, "reason": EndReason.INTERRUPTED, "requeued_as": 9},
            "trial   7  interrupted, requeued as trial 9       -  ",
        ),
    ],
)
def test_line_contains_number_state_dice_and_details(trial, beginning):
    assert log_line(**trial).startswith(beginning)
