"""Files over HTTP: resumed, retried, checked, and never taken for whole before they are.

A download grows as `FILE.part`. Beside it `FILE.part.json` says which version of which address the bytes are
of. A later run goes on from there if the server can (HTTP ranges) and still has that version; else it starts
over.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import http.client
import json
import os
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tqdm import tqdm

RETRIES = 4  # without a new byte, one after the other
TIMEOUT = 60  # seconds without an answer
LONGEST_PAUSE = 600  # seconds that a server may ask to wait
AGENT = {"User-Agent": "maple-prompt-learning (python -m datasets prepare)", "Accept-Encoding": "identity"}
CHUNK = 1 << 18


class Refused(Exception):
    """This address does not give the file; another may."""


class NoRoom(Exception):
    """The disk is too small; no other address changes that."""


class _Broken(Exception):
    """The connection failed, or the server asks for patience: try again, after `pause` seconds if told."""

    def __init__(self, reason: object, pause: float | None = None) -> None:
        super().__init__(one_line(reason))
        self.pause = pause


@dataclass(frozen=True)
class Checks:
    """What is known of a file. `git_sha1` is what `git hash-object FILE` prints."""

    bytes: int | None = None
    md5: str | None = None
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def decisive(self) -> bool:
        """There is a checksum: a file that passes is the file."""
        return bool(self.md5 or self.sha256 or self.git_sha1)

    def problem(self, path: Path) -> str:
        """What is wrong with the file; empty if it passes, or if nothing is known of it."""
        size = path.stat().st_size
        if self.bytes is not None and size != self.bytes:
            return f"it has {size} bytes instead of {self.bytes}"
        wanted = {kind: value for kind, value in asdict(self).items() if kind != "bytes" and value}
        found = digests(path, list(wanted))
        for kind, value in wanted.items():
            if found[kind] != value:
                return f"its {kind} is {found[kind]} instead of {value}"
        return ""

    def __str__(self) -> str:
        known = [f"{kind} {value}" for kind, value in asdict(self).items() if value and kind != "bytes"]
        return known[0] if known else "no checksum is known"


def digests(path: Path, kinds: list[str]) -> dict[str, str]:
    """Checksums of a file, read once: md5, sha256, git_sha1."""
    size = path.stat().st_size
    sums = {kind: hashlib.new(kind.removeprefix("git_"), usedforsecurity=False) for kind in kinds}
    if "git_sha1" in sums:
        sums["git_sha1"].update(b"blob %d\0" % size)
    if sums:
        with open(path, "rb") as file, _bar(f"Checking {path.name}", size) as bar:
            while chunk := file.read(1 << 20):
                for each in sums.values():
                    each.update(chunk)
                bar.update(len(chunk))
    return {kind: each.hexdigest() for kind, each in sums.items()}


def one_line(reason: object) -> str:
    return " ".join(str(reason).split()) or type(reason).__name__


def looks_like_html(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml"))


def check_room(folder: Path, needed: int) -> None:
    """Raises `NoRoom` if fewer than `needed` bytes are free where `folder` is."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise NoRoom(
            f"{folder} has {free / 1e9:.1f} GB free and {needed / 1e9:.1f} GB are needed: make room there, "
            "or choose another place by --root."
        )


def download(url: str, part: Path, checks: Checks, name: str, room: float = 1.0) -> None:
    """Fetches `url` into `part`, going on with what is there of it. What is in `part` counts only on return.

    Args:
        checks: used to tell whether what is there may be gone on with; they are not checked here.
        name: what to call the file while it is fetched.
        room: free space needed, in sizes of the file; 2 if it is going to be unpacked.

    Raises:
        Refused: the address does not give the file. `part` is left where going on may still make sense.
        NoRoom: there is no space.
    """
    failures, furthest = 0, _size(part)
    with _bar(name, checks.bytes) as bar:
        while True:
            try:
                _attempt(url, part, checks, room, bar)
                return
            except _Broken as broken:
                reached = _size(part)
                failures = 0 if reached > furthest else failures + 1
                furthest = max(furthest, reached)
                if failures > RETRIES:
                    raise Refused(f"{broken}, after {RETRIES} retries") from broken
                pause = min(2.0**failures, 60) if broken.pause is None else broken.pause
                bar.write(f"{name}: {broken}; next try in {pause:.0f} s, from byte {reached}")
                time.sleep(pause)


