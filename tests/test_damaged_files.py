"""Damaged files of a study are read, or refused in one line that names the file; no traceback.

Each file is damaged at random, in its bytes and in the structure of its JSON.
"""

from __future__ import annotations

import copy
import io
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner, Result

import cli
from lesionseg.config import TrialConfig
from lesionseg.data.download import fetch
from lesionseg.errors import InputError
from lesionseg.inference.selection import DEFAULT_INFERENCE
from lesionseg.metrics.overlap import Metrics
from lesionseg.models import build_model
from lesionseg.training import checkpoint
from lesionseg.training.training_state import FORMAT, CheckpointManager
from lesionseg.training.types import EpochRecord, TrainingEnd, TrainResult
from search.results.baseline_table import read_results
from search.results.report import write_reports
from search.results.report.report_facts import report_facts
from search.results.report.sections import report_sections
from search.results.tables import print_final_report
from search.spec.loading import load_spec
from search.storage.study_dir import read_metrics, read_run_info
from search.study import cross_validation, queue
from search.study.data_audit import describe_audit, summarize_audit
from search.study.data_summary import read_data_summary
from search.study.export_format import read_lines
from search.study.opening import recorded_roots
from search.study.transfer import check_study_attrs, export_study
from tests.mutations import mutate_bytes, mutate_json, mutations
from tests.search.helpers import refusal, write_study
from tests.search.results.report.fake_studies import (
    SPEC,
    add_trials,
    ensemble_final,
    image_names,
    make_baseline_run,
    make_final,
    make_study,
)

BOTH = (mutate_bytes, mutate_json)
BYTES = (mutate_bytes,)

