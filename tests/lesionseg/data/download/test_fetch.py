"""Fetching from a server of the true layout that breaks off, refuses and lies."""

import errno
import hashlib
import io
import json
import os
import shutil
import threading
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import filelock
import pytest
from typer.testing import CliRunner

import cli
from lesionseg.data.download import fetch as module
from lesionseg.data.download import http as line
from lesionseg.data.download.datasets import BY_HAND, SOURCES
from lesionseg.data.download.fetch import DownloadError, fetch
from lesionseg.data.index import DatasetIndex
from lesionseg.errors import InputError

NOISE = bytes(range(256)) * 400  # so that an archive has some length


def zipped(**members) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return stream.getvalue()


def archives_of(name: str) -> dict[str, bytes]:
    """Every file of a source, as small as it gets: one pair for each split."""
    made = {}
    for i, file in enumerate(SOURCES[name].files):
        stem = file.removesuffix(".zip")
        if "GroundTruth" in stem:
            inner = {f"{stem}/ISIC_{i // 2}_segmentation.png": NOISE}
        elif "segmentations" in stem:
            inner = {f"{stem}/{n}_segmentation.png": NOISE for n in "ab"}
            inner |= {f"__MACOSX/{stem}/._a_segmentation.png": b"of a Mac"}
        elif "images_part" in stem:  # these are not in a folder of their own
            inner = {f"{'ab'[i]}.jpg": NOISE}
        else:
            inner = {f"{stem}/ISIC_{i // 2}.jpg": NOISE, f"{stem}/LICENSE.txt": b"as you like"}
        made[file] = zipped(**inner)
    if name == "ham10000":
        made["HAM10000_metadata"] = b"lesion_id,image_id\nL1,a\nL1,b\n"
    return made


