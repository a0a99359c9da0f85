"""Access control of the dashboard: WSGI middleware around optuna-dashboard, which has none.

``AccessMiddleware`` checks the host name, the password, the origin, the method and the size of a
request, and sets the security headers of the response. Only reading is allowed, and editing notes
where ``ListenAddress.may_edit`` is set: other writes could break a running study.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from wsgiref.headers import Headers

import bottle

from lesionseg.errors import InputError

StartResponse = Callable[..., Any]
WsgiApp = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]

#: Environment variable with the password, where no file is given.
PASSWORD_VARIABLE = "LESIONSEARCH_DASHBOARD_PASSWORD"  # noqa: S105
MIN_PASSWORD_LENGTH = 8
#: Largest body of a request; notes are far smaller.
MAX_BODY_BYTES = 1 << 20
#: Names of this host in URLs of a browser that runs on it.
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

_NOTE_PATH = re.compile(r"/api/studies/\d+(/\d+)?/note")
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::[0-9]+)?")
_ORIGIN = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?")

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


@dataclass(frozen=True)
class ListenAddress:
    """Address to listen on, who may connect, and for what.

    Attributes:
        host: a name or an IP address of this host.
        port: 0 for any free port.
        password: required where other hosts can connect.
        public: origin of a reverse proxy in front of the dashboard, such as ``https://lab.example``.
        may_edit: whether notes may be edited.

    Raises:
        InputError: ``public`` is not an origin, or other hosts could connect without a password.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    password: str | None = field(default=None, repr=False)
    public: str | None = None
    may_edit: bool = False

    def __post_init__(self) -> None:
        if self.public is not None and not _ORIGIN.fullmatch(self.public):
            raise InputError(
                f"--public: must be an origin such as https://lab.example, got {self.public!r}"
            )
        if self.password is None and (self.public or not is_loopback(self.host)):
            option = f"--public {self.public}" if self.public else f"--host {self.host}"
            raise InputError(
                f"{option}: other hosts can connect, which requires a password; "
                f"give --password-file or set {PASSWORD_VARIABLE}"
            )

    def allowed_hosts(self) -> frozenset[str] | None:
        """Return the host names that requests may use, without port; None for any."""
        if not is_loopback(self.host):
            return None  # the password protects against DNS rebinding
        public = {format_host(urlsplit(self.public).hostname or "")} if self.public else set()
        return LOOPBACK_NAMES | {format_host(self.host)} | public


def read_password(file: Path | None) -> str | None:
    """Return the password of a file or, without a file, of the environment; None without either.

    Raises:
        InputError: the file cannot be read, or the password is too short or has several lines.
    """
    source, text = str(file or PASSWORD_VARIABLE), os.environ.get(PASSWORD_VARIABLE)
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise InputError(f"--password-file: {file}: cannot be read: {reason}") from None
    if text is not None and (len(text) < MIN_PASSWORD_LENGTH or len(text.splitlines()) > 1):
        raise InputError(f"{source}: must be one line of at least {MIN_PASSWORD_LENGTH} characters")
    return text


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this host only."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def format_host(host: str) -> str:
    """Return a host as it is written in URLs: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


class AccessMiddleware:
    """WSGI app that passes permitted requests on to another WSGI app."""

    def __init__(self, app: WsgiApp, address: ListenAddress) -> None:
        self.app, self.address = app, address
        self.hosts = address.allowed_hosts()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
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

    def _check_request(self, environ: dict[str, Any]) -> tuple[str, bytes] | None:
        """Return status and text of the refusal, or None for a permitted request."""
        host = _HOST.fullmatch(environ.get("HTTP_HOST", ""))
        # A foreign name may come from DNS rebinding.
        if not host or (self.hosts is not None and host[1].lower() not in self.hosts):
            return "421 Misdirected Request", b"The host name is not allowed.\n"
        if not self._is_password_correct(environ.get("HTTP_AUTHORIZATION", "")):
            return "401 Unauthorized", b"A password is required; any user name is accepted.\n"
        if not self._is_same_origin(environ):
            return "403 Forbidden", b"Requests from pages of other origins are not allowed.\n"
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"].rstrip("/")
        is_note_edit = method == "PUT" and _NOTE_PATH.fullmatch(path) is not None
        if method not in {"GET", "HEAD"} and not (self.address.may_edit and is_note_edit):
            return "403 Forbidden", b"The dashboard is read-only; --allow-edit permits notes.\n"
        length = environ.get("CONTENT_LENGTH")
        if length and not (length.isdecimal() and int(length) <= MAX_BODY_BYTES):
            return "413 Content Too Large", b"The request is too large.\n"
        return None

    def _is_password_correct(self, authorization: str) -> bool:
        """Check the password of an Authorization header (HTTP Basic; any user name)."""
        if self.address.password is None:
            return True
        credentials = bottle.parse_auth(authorization)
        if credentials is None:
            return False
        # Digests have equal lengths: the time of the comparison does not reveal the length.
        passwords = (credentials[1], self.address.password)
        return hmac.compare_digest(*(hashlib.sha256(p.encode()).digest() for p in passwords))

    def _is_same_origin(self, environ: dict[str, Any]) -> bool:
        """Check the headers by which browsers identify the page that sent a request."""
        origin = environ.get("HTTP_ORIGIN")
        site = environ.get("HTTP_SEC_FETCH_SITE", "none")
        is_navigation = environ.get("HTTP_SEC_FETCH_MODE") == "navigate"
        is_link = is_navigation and environ["REQUEST_METHOD"] in {"GET", "HEAD"}
        if site not in {"none", "same-origin"} and not is_link:
            return False
        public = self.address.public
        if origin is None or (public is not None and origin == public.lower()):
            return True
        host: str = environ.get("HTTP_HOST", "")
        return bool(urlsplit(origin).netloc.lower() == host.lower())


def _with_safe_headers(path: str, start_response: StartResponse) -> StartResponse:
    """Wrap start_response: remove CORS headers and set the security headers for a path."""

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        safe = Headers([(k, v) for k, v in headers if not k.lower().startswith("access-control-")])
        path_headers = _path_headers(path, safe.get("Content-Type", ""))
        for name, value in {**_SECURITY_HEADERS, **path_headers}.items():
            safe[name] = value
        return start_response(status, safe.items(), exc_info)

    return start


def _path_headers(path: str, content_type: str) -> dict[str, str]:
    path = f"/{path.lstrip('/')}"
    if path.startswith("/static/"):  # large, and equal for all users
        return {"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "private, max-age=3600"}
    if not path.startswith("/artifacts/"):
        return {"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "no-store"}
    is_inline = content_type.partition(";")[0].strip().lower() in _INLINE_TYPES
    headers = {"Content-Disposition": "inline" if is_inline else "attachment"}
    headers |= {} if is_inline else {"Content-Type": _PLAIN_TEXT}
    return {**headers, "Content-Security-Policy": _FILE_POLICY, "Cache-Control": "no-store"}
