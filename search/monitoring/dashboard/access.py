"""Where the dashboard listens, and who may reach it there."""

from __future__ import annotations

import ipaddress
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from lesionseg.errors import InputError
from search.monitoring.dashboard.auth import LOOPBACK, Rules

#: Where the password is looked for when no file is given.
PASSWORD = "LESIONSEARCH_DASHBOARD_PASSWORD"  # noqa: S105
#: Characters that a password has at least.
SHORTEST = 8

_ORIGIN = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?")


@dataclass(frozen=True)
class Reach:
    """Where to listen, and for whom.

    public: the origin that a reverse proxy shows the dashboard under, such as
    ``https://lab.example``. Raises InputError for one that is none, and where others than this
    host could come in without a password.
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
            what = f"--public {self.public}" if self.public else f"--host {self.host}"
            raise InputError(
                f"{what}: others can come in there; give a --password-file or set {PASSWORD}"
            )

    @property
    def rules(self) -> Rules:
        """What the door goes by."""
        # On another address the password keeps out those whom a foreign name would lead here.
        names = LOOPBACK | {bracketed(self.host)} if is_loopback(self.host) else None
        if names is not None and self.public is not None:
            names |= {bracketed(urlsplit(self.public).hostname or "")}
        origins = frozenset({self.public.lower()} if self.public else ())
        return Rules(self.password, names, origins, self.may_edit)


def read_password(file: Path | None) -> str | None:
    """The password of a file or, without one, of the environment; None where there is neither.

    InputError where the file cannot be read, or it is not one line of SHORTEST characters.
    """
    where, text = str(file or PASSWORD), os.environ.get(PASSWORD)
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise InputError(f"--password-file: {file}: cannot be read: {reason}") from None
    if text is not None and (len(text) < SHORTEST or len(text.splitlines()) > 1):
        raise InputError(f"{where}: must be one line of {SHORTEST} characters or more")
    return text


def is_loopback(host: str) -> bool:
    """Whether nobody but this host itself can reach an address."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def bracketed(host: str) -> str:
    """A host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host
