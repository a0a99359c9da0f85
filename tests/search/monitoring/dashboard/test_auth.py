"""The lock on the door: who comes in, what they may do, what the answers carry."""

from __future__ import annotations

import base64
import re

import optuna
import optuna_dashboard
import pytest

from search.monitoring.dashboard.auth import LOOPBACK_NAMES, MAX_BODY_BYTES, AccessMiddleware, AccessRules

PASSWORD = "correct horse"
HTML = [("Content-Type", "text/html"), ("Access-Control-Allow-Origin", "*")]


class Inside:
    """An app that remembers what came in."""

    def __init__(self, headers=HTML):
        self.headers, self.asked = headers, []

    def __call__(self, environ, start_response):
        self.asked.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        start_response("200 OK", list(self.headers))
        return [b"inside"]


def ask(rules, method="GET", path="/dashboard", headers=(), app=None, length=None):
    """Status, headers and body; whether anything came in."""
    app = app or Inside()
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "HTTP_HOST": "localhost:8080"}
    environ |= {f"HTTP_{k.upper().replace('-', '_')}": v for k, v in dict(headers).items()}
    environ |= {} if length is None else {"CONTENT_LENGTH": length}
    answer = {}

    def start(status, given, exc_info=None):
        answer.update(status=int(status[:3]), headers=dict(given), count=len(given))

    body = b"".join(AccessMiddleware(app, rules)(environ, start))
    assert answer["count"] == len(answer["headers"]), "a header was given twice"
    assert (body == b"inside") == bool(app.asked)
    return answer["status"], answer["headers"], body


def basic(text):
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


# --- who comes in ------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8080", "[::1]:8080"])
def test_names_of_this_host_come_in(host):
    assert ask(AccessRules(), headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "localhost:8080:1", "", "127.0.0.1@evil",
             "evil.example:8080", "127.0.0.2", "[::2]", "localhost "],
)  # fmt: skip
def test_other_names_do_not(host):
    status, headers, _ = ask(AccessRules(), headers={"Host": host})
    assert status == 421
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_where_a_password_is_asked_for_any_name_may_do():
    rules = AccessRules(PASSWORD, hosts=None)
    assert ask(rules, headers={"Host": "lab.example", **basic(f"me:{PASSWORD}")})[0] == 200
    assert ask(rules, headers={"Host": "lab.example"})[0] == 401


@pytest.mark.parametrize(
    "header", [{}, basic("me:wrong"), basic(f"{PASSWORD}:"), basic(PASSWORD), basic(":"),
               {"Authorization": "Basic"}, {"Authorization": "Basic ###"},
               {"Authorization": f"Bearer {PASSWORD}"}, basic(f"me:{PASSWORD} "),
               basic(f"me:{PASSWORD[:-1]}"), {"Authorization": "Basic \xff\xfe"}],
)  # fmt: skip
def test_no_or_a_wrong_password_stays_outside(header):
    status, headers, _ = ask(AccessRules(PASSWORD), headers=header)
    assert status == 401
    assert headers["WWW-Authenticate"].startswith("Basic realm=")


@pytest.mark.parametrize("password", [PASSWORD, "with:colon", "ümläut-ß-密码"])
@pytest.mark.parametrize("user", ["", "me"])
def test_the_password_opens_whoever_says_it(password, user):
    assert ask(AccessRules(password), headers=basic(f"{user}:{password}"))[0] == 200


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Origin": "null"},
                {"Origin": "http://localhost:9999"}, {"Sec-Fetch-Site": "cross-site"},
                {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://localhost:8080.evil.example"},
                {"Origin": "evil"}],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_pages_of_other_origins_get_nothing(headers, method):
    rules = AccessRules(may_edit=True)
    assert ask(rules, method, "/api/studies/1/note", headers)[0] == 403


def test_its_own_pages_and_links_from_elsewhere_come_in():
    own = {"Origin": "http://localhost:8080", "Sec-Fetch-Site": "same-origin"}
    assert ask(AccessRules(may_edit=True), "PUT", "/api/studies/1/note", own)[0] == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert ask(AccessRules(), headers=link)[0] == 200
    assert ask(AccessRules(may_edit=True), "PUT", "/api/studies/1/note", link)[0] == 403


def test_behind_a_proxy_its_own_origin_is_the_public_one():
    rules = AccessRules(PASSWORD, LOOPBACK_NAMES | {"lab.example"}, frozenset({"https://lab.example"}), True)
    own = {"Origin": "https://lab.example", **basic(f":{PASSWORD}")}
    assert ask(rules, "PUT", "/api/studies/1/note", own)[0] == 200
    assert ask(rules, headers={"Host": "lab.example", **own})[0] == 200
    foreign = own | {"Origin": "https://lab.example.evil.example"}
    assert ask(rules, "PUT", "/api/studies/1/note", foreign)[0] == 403


# --- what they may do --------------------------------------------------------------------------


def routes():
    """Every route of optuna-dashboard that is not for looking, with numbers put in."""
    app = optuna_dashboard.wsgi(optuna.storages.InMemoryStorage())
    found = {(r.method, re.sub(r"<[^>]*>", "1", r.rule)) for r in app.routes}
    return sorted(f for f in found if f[0] not in {"GET", "HEAD"})


def test_there_are_routes_that_write():
    assert len(routes()) > 15
    assert ("DELETE", "/api/studies/1") in routes()


@pytest.mark.parametrize(("method", "path"), routes())
def test_nothing_is_written_where_editing_is_not_allowed(method, path):
    status, _, body = ask(AccessRules(), method, path)
    assert status == 403
    assert b"--allow-edit" in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "get", "X"])
def test_unknown_words_are_no_looks(method):
    assert ask(AccessRules(), method, "/api/studies")[0] == 403


def test_of_all_routes_only_notes_can_be_written():
    opened = {f for f in routes() if ask(AccessRules(may_edit=True), *f)[0] == 200}
    assert opened == {("PUT", "/api/studies/1/note"), ("PUT", "/api/studies/1/1/note")}


@pytest.mark.parametrize("length", [str(MAX_BODY_BYTES + 1), "9" * 40, "-1", "x"])
def test_what_is_too_large_is_not_read(length):
    rules = AccessRules(may_edit=True)
    assert ask(rules, "PUT", "/api/studies/1/note", length=length)[0] == 413
    assert ask(rules, "PUT", "/api/studies/1/note", length=str(MAX_BODY_BYTES))[0] == 200


# --- what answers carry ------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/dashboard", "/api/studies", "/static/x.js", "/artifacts/1/1/a"])
def test_every_answer_is_for_its_own_pages_alone(path):
    _, headers, _ = ask(AccessRules(), path=path)
    assert "Access-Control-Allow-Origin" not in headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
    assert ("no-store" in headers["Cache-Control"]) == (not path.startswith("/static"))


def test_the_apps_own_policy_gives_way():
    inside = Inside([("content-security-policy", "script-src *"), ("content-type", "text/html")])
    policies = [
        v for k, v in ask(AccessRules(), app=inside)[1].items() if k.lower().endswith("security-policy")
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
def test_files_are_shown_or_saved_but_never_run(kind, told, how, path):
    inside = Inside([("Content-Type", kind)])
    _, headers, _ = ask(AccessRules(), path=path, app=inside)
    assert (headers["Content-Type"], headers["Content-Disposition"]) == (told, how)
    assert "sandbox" in headers["Content-Security-Policy"]
