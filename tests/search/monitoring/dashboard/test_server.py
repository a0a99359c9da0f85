"""The dashboard over real sockets."""

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
from sqlalchemy import event

from lesionseg.errors import InputError
from search.monitoring import notes
from search.monitoring.dashboard.access import MAX_BODY_BYTES, ListenAddress
from search.monitoring.dashboard.server import Dashboard, find_source
from search.monitoring.notes import format_trial_note
from search.storage import artifact_ids
from search.storage.note_attrs import group_notes, note_attrs
from search.storage.retention import HISTORY, PICTURE
from search.study.opening import load_study
from tests.search.dashboards import COMMAND, serve, serve_in_process, start_dashboard
from tests.search.helpers import make_worker, open_tiny, queue, wait_until

#: The name of the study is HTML.
NAME = "<img src=x onerror=alert(1)>"
EVIL = "<script>alert(2)</script> <img src=x onerror=alert(3)> [x](javascript:alert(4))"
PASSWORD = "correct horse battery"
ME = {"Authorization": "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()}

LARGE = str(MAX_BODY_BYTES * 2)


@pytest.fixture(scope="module")
def opened(tiny_data, tmp_path_factory):
    """A study of two trials; the note of the first one is malicious."""
    study = open_tiny(tiny_data, tmp_path_factory.mktemp("d") / NAME)
    queue(study)
    queue(study, lr=0.03)
    worker = make_worker(study)
    done = worker.run_one()
    worker.run_one()
    for key, value in note_attrs(done._trial_id, EVIL, version=2).items():
        study.study._storage.set_study_system_attr(study.study._study_id, key, value)
    return study


@pytest.fixture(scope="module")
def locked(opened):
    """Read-only, with a password."""
    with serve_in_process(opened.folder, ListenAddress(port=0, password=PASSWORD)) as server:
        yield server


@pytest.fixture(scope="module")
def editable(opened):
    """Without a password; notes may be edited."""
    with serve_in_process(opened.folder, ListenAddress(port=0, may_edit=True)) as server:
        yield server


def ours(opened, number=0):
    """Return the ids of study and trial, and the trial's artifact ids by name."""
    trial = opened.study.trials[number]
    told = artifact_ids.list_artifacts(trial.system_attrs, with_picture=True)
    found = {m["filename"]: m["artifact_id"] for m in told}
    return opened.study._study_id, trial._trial_id, found


# --- refused requests ----------------------------------------------------------------


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
    ("too large", "PUT", "/api/studies/1/note", {**ME, "Content-Length": LARGE}, 413),
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
    answer = locked.request(path, method, headers, body)
    assert answer.status in ({status, 403} if path.startswith("/static") else {status})
    if status != 413:  # sent by waitress itself
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert b"root:" not in answer.body and b"SQLite" not in answer.body
    after = load_study(opened.folder)
    assert [t.state for t in after.trials] == [t.state for t in before.trials]
    assert after.study_name == NAME


def test_markup_in_names_and_notes_is_data(locked, opened):
    study, *_ = ours(opened)
    answer = locked.request(f"/api/studies/{study}", headers=ME)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["name"] == NAME
    assert answer.json["trials"][0]["note"]["body"] == EVIL
    page = locked.request("/dashboard", headers=ME)
    assert NAME.encode() not in page.body
    assert NAME not in answer.json["note"]["body"]  # ours is escaped
    listed = locked.request("/api/studies", headers=ME).json["study_summaries"]
    assert [s["study_name"] for s in listed] == [NAME]


# --- content -----------------------------------------------------------------------------


def test_the_printed_url_shows_the_page(locked):
    assert locked.first_line == f"http://127.0.0.1:{locked.port}/"
    first = locked.request("/", headers=ME)
    assert first.status == 302
    page = locked.request("/dashboard", headers=ME)
    assert page.status == 200
    assert b"/static/bundle.js" in page.body
    script = locked.request("/static/bundle.js", headers={**ME, "Accept-Encoding": "gzip"})
    assert len(gzip.decompress(script.body)) > 1_000_000


def test_files_have_their_types(locked, opened):
    study, trial, files = ours(opened)
    for name, kind in (
        (PICTURE, "image/jpeg"),
        (artifact_ids.CURVES, "image/png"),
        (HISTORY, "text/csv"),
    ):
        answer = locked.request(f"/artifacts/{study}/{trial}/{files[name]}", headers=ME)
        assert answer.status == 200
        assert answer.headers["content-type"] == kind
        assert answer.headers["content-disposition"] == "inline"
        assert "access-control-allow-origin" not in answer.headers
        assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.body == (opened.folder / "trials" / "0" / HISTORY).read_bytes()


def test_a_note_is_derived_from_the_record(locked, opened):
    study, *_ = ours(opened)

    def trials():
        return locked.request(f"/api/studies/{study}", headers=ME).json["trials"]

    assert wait_until(lambda: trials()[1]["note"]["version"], 60)  # a thread writes it
    found = trials()
    assert found[1]["note"] == {
        "version": 1,
        "body": format_trial_note(opened.study.trials[1]),
    }
    assert [a["filename"] for a in found[1]["artifacts"]] == [PICTURE, artifact_ids.CURVES, HISTORY]


def test_the_study_has_a_note_and_figures(locked, opened):
    study, *_ = ours(opened)

    def told():
        return locked.request(f"/api/studies/{study}", headers=ME).json

    assert wait_until(lambda: told()["plotly_graph_objects"], 60)
    figures = {f["id"] for f in told()["plotly_graph_objects"]}
    assert figures >= {
        "lesionsearch-dice-seconds",
        "lesionsearch-dice-parameters",
        "lesionsearch-cost",
    }
    assert "## Leaderboard" in told()["note"]["body"]


# --- editing -----------------------------------------------------------------------------------


def test_only_notes_can_be_edited(editable, opened):
    study, trial, _ = ours(opened, 1)
    place = f"/api/studies/{study}/{trial}/note"
    own = {"Origin": editable.url}
    found = editable.request(f"/api/studies/{study}").json["trials"][1]["note"]
    written = {"version": found["version"] + 1, "body": "mine"}
    assert editable.request(place, "PUT", {"Origin": "http://evil.example"}, written).status == 403
    assert editable.request(place, "PUT", own, written).status == 204
    attrs = opened.study._storage.get_study_system_attrs(opened.study._study_id)
    assert group_notes(attrs)[trial][f"dashboard:{trial}:note_str:0"] == "mine"
    for method, path in writes():
        if not path.endswith("/note"):
            assert editable.request(path, method, own, {"state": "Fail"}).status == 403


# --- read-only databases -----------------------------------------------------------------------


def test_a_study_whose_database_cannot_be_written_is_shown(tiny_data, tmp_path, capfd):
    study = open_tiny(tiny_data, tmp_path / "s")
    queue(study)
    make_worker(study).run_one()
    source, messages = find_source(str(study.folder)), []
    for storage in (source.writer, source._backend):
        # As of a file without permission to write: reads need none.
        event.listen(storage.engine, "connect", lambda c, _: c.execute("PRAGMA query_only = 1"))
        storage.engine.dispose()
    with serve(Dashboard(source, ListenAddress(port=0, may_edit=True), messages.append)) as server:
        id_, trial, _ = ours(study)
        assert wait_until(lambda: messages, 60)
        assert len(server.request(f"/api/studies/{id_}").json["trials"]) == 1
        place = f"/api/studies/{id_}/{trial}/note"
        answer = server.request(place, "PUT", {}, {"version": 1, "body": "mine"})
    assert (answer.status, answer.json) == (500, {"reason": "internal server error"})
    assert len(messages) == 1
    what = "notes and figures were not updated: attempt to write a readonly database; "
    assert messages[0].startswith(what) and "INSERT" not in messages[0]
    assert capfd.readouterr() == ("", "")


# --- start and end -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_end_the_server_without_messages(opened, number, code):
    with start_dashboard(opened.folder) as server:
        assert server.request("/api/meta").status == 200
        server.process.send_signal(number)
        assert server.process.wait(30) == code
        assert server.process.stderr.read() == ""


def command(*args):
    return subprocess.run(
        [COMMAND, "dashboard", *map(str, args)], capture_output=True, text=True, timeout=90
    )


def test_a_used_port_is_reported(opened):
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        address = ListenAddress(port=used.getsockname()[1])
        message = rf"^--port: cannot listen on 127.0.0.1:{address.port}: .*choose another port$"
        with pytest.raises(InputError, match=message):
            Dashboard(find_source(str(opened.folder)), address).create_server()


def test_another_address_needs_a_password(opened):
    done = command(opened.folder, "--host", "0.0.0.0")
    assert done.returncode == 2
    assert re.fullmatch(r"lesionsearch: --host 0.0.0.0: .*password.*\n", done.stderr)


def test_all_studies_of_a_storage_or_one_are_shown(tiny_data, tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/all.db"
    storage = optuna.storages.RDBStorage(url)
    for name in ("a", "b"):
        optuna.create_study(study_name=name, storage=storage)

    def names(source):
        return [s.study_name for s in source.get_all_studies()]

    assert names(find_source(None, url)) == ["a", "b"]
    assert names(find_source("b", url)) == ["b"]
    monkeypatch.setenv("LESIONSEARCH_STORAGE", url)
    assert names(find_source(None)) == ["a", "b"]
    with pytest.raises(InputError, match="no study 'c'"):
        find_source("c", url)


@pytest.mark.parametrize("name", [None, "x"])
def test_a_missing_study_is_reported(name):
    with pytest.raises(InputError, match="none"):
        find_source(name)


def test_a_missing_database_is_not_created(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        find_source(None, f"sqlite:///{tmp_path}/no.db")
    assert not list(tmp_path.glob("*.db"))


def test_the_only_study_is_found_without_a_name(tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_tiny(tiny_data, tmp_path / "runs" / "only")
    assert find_source(None).only == "only"


def test_failed_updates_are_reported_once(opened, monkeypatch):
    messages = []
    shown = Dashboard(find_source(str(opened.folder)), ListenAddress(), messages.append)

    def fail(study, trials):
        raise OSError("read-only")

    monkeypatch.setattr(notes, "refresh", fail)

    class ThreeRounds:
        left = 3

        def wait(self, seconds):
            self.left -= 1
            return self.left == 0

    shown.refresh_until(ThreeRounds())
    assert messages == ["notes and figures were not updated: read-only"]
