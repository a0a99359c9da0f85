"""Artifacts in a folder."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from lesionseg.errors import InputError
from lesionseg.runtime.files import atomic_write
from search.storage.artifact_store.base import MARKER, ArtifactStore, is_file_name


class FolderArtifactStore(ArtifactStore):
    """The study's own folder, or one that all hosts share; a written file is in the store."""

    is_local = True

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def put(self, number: int, name: str) -> None:
        """Check that the file exists."""
        self._path(number, name).stat()

    def fetch(self, number: int, name: str) -> Path | None:
        """Return the file's path if it exists."""
        path = self._path(number, name)
        return path if path.is_file() else None

    def delete(self, number: int, name: str) -> None:
        """Delete a file."""
        self._path(number, name).unlink(missing_ok=True)

    def list_files(self, number: int) -> list[str]:
        """Return the names of files that are not hidden."""
        paths = self._folder(number).glob("*")
        return sorted(p.name for p in paths if p.is_file() and is_file_name(p.name))

    def list_trials(self) -> list[int]:
        """Return the numbers that name folders."""
        paths = (self.root / "trials").glob("*")
        return sorted(int(p.name) for p in paths if p.name.isdecimal())

    def total_bytes(self) -> int:
        """Return the size of all files below ``trials``."""
        total = 0
        for folder, _, names in os.walk(self.root / "trials"):
            for name in names:
                with suppress(FileNotFoundError):  # deleted by another worker meanwhile
                    total += os.stat(Path(folder, name)).st_size
        return total

    def _read_marker(self) -> str | None:
        try:
            return (self.root / "trials" / MARKER).read_text()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"artifacts: {self}: cannot be read: {error.strerror}") from None

    def _write_marker(self, study_id: str) -> None:
        path = self.root / "trials" / MARKER
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, study_id, unique=True)
        except OSError as error:
            raise InputError(f"artifacts: {self}: cannot be written: {error.strerror}") from None
