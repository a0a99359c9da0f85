"""Export and import: all fields, both databases, broken files."""

import csv
import io
import json
import math
import sqlite3
import time
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import Engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session
from typer.testing import CliRunner

import cli
from lesionseg.errors import InputError
from search.monitoring.dashboard.server import DashboardStorage
from search.storage import trial_records
from search.storage.artifact_store import open_artifact_store
from search.storage.database import open_storage, sqlite_url
from search.storage.lease_types import current_process
from search.storage.leases import TrialLeases
from search.storage.queries import insert_study
from search.storage.retrying_storage import backend_of
from search.study.export_format import FORMAT, read_lines
from search.study.opening import open_study
from search.study.suggest import suggest
from search.study.transfer import (
    COLUMNS,
    export_study,
    export_to_file,
    import_from_file,
    insert_exported,
    write_csv,
)
from search.trial_process.slot import Slot
from search.workers.worker import load_claimed_trial
from tests.postgres import CommitProxy, private_postgres
from tests.search.helpers import open_tiny, refusal, tiny_spec

__all__ = ["private_postgres"]  # a fixture

START = datetime(2026, 1, 2, 3, 4, 5, 678901)
#: Trials of every kind: state, value, params, distributions, user and system attributes, epochs.
LR, WIDTH = FloatDistribution(1e-5, 0.1, log=True), IntDistribution(4, 64, step=4)
MODEL = CategoricalDistribution(("unet", "segnet"))
ODD = CategoricalDistribution((None, True, 1.5, 3, "NaN"))
KINDS = [
    ("COMPLETE", 0.75, {"model": "unet", "model.unet.width": 8}, {"config": {"loss": {"bce": {}}}}),
    ("COMPLETE", math.inf, {"model": "segnet", "lr": 1 / 30}, {"digest": "é\n\u2028\U0001f600"}),
    ("COMPLETE", 0.1 + 0.2, {"odd": "NaN"}, {"val": {"hd95": math.nan, "x": [-math.inf, 1]}}),
    ("PRUNED", 0.5, {"odd": None}, {"reason": "early"}),
    (
        "PRUNED",
        None,
        {"odd": 1.5},
        {"reason": trial_records.EndReason.CONSTRAINT, "tuple": [1, [2.0, None]]},
    ),
    ("FAIL", None, {}, {"reason": "oom", "message": 'a "quoted" line\nand another'}),
    (
        "FAIL",
        None,
        {"odd": 3},
        {"reason": trial_records.EndReason.LOST, "started_at": 1.5, "ended_at": 2.25},
    ),
]
DISTRIBUTIONS = {"model": MODEL, "model.unet.width": WIDTH, "lr": LR, "odd": ODD}


def known_trials() -> list[FrozenTrial]:
    ended = [
        FrozenTrial(
            number=i,
            trial_id=i,
            state=TrialState[state],
            value=value,
            datetime_start=START + timedelta(minutes=i),
            datetime_complete=START + timedelta(minutes=i, microseconds=1),
            params=params,
            distributions={key: DISTRIBUTIONS[key] for key in params},
            user_attrs=attrs,
            system_attrs={"constraints:max_gmacs": -0.5 * i, "big": 2**60},
            intermediate_values={1: 0.5, 10: math.nan, 2: -math.inf, 0: 0.1 * i},
        )
        for i, (state, value, params, attrs) in enumerate(KINDS)
    ]
    fixed = {"fixed_params": {"model": "unet", "lr": 1e-4}}
    waiting = create_trial(
        state=TrialState.WAITING, system_attrs=fixed, user_attrs={"allow_duplicate": True}
    )
    waiting.number = len(ended)
    waiting.datetime_start = None
    return [*ended, waiting]


def fill(url, name="one") -> optuna.Study:
    """Create a study of known trials with Optuna."""
    study = optuna.create_study(
        study_name=name, storage=open_storage(make_url(url)), direction="maximize"
    )
    study.set_user_attr("spec", {"budget": {"trials": 9}, "x": [math.inf]})
    study.set_user_attr("artifacts", None)
    study._storage.set_study_system_attr(study._study_id, "qmc", {"a": 1})
    for trial in known_trials():
        study.add_trial(trial)
    return study


