"""The dashboard: optuna-dashboard with trials' files, behind a lock, served to the browser."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import waitress

from lesionseg.errors import InputError
from search.monitoring.dashboard import study_note
from search.monitoring.dashboard.access import ListenAddress, format_host
from search.monitoring.dashboard.artifact_reader import ArtifactReader
from search.monitoring.dashboard.auth import MAX_BODY_BYTES, AccessMiddleware
from search.monitoring.dashboard.study_api import Listing
from search.monitoring.status import find_run, list_runs
from search.signals import SignalHandler
from search.storage.database import (
    mask_password,
    open_storage,
    storage_from_environment,
    storage_url,
)
from search.storage.optuna_internals import CachedStorage, FrozenStudy, study_id
from search.storage.queries import RowStorage
from search.storage.retrying_storage import RetryingStorage, backend_of
from search.study.lifecycle import load_study

#: Seconds between two looks at whether the study's note and figures are still right.
PERIOD = 60.0
#: Seconds for which a request waits for a database that is away.
PATIENCE = 5.0
#: Requests that are answered side by side.
THREADS = 6


class Shown(CachedStorage):
    """A storage as the dashboard sees it: what ended is read once, and some studies only.

    only: the name of the one study that is shown; None for all. writing: the storage that notes
    and figures are written to; reading has connections of its own.
    """

    def __init__(self, writing: RetryingStorage, only: str | None = None) -> None:
        reading = RowStorage.for_reading(writing)
        reading.timeout_s = writing.timeout_s = PATIENCE
        super().__init__(reading)
        self.writing, self.only = writing, only

    def get_all_studies(self) -> list[FrozenStudy]:
        """Those that are shown."""
        found = super().get_all_studies()
        return [s for s in found if self.only is None or s.study_name == self.only]


@dataclass(frozen=True)
class Source:
    """What is shown. folders: those of studies by name; others are looked for under ``root``."""

    storage: Shown
    folders: dict[str, Path] = field(default_factory=dict)
    root: Path = Path("runs")


def find(name: str | None, storage: str | None = None, folder: Path | None = None) -> Source:
    """A study by its name or folder; without one all of a storage, or the only one under runs/.

    storage: a URL, else as the environment says. folder: the study's, where the name is not it.
    InputError where nothing is found.
    """
    given = storage or storage_from_environment()
    if name is None and folder is None and not given:
        known = list_runs()
        if len(known) != 1:
            there = ", ".join(known) or "none"
            raise InputError(f"name a study (under runs/: {there}), or give a --storage")
        name = known[0]
    if name is None and folder is None:
        return Source(Shown(_opened(given, Path("runs"))))
    try:
        home = find_run(str(folder or name))
    except InputError:
        if not given or name is None:
            raise
        backend = _opened(given, folder or Path("runs") / name)
        if name not in optuna.get_all_study_names(backend):
            raise InputError(f"the storage holds no study {name!r}; is it the name?") from None
        return Source(Shown(backend, name), {} if folder is None else {name: folder})
    study, _ = load_study(home, storage=storage)
    return Source(Shown(backend_of(study), study.study_name), {study.study_name: home})


def _opened(given: str | None, folder: Path) -> RetryingStorage:
    url = storage_url(given, folder)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
        raise InputError(
            f"storage: {mask_password(url)}: there is no such file"
        )  # it would be made
    return open_storage(url)


class Dashboard:
    """The app and the thread that keeps studies' notes and figures as they should be.

    on_event: told what went wrong with that, in a line.
    """

    def __init__(
        self, source: Source, address: ListenAddress, on_event: Callable[[str], None] = lambda told: None
    ) -> None:
        import optuna_dashboard  # it and plotly take a second

        logging.getLogger("optuna_dashboard").setLevel(logging.CRITICAL)
        self.source, self.address, self.on_event = source, address, on_event
        self.listing = Listing(source.storage)
        gallery = ArtifactReader(source.storage, source.folders, source.root)
        inner: Any = optuna_dashboard.wsgi(source.storage, artifact_store=gallery)
        inner.install(self.listing)
        self.app = AccessMiddleware(inner, address.rules)
        self._ended: dict[int, int] = {}
        self._told: set[str] = set()

    def serve(self, on_ready: Callable[[str], None]) -> None:
        """Serves until SIGTERM, or until Ctrl-C, which is raised as KeyboardInterrupt.

        on_ready: told the address once it is listened at. InputError where that cannot be done.
        """
        signals, over = SignalHandler(), threading.Event()
        with signals.installed():
            server = self._listening()
            keeper = threading.Thread(target=self._keep, args=(over,), daemon=True)
            try:
                keeper.start()
                on_ready(self._url(server))
                server.run()  # it takes a KeyboardInterrupt for its end
            except KeyboardInterrupt:
                pass
            finally:
                over.set()
                server.close()
        if signals.signal_number != signal.SIGTERM:
            raise KeyboardInterrupt

    def refresh(self) -> None:
        """Brings notes and figures up to date where trials have ended since the last time."""
        for frozen in self.source.storage.get_all_studies():
            if "spec" not in frozen.user_attrs:
                continue  # somebody else's
            self.listing.detail(study_id(frozen))  # so that the first view need not wait for it
            known = self.source.storage.get_all_trials(study_id(frozen), deepcopy=False)
            ended = sum(t.state.is_finished() for t in known)
            if self._ended.get(study_id(frozen)) != ended:
                study = optuna.Study(frozen.study_name, self.source.storage.writing)
                study_note.refresh(study, known)
                self._ended[study_id(frozen)] = ended

    def _keep(self, over: threading.Event) -> None:
        while True:
            try:
                self.refresh()
            except Exception as error:  # looking goes on without it
                told = f"notes and figures not brought up to date: {_line(error)}"
                if told not in self._told:
                    self._told.add(told)
                    self.on_event(told)
            if over.wait(PERIOD):
                return

    def _listening(self) -> Any:
        host = "127.0.0.1" if self.address.host == "localhost" else self.address.host
        try:
            return waitress.create_server(
                self.app, host=host, port=self.address.port, threads=THREADS, ident="",
                max_request_body_size=MAX_BODY_BYTES, clear_untrusted_proxy_headers=True,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            where = f"{format_host(host)}:{self.address.port}"
            raise InputError(
                f"--port: {where}: cannot be listened at: {reason}; choose another one"
            ) from None

    def _url(self, server: Any) -> str:
        several = getattr(server, "effective_listen", None)
        port = several[0][1] if several else server.effective_port
        return f"http://{format_host(self.address.host)}:{port}/"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