class Server:
    """Serves files, and what ``faults`` says instead.

    faults: for a file's name a list of what its next requests meet: an HTTP status; "break" (half
    of what was asked for, then the connection is closed); "whole" (it knows no ranges); "swap"
    (from here on another file of that length); "longer" (it sends more than it said); "elsewhere"
    (another part of the file than was asked for); "rangeless" (a part, without saying which).
    weak: its tags are weak ones. deaf: it does not know If-Range. wait: what it says in
    Retry-After beside a refusal.
    """

    weak = deaf = False
    wait = ""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.faults, self.log = dict(files), {}, []
        self.sent: Counter[str] = Counter()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                outer.answer(self, head=True)

            def do_GET(self):
                outer.answer(self, head=False)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, to: BaseHTTPRequestHandler, *, head: bool) -> None:
        path = urlsplit(to.path).path
        name = path.rsplit("/", 1)[-1]
        self.log.append((to.command, name, to.headers.get("Range")))
        faults = self.faults.get(name, [])
        fault = faults.pop(0) if faults and not head else None
        if fault == "swap":
            self.files[name] = self.files[name][::-1]
        content = self.files.get(name)
        status = fault if isinstance(fault, int) else 200 if content is not None else 404
        if status != 200:
            waiting = {"Retry-After": self.wait} if self.wait and status != 404 else {}
            return self.reply(to, status, b"no", waiting, head)
        etag = f'{"W/" * self.weak}"{hashlib.sha256(content).hexdigest()[:8]}"'
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        start = 0
        asked = to.headers.get("Range")
        unchanged = to.headers.get("If-Range", etag) == etag and not to.headers.get(
            "If-Range", ""
        ).startswith("W/")
        if asked and fault != "whole" and (unchanged or self.deaf):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return self.reply(to, 416, b"", {"Content-Range": f"bytes */{len(content)}"}, head)
            status = 206
            start += 7 if fault == "elsewhere" else 0
            if fault != "rangeless":
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        if fault == "longer":
            body, headers["Connection"] = body + b"more", "close"
        self.sent[name] += 0 if head else len(body) // (2 if fault == "break" else 1)
        return self.reply(to, status, body, headers, head, cut=fault == "break")

    def reply(self, to, status, body, headers, head, cut=False) -> None:
        to.send_response(status)
        if "Connection" not in headers:  # else it ends where the line ends
            headers = {**headers, "Content-Length": str(len(body))}
        for key, value in headers.items():
            to.send_header(key, value)
        to.end_headers()
        if not head:
            to.wfile.write(body[: len(body) // 2] if cut else body)
        to.close_connection = cut or "Connection" in headers


@pytest.fixture
def root(tmp_path):
    """An empty folder, which pytest's own is not."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(line, "PAUSE", 0.001)
    monkeypatch.setattr(line, "CHUNK", 1000)
    monkeypatch.setattr(module, "SPARE", 0)
    with_files = Server(archives_of("isic2018"))
    yield with_files
    with_files.http.shutdown()
    with_files.http.server_close()


def had(server, root, **options):
    return fetch("isic2018", root, accept=True, base=server.url, **options)


def refusal(kind, server, root, **options) -> str:
    with pytest.raises(kind) as caught:
        had(server, root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def is_whole(root) -> bool:
    index = DatasetIndex.read(root, "isic2018")
    return [(r.name, r.split) for r in index.records] == [
        ("ISIC_0", "train"),
        ("ISIC_1", "val"),
        ("ISIC_2", "test"),
    ]


FIRST = "ISIC2018_Task1-2_Training_Input.zip"


# --- what is there afterwards --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["isic2016", "isic2017", "isic2018"])
def test_every_challenge_is_fetched_as_its_layout_reads_it(server, root, name):
    server.files = archives_of(name)
    told = []
    fetch(name, root, accept=True, base=server.url, on_progress=lambda *each: told.append(each))
    index = DatasetIndex.read(root)
    assert index.layout == name
    assert len(index.records) == len(SOURCES[name].files) // 2
    assert {n for n, done, total in told if done == total} == set(SOURCES[name].files)
    # Nothing else is left, and what it was is kept.
    assert {p.name for p in (root / ".fetch").iterdir()} <= {"done.json", "lock"}
    done = json.loads((root / ".fetch" / "done.json").read_text())
    for file, content in server.files.items():
        assert done[file]["sha256"] == hashlib.sha256(content).hexdigest()
        assert done[file]["size"] == len(content)


def test_ham10000_from_its_dataverse(server, root):
    files = archives_of("ham10000")
    rows = []
    for i, (name, content) in enumerate(files.items()):
        server.files[str(i)] = content
        md5 = hashlib.md5(content).hexdigest()
        row = {"id": i, "filename": name, "filesize": len(content), "md5": md5}
        if name == "HAM10000_metadata":  # it was taken for a table and made one
            table = {"filename": f"{name}.tab", "filesize": 7, "originalFileSize": len(content)}
            row |= {**table, "originalFileFormat": "text/csv"}
        rows.append({"dataFile": row})
    server.files[":persistentId"] = json.dumps(
        {"status": "OK", "data": {"latestVersion": {"files": rows}}}
    ).encode()
    # As the Dataverse answers, with the folder's trailing slash.
    real = server.answer

    def answer(to, *, head):
        to.path = to.path.replace("/:persistentId/", "/:persistentId")
        real(to, head=head)

    server.answer = answer
    fetch("ham10000", root, accept=True, base=server.url)
    index = DatasetIndex.read(root)
    assert [(r.name, r.group) for r in index.records] == [("a", "L1"), ("b", "L1")]
    # A file that is not what its keeper says is not used.
    shutil.rmtree(root)
    server.files["1"] = server.files["1"][::-1]
    with pytest.raises(DownloadError, match=r"its MD5 is .*, and should be"):
        fetch("ham10000", root, accept=True, base=server.url)
    assert not (root / "HAM10000_images_part_2").exists()


def test_what_is_there_is_not_fetched_again(server, root):
    had(server, root, keep_archives=True)
    assert (root / ".fetch" / FIRST).read_bytes() == server.files[FIRST]
    before = len(server.log)
    had(server, root)
    assert server.log[before:] == []
    # A folder that is gone comes from the archive that was kept.
    shutil.rmtree(root / FIRST.removesuffix(".zip"))
    had(server, root)
    assert [method for method, *_ in server.log[before:]] == ["HEAD"]
    assert is_whole(root)


# --- a line that breaks --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [["break"], ["break"] * 6, [503, 503, "break", 429, 500], ["break", 503] * 4],
)
def test_it_goes_on_where_it_broke_off_and_fetches_nothing_twice(server, root, faults):
    server.faults[FIRST] = list(faults)
    had(server, root)
    assert is_whole(root)
    assert server.faults[FIRST] == []
    assert server.sent[FIRST] == len(server.files[FIRST])


def test_a_later_command_goes_on_too(server, root):
    server.faults[FIRST] = ["break", *[503] * line.ATTEMPTS]
    told = refusal(DownloadError, server, root)
    size = len(server.files[FIRST])
    assert f"503 Service Unavailable, {line.ATTEMPTS} times in a row" in told
    assert f"{size // 2} of {size} bytes are kept" in told
    assert [p.name for p in root.iterdir()] == [".fetch"]
    with pytest.raises(InputError):
        DatasetIndex.read(root)
    had(server, root)
    assert is_whole(root)
    assert server.sent[FIRST] == size


def test_a_server_without_ranges_sends_all_again(server, root):
    server.faults[FIRST] = ["break", "whole"]
    had(server, root)
    assert is_whole(root)
    assert server.sent[FIRST] == len(server.files[FIRST]) * 3 // 2


def test_a_file_that_changed_meanwhile_is_not_stitched_together(server, root):
    other = zipped(**{"ISIC2018_Task1-2_Training_Input/ISIC_0.jpg": NOISE[::-1]})
    size = len(server.files[FIRST])
    server.files[FIRST] = other[::-1]  # the first half of another file, under another tag
    server.faults[FIRST] = ["break", "swap"]
    had(server, root)
    assert len(other) < size
    image = root / "ISIC2018_Task1-2_Training_Input" / "ISIC_0.jpg"
    assert image.read_bytes() == NOISE[::-1]


def test_a_beginning_that_is_longer_than_the_file_is_thrown_away(server, root):
    part = root / ".fetch" / f"{FIRST}.part"
    part.parent.mkdir()
    part.write_bytes(bytes(len(server.files[FIRST]) + 1))
    had(server, root)
    assert is_whole(root)


def test_416_begins_anew(server, root):
    server.faults[FIRST] = ["break", 416]
    had(server, root)
    assert is_whole(root)


@pytest.mark.parametrize("fault", ["elsewhere", "rangeless"])
def test_a_part_that_does_not_belong_there_is_not_put_there(server, root, fault):
    server.faults[FIRST] = ["break", fault]
    had(server, root)
    assert is_whole(root)
    assert (root / FIRST.removesuffix(".zip") / "ISIC_0.jpg").read_bytes() == NOISE


def test_a_server_that_always_sends_another_part_is_given_up_soon(server, root):
    server.faults[FIRST] = ["break", "elsewhere"] * 20
    told = refusal(DownloadError, server, root)
    assert "sends another part than it was asked for, 3 times in a row" in told
    assert server.sent[FIRST] <= 4 * len(server.files[FIRST])


def test_a_server_that_does_not_know_if_range_cannot_stitch_two_files(server, root):
    server.deaf = True
    half = server.files[FIRST]
    server.files[FIRST] = zipped(**{"ISIC2018_Task1-2_Training_Input/ISIC_0.jpg": NOISE[::-1]})[
        ::-1
    ].ljust(len(half), b"x")
    server.faults[FIRST] = ["break"]
    real = server.answer

    def answer(to, *, head):
        if to.headers.get("Range"):
            server.files[FIRST] = half
        real(to, head=head)

    server.answer = answer
    had(server, root)
    assert is_whole(root)
    assert (root / FIRST.removesuffix(".zip") / "ISIC_0.jpg").read_bytes() == NOISE


def test_weak_tags_are_gone_on_with(server, root):
    server.weak = True
    server.faults[FIRST] = ["break"] * 4
    had(server, root)
    assert is_whole(root)
    assert server.sent[FIRST] == len(server.files[FIRST])


def test_a_whole_file_that_was_not_renamed_yet_is_not_fetched_again(server, root):
    part = root / ".fetch" / f"{FIRST}.part"
    part.parent.mkdir()
    part.write_bytes(server.files[FIRST])
    had(server, root)
    assert is_whole(root)
    assert server.sent[FIRST] == 0


def test_many_short_advances_after_a_new_beginning_are_no_failures(server, root):
    server.faults[FIRST] = ["break"] * 4 + [416] + ["break"] * 12
    had(server, root)
    assert is_whole(root)


@pytest.mark.parametrize(
    ("told", "seconds"), [("7", 7), ("100000", line.PATIENCE), ("soon", 0.001), ("", 0.001)]
)
def test_a_busy_server_says_how_long_to_wait(server, root, monkeypatch, told, seconds):
    waited = []
    monkeypatch.setattr(line.time, "sleep", waited.append)
    server.wait = told
    server.faults[FIRST] = [503]
    had(server, root)
    assert is_whole(root)
    assert max(waited) == seconds


# --- what is not there, or not what it says ------------------------------------------------------


def test_404_is_told_at_once_and_nothing_is_begun(server, root):
    del server.files["ISIC2018_Task1_Test_GroundTruth.zip"]
    told = refusal(DownloadError, server, root)
    assert told.endswith("ISIC2018_Task1_Test_GroundTruth.zip: the server answers 404 Not Found")
    assert not any(method == "GET" for method, *_ in server.log)
    assert [p.name for p in root.iterdir()] == [".fetch"]


def test_a_server_that_nobody_answers_at(root, monkeypatch, server):
    monkeypatch.setattr(line, "ATTEMPTS", 2)
    server.url = "http://127.0.0.1:9"
    assert "refused, 2 times in a row" in refusal(DownloadError, server, root)


def test_more_than_was_said_is_not_taken(server, root):
    server.faults[FIRST] = ["longer"]
    assert "sends more than the" in refusal(DownloadError, server, root)
    assert not (root / ".fetch" / f"{FIRST}.part").exists()
    had(server, root)
    assert is_whole(root)


def test_less_than_was_said_is_not_taken(server, root):
    whole = server.files[FIRST]
    real = server.answer

    def answer(to, *, head):
        server.files[FIRST] = whole if head else whole[:-500]
        real(to, head=head)

    server.answer = answer
    told = refusal(DownloadError, server, root)
    assert f"said that it has {len(whole)} bytes, and sends {len(whole) - 500}" in told
    assert not (root / "ISIC2018_Task1-2_Training_Input").exists()
    assert server.sent[FIRST] <= len(whole)


def test_a_server_that_does_not_say_how_much_it_has_is_told(server, root):
    server.files[FIRST] = b""
    assert "does not say how large it is" in refusal(DownloadError, server, root)


def test_a_folder_that_was_not_fetched_is_left_alone(server, root):
    mine = root / FIRST.removesuffix(".zip")
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    assert "was not fetched by this command; move it away" in refusal(InputError, server, root)
    assert not any(method == "GET" for method, *_ in server.log)
    assert (mine / "notes.txt").read_text() == "mine"


def test_a_folder_that_was_unpacked_and_not_noted_is_unpacked_again(server, root):
    had(server, root, keep_archives=True)
    (root / ".fetch" / "done.json").unlink()
    (root / FIRST.removesuffix(".zip") / "ISIC_0.jpg").write_bytes(b"")
    before = server.sent.copy()
    had(server, root)
    assert is_whole(root)
    assert (root / FIRST.removesuffix(".zip") / "ISIC_0.jpg").read_bytes() == NOISE
    assert server.sent == before
    assert not list((root / ".fetch").glob("*.old"))


def test_a_folder_is_never_there_in_part_while_it_is_replaced(server, root, monkeypatch):
    had(server, root, keep_archives=True)
    (root / ".fetch" / "done.json").unlink()
    folder = root / FIRST.removesuffix(".zip")
    whole = sorted(p.name for p in folder.iterdir())
    real, seen = shutil.rmtree, []

    def rmtree(path, *args, **options):
        seen.append(sorted(p.name for p in folder.iterdir()))
        real(path, *args, **options)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    had(server, root)
    assert seen
    assert all(names == whole for names in seen)


def test_a_break_needs_no_more_room_than_none(server, root, monkeypatch):
    server.faults[FIRST] = ["break", *[503] * line.ATTEMPTS]
    refusal(DownloadError, server, root)
    there = (root / ".fetch" / f"{FIRST}.part").stat().st_size
    free = int(module.ROOM * sum(map(len, server.files.values()))) - there
    disk = {root: SimpleNamespace(free=free), root / ".fetch": SimpleNamespace(free=10**12)}
    monkeypatch.setattr(module.shutil, "disk_usage", disk.__getitem__)
    had(server, root)
    assert is_whole(root)


def test_another_file_than_the_first_time_is_told(server, root):
    had(server, root)
    folder = root / FIRST.removesuffix(".zip")
    shutil.rmtree(folder)
    server.files[FIRST] = zipped(**{"ISIC2018_Task1-2_Training_Input/ISIC_9.jpg": NOISE})
    assert "is another file than when it was fetched first" in refusal(DownloadError, server, root)
    assert not folder.exists()


# --- archives ------------------------------------------------------------------------------------


def link() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        info = zipfile.ZipInfo("ISIC2018_Task1-2_Training_Input/ISIC_0.jpg")
        info.external_attr = 0o120777 << 16
        file.writestr(info, "/etc/passwd")
    return stream.getvalue()


def damaged() -> bytes:
    whole = zipped(**{"ISIC_0.jpg": NOISE})
    return whole[:200] + b"\0\0\0\0" + whole[204:]


def deflated() -> bytes:
    """Whose compressed stream is none any more."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("ISIC_0.jpg", bytes(range(256)) * 40)
    whole = stream.getvalue()
    return whole[:60] + b"\xff" * 40 + whole[100:]


def squeezed(method, spoil) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        file.writestr("ISIC_0.jpg", NOISE[::3] * 40)
    whole = bytearray(stream.getvalue())
    spoil(whole)
    return bytes(whole)


def locked(whole: bytearray) -> None:
    """Marks its only member as encrypted, where it stands and in the directory."""
    whole[6] |= 1
    whole[whole.index(b"PK\1\2") + 8] |= 1


def spoilt(whole: bytearray) -> None:
    whole[90:130] = b"\xff" * 40


def bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("ISIC_0.jpg", bytes(200_000_000))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped(**{"../../outside.txt": "x"}), "leads out"),
        (zipped(**{"/outside.txt": "x"}), "leads out"),
        (zipped(**{"..\\outside.txt": "x"}), "leads out"),
        (zipped(**{"C:/outside.txt": "x"}), "leads out"),
        (link(), "holds a link"),
        (damaged(), "broken"),
        (deflated(), "broken"),
        (b"<html>please log in</html>", "broken"),
        (zipped(), "holds no file"),
        (bomb(), "no set of pictures"),
        (squeezed(zipfile.ZIP_LZMA, spoilt), "broken"),
        (squeezed(zipfile.ZIP_BZIP2, spoilt), "broken"),
        (squeezed(zipfile.ZIP_DEFLATED, locked), "encrypted"),
        (zipped(**{".": "x"}), "a file that is a folder"),
        (zipped(**{"a": "x", "a/b.jpg": "x"}), "a file that is a folder"),
    ],
    ids=[
        "up",
        "root",
        "backslash",
        "drive",
        "link",
        "crc",
        "deflate",
        "html",
        "empty",
        "bomb",
        "lzma",
        "bzip2",
        "encrypted",
        "dot",
        "both",
    ],
)
def test_an_archive_that_is_none_leaves_nothing_behind(server, tmp_path, content, message):
    root = tmp_path / "a" / "b"
    server.files[FIRST] = content
    told = refusal(DownloadError, server, root)
    assert message in told
    assert "start again to fetch it anew" in told
    assert [p.name for p in root.iterdir()] == [".fetch"]
    assert {p.name for p in (root / ".fetch").iterdir()} <= {"lock"}
    assert not list(tmp_path.rglob("outside.txt"))
    server.files = archives_of("isic2018")
    had(server, root)
    assert is_whole(root)