def exported(study) -> str:
    file = io.StringIO()
    count = export_study(study, file)
    assert count == len(file.getvalue().splitlines()) - 1
    return file.getvalue()


def imported(text, url, name=None) -> optuna.Study:
    head, trials = read_lines(text.encode().splitlines(keepends=True), "backup.jsonl")
    return insert_exported(head, trials, make_url(url), name or head.study)


@pytest.fixture
def sqlite(tmp_path):
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> optuna.Study:
    """A study of known trials, not to be changed."""
    return fill(f"sqlite:///{tmp_path_factory.mktemp('known')}/study.db")


@pytest.fixture(scope="module")
def text(study) -> str:
    """The exported study."""
    return exported(study)


def plain(trial) -> dict:
    """Return all fields of a trial but its id; NaN equals itself."""
    fields = {k.lstrip("_"): v for k, v in vars(trial).items() if k != "_trial_id"}
    return {k: repr(sorted(v.items()) if k.endswith("attrs") else v) for k, v in fields.items()}


def same(a: optuna.Study, b: optuna.Study) -> None:
    assert a.direction == b.direction
    assert repr(sorted(a.user_attrs.items())) == repr(sorted(b.user_attrs.items()))
    assert a._storage.get_study_system_attrs(a._study_id) == b._storage.get_study_system_attrs(
        b._study_id
    )
    left, right = a.get_trials(), b.get_trials()
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        assert plain(one) == plain(other)
    ids = [t._trial_id for t in right]
    assert ids == sorted(ids)


def test_all_fields_are_equal(study, text, tmp_path):
    again = imported(text, f"sqlite:///{tmp_path}/other.db")
    assert again.study_name == "one"
    same(study, again)
    assert exported(again).splitlines()[1:] == text.splitlines()[1:]
    head, back = (json.loads(t.splitlines()[0]) for t in (text, exported(again)))
    assert head.pop("exported") < back.pop("exported")
    assert head == back


def test_postgresql_and_back(study, text, tmp_path, postgres_url):
    there = imported(text, postgres_url, "two")
    same(study, there)
    back = imported(exported(there), f"sqlite:///{tmp_path}/back.db")
    assert back.study_name == "two"
    same(study, back)
    url = make_url(postgres_url)
    for secret in ("postgresql", str(url.host), str(url.database)):
        assert secret not in exported(there)


def test_the_file_is_strict_json(text):
    def refuse(constant):
        raise AssertionError(constant)

    head, *lines = (json.loads(line, parse_constant=refuse) for line in text.splitlines())
    assert text.isascii()
    assert head["format"] == FORMAT and head["trials"] == len(lines) == len(KINDS) + 1
    assert head["direction"] == "maximize" and head["optuna"] == optuna.__version__
    assert datetime.fromisoformat(head["exported"]).utcoffset() == timedelta(0)
    first = lines[0]
    assert first["params"] == {"model": "unet", "model.unet.width": 8}
    assert first["distributions"]["model.unet.width"] == {
        "name": "IntDistribution",
        "attributes": {"log": False, "step": 4, "low": 4, "high": 64},
    }
    assert first["intermediate_values"]["1"] == 0.5
    assert lines[1]["value"] == {"$float": "inf"}
    assert datetime.fromisoformat(first["datetime_start"]) == START.astimezone()


@pytest.mark.parametrize(
    "value",
    [
        {"a": [math.inf, -math.inf, {"b": 1.5}]},
        {"$float": {"$float": 1}, "x": 2},
        [[], {}, "", None, True, 2**70, 1e-320],
    ],
)
def test_attributes_keep_their_values(sqlite, tmp_path, value):
    study = optuna.create_study(storage=open_storage(make_url(sqlite)), direction="maximize")
    study.set_user_attr("x", value)
    again = imported(exported(study), f"sqlite:///{tmp_path}/other.db")
    assert again.user_attrs == {"x": value}


