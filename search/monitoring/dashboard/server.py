"""HTTP server of the dashboard: optuna-dashboard behind access control, and what it shows."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import waitress

from lesionseg.errors import InputError, one_line
from search.monitoring import notes
from search.monitoring.dashboard.access import (
    MAX_BODY_BYTES,
    AccessMiddleware,
    ListenAddress,
    format_host,
)
from search.monitoring.dashboard.artifact_reader import ArtifactReader
from search.monitoring.dashboard.study_api import StudyDetailPlugin
from search.signals import SignalHandler
from search.storage import database
from search.storage.optuna_internals import CachedStorage, FrozenStudy, study_id
from search.storage.retrying_storage import RetryingStorage, backend_of
from search.storage.study_dir import default_folder
from search.storage.transient_errors import STORAGE_ERRORS, describe_error
from search.storage.trial_records import StudyAttr
from search.study.location import find_run, list_runs
from search.study.opening import find_study, is_missing_file

#: Seconds between two updates of notes and figures.
REFRESH_PERIOD_S = 60.0
#: Seconds that a request waits for an unavailable database.
TIMEOUT_S = 5.0
#: Largest number of requests that are served at the same time.
N_THREADS = 6


class DashboardStorage(CachedStorage):
    """A storage that reads each finished trial once, and lists the study ``only`` or all.

    writer: the storage for notes and figures; reads have their own connections. folder: that of
    the study ``only``; None for ``runs/<name>``.
    """

    def __init__(
        self, writer: RetryingStorage, only: str | None = None, folder: Path | None = None
    ) -> None:
        reader = database.open_for_reading(writer)
        reader.timeout_s = writer.timeout_s = TIMEOUT_S
        super().__init__(reader)
        self.writer, self.only, self.folder = writer, only, folder

    def get_all_studies(self) -> list[FrozenStudy]:
        studies = super().get_all_studies()
        return [s for s in studies if self.only is None or s.study_name == self.only]

    def folder_of(self, name: str) -> Path:
        """Return the folder of a study, which need not exist on this host; or InputError."""
        return self.folder or default_folder(name)


def find_source(
    name: str | None, storage: str | None = None, folder: Path | None = None
) -> DashboardStorage:
    """Find the studies to show: one by name or folder, all of a storage, or the only run.

    Args:
        name: name or folder of a study; None for all studies of the storage or, without a
            storage, the only study under ``runs/``.
        storage: database URL; None for the one in the environment.
        folder: folder of the study, if its name differs from the study's.

    Raises:
        InputError: there is no such study or storage.
    """
    url = storage or database.storage_from_environment()
    if name is None and folder is None:
        if url:
            database_url = database.storage_url(url, Path("runs"))
            if is_missing_file(database_url):
                masked = database.mask_password(database_url)
                raise InputError(f"storage: {masked}: no such file")
            return DashboardStorage(database.open_storage(database_url))
        names = list_runs()
        if len(names) != 1:
            listed = ", ".join(names) or "none"
            raise InputError(f"name a study (under runs/: {listed}), or give a --storage")
        name = names[0]
    try:
        run = find_run(str(folder or name))
    except InputError:
        if not url or name is None:
            raise
        run = folder or default_folder(name)
    study = find_study(name or run.name, run, storage)
    return DashboardStorage(backend_of(study), study.study_name, run)


class Dashboard:
    """The web app, and a thread that updates the studies' notes and figures.

    on_event: called with one line when an update fails.
    """

    def __init__(
        self,
        storage: DashboardStorage,
        address: ListenAddress,
        on_event: Callable[[str], None] = lambda message: None,
    ) -> None:
        import optuna_dashboard  # importing it and plotly takes a second

        logging.getLogger("optuna_dashboard").setLevel(logging.CRITICAL)
        self.storage, self.address, self.on_event = storage, address, on_event
        self.detail_plugin = StudyDetailPlugin(storage)
        artifacts = ArtifactReader(storage, storage.folder_of)
        app: Any = optuna_dashboard.wsgi(storage, artifact_store=artifacts)
        app.install(self.detail_plugin)
        self.app = AccessMiddleware(app, address)
        self._n_finished: dict[int, int] = {}
        self._reported: set[str] = set()

    def serve(self, on_ready: Callable[[str], None]) -> None:
        """Serve until SIGTERM or SIGHUP, or until Ctrl-C, which raises KeyboardInterrupt.

        on_ready: called with the URL. InputError if the address is not available.
        """
        signals = SignalHandler()
        with signals.installed(), suppress(KeyboardInterrupt):
            server = self.create_server()
            updates = threading.Thread(
                target=self.refresh_until, args=(signals.stop_event,), daemon=True
            )
            try:
                updates.start()
                on_ready(self.url_of(server))
                server.run()  # returns on KeyboardInterrupt
            finally:
                server.close()
        if signals.signal_number == signal.SIGINT:
            raise KeyboardInterrupt

    def refresh(self) -> None:
        """Update notes and figures of studies in which trials ended since the last call."""
        for frozen in self.storage.get_all_studies():
            if StudyAttr.SPEC not in frozen.user_attrs:
                continue  # not a study of this project
            id_ = study_id(frozen)
            self.detail_plugin.study_json(id_)  # fills the cache for the first request
            trials = self.storage.get_all_trials(id_, deepcopy=False)
            n_finished = sum(t.state.is_finished() for t in trials)
            if self._n_finished.get(id_) != n_finished:
                notes.refresh(optuna.Study(frozen.study_name, self.storage.writer), trials)
                self._n_finished[id_] = n_finished

    def refresh_until(self, stop_event: threading.Event) -> None:
        """Update notes and figures periodically; report each kind of failure once."""
        while True:
            try:
                self.refresh()
            except STORAGE_ERRORS as error:  # as of a read-only database
                self._report(describe_error(error, self.storage.writer.redact))
            except Exception as error:  # the dashboard works without them
                self._report(one_line(error))
            if stop_event.wait(REFRESH_PERIOD_S):
                return

    def _report(self, reason: str) -> None:
        if reason not in self._reported:
            self._reported.add(reason)
            self.on_event(f"notes and figures were not updated: {reason}")

    def create_server(self) -> Any:
        """Return a waitress server that listens; InputError if the address is not available."""
        host = "127.0.0.1" if self.address.host == "localhost" else self.address.host
        try:
            return waitress.create_server(
                self.app, host=host, port=self.address.port, threads=N_THREADS, ident="",
                max_request_body_size=MAX_BODY_BYTES, clear_untrusted_proxy_headers=True,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(
                f"--port: cannot listen on {format_host(host)}:{self.address.port}: {reason}; "
                "choose another port"
            ) from None

    def url_of(self, server: Any) -> str:
        """Return the URL of a server of ``create_server``."""
        sockets = getattr(server, "effective_listen", None)  # for a name with several addresses
        port = sockets[0][1] if sockets else server.effective_port
        return f"http://{format_host(self.address.host)}:{port}/"
