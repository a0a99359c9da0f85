"""Access control: address and password, permitted requests, headers of responses."""

from __future__ import annotations

import base64
import re

import optuna
import optuna_dashboard
import pytest

from lesionseg.errors import InputError
from search.monitoring.dashboard.access import (
    LOOPBACK_NAMES,
    MAX_BODY_BYTES,
    PASSWORD_VARIABLE,
    AccessMiddleware,
    ListenAddress,
    is_loopback,
    read_password,
)

SECRET = "correct horse"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_addresses_need_no_password(host):
    assert is_loopback(host)
    assert ListenAddress(host).allowed_hosts() >= LOOPBACK_NAMES


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "lab", "localhost.example", "", "127.0.0.1.evil"]
)
def test_other_addresses_need_a_password(host):
    assert not is_loopback(host)
    with pytest.raises(InputError, match=f"--host {host}: .*--password-file .*{PASSWORD_VARIABLE}"):
        ListenAddress(host)
    assert ListenAddress(host, password=SECRET).allowed_hosts() is None


def test_a_public_origin_needs_a_password():
    with pytest.raises(InputError, match="--public"):
        ListenAddress(public="https://lab.example")
    address = ListenAddress(password=SECRET, public="https://Lab.example:8443")
    assert "lab.example" in address.allowed_hosts()


@pytest.mark.parametrize(
    "public", ["lab.example", "https://", "ftp://x", "https://x/y", "https://x ", "https://u@x"]
)
def test_an_invalid_origin_is_rejected(public):
    with pytest.raises(InputError, match="--public: must be an origin"):
        ListenAddress(password=SECRET, public=public)


def test_the_password_is_not_in_the_repr():
    assert SECRET not in repr(ListenAddress(password=SECRET))


def test_password_is_read_from_the_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    assert read_password(None) is None
    monkeypatch.setenv(PASSWORD_VARIABLE, "from the environment")
    assert read_password(None) == "from the environment"
    file = tmp_path / "p"
    file.write_text(f" {SECRET} \r\n")
    assert read_password(file) == f" {SECRET} "


@pytest.mark.parametrize(
    "text", [b"", b"short", b"\n", b"two lines\nof words\n", b"\xff\xfe\x00\x01abcdefgh"]
)
def test_a_file_without_a_password_is_rejected(tmp_path, text):
    (tmp_path / "p").write_bytes(text)
    with pytest.raises(InputError, match="p: "):
        read_password(tmp_path / "p")


@pytest.mark.parametrize("text", ["", "short"])
def test_an_environment_without_a_password_is_rejected(monkeypatch, text):
    monkeypatch.setenv(PASSWORD_VARIABLE, text)
    with pytest.raises(InputError, match=PASSWORD_VARIABLE):
        read_password(None)


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_password(tmp_path / "no")


# --- requests ----------------------------------------------------------------------------------


HTML = [("Content-Type", "text/html"), ("Access-Control-Allow-Origin", "*")]


class RecordingApp:
    """An app that records its requests."""

    def __init__(self, headers=HTML):
        self.headers, self.requests = headers, []

    def __call__(self, environ, start_response):
        self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        start_response("200 OK", list(self.headers))
        return [b"content"]


def request(address, method="GET", path="/dashboard", headers=(), app=None, length=None):
    """Send a request; return status, headers and body."""
    app = app or RecordingApp()
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "HTTP_HOST": "localhost:8080"}
    environ |= {f"HTTP_{k.upper().replace('-', '_')}": v for k, v in dict(headers).items()}
    environ |= {} if length is None else {"CONTENT_LENGTH": length}
    answer = {}

    def start(status, given, exc_info=None):
        answer.update(status=int(status[:3]), headers=dict(given), count=len(given))

    body = b"".join(AccessMiddleware(app, address)(environ, start))
    assert answer["count"] == len(answer["headers"]), "a header was given twice"
    assert (body == b"content") == bool(app.requests)
    return answer["status"], answer["headers"], body


def basic(text):
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


# --- who has access ------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8080", "[::1]:8080"])
def test_names_of_this_host_are_allowed(host):
    assert request(ListenAddress(), headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "localhost:8080:1", "", "127.0.0.1@evil",
             "evil.example:8080", "127.0.0.2", "[::2]", "localhost "],
)  # fmt: skip
def test_other_host_names_are_refused(host):
    status, headers, _ = request(ListenAddress(), headers={"Host": host})
    assert status == 421
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_with_a_password_any_host_name_is_allowed():
    address = ListenAddress("0.0.0.0", password=SECRET)
    assert request(address, headers={"Host": "lab.example", **basic(f"me:{SECRET}")})[0] == 200
    assert request(address, headers={"Host": "lab.example"})[0] == 401


@pytest.mark.parametrize(
    "header", [{}, basic("me:wrong"), basic(f"{SECRET}:"), basic(SECRET), basic(":"),
               {"Authorization": "Basic"}, {"Authorization": "Basic ###"},
               {"Authorization": f"Bearer {SECRET}"}, basic(f"me:{SECRET} "),
               basic(f"me:{SECRET[:-1]}"), {"Authorization": "Basic \xff\xfe"}],
)  # fmt: skip
def test_a_missing_or_wrong_password_is_refused(header):
    status, headers, _ = request(ListenAddress(password=SECRET), headers=header)
    assert status == 401
    assert headers["WWW-Authenticate"].startswith("Basic realm=")