def test_the_sampler_requeued_from_an_imported_study(sqlite, tmp_path):
    """A study with conditional parameters that a sampler of ours has drawn."""
    search = {"model": {"unet": {"width": [4, 64]}, "segnet": {}}, "loss": ["dice", "focal"]}
    space = tiny_spec({"search": search, "data.image_size": 64}).space
    study = optuna.create_study(storage=open_storage(make_url(sqlite)), direction="maximize")
    for i in range(4):
        trial = study.ask()
        suggest(trial, space)
        for epoch in range(3):
            trial.report(i / 10 + epoch / 100, epoch)
        study.tell(trial, i / 10)
    again = imported(exported(study), f"sqlite:///{tmp_path}/other.db")
    same(study, again)
    drawn = []
    for one in (study, again):
        one.sampler = optuna.samplers.TPESampler(seed=1, n_startup_trials=2)
        trial = one.ask()
        drawn.append((trial.number, suggest(trial, space)))
    assert drawn[0] == drawn[1]
    assert drawn[0][0] == 4


@pytest.mark.parametrize("server", ["sqlite", "postgresql"])
def test_a_trial_at_work_requeued_in_the_new_study(server, request, tmp_path):
    url = request.getfixturevalue("postgres_url") if server == "postgresql" else "sqlite:///a.db"
    study = optuna.create_study(storage=open_storage(make_url(url)), direction="maximize")
    leases = TrialLeases(study)
    leases.initialize_study(
        {"spec": {"budget": {"trials": 5}}}, [({"lr": 0.01}, {"baseline": "x"}), ({}, {})]
    )
    worker = leases.register_worker(Slot(), current_process())
    claim = leases.claim(worker)
    trial = load_claimed_trial(study, claim)
    trial.suggest_float("lr", 1e-3, 1, log=True)
    leases.record_epochs(claim, {1: 0.25})
    text = exported(study)
    assert study.trials[0].state == TrialState.RUNNING
    again = imported(text, url, "again")
    interrupted, waiting, requeued = again.trials
    assert trial_records.reason_of(interrupted) == trial_records.EndReason.INTERRUPTED
    assert interrupted.intermediate_values == {1: 0.25} and interrupted.params == {"lr": 0.01}
    when = datetime.fromisoformat(json.loads(text.splitlines()[0])["exported"])
    assert interrupted.user_attrs["ended_at"] == when.timestamp()
    assert waiting.state == requeued.state == TrialState.WAITING
    assert requeued.system_attrs == {"fixed_params": {"lr": 0.01}}
    assert requeued.user_attrs == {"baseline": "x", "requeued_from": 0, "attempts": [0]}
    # It is claimed first.
    leases = TrialLeases(again)
    assert leases.claim(leases.register_worker(Slot(), current_process())).number == 2
    assert study.trials[0].state == TrialState.RUNNING


def test_an_existing_name_is_an_error(study, text):
    with pytest.raises(InputError, match=r"holds a study 'one' already"):
        imported(text, study._storage._backend.engine.url)
    assert exported(study).splitlines()[1:] == text.splitlines()[1:]
    assert optuna.get_all_study_names(study._storage) == ["one"]


def line_with(text: str, number: int, **changes) -> str:
    lines = text.splitlines()
    line = json.loads(lines[number - 1]) | changes
    kept = {k: v for k, v in line.items() if v is not ...}
    return "\n".join([*lines[: number - 1], json.dumps(kept), *lines[number:]])


