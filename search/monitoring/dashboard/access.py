"""Address of the dashboard, and the access rules that follow from it."""

from __future__ import annotations

import ipaddress
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from lesionseg.errors import InputError
from search.monitoring.dashboard.auth import LOOPBACK_NAMES, AccessRules

#: Environment variable with the password, where no file is given.
PASSWORD_VARIABLE = "LESIONSEARCH_DASHBOARD_PASSWORD"  # noqa: S105
MIN_PASSWORD_LENGTH = 8

_ORIGIN = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?")


@dataclass(frozen=True)
class ListenAddress:
    """Address to listen on, and who may connect.

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

    @property
    def rules(self) -> AccessRules:
        """The access rules for requests to this address."""
        # At other addresses the password protects against DNS rebinding.
        names = LOOPBACK_NAMES | {format_host(self.host)} if is_loopback(self.host) else None
        if names is not None and self.public is not None:
            names |= {format_host(urlsplit(self.public).hostname or "")}
        origins = frozenset({self.public.lower()} if self.public else ())
        return AccessRules(self.password, names, origins, self.may_edit)


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
