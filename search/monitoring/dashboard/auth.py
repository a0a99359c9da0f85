"""Access control of the dashboard: WSGI middleware around optuna-dashboard, which has none.

``AccessMiddleware`` checks the host name, the password, the origin, the method and the size of a
request, and sets the security headers of the response. Only reading is allowed, and editing notes
where ``AccessRules.may_edit`` is set: other writes could break a running study.
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
WsgiApp = Callable[[Environ, StartResponse], Iterable[bytes]]

#: Largest body of a request; notes are far smaller.
MAX_BODY_BYTES = 1 << 20
#: Methods and paths that write notes.
NOTE_ROUTES = (
    ("PUT", re.compile(r"/api/studies/\d+/note")),
    ("PUT", re.compile(r"/api/studies/\d+/\d+/note")),
)
#: Names of this host in URLs of a browser that runs on it.
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

#: Plotly's parallel coordinates build functions at run time, and its styles are inline.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILE_POLICY = "default-src 'none'; sandbox; frame-ancestors 'none'"
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: Types of artifacts that browsers may display; all others are downloaded as plain text.
_INLINE_TYPES = frozenset({"image/png", "image/jpeg", "text/csv"})
_PLAIN_TEXT = "text/plain; charset=utf-8"
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::[0-9]+)?")


@dataclass(frozen=True)
class AccessRules:
    """Who may use the dashboard, and for what.

    Attributes:
        password: None where no password is required.
        hosts: host names that requests may use, in lower case and without port; None for any.
        origins: other origins of the dashboard's own pages, such as ``https://name``.
        may_edit: whether notes may be edited.
    """

    password: str | None = None
    hosts: frozenset[str] | None = LOOPBACK_NAMES
    origins: frozenset[str] = frozenset()
    may_edit: bool = False


class AccessMiddleware:
    """WSGI app that passes permitted requests on to another WSGI app."""

    def __init__(self, app: WsgiApp, rules: AccessRules) -> None:
        self.app, self.rules = app, rules

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Refuse a request with one line of text, or pass it on and add headers to the response."""
        refusal = self._check_request(environ)
        if refusal is None:
            return self.app(environ, _with_safe_headers(environ["PATH_INFO"], start_response))
        status, text = refusal
        headers = [("Content-Type", _PLAIN_TEXT), ("Content-Length", str(len(text)))]
        if status.startswith("401"):
            headers.append(("WWW-Authenticate", 'Basic realm="lesionsearch", charset="UTF-8"'))
        _with_safe_headers("", start_response)(status, headers)
        return [text]

    def _check_request(self, environ: Environ) -> tuple[str, bytes] | None:
        """Return status and text of the refusal, or None for a permitted request."""
        if not self._is_host_allowed(environ.get("HTTP_HOST", "")):
            return "421 Misdirected Request", b"The host name is not allowed.\n"
        if not self._is_password_correct(environ.get("HTTP_AUTHORIZATION", "")):
            return "401 Unauthorized", b"A password is required; any user name is accepted.\n"
        if not self._is_same_origin(environ):
            return "403 Forbidden", b"Requests from pages of other origins are not allowed.\n"
        if not self._is_method_allowed(environ["REQUEST_METHOD"], environ["PATH_INFO"]):
            return "403 Forbidden", b"The dashboard is read-only; --allow-edit permits notes.\n"
        if not _is_length_allowed(environ.get("CONTENT_LENGTH")):
            return "413 Content Too Large", b"The request is too large.\n"
        return None

    def _is_host_allowed(self, host: str) -> bool:
        """Check the Host header; a foreign name may come from DNS rebinding."""
        match = _HOST.fullmatch(host)
        hosts = self.rules.hosts
        return match is not None and (hosts is None or match[1].lower() in hosts)

    def _is_password_correct(self, authorization: str) -> bool:
        """Check the password of an Authorization header (HTTP Basic; any user name)."""
        if self.rules.password is None:
            return True
        scheme, _, encoded = authorization.partition(" ")
        try:
            decoded = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            return False
        password = decoded.partition(b":")[2]
        # Digests have equal lengths: the time of the comparison does not reveal the length.
        is_equal = hmac.compare_digest(_digest(password), _digest(self.rules.password.encode()))
        return scheme.lower() == "basic" and is_equal

    def _is_same_origin(self, environ: Environ) -> bool:
        """Check the headers by which browsers identify the page that sent a request."""
        origin = environ.get("HTTP_ORIGIN")
        site = environ.get("HTTP_SEC_FETCH_SITE", "none")
        is_navigation = environ.get("HTTP_SEC_FETCH_MODE") == "navigate"
        is_link = is_navigation and environ["REQUEST_METHOD"] in {"GET", "HEAD"}
        if site not in {"none", "same-origin"} and not is_link:
            return False
        if origin is None or origin in self.rules.origins:
            return True
        host: str = environ.get("HTTP_HOST", "")
        return urlsplit(origin).netloc.lower() == host.lower()

    def _is_method_allowed(self, method: str, path: str) -> bool:
        if method in {"GET", "HEAD"}:
            return True
        path = path.rstrip("/")
        is_note = any(m == method and route.fullmatch(path) for m, route in NOTE_ROUTES)
        return self.rules.may_edit and is_note


def _is_length_allowed(length: str | None) -> bool:
    return not length or (length.isdecimal() and int(length) <= MAX_BODY_BYTES)


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _with_safe_headers(path: str, start_response: StartResponse) -> StartResponse:
    """Wrap start_response: remove CORS headers and set the security headers for a path."""

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        headers = [(k, v) for k, v in headers if not k.lower().startswith("access-control-")]
        content_type = next((v for k, v in headers if k.lower() == "content-type"), "")
        safe_headers = {**_SECURITY_HEADERS, **_path_headers(path, content_type)}
        replaced = {key.lower() for key in safe_headers}
        remaining = [(k, v) for k, v in headers if k.lower() not in replaced]
        return start_response(status, [*remaining, *safe_headers.items()], exc_info)

    return start


def _path_headers(path: str, content_type: str) -> dict[str, str]:
    path = f"/{path.lstrip('/')}"
    if path.startswith("/static/"):  # large, and equal for all users
        return {"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "private, max-age=3600"}
    if not path.startswith("/artifacts/"):
        return {"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "no-store"}
    headers = {"Content-Security-Policy": _FILE_POLICY, "Cache-Control": "no-store"}
    if content_type.partition(";")[0].strip().lower() in _INLINE_TYPES:
        return {**headers, "Content-Disposition": "inline"}
    return {**headers, "Content-Type": _PLAIN_TEXT, "Content-Disposition": "attachment"}