AUDIT = {
    "format": 1,
    "leaks": 1,
    "duplicates": [
        {
            "exact": exact,
            "similarity": 0.97,
            "leak": exact,
            "images": [{"set": "", "name": name, "split": None, "group": name} for name in names],
        }
        for exact, names in ((True, ["train_1", "val_1"]), (False, ["train_2", "gone"]))
    ],
    "groups": {"train_2": "gone"},
    "excluded": ["gone"],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a tested study with baselines."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    study = make_study(folder)
    add_trials(study)
    make_final(folder, study, **ensemble_final(study))
    study.set_user_attr("uuid", "0" * 32)
    (folder / "audit.json").write_text(json.dumps(AUDIT))
    names = image_names(3)
    baselines = make_baseline_run(folder / "baselines", names, {"a": [[0.5, 0.6, 0.7]]})
    assert (baselines / "results" / "0" / "result.json").is_file()
    with (folder / "study.jsonl").open("w") as file:
        export_study(study, file)
    rows = {"a.zip": {"size": 3, "sha256": "0" * 64, "url": "http://localhost/a.zip"}}
    (folder / "done.json").write_text(json.dumps(rows))
    write_study(folder / "spec.yaml", {"data.image_size": 64})
    (folder / "queue.yaml").write_text(
        "- {model: {unet: {width: 8}}, loss: bce}\n- {baseline: unet-dice}\n"
        f"- config: {json.dumps(TrialConfig(image_size=64, epochs=6).to_dict())}\n"
    )
    return folder


def use_run_info(path: Path) -> None:
    info = read_run_info(path.parent)
    if info["data"] is not None:
        recorded_roots(info)


def use_metrics(path: Path) -> None:
    report = read_metrics(path.parent.parent)
    assert report is not None
    print_final_report(Console(file=io.StringIO()), report)


def use_audit(path: Path) -> None:
    split = {"train": ["train_1", "train_2"], "val": ["val_1"], "test": []}
    describe_audit(summarize_audit(path.parent, split))


def use_export(path: Path) -> None:
    with path.open("rb") as lines:
        head, _ = read_lines(lines, str(path))
    check_study_attrs(head, str(path))


def mutate_line(content: bytes, rng: Any) -> bytes:
    """Damage the JSON of one line."""
    lines = content.splitlines(keepends=True)
    number = rng.randrange(min(3, len(lines)))
    lines[number] = mutate_json(lines[number], rng) + b"\n"
    return b"".join(lines)


@dataclass(frozen=True)
class File:
    """path: in the study's folder. use: reads the file and uses its content."""

    path: str
    use: Callable[[Path], object]
    kinds: tuple[Callable[..., bytes], ...] = BOTH


FILES = [
    File("run.json", use_run_info),
    File("final/metrics.json", use_metrics),
    File("audit.json", use_audit),
    File("data.json", lambda path: read_data_summary(path.parent)),
    File("baselines/results/0/result.json", lambda path: read_results(path.parents[2])),
    File("baselines/results/0/per_image.csv", lambda path: read_results(path.parents[2]), BYTES),
    File("study.jsonl", use_export, (mutate_bytes, mutate_line, mutate_line)),
    File("done.json", fetch.read_rows),
    File("spec.yaml", lambda path: load_spec(str(path)), BYTES),
    File("queue.yaml", lambda path: queue.read_entries(path, SPEC), BYTES),
]
MANY = pytest.mark.parametrize("n", [60, pytest.param(2000, marks=pytest.mark.slow)])


@pytest.fixture
def restored() -> Iterator[Callable[[Path], None]]:
    """Return a function: the file that it is given is restored afterwards."""
    originals: dict[Path, bytes] = {}
    yield lambda path: originals.update({path: path.read_bytes()})
    for path, content in originals.items():
        path.write_bytes(content)


@pytest.fixture
def damaged(restored) -> Callable[..., Iterator[Path]]:
    """Return a function that damages a file again and again; it is restored afterwards."""

    def damage(path: Path, n: int, kinds: Sequence[Callable[..., bytes]]) -> Iterator[Path]:
        restored(path)
        for content in mutations(path.read_bytes(), n, 0, *kinds):
            path.write_bytes(content)
            yield path

    return damage


@MANY
@pytest.mark.parametrize("file", FILES, ids=[file.path for file in FILES])
def test_a_damaged_file_is_read_or_refused(finished, damaged, file, n):
    file.use(finished / file.path)
    refused = 0
    for path in damaged(finished / file.path, n, file.kinds):
        try:
            file.use(path)
        except InputError as error:
            refused += 1
            line = " ".join(str(error).split())
            assert str(path) in line or path.name == "queue.yaml"
            line.encode(errors="backslashreplace")
    assert refused > n / 20  # the damage is seen


REPORTED = {
    "run.json": BOTH, "final/metrics.json": BOTH, "audit.json": BOTH, "data.json": BOTH,
    "final/per_image.csv": BYTES, "final/history.csv": BYTES,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", REPORTED)
def test_a_report_of_damaged_files_is_written_or_refused(finished, damaged, name):
    def report() -> None:
        report_sections(report_facts(finished))

    for i, _ in enumerate(damaged(finished / name, 60, REPORTED[name])):
        try:
            report() if i % 10 else write_reports(finished, ("html", "md", "json"))
        except InputError as error:
            assert str(finished) in str(error)


# --- checkpoints, training states and folds ----------------------------------------------------


def mutate_header(content: bytes, rng: Any) -> bytes:
    """Damage the header of a safetensors file, or the configuration in it."""
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    keys = ("config", "members", "inference")
    key = rng.choice([k for k in keys if k in header["__metadata__"]])
    if rng.random() < 0.6:
        inner = mutate_json(header["__metadata__"][key].encode(), rng)
        header["__metadata__"][key] = inner.decode()
        plain = json.dumps(header).encode()
    else:
        plain = mutate_json(json.dumps(header).encode(), rng)
    return struct.pack("<Q", len(plain)) + plain + content[8 + size :]


def use_checkpoint(path: Path) -> None:
    checkpoint.load(path)
    checkpoint.read_inference(path)


@MANY
@pytest.mark.parametrize("members", [1, 2])
def test_a_damaged_checkpoint_is_loaded_or_refused(tmp_path, damaged, n, members):
    path = tmp_path / "model.safetensors"
    config = TrialConfig.from_dict({"model": {"unet": {"width": 4, "depth": 1}}, "image_size": 16})
    model = build_model(config.model, image_size=16)
    weights = [copy.deepcopy(model.state_dict()) for _ in range(members)]
    checkpoint.save_ensemble(
        path, [checkpoint.MemberWeights(each, config, 1 / members) for each in weights]
    )
    checkpoint.set_inference(path, DEFAULT_INFERENCE)
    use_checkpoint(path)
    kinds = (mutate_bytes, mutate_header, mutate_header, mutate_header)
    for _ in damaged(path, n // 2, kinds):
        try:
            use_checkpoint(path)
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)


@MANY
def test_a_damaged_training_state_is_loaded_or_leaves_the_training_unchanged(tmp_path, damaged, n):
    training = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    manager = CheckpointManager(tmp_path / "state.pt", {"configuration": "x"})
    manager.save(training, 1)
    saved = {name: value.clone() for name, value in training.state_dict().items()}
    assert manager.load(training)
    for _ in damaged(tmp_path / "state.pt", n, BYTES):
        manager.load(training)
        assert all(torch.equal(saved[k], v) for k, v in training.state_dict().items())


@pytest.mark.parametrize(
    "content",
    [
        [], {}, {"format": FORMAT}, {"format": FORMAT, "identity": {"configuration": "x"}},
        *({"format": FORMAT, "identity": {"configuration": "x"}, "state": state}
          for state in (None, 1, [], {}, {"0.weight": torch.ones(3)}, {"0.weight": "x"}, {1: {}})),
    ],
)  # fmt: skip
def test_a_state_of_other_content_leaves_the_training_unchanged(tmp_path, content):
    training = nn.Sequential(nn.Linear(3, 2))
    saved = {name: value.clone() for name, value in training.state_dict().items()}
    torch.save(content, tmp_path / "state.pt")
    assert not CheckpointManager(tmp_path / "state.pt", {"configuration": "x"}).load(training)
    assert all(torch.equal(saved[k], v) for k, v in training.state_dict().items())


@MANY
def test_damaged_results_of_folds_are_read_or_ignored(tmp_path, damaged, n):
    path, metrics = tmp_path / "folds.json", Metrics(*[0.5] * len(fields(Metrics)))
    history = tuple(EpochRecord(epoch, 0.5, 0.4, metrics, 0.1, 1.5) for epoch in (1, 2))
    result = TrainResult(history[1], history, TrainingEnd.FINISHED, 3.0, 7, None)
    cross_validation.save_results(path, "abc", [result, result])
    assert cross_validation.load_results(path, "abc") == [result, result]
    ignored = 0
    for _ in damaged(path, n, BOTH):
        results = cross_validation.load_results(path, "abc")
        ignored += not results
        if results:
            cross_validation.summarize_folds(results, 2), cross_validation.mean_epoch(results)
    assert ignored > n / 4


# --- output of commands --------------------------------------------------------------------------

DAMAGES = {
    "empty": b"", "a list": b"[1, 2]", "binary": bytes(range(256)), "deep": b"[" * 100_000,
    "half": None,
}  # fmt: skip


def invoke(*args: object) -> Result:
    return CliRunner().invoke(cli.app, [str(arg) for arg in args])


def damage_whole(path: Path, kind: str) -> None:
    content, damaged = path.read_bytes(), DAMAGES[kind]
    path.write_bytes(content[: len(content) // 2] if damaged is None else damaged)


@pytest.mark.parametrize("kind", DAMAGES)
def test_status_shows_the_other_studies_and_one_line(kind):
    for name in ("a", "b"):
        make_study(Path("runs") / name, name)
    damage_whole(Path("runs/a/run.json"), kind)
    result = invoke("status")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("lesionsearch: runs/a/run.json: damaged")
    assert line.endswith(
        "; `lesionsearch run` with the study's file, --data DIR and --out runs/a writes it again"
    )
    assert result.stdout.startswith("b") and "no studies" not in result.stdout
    assert [s["study"] for s in json.loads(invoke("status", "--json").stdout)] == ["b"]


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("run.json", "`lesionsearch run` with"),
        ("final/metrics.json", "`lesionsearch final {} --again` writes it again"),
        ("audit.json", "`lesionsearch run` with"),
        ("data.json", "`lesionsearch run` with"),
        ("final/per_image.csv", "`lesionsearch final {} --again` writes it again"),
        ("final/history.csv", "`lesionsearch final {} --again` writes it again"),
    ],
)
def test_a_report_of_a_damaged_file_is_refused_in_one_line(finished, restored, name, remedy, kind):
    path = finished / name
    restored(path)
    damage_whole(path, kind)
    result = invoke("report", finished)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"lesionsearch: {path}: ")
    assert f"; {remedy.format(finished)}" in line


def test_run_writes_damaged_files_again(tiny_data):
    folder, study = Path("runs/tiny"), write_study(Path("study.yaml"))
    args = ("run", study, "--data", tiny_data, "--no-final", "--hours", "1e-12")
    assert invoke(*args).exit_code == 0
    names = ("run.json", "audit.json", "data.json", "split.json", "study.yaml")
    whole = {name: (folder / name).read_bytes() for name in names}
    for kind in DAMAGES:
        for name in names:
            damage_whole(folder / name, kind)
        result = invoke(*args)
        assert result.exit_code == 0, result.stderr
        assert {name: (folder / name).read_bytes() for name in names} == whole
    damage_whole(folder / "run.json", "empty")
    folder.rename("runs/other")
    result = invoke(*args, "--out", "runs/other")
    assert result.exit_code == 2
    assert "study.db holds no study 'other'" in result.stderr
    assert "if the folder has the name of the study" in result.stderr


def test_names_in_files_lead_to_no_other_place(finished, restored):
    path = finished / "final" / "metrics.json"
    report = json.loads(path.read_text())
    report["overlays"][0][1] = "../../../secret.png"
    restored(path)
    path.write_text(json.dumps(report))
    assert "'../../../secret.png' cannot be a file's name" in refusal(read_metrics, finished)
