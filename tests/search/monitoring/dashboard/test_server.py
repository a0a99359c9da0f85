"""The dashboard as it is started, asked over real sockets."""

from __future__ import annotations

import base64
import gzip
import re
import signal
import socket
import subprocess

import optuna
import optuna_dashboard
import pytest

from lesionseg.errors import InputError
from search.monitoring import notes
from search.monitoring.dashboard import study_note
from search.monitoring.dashboard.access import ListenAddress
from search.monitoring.dashboard.auth import MAX_BODY_BYTES
from search.monitoring.dashboard.server import Dashboard
from search.monitoring.dashboard.study_source import find_source
from search.storage import artifact_ids
from search.storage.retention import HISTORY, PICTURE
from search.study.opening import load_study
from tests.search.dashboards import COMMAND, served, served_here
from tests.search.helpers import open_tiny, queue, wait_until, worker_of

#: A study's name that would be markup.
NAME = "<img src=x onerror=alert(1)>"
EVIL = "<script>alert(2)</script> <img src=x onerror=alert(3)> [x](javascript:alert(4))"
PASSWORD = "correct horse battery"
ME = {"Authorization": "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()}


@pytest.fixture(scope="module")
def opened(tiny_data, tmp_path_factory):
    """A study of two trials, whose first trial has a note by somebody who means no good."""
    study = open_tiny(tiny_data, tmp_path_factory.mktemp("d") / NAME)
    queue(study)
    queue(study, lr=0.03)
    worker = worker_of(study)
    done = worker.run_one()
    worker.run_one()
    for key, value in note_attrs(done._trial_id, EVIL, version=2).items():
        study.study._storage.set_study_system_attr(study.study._study_id, key, value)
    return study


@pytest.fixture(scope="module")
def locked(opened):
    """Read-only, with a password."""
    with served_here(opened.folder, ListenAddress(port=0, password=PASSWORD)) as server:
        yield server


@pytest.fixture(scope="module")
def editable(opened):
    """On this host alone, where notes may be written."""
    with served_here(opened.folder, ListenAddress(port=0, may_edit=True)) as server:
        yield server


def ours(opened, number=0):
    """Ids that a URL needs: study, trial, and its artifacts by name."""
    trial = opened.study.trials[number]
    told = artifact_ids.list_artifacts(trial.system_attrs, with_picture=True)
    found = {m["filename"]: m["artifact_id"] for m in told}
    return opened.study._study_id, trial._trial_id, found


# --- what is refused or harmless ----------------------------------------------------------------


def writes():
    app = optuna_dashboard.wsgi(optuna.storages.InMemoryStorage())
    rules = {(r.method, re.sub(r"<[^>]*>", "1", r.rule)) for r in app.routes}
    return sorted(r for r in rules if r[0] not in {"GET", "HEAD"})


REFUSED = [
    ("no password", "GET", "/dashboard", {}, 401),
    ("no password to the api", "GET", "/api/studies", {}, 401),
    ("no password to files", "GET", "/artifacts/1/1/0", {}, 401),
    ("no password to scripts", "GET", "/static/bundle.js", {}, 401),
    ("wrong password", "GET", "/dashboard", {"Authorization": "Basic bWU6d3Jvbmc="}, 401),
    ("foreign host", "GET", "/dashboard", {**ME, "Host": "evil.example"}, 421),
    ("foreign origin", "GET", "/api/studies", {**ME, "Origin": "http://evil.example"}, 403),
    ("foreign page", "GET", "/api/studies", {**ME, "Sec-Fetch-Site": "cross-site"}, 403),
    ("too large", "PUT", "/api/studies/1/note", {**ME, "Content-Length": str(MAX_BODY_BYTES * 2)}, 413),
    *((f"{m} {p}", m, p, ME, 403) for m, p in writes()),
    *(
        (f"file {path}", "GET", f"/artifacts/1/1/{path}", ME, 404)
        for path in (
            "../../../study.db", "%2e%2e/%2e%2e/study.db", "..%2f..%2fstudy.db", "/etc/passwd",
            "%2fetc%2fpasswd", "%2e%2e%5c%2e%2e%5cstudy.db", "....//study.db", "0%00", "a" * 5000,
            "0123456789abcdef0123456789abcdef-0-0", "-", "0",
        )
    ),
    ("page below static", "GET", "/static/../_app.py", ME, 404),
    ("page below static, escaped", "GET", "/static/%2e%2e/_app.py", ME, 404),
    ("page below static, twice", "GET", "/static/..%252f_app.py", ME, 404),
    ("no such study's file", "GET", "/artifacts/99/99/0", ME, 404),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [r[1:] for r in REFUSED],
    ids=[r[0][:40] for r in REFUSED],
)
def test_refused(locked, opened, method, path, headers, status):
    before = load_study(opened.folder)
    body = None if method in {"GET", "DELETE"} or "Content-Length" in headers else {"version": 3}
    answer = locked.ask(path, method, headers, body)
    assert answer.status in ({status, 403} if path.startswith("/static") else {status})
    if status != 413:  # the server's own answer: what is too large does not come to the door
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert b"root:" not in answer.body and b"SQLite" not in answer.body
    after = load_study(opened.folder)
    assert [t.state for t in after.trials] == [t.state for t in before.trials]
    assert after.study_name == NAME


def test_markup_in_names_and_notes_is_data_and_nothing_of_it_is_a_page(locked, opened):
    study, *_ = ours(opened)
    answer = locked.ask(f"/api/studies/{study}", headers=ME)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["name"] == NAME
    assert answer.json["trials"][0]["note"]["body"] == EVIL
    page = locked.ask("/dashboard", headers=ME)
    assert NAME.encode() not in page.body
    assert NAME not in answer.json["note"]["body"]  # ours is escaped
    listed = locked.ask("/api/studies", headers=ME).json["study_summaries"]
    assert [s["study_name"] for s in listed] == [NAME]


# --- what is shown -----------------------------------------------------------------------------


def test_the_address_is_told_and_shows_the_page(locked):
    assert locked.said == f"http://127.0.0.1:{locked.port}/"
    first = locked.ask("/", headers=ME)
    assert first.status == 302
    page = locked.ask("/dashboard", headers=ME)
    assert page.status == 200
    assert b"/static/bundle.js" in page.body
    script = locked.ask("/static/bundle.js", headers={**ME, "Accept-Encoding": "gzip"})
    assert len(gzip.decompress(script.body)) > 1_000_000


def test_a_trials_files_come_as_what_they_are(locked, opened):
    study, trial, files = ours(opened)
    for name, kind in (
        (PICTURE, "image/jpeg"),
        (artifact_ids.CURVES, "image/png"),
        (HISTORY, "text/csv"),
    ):
        answer = locked.ask(f"/artifacts/{study}/{trial}/{files[name]}", headers=ME)
        assert answer.status == 200
        assert answer.headers["content-type"] == kind
        assert answer.headers["content-disposition"] == "inline"
        assert "access-control-allow-origin" not in answer.headers
        assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.body == (opened.folder / "trials" / "0" / HISTORY).read_bytes()


def test_the_second_trials_note_is_what_its_record_says(locked, opened):
    study, *_ = ours(opened)
    found = locked.ask(f"/api/studies/{study}", headers=ME).json["trials"]
    assert found[1]["note"] == {
        "version": 1,
        "body": notes.format_trial_note(opened.study.trials[1]),
    }
    assert [a["filename"] for a in found[1]["artifacts"]] == [PICTURE, artifact_ids.CURVES, HISTORY]


def test_the_study_gets_its_note_and_its_figures(locked, opened):
    study, *_ = ours(opened)

    def told():
        return locked.ask(f"/api/studies/{study}", headers=ME).json

    assert wait_until(lambda: told()["plotly_graph_objects"], 60)
    figures = {f["id"] for f in told()["plotly_graph_objects"]}
    assert figures >= {
        "lesionsearch-dice-seconds",
        "lesionsearch-dice-parameters",
        "lesionsearch-cost",
    }
    assert "## Leaderboard" in told()["note"]["body"]


# --- editing -----------------------------------------------------------------------------------


def test_a_note_may_be_written_where_that_was_allowed_and_the_rest_may_not(editable, opened):
    study, trial, _ = ours(opened, 1)
    place = f"/api/studies/{study}/{trial}/note"
    own = {"Origin": editable.url}
    found = editable.ask(f"/api/studies/{study}").json["trials"][1]["note"]
    written = {"version": found["version"] + 1, "body": "mine"}
    assert editable.ask(place, "PUT", {"Origin": "http://evil.example"}, written).status == 403
    assert editable.ask(place, "PUT", own, written).status == 204
    attrs = opened.study._storage.get_study_system_attrs(opened.study._study_id)
    assert group_notes(attrs)[trial][f"dashboard:{trial}:note_str:0"] == "mine"
    for method, path in writes():
        if not path.endswith("/note"):
            assert editable.ask(path, method, own, {"state": "Fail"}).status == 403


def test_a_studys_note_that_a_person_wrote_is_left_alone(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s")
    worker_of(opened).run_one()
    study_note.refresh(opened.study)
    first = optuna_dashboard.get_note(opened.study)
    assert "## Leaderboard" in first
    optuna_dashboard.save_note(opened.study, "mine")
    worker_of(opened).run_one()
    study_note.refresh(opened.study)
    assert optuna_dashboard.get_note(opened.study) == "mine"


# --- start and end -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_end_it_quietly(opened, number, code):
    with served(opened.folder) as server:
        assert server.ask("/api/meta").status == 200
        server.process.send_signal(number)
        assert server.process.wait(30) == code
        assert server.process.stderr.read() == ""


def command(*args):
    return subprocess.run(
        [COMMAND, "dashboard", *map(str, args)], capture_output=True, text=True, timeout=90
    )


@pytest.mark.slow
def test_a_port_that_is_taken_is_told_in_one_line(opened):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = command(opened.folder, "--port", taken.getsockname()[1])
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"lesionsearch: --port: 127.0.0.1:\d+: .*choose another one\n", done.stderr)


def test_another_address_needs_a_password(opened):
    done = command(opened.folder, "--host", "0.0.0.0")
    assert done.returncode == 2
    assert re.fullmatch(r"lesionsearch: --host 0.0.0.0: .*password.*\n", done.stderr)


def test_a_whole_storage_is_shown_or_one_study_of_it(tiny_data, tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/all.db"
    storage = optuna.storages.RDBStorage(url)
    for name in ("a", "b"):
        optuna.create_study(study_name=name, storage=storage)

    def names(source):
        return [s.study_name for s in source.storage.get_all_studies()]

    assert names(find_source(None, url)) == ["a", "b"]
    assert names(find_source("b", url)) == ["b"]
    monkeypatch.setenv("LESIONSEARCH_STORAGE", url)
    assert names(find_source(None)) == ["a", "b"]
    with pytest.raises(InputError, match="no study 'c'"):
        find_source("c", url)


@pytest.mark.parametrize("name", [None, "x"])
def test_without_a_study_one_line_says_so(name):
    with pytest.raises(InputError, match="none"):
        find_source(name)


def test_a_storage_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        find_source(None, f"sqlite:///{tmp_path}/no.db")
    assert not list(tmp_path.glob("*.db"))


def test_the_only_study_need_not_be_named(tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_tiny(tiny_data, tmp_path / "runs" / "only")
    assert find_source(None).storage.only == "only"


def test_what_cannot_be_written_is_told_once_and_looking_goes_on(opened, monkeypatch):
    told = []
    shown = Dashboard(find_source(str(opened.folder)), ListenAddress(), told.append)

    def broken(study, known):
        raise OSError("read-only")

    monkeypatch.setattr(study_note, "refresh", broken)

    class Thrice:
        left = 3

        def wait(self, seconds):
            self.left -= 1
            return self.left == 0

    shown.refresh_until(Thrice())
    assert told == ["notes and figures not brought up to date: read-only"]
