"""A web server on this machine, whose paths say how it behaves: `/BEHAVIOUR/FILE`.

plain       serves files, and ranges of them
noranges    serves files, always from the start
breaks      breaks off after 40% of what is asked for; ranges; whole from the third time on
stuck       breaks off after 40%, always from the start
busy        429 with Retry-After: 7, then the file
busydate    503 with a date of 1994 as Retry-After, then the file
patience    429 with Retry-After: 86400
html        a web page, said to be one
disguised   a web page, said to be a file
wrong       as many bytes, but others
short       says half the size, and gives that
unsized     no size, and closes
unsizedcut  no size, and closes after 40%
chunkedcut  chunked, and closes within it
slow        with ranges, a twentieth at a time
gone        404
moved       a redirection to plain
shifted     breaks off as breaks, and gives another range than the one asked for
other       other bytes the first time, and another ETag each time
"""

from __future__ import annotations

import socketserver
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from typing import Any


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        _, behaviour, name = self.path.split("/", 2)
        self.server.asked.append((behaviour, self.headers.get("Range")))
        times = self.server.times[behaviour]
        self.server.times[behaviour] += 1
        content = self.server.files.get(name)
        if content is None or behaviour == "gone":
            self.send_error(404)
            return
        if behaviour == "patience" or (behaviour in ("busy", "busydate") and not times):
            self.send_response(503 if behaviour == "busydate" else 429)
            after = {"busy": "7", "patience": "86400", "busydate": "Sun, 06 Nov 1994 08:49:37 GMT"}[behaviour]
            self.send_header("Retry-After", after)
            self.end_headers()
            return
        if behaviour == "moved":
            self.send_response(302)
            self.send_header("Location", f"/plain/{name}")
            self.end_headers()
            return
        if behaviour in ("html", "disguised"):
            content = b"<!DOCTYPE html><html>Please sign in.</html>" + b" " * len(content)
        if behaviour == "wrong" or (behaviour == "other" and not times):
            content = bytes(255 - byte for byte in content)
        if behaviour == "short":
            content = content[: len(content) // 2]
        etag = f'"{name}-{times if behaviour == "other" else 0}"'
        start = self.start_of_range(etag, len(content), behaviour)
        if start is None:
            return
        body = content[start:]
        if behaviour == "html":
            self.send_header("Content-Type", "text/html; charset=utf-8")
        if behaviour == "chunkedcut":
            self.send_header("Transfer-Encoding", "chunked")
        elif not behaviour.startswith("unsized"):
            self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", etag)
        self.end_headers()
        self.send_body(body, behaviour, times)

    def start_of_range(self, etag: str, size: int, behaviour: str) -> int | None:
        """Answers with the status; returns the first byte, or None if that was all."""
        asked = self.headers.get("Range")
        if behaviour in ("noranges", "stuck") or not asked or self.headers.get("If-Range", etag) != etag:
            self.send_response(200)
            return 0
        start = 0 if behaviour == "shifted" else int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.end_headers()
            return None
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        return start

    def send_body(self, body: bytes, behaviour: str, times: int) -> None:
        cut = len(body) * 2 // 5
        if behaviour == "chunkedcut":
            self.wfile.write(b"%x\r\n" % len(body) + body[:cut])
        elif behaviour in ("stuck", "unsizedcut") or (
            behaviour in ("breaks", "other", "shifted") and times < 2
        ):
            self.wfile.write(body[:cut])
        elif behaviour == "slow":
            for start in range(0, len(body), len(self.server.files["slow.bin"]) // 20):
                self.wfile.write(body[start : start + len(self.server.files["slow.bin"]) // 20])
                self.wfile.flush()
                time.sleep(0.05)
        else:
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class FileServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.asked: list[tuple[str, str | None]] = []
        self.times: Counter[str] = Counter()
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def url(self, behaviour: str, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{behaviour}/{name}"

    def stop(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        pass  # a client that hangs up