@pytest.mark.parametrize("password", [SECRET, "with:colon", "ümläut-ß-密码"])
@pytest.mark.parametrize("user", ["", "me"])
def test_the_password_is_accepted_with_any_user_name(password, user):
    assert request(ListenAddress(password=password), headers=basic(f"{user}:{password}"))[0] == 200


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Origin": "null"},
                {"Origin": "http://localhost:9999"}, {"Sec-Fetch-Site": "cross-site"},
                {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://localhost:8080.evil.example"},
                {"Origin": "evil"}],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_requests_of_other_origins_are_refused(headers, method):
    address = ListenAddress(may_edit=True)
    assert request(address, method, "/api/studies/1/note", headers)[0] == 403


def test_own_pages_and_links_from_elsewhere_are_allowed():
    own = {"Origin": "http://localhost:8080", "Sec-Fetch-Site": "same-origin"}
    assert request(ListenAddress(may_edit=True), "PUT", "/api/studies/1/note", own)[0] == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert request(ListenAddress(), headers=link)[0] == 200
    assert request(ListenAddress(may_edit=True), "PUT", "/api/studies/1/note", link)[0] == 403


def test_the_public_origin_is_allowed_behind_a_proxy():
    address = ListenAddress(password=SECRET, public="https://lab.example", may_edit=True)
    own = {"Origin": "https://lab.example", **basic(f":{SECRET}")}
    assert request(address, "PUT", "/api/studies/1/note", own)[0] == 200
    assert request(address, headers={"Host": "lab.example", **own})[0] == 200
    foreign = own | {"Origin": "https://lab.example.evil.example"}
    assert request(address, "PUT", "/api/studies/1/note", foreign)[0] == 403


# --- methods and paths --------------------------------------------------------------------------


def routes():
    """Return method and path of all routes of optuna-dashboard that write."""
    app = optuna_dashboard.wsgi(optuna.storages.InMemoryStorage())
    found = {(r.method, re.sub(r"<[^>]*>", "1", r.rule)) for r in app.routes}
    return sorted(f for f in found if f[0] not in {"GET", "HEAD"})


def test_optuna_dashboard_has_routes_that_write():
    assert len(routes()) > 15
    assert ("DELETE", "/api/studies/1") in routes()


@pytest.mark.parametrize(("method", "path"), routes())
def test_without_editing_all_writes_are_refused(method, path):
    status, _, body = request(ListenAddress(), method, path)
    assert status == 403
    assert b"--allow-edit" in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "get", "X"])
def test_unknown_methods_are_refused(method):
    assert request(ListenAddress(), method, "/api/studies")[0] == 403


def test_editing_allows_notes_only():
    opened = {f for f in routes() if request(ListenAddress(may_edit=True), *f)[0] == 200}
    assert opened == {("PUT", "/api/studies/1/note"), ("PUT", "/api/studies/1/1/note")}


@pytest.mark.parametrize("length", [str(MAX_BODY_BYTES + 1), "9" * 40, "-1", "x"])
def test_large_requests_are_refused(length):
    address = ListenAddress(may_edit=True)
    assert request(address, "PUT", "/api/studies/1/note", length=length)[0] == 413
    assert request(address, "PUT", "/api/studies/1/note", length=str(MAX_BODY_BYTES))[0] == 200


# --- headers of responses ------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/dashboard", "/api/studies", "/static/x.js", "/artifacts/1/1/a"])
def test_all_responses_have_security_headers(path):
    _, headers, _ = request(ListenAddress(), path=path)
    assert "Access-Control-Allow-Origin" not in headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
    assert ("no-store" in headers["Cache-Control"]) == (not path.startswith("/static"))


def test_the_policy_of_the_app_is_replaced():
    inside = RecordingApp(
        [("content-security-policy", "script-src *"), ("content-type", "text/html")]
    )
    policies = [
        v
        for k, v in request(ListenAddress(), app=inside)[1].items()
        if k.lower().endswith("security-policy")
    ]
    assert len(policies) == 1
    assert "*" not in policies[0]


@pytest.mark.parametrize(
    ("kind", "told", "how"),
    [("image/png", "image/png", "inline"), ("image/jpeg", "image/jpeg", "inline"),
     ("text/csv; charset=x", "text/csv; charset=x", "inline"),
     ("text/html", "text/plain; charset=utf-8", "attachment"),
     ("image/svg+xml", "text/plain; charset=utf-8", "attachment"),
     ("application/xhtml+xml", "text/plain; charset=utf-8", "attachment"),
     ("", "text/plain; charset=utf-8", "attachment")],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/artifacts/1/2/ab", "//artifacts/1/2/ab"])
def test_files_are_shown_or_downloaded_but_never_executed(kind, told, how, path):
    inside = RecordingApp([("Content-Type", kind)])
    _, headers, _ = request(ListenAddress(), path=path, app=inside)
    assert (headers["Content-Type"], headers["Content-Disposition"]) == (told, how)
    assert "sandbox" in headers["Content-Security-Policy"]