def test_a_full_disk_is_told_before_anything_is_fetched(server, root, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    told = refusal(InputError, server, root)
    assert "GB are free; make room, or name another --root" in told
    assert not any(method == "GET" for method, *_ in server.log)


def test_a_disk_that_fills_up_while_unpacking_leaves_no_folder(server, root, monkeypatch):
    whole = zipfile.ZipFile.extract

    def extract(self, member, path):
        if member.filename.endswith("ISIC_1.jpg") or list(Path(path).glob("*")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return whole(self, member, path)

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extract", extract)
        told = refusal(DownloadError, server, root)
    assert "No space left on device; what is there is kept, start again" in told
    assert not any(".unpacking" in p.name for p in (root / ".fetch").iterdir())
    before = len(server.log)
    had(server, root)
    assert is_whole(root)
    again = [path for method, path, *_ in server.log[before:] if method == "GET"]
    assert not any(FIRST in path for path in again)


def test_a_root_that_is_a_file_is_told(server, tmp_path):
    (tmp_path / "file").write_text("")
    assert "--root must be a folder" in refusal(InputError, server, tmp_path / "file" / "set")


# --- the command ---------------------------------------------------------------------------------


def test_the_licence_is_shown_and_to_be_accepted(server, root):
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
    [(BY_HAND and "ph2", "hands it out by a form"), ("isic2081", "did you mean 'isic2018'")],
)
def test_what_cannot_be_fetched_is_told(root, name, message):
    with pytest.raises(InputError, match=message):
        fetch(name, root / "d", accept=True)
    assert not (root / "d").exists()


def test_two_commands_do_not_fetch_into_one_folder(server, root):
    (root / ".fetch").mkdir()
    with filelock.FileLock(root / ".fetch" / "lock"):
        assert "another process is fetching" in refusal(InputError, server, root)


def test_notes_that_are_none_are_told(server, root):
    (root / ".fetch").mkdir()
    (root / ".fetch" / "done.json").write_text("{")
    assert "delete it to fetch all anew" in refusal(InputError, server, root)