BROKEN = {
    "empty": (lambda t: "", "line 1: empty"),
    "blank": (lambda t: "\n\n", "line 1: empty"),
    "a table": (lambda t: "number,state\n0,complete\n", "line 1: not JSON from column 1 on"),
    "a list": (lambda t: "[1]", "line 1: line: Input should be a valid dictionary"),
    "other JSON": (
        lambda t: '{"a": 1}',
        "line 1: format: Field required",
    ),
    "a later format": (
        lambda t: line_with(t, 1, format="lesionsearch-study/2"),
        "line 1: format: Input should be 'lesionsearch-study/1', got 'lesionsearch-study/2'",
    ),
    "no head": (lambda t: "\n".join(t.splitlines()[1:]), "line 1: format: Field required"),
    "the other way": (
        lambda t: line_with(t, 1, direction="minimize"),
        "line 1: direction: Input should be 'maximize', got 'minimize'",
    ),
    "cut within a line": (lambda t: t[:-40], "line 9: not JSON from column"),
    "cut between lines": (
        lambda t: "\n".join(t.splitlines()[:-2]) + "\n",
        "line 7: 6 of 8 trials; the file is incomplete",
    ),
    "a trial too many": (
        lambda t: t + t.splitlines()[-1].replace('"number": 7', '"number": 8'),
        "line 10: 9 of 8 trials; the file is incomplete",
    ),
    "a line missing": (
        lambda t: "\n".join(t.splitlines()[:3] + t.splitlines()[4:]),
        "line 4: number: must be 2, got 3",
    ),
    "bare NaN": (lambda t: line_with(t, 3, value=math.nan), "line 3: not JSON: "),
    "an odd number": (
        lambda t: line_with(t, 3, value={"$float": "much"}),
        "line 3: not JSON: ",
    ),
    "no state": (lambda t: line_with(t, 4, state=...), "line 4: state: Field required"),
    "a state of none": (
        lambda t: line_with(t, 4, state="DONE"),
        "line 4: state: Input should be 'RUNNING', 'COMPLETE', 'PRUNED', 'FAIL' or 'WAITING'",
    ),
    "a value that is none": (
        lambda t: line_with(t, 2, value="0.5"),
        "line 2: value: Input should be a valid number, got '0.5'",
    ),
    "a value too large": (
        lambda t: line_with(t, 2, value=10**400),
        "line 2: value: Input should be",
    ),
    "a complete one without": (lambda t: line_with(t, 2, value=None), "line 2: trial: "),
    "a failed one with": (lambda t: line_with(t, 7, value=0.5), "line 7: trial: "),
    "a waiting one with": (lambda t: line_with(t, 9, value=0.5), "line 9: trial: "),
    "NaN": (
        lambda t: line_with(t, 5, value={"$float": "nan"}),
        "line 5: trial: PRUNED cannot have",
    ),
    "no day": (
        lambda t: line_with(t, 2, datetime_start="yesterday"),
        "line 2: datetime_start: ",
    ),
    "no offset": (
        lambda t: line_with(t, 2, datetime_start="2026-01-01T00:00:00"),
        "line 2: datetime_start: Input should have timezone info",
    ),
    "no distribution": (lambda t: line_with(t, 2, distributions={}), "line 2: trial: Inconsistent"),
    "an unknown one": (
        lambda t: line_with(t, 2, distributions={"model": {"name": "Cauchy"}}),
        "line 2: distributions.model: ",
    ),
    "a parameter outside": (
        lambda t: line_with(t, 2, params={"model": "vnet", "model.unet.width": 8}),
        "line 2: trial: ",
    ),
    "an epoch that is none": (
        lambda t: line_with(t, 2, intermediate_values={"one": 0.5}),
        "line 2: intermediate_values.one.[key]: Input should be a valid integer",
    ),
    "an epoch too large": (
        lambda t: line_with(t, 2, intermediate_values={str(2**31): 0.5}),
        "line 2: intermediate_values.2147483648.[key]: Input should be less than 2147483648",
    ),
    "a name too long": (
        lambda t: line_with(t, 2, user_attrs={"k" * 513: 1}),
        f"line 2: user_attrs.{'k' * 513}.[key]: not a name that a database accepts",
    ),
    "an unknown field": (
        lambda t: line_with(t, 2, values=[1]),
        "line 2: values: Extra inputs are not permitted",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_line_is_an_error_with_its_number(how, text, tmp_path):
    damage, message = BROKEN[how]
    with pytest.raises(InputError) as caught:
        imported(damage(text), f"sqlite:///{tmp_path}/other.db")
    assert str(caught.value).startswith(f"backup.jsonl: {message}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "other.db").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\n", "not JSON: 'utf-8' codec"), (b"\xff\xfe\x00\n", "not JSON")],
)
def test_a_binary_file_is_an_error(content, message):
    with pytest.raises(InputError, match=f"^x: line 1: {message}"):
        read_lines([content], "x")


