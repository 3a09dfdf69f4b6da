"""A stand-in of the Hugging Face hub on this machine: repositories of models, for huggingface_hub."""

from __future__ import annotations

import base64
import hashlib
import json
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, hub = urlsplit(self.path).path, self.server
        if self.headers.get("Authorization") != f"Bearer {hub.token}" and path != "/api/validate-yaml":
            self.answer(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            hub.repositories.setdefault(name, {})
            hub.visibility[name] = asked.get("visibility")
            self.answer(200, {"url": f"{hub.url}/{name}", "name": name, "id": name})
        elif path == "/api/validate-yaml":
            head = json.loads(body)["content"].split("---\n")[1]
            errors = [] if isinstance(yaml.safe_load(head), dict) else [{"message": "no metadata"}]
            self.answer(200 if not errors else 400, {"errors": errors, "warnings": []})
        elif "/preupload/" in path:
            files = [each["path"] for each in json.loads(body)["files"]]
            told = [{"path": each, "uploadMode": "regular", "shouldIgnore": False} for each in files]
            self.answer(200, {"files": told})
        elif "/commit/" in path:
            name = path.removeprefix("/api/models/").split("/commit/")[0]
            self.commit(name, [json.loads(line) for line in body.splitlines()])
        else:
            self.answer(404, {"error": f"no POST {path}"})

    def commit(self, name: str, operations: list[dict[str, Any]]) -> None:
        hub, files = self.server, self.server.repositories[name]
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "deletedFile":
                files.pop(value["path"])
        oid = hub.revision(name)
        self.answer(200, {"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{name}/commit/{oid}"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, hub = unquote(urlsplit(self.path).path), self.server
        user, name = path.removeprefix("/api/models").split("/")[1:3]
        repository = f"{user}/{name}"
        files = hub.repositories.get(repository)
        if files is None:
            self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif "/resolve/" in path:
            content = files.get(path.split("/resolve/")[1].split("/", 1)[1])
            if content is None:
                self.answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            else:
                etag = hashlib.sha1(content).hexdigest()
                self.answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": hub.revision(repository)})
        elif "/tree/" in path:
            oids = {each: hashlib.sha1(content).hexdigest() for each, content in files.items()}
            self.answer(200, [
                {"type": "file", "path": each, "size": len(files[each]), "oid": oid}
                for each, oid in oids.items()
            ])  # fmt: skip
        else:
            siblings = [{"rfilename": each} for each in files]
            about = {"id": repository, "modelId": repository, "sha": hub.revision(repository)}
            self.answer(200, {**about, "private": False, "tags": [], "downloads": 0, "siblings": siblings})

    def answer(self, code: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class HubServer(socketserver.ThreadingTCPServer):
    """The stand-in. Each state of a repository's files is a revision.

    Attributes:
        token: that uploads need.
        repositories: the files of each.
        visibility: that each was made with.
    """

    daemon_threads = True
    token = "hf_stand_in"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.visibility: dict[str, str | None] = {}
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def revision(self, name: str) -> str:
        files = sorted(self.repositories[name].items())
        return hashlib.sha1(b"".join(path.encode() + content for path, content in files)).hexdigest()

    def stop(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()
