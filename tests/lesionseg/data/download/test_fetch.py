"""Download of data sets from a server that breaks off, refuses and misreports."""

import errno
import hashlib
import json
import os
import shutil
import time
import zipfile
from types import SimpleNamespace

import filelock
import pytest
from typer.testing import CliRunner

import cli
from lesionseg.data.download import fetch, http
from lesionseg.data.download.datasets import SOURCES
from lesionseg.data.download.fetch import fetch_dataset
from lesionseg.data.download.http import DownloadError
from lesionseg.data.index import DatasetIndex
from lesionseg.errors import InputError
from tests.lesionseg.data.download.server import CONTENT, FIRST, Server, make_files, make_zip


@pytest.fixture
def root(tmp_path):
    """A folder without other files."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(http, "BACKOFF_S", 0.001)
    monkeypatch.setattr(http, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(fetch, "RESERVE_BYTES", 0)
    files = Server(make_files("isic2018"))
    yield files
    files.http.shutdown()
    files.http.server_close()


def download(server, root, **options):
    fetch_dataset("isic2018", root, accept_license=True, base_url=server.url, **options)


def error_of(kind, server, root, **options) -> str:
    with pytest.raises(kind) as caught:
        download(server, root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def is_complete(root) -> bool:
    index = DatasetIndex.read(root, "isic2018")
    return [(r.name, r.split) for r in index.records] == [
        ("ISIC_0", "train"),
        ("ISIC_1", "val"),
        ("ISIC_2", "test"),
    ]


# --- result --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["isic2016", "isic2017", "isic2018"])
def test_each_challenge_is_downloaded_in_the_layout_that_the_index_reads(server, root, name):
    server.files = make_files(name)
    message = []
    fetch_dataset(
        name,
        root,
        accept_license=True,
        base_url=server.url,
        on_progress=lambda *each: message.append(each),
    )
    index = DatasetIndex.read(root)
    assert index.layout == name
    assert len(index.records) == len(SOURCES[name].files) // 2
    assert {n for n, done, total in message if done == total} == set(SOURCES[name].files)
    assert {p.name for p in (root / ".fetch").iterdir()} <= {"done.json", "lock"}
    done = json.loads((root / ".fetch" / "done.json").read_text())
    for file, content in server.files.items():
        assert done[file]["sha256"] == hashlib.sha256(content).hexdigest()
        assert done[file]["size"] == len(content)


def test_ham10000_is_downloaded_from_dataverse(server, root):
    files = make_files("ham10000")
    rows = []
    for i, (name, content) in enumerate(files.items()):
        server.files[str(i)] = content
        md5 = hashlib.md5(content).hexdigest()
        row = {"id": i, "filename": name, "filesize": len(content), "md5": md5}
        if name == "HAM10000_metadata":  # converted to a table
            table = {"filename": f"{name}.tab", "filesize": 7, "originalFileSize": len(content)}
            row |= {**table, "originalFileFormat": "text/csv"}
        rows.append({"dataFile": row})
    server.files[":persistentId"] = json.dumps(
        {"status": "OK", "data": {"latestVersion": {"files": rows}}}
    ).encode()
    real = server.answer

    def answer(request, *, head):
        request.path = request.path.replace("/:persistentId/", "/:persistentId")
        real(request, head=head)

    server.answer = answer
    fetch_dataset("ham10000", root, accept_license=True, base_url=server.url)
    index = DatasetIndex.read(root)
    assert [(r.name, r.group) for r in index.records] == [("a", "L1"), ("b", "L1")]
    shutil.rmtree(root)
    server.files["1"] = server.files["1"][::-1]
    with pytest.raises(DownloadError, match=r"its MD5 is .*, expected"):
        fetch_dataset("ham10000", root, accept_license=True, base_url=server.url)
    assert not (root / "HAM10000_images_part_2").exists()


def test_complete_files_are_not_downloaded_again(server, root):
    download(server, root, keep_archives=True)
    assert (root / ".fetch" / FIRST).read_bytes() == server.files[FIRST]
    before = len(server.log)
    download(server, root)
    assert server.log[before:] == []
    # A deleted folder is unpacked from the kept archive.
    shutil.rmtree(root / FIRST.removesuffix(".zip"))
    download(server, root)
    assert [method for method, *_ in server.log[before:]] == ["HEAD"]
    assert is_complete(root)


# --- resuming ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [["break"] * 6, [503, 503, "break", 429, 500], ["break", 503] * 4],
)
def test_a_broken_transfer_is_resumed_and_no_byte_is_sent_twice(server, root, faults):
    server.faults[FIRST] = list(faults)
    download(server, root)
    assert is_complete(root)
    assert server.faults[FIRST] == []
    assert server.sent[FIRST] == len(server.files[FIRST])


def test_a_later_call_resumes(server, root):
    server.faults[FIRST] = ["break", *[503] * http.ATTEMPTS]
    message = error_of(DownloadError, server, root)
    size = len(server.files[FIRST])
    assert "too many 503 error responses" in message
    assert f"{size // 2} of {size} bytes are kept" in message
    assert [p.name for p in root.iterdir()] == [".fetch"]
    with pytest.raises(InputError):
        DatasetIndex.read(root)
    download(server, root)
    assert is_complete(root)
    assert server.sent[FIRST] == size


def test_without_range_support_the_file_is_sent_again(server, root):
    server.faults[FIRST] = ["break", "whole"]
    download(server, root)
    assert is_complete(root)
    assert server.sent[FIRST] == len(server.files[FIRST]) * 3 // 2


def test_a_part_longer_than_the_file_is_discarded(server, root):
    part = root / ".fetch" / f"{FIRST}.part"
    part.parent.mkdir()
    part.write_bytes(bytes(len(server.files[FIRST]) + 1))
    download(server, root)
    assert is_complete(root)


def test_416_restarts(server, root):
    server.faults[FIRST] = [416, "break", 416]
    download(server, root)
    assert is_complete(root)


@pytest.mark.parametrize("fault", ["elsewhere", "rangeless"])
def test_a_wrong_range_is_not_appended(server, root, fault):
    server.faults[FIRST] = ["break", fault]
    download(server, root)
    assert is_complete(root)
    assert (root / FIRST.removesuffix(".zip") / "ISIC_0.jpg").read_bytes() == CONTENT


def test_a_server_that_always_sends_a_wrong_range_fails_soon(server, root):
    server.faults[FIRST] = ["break", "elsewhere"] * 20
    message = error_of(DownloadError, server, root)
    assert "sends another range or file than requested, 8 times in a row" in message
    assert server.sent[FIRST] <= 4 * len(server.files[FIRST])


@pytest.mark.parametrize("known", [b'"of the old file"', b"\xff\xfe", b"", None])
def test_a_changed_file_is_not_combined_with_its_old_part(server, root, known):
    new = make_zip(**{f"{FIRST.removesuffix('.zip')}/ISIC_0.jpg": CONTENT[::-1]})
    server.files[FIRST] = new
    part, etag = (root / ".fetch" / f"{FIRST}.{kind}" for kind in ("part", "etag"))
    part.parent.mkdir()
    part.write_bytes(bytes(len(new) // 2))
    if known is not None:
        etag.write_bytes(known)
    download(server, root)
    assert is_complete(root)
    assert (root / FIRST.removesuffix(".zip") / "ISIC_0.jpg").read_bytes() == CONTENT[::-1]


def test_weak_etags_do_not_prevent_resuming(server, root):
    server.weak_etags = True
    server.faults[FIRST] = ["break"] * 4
    download(server, root)
    assert is_complete(root)
    assert server.sent[FIRST] == len(server.files[FIRST])


def test_a_complete_part_is_not_downloaded_again(server, root):
    part = root / ".fetch" / f"{FIRST}.part"
    part.parent.mkdir()
    part.write_bytes(server.files[FIRST])
    download(server, root)
    assert is_complete(root)
    assert server.sent[FIRST] == 0


def test_attempts_with_progress_after_a_restart_do_not_count_as_failures(server, root):
    server.faults[FIRST] = ["break"] * 4 + [416] + ["break"] * 12
    download(server, root)
    assert is_complete(root)


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [("7", 7), ("100000", http.MAX_RETRY_AFTER_S)],
)
def test_retry_after_is_respected_up_to_a_limit(server, root, monkeypatch, retry_after, seconds):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    server.retry_after = retry_after
    server.faults[FIRST] = [503, 503]
    download(server, root)
    assert is_complete(root)
    assert max(pauses) == seconds


# --- refusals ------------------------------------------------------------------------------------


def test_404_fails_at_once(server, root):
    del server.files["ISIC2018_Task1_Test_GroundTruth.zip"]
    message = error_of(DownloadError, server, root)
    assert message.endswith("ISIC2018_Task1_Test_GroundTruth.zip: the server answers 404 Not Found")
    assert not any(method == "GET" for method, *_ in server.log)
    assert [p.name for p in root.iterdir()] == [".fetch"]


def test_an_unreachable_server_fails(root, monkeypatch, server):
    monkeypatch.setattr(http, "ATTEMPTS", 2)
    server.url = "http://127.0.0.1:9"
    assert "Connection refused" in error_of(DownloadError, server, root)


def test_more_bytes_than_announced_are_refused(server, root):
    server.faults[FIRST] = ["longer"]
    assert "sends more than the" in error_of(DownloadError, server, root)
    assert not (root / ".fetch" / f"{FIRST}.part").exists()
    download(server, root)
    assert is_complete(root)


def test_fewer_bytes_than_announced_are_refused(server, root):
    whole = server.files[FIRST]
    real = server.answer

    def answer(request, *, head):
        server.files[FIRST] = whole if head else whole[:-500]
        real(request, head=head)

    server.answer = answer
    message = error_of(DownloadError, server, root)
    assert f"announced {len(whole)} bytes and sends {len(whole) - 500}" in message
    assert not (root / "ISIC2018_Task1-2_Training_Input").exists()
    assert server.sent[FIRST] <= len(whole)


def test_a_file_without_announced_size_is_refused(server, root):
    server.files[FIRST] = b""
    assert "does not announce the size" in error_of(DownloadError, server, root)


def test_a_folder_of_the_user_is_not_changed(server, root):
    mine = root / FIRST.removesuffix(".zip")
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    assert "was not created by this command; move it away" in error_of(InputError, server, root)
    assert not any(method == "GET" for method, *_ in server.log)
    assert (mine / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"\xff", b"[1]", b'{"a.zip": 1}', b"[" * 100_000])
def test_a_damaged_record_is_an_error_that_names_it(server, root, content):
    path = root / ".fetch" / "done.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        download(server, root)
    assert str(caught.value).startswith(f"data fetch: {path}: damaged")
    assert str(caught.value).endswith(f"; delete it and what was unpacked to {root}, and download "
                                      "again")  # fmt: skip


def test_a_folder_that_was_not_recorded_is_unpacked_again(server, root):
    download(server, root, keep_archives=True)
    (root / ".fetch" / "done.json").unlink()
    (root / FIRST.removesuffix(".zip") / "ISIC_0.jpg").write_bytes(b"")
    before = server.sent.copy()
    download(server, root)
    assert is_complete(root)
    assert (root / FIRST.removesuffix(".zip") / "ISIC_0.jpg").read_bytes() == CONTENT
    assert server.sent == before
    assert not list((root / ".fetch").glob("*.old"))


def test_a_folder_is_complete_while_it_is_replaced(server, root, monkeypatch):
    download(server, root, keep_archives=True)
    (root / ".fetch" / "done.json").unlink()
    folder = root / FIRST.removesuffix(".zip")
    whole = sorted(p.name for p in folder.iterdir())
    real, seen = shutil.rmtree, []

    def rmtree(path, *args, **options):
        seen.append(sorted(p.name for p in folder.iterdir()))
        real(path, *args, **options)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    download(server, root)
    assert seen
    assert all(names == whole for names in seen)


def test_a_partial_download_counts_for_the_disk_space(server, root, monkeypatch):
    server.faults[FIRST] = ["break", *[503] * http.ATTEMPTS]
    error_of(DownloadError, server, root)
    there = (root / ".fetch" / f"{FIRST}.part").stat().st_size
    free = int(fetch.SPACE_FACTOR * sum(map(len, server.files.values()))) - there
    disk = {root: SimpleNamespace(free=free), root / ".fetch": SimpleNamespace(free=10**12)}
    monkeypatch.setattr(fetch.shutil, "disk_usage", disk.__getitem__)
    download(server, root)
    assert is_complete(root)


def test_a_file_that_differs_from_the_recorded_one_is_refused(server, root):
    download(server, root)
    folder = root / FIRST.removesuffix(".zip")
    shutil.rmtree(folder)
    server.files[FIRST] = make_zip(**{"ISIC2018_Task1-2_Training_Input/ISIC_9.jpg": CONTENT})
    assert "differs from the file that was downloaded before" in error_of(
        DownloadError, server, root
    )
    assert not folder.exists()


# --- disk ----------------------------------------------------------------------------------------


def test_a_damaged_archive_is_deleted_and_downloaded_again(server, root):
    server.files[FIRST] = b"<html>please log in</html>"
    assert "damaged: " in error_of(DownloadError, server, root)
    assert [p.name for p in root.iterdir()] == [".fetch"]
    assert {p.name for p in (root / ".fetch").iterdir()} <= {"lock"}
    server.files = make_files("isic2018")
    download(server, root)
    assert is_complete(root)


def test_a_full_disk_is_reported_before_the_download(server, root, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    message = error_of(InputError, server, root)
    assert "GB are free; free some, or name another --root" in message
    assert not any(method == "GET" for method, *_ in server.log)


def test_a_disk_that_fills_up_while_unpacking_leaves_no_folder(server, root, monkeypatch):
    whole = zipfile.ZipFile.extractall

    def extractall(self, path, members):
        whole(self, path, members[:1])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", extractall)
        message = error_of(DownloadError, server, root)
    assert "No space left on device; complete files are kept, start again" in message
    assert not any(".unpacking" in p.name for p in (root / ".fetch").iterdir())
    before = len(server.log)
    download(server, root)
    assert is_complete(root)
    again = [path for method, path, *_ in server.log[before:] if method == "GET"]
    assert not any(FIRST in path for path in again)


def test_a_root_below_a_file_is_refused(server, tmp_path):
    (tmp_path / "file").write_text("")
    assert "--root must be a writable folder" in error_of(
        InputError, server, tmp_path / "file" / "set"
    )


# --- the command ---------------------------------------------------------------------------------


def test_the_command_shows_the_licence_and_requires_acceptance(server, root):
    args = ["data", "fetch", "isic2018", "--root", str(root / "d"), "--mirror", server.url]
    refused = CliRunner().invoke(cli.app, args)
    assert refused.exit_code == 2
    assert "CC BY-NC 4.0" in refused.stderr and "--accept-license" in refused.stderr
    assert server.log == [] and not (root / "d").exists()
    done = CliRunner().invoke(cli.app, [*args, "--accept-license"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"3 pairs in {root / 'd'}"
    assert f"{FIRST}: 0 MB" in done.stdout
    del server.files[FIRST]
    shutil.rmtree(root / "d" / FIRST.removesuffix(".zip"))
    failed = CliRunner().invoke(cli.app, [*args, "--accept-license"])
    assert failed.exit_code == 1
    assert len(failed.stderr.splitlines()) == 1 and "404" in failed.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [("ph2", "distributes it through a form"), ("isic2081", "did you mean 'isic2018'")],
)
def test_unknown_and_manual_data_sets_are_refused(root, name, message):
    with pytest.raises(InputError, match=message):
        fetch_dataset(name, root / "d", accept_license=True)
    assert not (root / "d").exists()


def test_concurrent_downloads_into_one_folder_are_refused(server, root):
    (root / ".fetch").mkdir()
    with filelock.FileLock(root / ".fetch" / "lock"):
        assert "another process is downloading" in error_of(InputError, server, root)
