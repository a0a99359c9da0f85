"""``lesionsearch plan`` and ``run auto``."""

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from search.planning import planner, policy
from search.spec.loading import load_spec
from search.study.deadline import elapsed_s
from search.study.opening import load_study
from tests.conftest import write_folder
from tests.search.helpers import open_tiny
from tests.search.planning.machines import CPU, ISIC


def call(*words, code=0):
    """Return the output and the errors of a command."""
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert result.exit_code == code, result.output + result.stderr
    return result.output if code == 0 else result.stderr


@pytest.fixture
def known_machine(monkeypatch):
    """A machine and a data set that need not be measured."""
    monkeypatch.setattr(planner, "measure_machine", lambda slot, limit_s, on_anchor: CPU)
    monkeypatch.setattr(planner, "read_fingerprint", lambda index, data: ISIC)


def test_plan_prints_and_writes_a_study_file(known_machine, tiny_data, tmp_path):
    words = ("plan", "--data", tiny_data, "--hours", 0.5, "--device", "cpu")
    printed = tmp_path / "printed.yaml"
    printed.write_text(call(*words, "--workers", 2))
    hint = call(*words, "--workers", 2, "-o", tmp_path / "written.yaml")
    assert "written.yaml: run it with" in hint and "--data ... --device cpu --workers 2`" in hint
    written = load_spec(str(tmp_path / "written.yaml"))
    assert load_spec(str(printed)) == written
    assert (written.name, written.budget.total_hours) == ("auto", 0.5)
    assert "cannot be written" in call(*words, "-o", tmp_path / "no" / "x.yaml", code=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["auto"], "--hours: `run auto` needs the time"),
        (["auto", "--hours", 1, "--quality", "good"], "--quality: must be one of fast, balanced"),
        (["auto", "--hours", 0.01], "--hours: 0.01 is too short for one training"),
        (["auto", "--hours", "nan"], "--hours: must be above 0 and finite, got nan"),
        (["auto", "--hours", 1, "--engine", "slurm"], "run auto: plans for workers of this"),
        (["auto", "--hours", 1, "--workers", 0], "run auto: plans for workers of this"),
        (["auto", "--hours", 1, "--set", "budget.epoch=1"], "budget.epoch: unknown key"),
        (["quick", "--quality", "best"], "--quality: only `run auto` plans a study"),
    ],
)
def test_bad_input_is_one_line(words, message, known_machine, tiny_data):
    error = call("run", *words, "--data", tiny_data, "--device", "cpu", code=2)
    assert error.startswith("lesionsearch: ")
    assert message in error
    assert not Path("runs").exists()


def test_a_study_that_was_not_planned_is_not_resumed(tiny_data, tmp_path):
    open_tiny(tiny_data, tmp_path / "s")
    words = ("run", "auto", "--hours", 1, "--data", tiny_data, "--out", tmp_path / "s")
    assert "a study that was not planned" in call(*words, "--device", "cpu", code=2)


@pytest.mark.slow
@pytest.mark.alone
def test_run_auto_ends_in_time_and_keeps_its_plan(tmp_path, monkeypatch):
    """A real job: measured, planned, searched and tested; then resumed with more hours."""
    monkeypatch.setattr(policy, "CPU_ANCHORS", ("fpn-lite0",))
    monkeypatch.setattr(policy, "CPU_SIZES", (32, 64))
    monkeypatch.setattr(policy, "FEW_IMAGES", 48)
    monkeypatch.setattr(policy, "START_S", 4.0)
    data = write_folder(tmp_path / "data", 24)
    hours, start = 0.02, time.monotonic()
    words = ("run", "auto", "--data", data, "--device", "cpu", "--threads", 1)
    output = call(*words, "--hours", hours, "--set", "final.postprocess=false")
    took = time.monotonic() - start
    assert took < 1.25 * 3600 * hours
    assert "forecast: the end after" in output
    folder = Path("runs/auto")
    study = load_study(folder)
    assert elapsed_s(study, study.trials) == pytest.approx(took, rel=0.1)
    report = json.loads((folder / "final" / "metrics.json").read_text())
    assert report["final"]["postprocess"] is False
    again = call(*words, "--hours", 2 * hours)
    assert "keeps its plan" in again
    assert load_study(folder).user_attrs["spec"]["budget"]["total_hours"] == 2 * hours
