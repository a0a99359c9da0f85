"""The files of a study's folder, for people; workers read the same facts from the storage.

``runs/<name>/`` holds study.yaml (the spec), run.json (where its data and its storage are),
split.json, data.json, audit.json, study.db unless another storage is used, trials/<n>/, final/ and
report.html.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import optuna
import yaml
from sqlalchemy.engine import URL

from lesionseg.data.merge import Roots, list_roots
from lesionseg.errors import InputError
from lesionseg.runtime.files import atomic_write
from search.storage.database import mask_password, sqlite_url
from search.storage.study_dir import RunInfo
from search.storage.trial_records import StudyAttr


def write_study_files(
    study: optuna.Study, folder: Path, url: URL, data: Roots | None, layout: str | None = None
) -> None:
    """Write study.yaml, split.json and, last, run.json, which makes the folder a study's."""
    run_info: RunInfo = {
        "study": study.study_name,
        "uuid": study.user_attrs.get(StudyAttr.UUID),
        "storage": None if url == sqlite_url(folder) else mask_password(url),
        "data": None if data is None else _format_roots(data),
        "layout": layout,
        "version": version("lesionsearch"),
    }
    attrs = study.user_attrs
    atomic_write(folder / "study.yaml", yaml.safe_dump(attrs[StudyAttr.SPEC], sort_keys=False))
    atomic_write(folder / "split.json", json.dumps(attrs[StudyAttr.SPLIT], indent=1))
    atomic_write(folder / "run.json", json.dumps(run_info, indent=1))


def recorded_roots(run_info: RunInfo) -> Roots:
    """Return the folders of the images from run.json; raises InputError if it has none."""
    data = run_info["data"]
    if data is None:
        raise InputError("--data: give the folder of the images on this host")
    return Path(data) if isinstance(data, str) else tuple(map(Path, data))


def _format_roots(data: Roots) -> str | list[str]:
    paths = sorted(str(root.resolve()) for root in list_roots(data))
    return paths[0] if len(paths) == 1 else paths
