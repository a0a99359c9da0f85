"""Test evaluations."""

from concurrent.futures import ThreadPoolExecutor

from search.study.opening import list_test_evaluations, load_study, record_test_evaluation
from tests.search.helpers import open_tiny


def test_test_evaluations_are_recorded(tiny_data, tmp_path):
    study = open_tiny(tiny_data, tmp_path / "s").study
    assert list_test_evaluations(study) == []
    assert [record_test_evaluation(study), record_test_evaluation(study)] == [1, 2]
    again = load_study(tmp_path / "s")
    assert len(list_test_evaluations(again)) == 2
    assert all(time.endswith("+00:00") for time in list_test_evaluations(again))


def test_simultaneous_test_evaluations_are_all_counted(tiny_data, tmp_path):
    open_tiny(tiny_data, tmp_path / "s")
    studies = [load_study(tmp_path / "s") for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(record_test_evaluation, studies))
    assert sorted(counts) == list(range(1, 9))
    assert len(list_test_evaluations(studies[0])) == 8
