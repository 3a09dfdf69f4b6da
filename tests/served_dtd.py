"""A small DTD of three classes: its files, a server that gives them, and an entry of sources for it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import FileServer
from PIL import Image
from test_datasets_prepare_archives import FORMS

from datasets import __main__ as command
from datasets import prepare, sources


def jpeg(seed: int, size: tuple[int, int] = (24, 20)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (seed * 40 % 256, 90, 200)).save(buffer, "JPEG")
    return buffer.getvalue()


CLASSES = ("banded", "ünï còde", "dotted")
IMAGES = {f"{name}/{name} {number}.jpg": jpeg(number) for name in CLASSES for number in range(4)}
SPLIT = {
    part: [
        [f"{name}/{name} {number}.jpg", label, name]
        for label, name in enumerate(CLASSES)
        for number in numbers
    ]
    for part, numbers in {"train": (0, 1), "val": (2,), "test": (3,)}.items()
}
COUNTS = {"train": 6, "val": 3, "test": 3, "classes": 3, "test_base": 2, "test_new": 1}
ARCHIVE = FORMS["a.tar.gz"]({f"dtd/images/{path}": content for path, content in IMAGES.items()})
SPLIT_FILE = json.dumps(SPLIT).encode()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(prepare, "RETRIES", 0)
    server = FileServer({"dtd.tar.gz": ARCHIVE, "split.json": SPLIT_FILE})
    yield server
    server.stop()


@pytest.fixture
def world(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> dict:
    """A `sources.json` of DTD alone, whose URLs are the server; tests may change it."""
    pytest.importorskip("pooch", reason="pooch, of the extra `download`, is not installed")
    archive = {
        "file": "dtd.tar.gz",
        "hash": f"md5:{md5(ARCHIVE)}",
        "urls": [server.url("plain", "dtd.tar.gz")],
        "take": {"dtd/images": "images"},
    }
    split = {
        "file": "split_zhou_DescribableTextures.json",
        "hash": f"md5:{md5(SPLIT_FILE)}",
        "urls": [server.url("gone", "split.json"), server.url("plain", "split.json")],
    }
    entry = {
        "folder": "dtd",
        "images": "images",
        "split": "split_zhou_DescribableTextures.json",
        "counts": COUNTS,
        "licence": "none",
        "files": [archive, split],
    }
    content: dict = {"datasets": {"DescribableTextures": entry}, "mirror": {}}
    for module in (sources, command):
        monkeypatch.setattr(module, "known", lambda: sources.read_sources(content))
    return content


def run(*arguments: str | Path) -> int:
    return command.main([str(argument) for argument in arguments])


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


WHOLE = {f"images/{path}" for path in IMAGES} | {"split_zhou_DescribableTextures.json"}