def test_a_failed_import_leaves_nothing(text, tmp_path):
    other = f"sqlite:///{tmp_path}/other.db"
    open_storage(make_url(other))
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON trial_intermediate_values "
            "WHEN NEW.step = 10 BEGIN SELECT RAISE(ABORT, 'no room'); END"
        )
    with pytest.raises(Exception, match="no room"):
        imported(text, other)
    with sqlite3.connect(tmp_path / "other.db") as database:
        for table in ("studies", "trials", "trial_params", "study_user_attributes"):
            assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
        database.execute("DROP TRIGGER full")
    assert len(imported(text, other).trials) == len(KINDS) + 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_import_once_after_a_lost_commit(private_postgres, text, when):
    name = f"transfer_{when}"
    private_postgres.create(name)
    wire = CommitProxy(private_postgres.port)

    def cut(connection, cursor, statement, *rest):
        if statement.startswith("INSERT INTO trials") and not wire.cuts:
            wire.cut(when)  # at the next commit, which is this transaction's

    event.listen(Engine, "before_cursor_execute", cut)
    try:
        again = imported(text, private_postgres.url(name, wire.port))
        assert wire.cuts == 1
        assert exported(again).splitlines()[1:] == text.splitlines()[1:]
        assert private_postgres.run("SELECT count(*) FROM studies", name) == [(1,)]
    finally:
        event.remove(Engine, "before_cursor_execute", cut)
        wire.close()


def test_a_file_becomes_a_study_in_a_new_folder(tiny_data, tmp_path):
    opened, path = open_tiny(tiny_data, tmp_path / "one"), tmp_path / "one.jsonl"
    opened.study.enqueue_trial({})
    export_to_file(opened.study, path, export_study)
    nowhere = "postgresql://user@127.0.0.1:1/x"
    with pytest.raises(InputError, match="cannot be used"):
        import_from_file(path, tmp_path / "two", nowhere, None)
    assert not (tmp_path / "two").exists()
    folder = import_from_file(path, tmp_path / "two", None, tiny_data)
    again = open_study(folder)
    assert again.name == "two" and again.spec == opened.spec and again.split == opened.split
    same(opened.study, again.study)
    with pytest.raises(InputError, match="holds a study already"):
        import_from_file(path, folder, None, None)


#: Names of studies that would lead out of ``runs/``, or that file systems do not accept.
BAD_NAMES = ["../x", "/tmp/x", "a/b", "..", ".", "", "a\0b", "a\nb", "a\\b", "n" * 201, "\ud800"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_in_a_file_leads_to_no_other_folder(tiny_data, tmp_path, name):
    opened, path = open_tiny(tiny_data, tmp_path / "one"), tmp_path / "one.jsonl"
    path.write_text(line_with(exported(opened.study), 1, study=name))
    before = sorted(tmp_path.rglob("*"))
    message = refusal(import_from_file, path, None, None, None)
    assert "study" in message and "cannot be a file's name: a name " in message
    assert message.endswith("; give its folder as --out")
    assert sorted(tmp_path.rglob("*")) == before and not Path("runs").exists()


def test_a_study_of_a_database_leads_to_no_other_folder(tmp_path):
    """Anyone with write access to a database can choose the names of its studies."""
    url = f"sqlite:///{tmp_path}/shared.db"
    for name in ("../x", "/tmp/x"):
        study = fill(url, name)
        storage = DashboardStorage(backend_of(study))
        assert "cannot be a file's name" in refusal(storage.folder_of, name)
        assert "cannot be a file's name" in refusal(
            open_artifact_store, str(tmp_path), tmp_path, name
        )
        result = CliRunner().invoke(cli.app, ["worker", name, "--storage", url])
        assert result.exit_code == 2
        assert result.stderr == (
            f"lesionsearch: study: {name!r} cannot be a file's name: a name may not be empty, . or "
            ".., or have / or \\; give its folder as --out\n"
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uuid": ...}, "uuid: Field required"),
        ({"uuid": "../x"}, "uuid: String should match pattern"),
        ({"spec": [1]}, "spec: Input should be a valid dictionary"),
        ({"split": {"train": ["a"], "val": "b", "test": []}}, "split.val: Input should be"),
        ({"artifacts": 3}, "artifacts: Input should be a valid string"),
    ],
)
def test_attributes_that_a_study_needs_are_checked(tiny_data, tmp_path, change, message):
    opened, path = open_tiny(tiny_data, tmp_path / "one"), tmp_path / "one.jsonl"
    attrs = {k: v for k, v in (opened.study.user_attrs | change).items() if v is not ...}
    path.write_text(line_with(exported(opened.study), 1, user_attrs=attrs))
    said = refusal(import_from_file, path, tmp_path / "two", None, None)
    assert said.startswith(f"{path}: line 1: user_attrs: damaged: {message}")
    assert not (tmp_path / "two").exists()


