"""Local HTTP server with the files of a data set, which breaks off, refuses and misreports."""

import hashlib
import io
import threading
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from lesionseg.data.download.datasets import SOURCES

CONTENT = bytes(range(256)) * 400  # so that an archive has some length

FIRST = "ISIC2018_Task1-2_Training_Input.zip"


def make_zip(**members) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return stream.getvalue()


def make_files(name: str) -> dict[str, bytes]:
    """Return small files in the layout of a source: one pair per split."""
    files = {}
    for i, file in enumerate(SOURCES[name].files):
        stem = file.removesuffix(".zip")
        if "GroundTruth" in stem:
            inner = {f"{stem}/ISIC_{i // 2}_segmentation.png": CONTENT}
        elif "segmentations" in stem:
            inner = {f"{stem}/{n}_segmentation.png": CONTENT for n in "ab"}
            inner |= {f"__MACOSX/{stem}/._a_segmentation.png": b"metadata"}
        elif "images_part" in stem:  # without a folder of its own
            inner = {f"{'ab'[i]}.jpg": CONTENT}
        else:
            inner = {f"{stem}/ISIC_{i // 2}.jpg": CONTENT, f"{stem}/LICENSE.txt": b"CC0"}
        files[file] = make_zip(**inner)
    if name == "ham10000":
        files["HAM10000_metadata"] = b"lesion_id,image_id\nL1,a\nL1,b\n"
    return files


class Server:
    """Serves files with faults.

    faults: for a file name the faults of its next requests: an HTTP status; "break" (half of the
    body, then the connection is closed); "whole" (ranges are ignored); "longer" (more bytes than
    announced); "elsewhere" (another range than requested); "rangeless" (a range without
    Content-Range).
    weak_etags: send weak ETags. retry_after: header of errors.
    """

    weak_etags = False
    retry_after = ""

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

    def answer(self, request: BaseHTTPRequestHandler, *, head: bool) -> None:
        path = urlsplit(request.path).path
        name = path.rsplit("/", 1)[-1]
        self.log.append((request.command, name, request.headers.get("Range")))
        faults = self.faults.get(name, [])
        fault = faults.pop(0) if faults and not head else None
        content = self.files.get(name)
        status = fault if isinstance(fault, int) else 200 if content is not None else 404
        if status != 200:
            retry = {"Retry-After": self.retry_after} if self.retry_after and status != 404 else {}
            return self.reply(request, status, b"no", retry, head)
        etag = f'{"W/" * self.weak_etags}"{hashlib.sha256(content).hexdigest()[:8]}"'
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        start = 0
        requested = request.headers.get("Range")
        if requested and fault != "whole":
            start = int(requested.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return self.reply(
                    request, 416, b"", {"Content-Range": f"bytes */{len(content)}"}, head
                )
            status = 206
            start += 7 if fault == "elsewhere" else 0
            if fault != "rangeless":
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        if fault == "longer":
            body, headers["Connection"] = body + b"more", "close"
        self.sent[name] += 0 if head else len(body) // (2 if fault == "break" else 1)
        return self.reply(request, status, body, headers, head, cut=fault == "break")

    def reply(self, request, status, body, headers, head, cut=False) -> None:
        request.send_response(status)
        if "Connection" not in headers:  # otherwise the body ends with the connection
            headers = {**headers, "Content-Length": str(len(body))}
        for key, value in headers.items():
            request.send_header(key, value)
        request.end_headers()
        if not head:
            request.wfile.write(body[: len(body) // 2] if cut else body)
        request.close_connection = cut or "Connection" in headers
