"""Count test evaluations: how often a study's test images were used."""

from __future__ import annotations

from datetime import datetime, timezone

import optuna

from search.storage.trial_records import StudyAttr


def list_test_evaluations(study: optuna.Study) -> list[str]:
    """Return the times of all test evaluations, ISO 8601 in UTC."""
    return list(study.user_attrs.get(StudyAttr.TEST_EVALUATIONS, []))


def record_test_evaluation(study: optuna.Study) -> int:
    """Record a test evaluation before it begins; return how many there are."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    times = [*list_test_evaluations(study), now]
    study.set_user_attr(StudyAttr.TEST_EVALUATIONS, times)
    return len(times)