def test_csv_rows(sqlite):
    spec = tiny_spec()
    study = optuna.create_study(storage=open_storage(make_url(sqlite)), direction="maximize")
    leases = TrialLeases(study)
    leases.initialize_study({"spec": spec.model_dump(mode="json")}, [({"model.unet.width": 8}, {})])
    worker = leases.register_worker(Slot(), current_process())
    for _ in range(2):
        claim = leases.claim(worker)
        config = suggest(load_claimed_trial(study, claim), spec.space)
        leases.record_config(claim, {"config": config.to_dict()}, None)
        leases.record_epochs(claim, {1: 0.25, 2: 0.5})
        leases.finish(claim, TrialState.COMPLETE, 0.1 + 0.2)
    claim = leases.claim(worker)
    leases.finish(claim, TrialState.FAIL, attrs={"reason": "config", "message": "a\nb"})
    given = suggest(optuna.trial.FixedTrial({"model.unet.width": 4, "optimizer.adam.lr": 0.1}),
                    spec.space)  # fmt: skip
    leases.enqueue(
        [
            (
                {},
                {
                    trial_records.TrialAttr.BASELINE: "mine",
                    trial_records.TrialAttr.FIXED_CONFIG: given.to_dict(),
                },
            )
        ]
    )
    leases.enqueue([({"model.unet.width": 4}, {})])
    file = io.StringIO(newline="")
    assert write_csv(study, file) == 5
    file.seek(0)
    first, second, third, fourth, fifth = rows = list(csv.DictReader(file))
    assert tuple(first)[: len(COLUMNS)] == COLUMNS
    assert [r["state"] for r in rows] == ["complete", "complete", "closed", "waiting", "waiting"]
    assert [r["number"] for r in rows] == ["0", "1", "2", "3", "4"]
    assert float(first["value"]) == 0.1 + 0.2 and first["epochs"] == "2"
    known = study.trials
    spans = [t.user_attrs["training_end_s"] - t.user_attrs["training_start_s"] for t in known[:2]]
    assert [float(r["seconds"]) for r in rows[:2]] == pytest.approx(spans, abs=0.001)
    assert float(second["optimizer.adam.lr"]) == known[1].params["optimizer.adam.lr"]
    assert first["model"] == "unet" and first["model.unet.width"] == "8"
    assert first["batch_size"] == "8" and first["max_epochs"] == "2"
    assert third["reason"] == "config" and third["model"] == ""
    assert fourth["baseline"] == "mine" and fourth["optimizer.adam.lr"] == "0.1"
    assert fifth["model.unet.width"] == "4" and fifth["seconds"] == fifth["value"] == ""


def test_a_study_without_trials(sqlite, tmp_path):
    study = optuna.create_study(storage=open_storage(make_url(sqlite)), direction="maximize")
    again = imported(exported(study), f"sqlite:///{tmp_path}/other.db", "empty")
    assert again.trials == [] and again.user_attrs == {}
    file = io.StringIO()
    assert write_csv(again, file) == 0
    assert file.getvalue() == ",".join(COLUMNS) + "\n"


@pytest.mark.slow
def test_two_thousand_trials_take_seconds(tmp_path):
    known = known_trials()[0]
    storage = open_storage(sqlite_url(tmp_path))
    many = []
    for i in range(2000):
        steps = {epoch: (i + epoch) / 10_000 for epoch in range(40)}
        fields = {"number": i, "trial_id": i, "value": i / 2000, "intermediate_values": steps}
        kept = ("state", "datetime_start", "datetime_complete", "params", "distributions")
        attrs = {f"key{k}": {"some": [k, "text"]} for k in range(12)}
        rest = {key: getattr(known, key) for key in kept}
        many.append(FrozenTrial(**fields, **rest, user_attrs=attrs, system_attrs={}))
    with Session(storage.engine) as session, session.begin():
        insert_study(session, "many", {}, {}, many)
    study = optuna.load_study(study_name="many", storage=storage)
    began = time.process_time()
    text = exported(study)
    assert time.process_time() - began < 8
    began = time.process_time()
    again = imported(text, f"sqlite:///{tmp_path}/other.db")
    assert time.process_time() - began < 24
    assert exported(again).splitlines()[1:] == text.splitlines()[1:]
