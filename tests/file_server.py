"""A web server on this machine, whose paths say how it behaves: `/BEHAVIOUR/FILE`.

plain    serves files
gone     404
html     a web page instead of the file
wrong    as many bytes, but others
breaks   the first time it breaks off after half of the file
"""

from __future__ import annotations

import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        _, behaviour, name = self.path.split("/", 2)
        first = behaviour not in self.server.asked
        self.server.asked.append(behaviour)
        if behaviour == "gone":
            self.send_error(404)
            return
        content = self.server.files[name]
        if behaviour == "html":
            content = b"<!DOCTYPE html><html>Please sign in.</html>"
        if behaviour == "wrong":
            content = bytes(255 - byte for byte in content)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if behaviour == "breaks" and first else content)

    def log_message(self, *_: Any) -> None:
        pass


class FileServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.asked: list[str] = []
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