def _attempt(url: str, part: Path, checks: Checks, room: float, bar: Any) -> None:
    version_file = part.with_name(part.name + ".json")
    version = _read_version(version_file)
    start = _size(part)
    headers = dict(AGENT)
    if start and version.get("url") == url and version.get("total") == start:
        return  # it was whole when an earlier run was stopped
    validator = version.get("validator") if version.get("url") == url else None
    if start and (validator or checks.decisive):
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
    else:
        start = 0

    with _open(url, headers) as answer:
        if answer.status == 416:  # nothing behind `start`: the file is whole, or is another one
            if answer.headers.get("Content-Range", "") == f"bytes */{start}":
                return
            part.unlink()
            raise _Broken("the server has less of it than is here; starting over", 0)
        if answer.status == 206 and "Range" in headers:
            position, total = _content_range(answer.headers.get("Content-Range", ""))
            if position != start or (version.get("total") or total) != total:
                part.unlink()
                raise _Broken("the server has another file than the one begun; starting over", 0)
        elif answer.status == 200:
            start, total = 0, _content_length(answer)
        else:
            raise Refused(f"it answers with status {answer.status}")
        _check_answer(answer, total, checks)
        if total is not None:
            check_room(part.parent, round(total * room) - start)
        _write_version(version_file, url, answer, total)
        bar.total = total
        bar.n = bar.initial = start  # what was here before does not count for the speed
        bar.refresh()
        _receive(answer, part, start, total, bar)


def _open(url: str, headers: dict[str, str]) -> Any:
    """The answer, of which status 416 is one.

    Raises:
        Refused: an error that stays.
        _Broken: an error that may pass.
    """
    if not url.startswith(("http://", "https://")):
        raise Refused("the address is not http:// or https://")
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return error
        error.close()
        reason = f"it answers {error.code} {error.reason}"
        if error.code not in (408, 425, 429) and error.code < 500:
            raise Refused(reason) from error
        pause = _retry_after(error.headers.get("Retry-After"))
        if pause is not None and pause > LONGEST_PAUSE:
            raise Refused(f"{reason} and asks to come back in {pause / 60:.0f} minutes") from error
        raise _Broken(reason, pause) from error
    except (OSError, http.client.HTTPException) as error:
        cause: object = getattr(error, "reason", error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise Refused(f"its certificate is not accepted ({one_line(cause)})") from error
        if isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME:
            raise Refused("its host is not known: the address is dead, or there is no network") from error
        raise _Broken(cause) from error


def _check_answer(answer: Any, total: int | None, checks: Checks) -> None:
    kind = answer.headers.get_content_type()
    if answer.headers.get("Content-Type") and kind in ("text/html", "application/xhtml+xml"):
        raise Refused("it gives a web page instead of the file")
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise Refused(f"it gives the file encoded as {answer.headers['Content-Encoding']}")
    if checks.bytes is not None and total is not None and total != checks.bytes:
        raise Refused(f"it has {total} bytes instead of {checks.bytes}")
    chunked = answer.headers.get("Transfer-Encoding", "").lower() == "chunked"  # tells its own end
    if total is None and not chunked and not checks.decisive and checks.bytes is None:
        raise Refused(
            "it tells no size, and no checksum is known: a whole file could not be told from a broken one"
        )


def _receive(answer: Any, part: Path, start: int, total: int | None, bar: Any) -> None:
    with open(part, "ab" if start else "wb") as file:
        position = start
        while True:
            try:
                chunk = answer.read1(CHUNK)
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise _Broken(
                    f"the connection broke off after {position} bytes ({one_line(error)})"
                ) from error
            if not chunk:
                break
            file.write(chunk)
            position += len(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    if total is not None and position < total:
        raise _Broken(f"the connection broke off after {position} of {total} bytes")
    if start == 0 and looks_like_html(part):
        part.unlink()
        raise Refused("it gives a web page instead of the file")


def _content_range(text: str) -> tuple[int | None, int | None]:
    """`bytes 5-9/10` → (5, 10)."""
    try:
        unit, _, rest = text.partition(" ")
        span, _, total = rest.partition("/")
        return (int(span.partition("-")[0]) if unit == "bytes" else None), int(total)
    except ValueError:
        return None, None


def _content_length(answer: Any) -> int | None:
    text = answer.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _retry_after(text: str | None) -> float | None:
    """Seconds from now, of a header that is seconds or a date."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())


def _read_version(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_version(path: Path, url: str, answer: Any, total: int | None) -> None:
    etag = answer.headers.get("ETag", "")
    validator = etag if etag.startswith('"') else answer.headers.get("Last-Modified")  # weak tags are no use
    path.write_text(json.dumps({"url": url, "validator": validator, "total": total}), encoding="utf-8")


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _bar(name: str, total: int | None) -> Any:
    return tqdm(total=total, desc=name, unit="B", unit_scale=True, unit_divisor=1000, delay=1)
