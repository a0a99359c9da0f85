"""The lock on the dashboard's door: WSGI middleware around an app that has none of its own.

Who may come in: on a loopback address whoever is on this host, and no page of another origin in
that person's browser; anywhere else who knows the password. What may be done: looking. Notes may
be written where that was asked for; what could break a study that is being worked on is not for
a dashboard at all.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Wsgi = Callable[[Environ, StartResponse], Iterable[bytes]]

#: Bytes that a request may bring: a note is far smaller.
MOST_BYTES = 1 << 20
#: Writes that are let through where editing is allowed: the notes.
EDITS = (
    ("PUT", re.compile(r"/api/studies/\d+/note")),
    ("PUT", re.compile(r"/api/studies/\d+/\d+/note")),
)
#: Names of this host as a browser on it may call it.
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})

#: Plotly's parallel coordinates build functions at run time, and its styles are inline.
_PAGE = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILE = "default-src 'none'; sandbox; frame-ancestors 'none'"
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: Artifacts that a browser shows as what they are; all others are saved, whatever they say.
_SHOWN = frozenset({"image/png", "image/jpeg", "text/csv"})
_PLAIN = "text/plain; charset=utf-8"
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::[0-9]+)?")


@dataclass(frozen=True)
class Rules:
    """Whom the door lets in, and to do what.

    password: None asks for none. hosts: the names, in lower case and without a port, that a
    request may call this server by; None for any. origins: other origins, such as
    ``https://name``, that the pages of this very server are seen under. may_edit: whether notes
    may be written.
    """

    password: str | None = None
    hosts: frozenset[str] | None = LOOPBACK
    origins: frozenset[str] = frozenset()
    may_edit: bool = False


class AccessMiddleware:
    """The app behind the rules: a WSGI app itself."""

    def __init__(self, app: Wsgi, rules: Rules) -> None:
        self.app, self.rules = app, rules

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Refuses in one line of plain text, or hands on and sees to the headers of the answer."""
        refusal = self._refusal(environ)
        if refusal is None:
            return self.app(environ, _answering(environ["PATH_INFO"], start_response))
        status, text = refusal
        headers = [("Content-Type", _PLAIN), ("Content-Length", str(len(text)))]
        if status.startswith("401"):
            headers.append(("WWW-Authenticate", 'Basic realm="lesionsearch", charset="UTF-8"'))
        _answering("", start_response)(status, headers)
        return [text]

    def _refusal(self, environ: Environ) -> tuple[str, bytes] | None:
        if not self._is_called_so(environ.get("HTTP_HOST", "")):
            return "421 Misdirected Request", b"This server does not go by that name.\n"
        if not self._knows_the_password(environ.get("HTTP_AUTHORIZATION", "")):
            return "401 Unauthorized", b"The password, please; any user name will do.\n"
        if not self._is_own(environ):
            return "403 Forbidden", b"Pages of other origins may not ask.\n"
        if not self._may(environ["REQUEST_METHOD"], environ["PATH_INFO"]):
            return "403 Forbidden", b"This dashboard is for looking; see --allow-edit.\n"
        if not _is_short(environ.get("CONTENT_LENGTH")):
            return "413 Content Too Large", b"The request is too large.\n"
        return None

    def _is_called_so(self, host: str) -> bool:
        """Another name may be one that somebody's page had led here (DNS rebinding)."""
        match = _HOST.fullmatch(host)
        hosts = self.rules.hosts
        return match is not None and (hosts is None or match[1].lower() in hosts)

    def _knows_the_password(self, header: str) -> bool:
        if self.rules.password is None:
            return True
        scheme, _, encoded = header.partition(" ")
        try:
            decoded = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            return False
        given = decoded.partition(b":")[2]
        # Digests are of one length: how long the password is is not told either.
        same = hmac.compare_digest(_digest(given), _digest(self.rules.password.encode()))
        return scheme.lower() == "basic" and same

    def _is_own(self, environ: Environ) -> bool:
        """Whether no page of another origin asks. Browsers say whose page it is."""
        origin = environ.get("HTTP_ORIGIN")
        site = environ.get("HTTP_SEC_FETCH_SITE", "none")
        page = environ.get("HTTP_SEC_FETCH_MODE") == "navigate"
        if site not in {"none", "same-origin"} and not (page and _is_look(environ)):
            return False
        if origin is None or origin in self.rules.origins:
            return True
        host: str = environ.get("HTTP_HOST", "")
        return urlsplit(origin).netloc.lower() == host.lower()

    def _may(self, method: str, path: str) -> bool:
        if method in {"GET", "HEAD"}:
            return True
        path = path.rstrip("/")
        known = any(m == method and place.fullmatch(path) for m, place in EDITS)
        return self.rules.may_edit and known


def _is_look(environ: Environ) -> bool:
    return environ["REQUEST_METHOD"] in {"GET", "HEAD"}


def _is_short(length: str | None) -> bool:
    return not length or (length.isdecimal() and int(length) <= MOST_BYTES)


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _answering(path: str, start_response: StartResponse) -> StartResponse:
    """Sets the headers of an answer to what its path is safe with."""

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        given = [(k, v) for k, v in headers if not k.lower().startswith("access-control-")]
        changed = {**_ALWAYS, **_for(path, {k.lower(): v for k, v in given})}
        mine = {key.lower() for key in changed}
        kept = [(k, v) for k, v in given if k.lower() not in mine]
        return start_response(status, [*kept, *changed.items()], exc_info)

    return start


def _for(path: str, given: dict[str, str]) -> dict[str, str]:
    path = f"/{path.lstrip('/')}"
    if path.startswith("/static/"):  # the same for everyone, and large
        return {"Content-Security-Policy": _PAGE, "Cache-Control": "private, max-age=3600"}
    if not path.startswith("/artifacts/"):
        return {"Content-Security-Policy": _PAGE, "Cache-Control": "no-store"}
    kind = given.get("content-type", "").partition(";")[0].strip().lower()
    told = {"Content-Security-Policy": _FILE, "Cache-Control": "no-store"}
    if kind in _SHOWN:
        return {**told, "Content-Disposition": "inline"}
    return {**told, "Content-Type": _PLAIN, "Content-Disposition": "attachment"}
