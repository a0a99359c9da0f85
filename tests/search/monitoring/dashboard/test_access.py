"""The address of the dashboard and its access rules."""

from __future__ import annotations

import pytest

from lesionseg.errors import InputError
from search.monitoring.dashboard.access import (
    PASSWORD_VARIABLE,
    ListenAddress,
    is_loopback,
    read_password,
)
from search.monitoring.dashboard.auth import LOOPBACK_NAMES

SECRET = "correct horse"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_addresses_need_no_password(host):
    assert is_loopback(host)
    assert ListenAddress(host).rules.hosts >= LOOPBACK_NAMES


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "lab", "localhost.example", "", "127.0.0.1.evil"]
)
def test_other_addresses_need_a_password(host):
    assert not is_loopback(host)
    with pytest.raises(InputError, match=f"--host {host}: .*--password-file .*{PASSWORD_VARIABLE}"):
        ListenAddress(host)
    rules = ListenAddress(host, password=SECRET).rules
    assert (rules.password, rules.hosts) == (SECRET, None)


def test_a_public_origin_needs_a_password():
    with pytest.raises(InputError, match="--public"):
        ListenAddress(public="https://lab.example")
    rules = ListenAddress(password=SECRET, public="https://Lab.example:8443").rules
    assert "lab.example" in rules.hosts
    assert rules.origins == {"https://lab.example:8443"}


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
