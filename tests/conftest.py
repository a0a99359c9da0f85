"""What tests share: small data sets, real data, a real PostgreSQL.

Real data and PostgreSQL are looked for where the environment says. On a user's machine a test
that lacks one is skipped with the reason; in continuous integration (LESIONSEARCH_CI) it fails.
"""

from __future__ import annotations

import os

# Before torch is imported: tests share their cores with the processes that they start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import shutil
import signal
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import sqlalchemy
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Of a shell's background jobs every process ignores Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The same under nohup, for the tests that close a terminal.
if threading.current_thread() is threading.main_thread():  # Ray imports this in another one
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

IN_CI = bool(os.environ.get("LESIONSEARCH_CI"))
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the user's cache."""
    patch = pytest.MonkeyPatch()
    patch.setenv("LESIONSEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.delenv("LESIONSEARCH_STORAGE", raising=False)
    patch.delenv("LESIONSEARCH_STORAGE_FILE", raising=False)
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run in a folder of their own: what a command leaves behind is seen."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)


def write_pair(root: Path, name: str, *, size: tuple[int, int] = (48, 40), seed: int = 0) -> None:
    """A skin-coloured picture with a brown ellipse, and its exact mask; size is (width, height)."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "masks").mkdir(parents=True, exist_ok=True)
    width, height = size
    rx, ry = rng.uniform(0.12, 0.4, 2) * (width, height)
    cx, cy = rng.uniform(0.35, 0.65, 2) * (width, height)
    box = (cx - rx, cy - ry, cx + rx, cy + ry)
    image, mask = Image.new("RGB", size, (222, 180, 160)), Image.new("L", size, 0)
    ImageDraw.Draw(image).ellipse(box, fill=(110, 70, 50))
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    noise = rng.normal(0, 6, (height, width, 3))
    pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(root / "images" / f"{name}.png")
    mask.save(root / "masks" / f"{name}.png")


def write_folder(root: Path, n: int) -> Path:
    """``n`` pairs in the generic layout, called im000, im001, ..."""
    for i in range(n):
        write_pair(root, f"im{i:03}", seed=i)
    return root


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 small pairs in the generic layout; not to be changed."""
    return write_folder(tmp_path_factory.mktemp("tiny"), 30)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real dermoscopy: isic2018/, ph2/, ham10000/."""
    folder = Path(os.environ.get("LESIONSEARCH_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "isic2018").is_dir():
        _lacking(f"no real images at {folder}; LESIONSEARCH_TEST_DATA names their folder")
    return folder


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """A fresh, empty database on a real server; dropped afterwards."""
    base = sqlalchemy.make_url(
        os.environ.get(
            "LESIONSEARCH_TEST_POSTGRES", "postgresql+psycopg://postgres@127.0.0.1:5432/test"
        )
    )
    name = f"lesionsearch_{uuid.uuid4().hex[:12]}"
    server = sqlalchemy.create_engine(base, isolation_level="AUTOCOMMIT")
    try:
        with server.connect() as connection:
            connection.exec_driver_sql(f'CREATE DATABASE "{name}"')
    except sqlalchemy.exc.OperationalError as error:
        _lacking(f"no PostgreSQL ({error.orig}); LESIONSEARCH_TEST_POSTGRES is its URL")
    yield base.set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.exec_driver_sql(f'DROP DATABASE "{name}" WITH (FORCE)')
    server.dispose()


def _lacking(what: str) -> None:
    if IN_CI:
        pytest.fail(what)
    pytest.skip(what)


#: What a Chromium is called, from system to system.
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium of this machine, driven by playwright."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        _lacking(f"no browser ({', '.join(BROWSERS)})")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()
