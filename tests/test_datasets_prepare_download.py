"""Downloads from servers of every kind: nothing half-written, and nothing else, is taken for the file."""

from __future__ import annotations

import hashlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from file_server import FileServer
from helpers import ROOT

from datasets import download
from datasets.download import Checks, NoRoom, Refused
from datasets.fetch import fetch

CONTENT = bytes(range(251)) * 4000  # a million bytes
MD5 = hashlib.md5(CONTENT).hexdigest()
RIGHT = Checks(md5=MD5)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = FileServer({"a.bin": CONTENT, "slow.bin": CONTENT})
    yield server
    server.stop()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which are not made."""
    made: list[float] = []
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=made.append))
    return made


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def got(server, behaviours: str, folder: Path, checks=RIGHT) -> str:
    """Fetches `a.bin` from these behaviours in turn; returns the one that gave it."""
    addresses = tuple(server.url(behaviour, "a.bin") for behaviour in behaviours.split())
    address = fetch(addresses, folder / "a.bin", checks)
    assert (folder / "a.bin").read_bytes() == CONTENT
    assert files(folder) == {"a.bin"}
    return address.split("/")[-2]


@pytest.mark.parametrize("checks", [RIGHT, Checks(), Checks(bytes=len(CONTENT))])
@pytest.mark.parametrize("behaviour", ["plain", "noranges", "moved", "breaks"])
def test_a_whole_file(behaviour, checks, server, tmp_path, pauses):
    assert got(server, behaviour, tmp_path, checks) == behaviour


def test_a_connection_that_breaks_off_goes_on_where_it_was(server, tmp_path, pauses):
    got(server, "breaks", tmp_path)
    assert server.asked == [
        ("breaks", None),
        ("breaks", f"bytes={len(CONTENT) * 2 // 5}-"),
        ("breaks", f"bytes={len(CONTENT) * 2 // 5 + len(CONTENT) * 3 // 5 * 2 // 5}-"),
    ]
    assert len(pauses) == 2


def test_a_run_that_was_given_up_goes_on_in_the_next(server, tmp_path, pauses):
    part = tmp_path / "a.bin.part"
    part.write_bytes(CONTENT[:1000])
    got(server, "plain", tmp_path)  # by the checksum
    assert server.asked == [("plain", "bytes=1000-")]


@pytest.mark.parametrize("checks", [RIGHT, Checks()])
def test_a_server_without_ranges_starts_over(checks, server, tmp_path, pauses):
    (tmp_path / "a.bin.part").write_bytes(b"other bytes")
    got(server, "noranges", tmp_path, checks)


def test_without_a_checksum_unknown_bytes_are_not_gone_on_with(server, tmp_path, pauses):
    (tmp_path / "a.bin.part").write_bytes(b"other bytes")
    got(server, "plain", tmp_path, Checks())
    assert server.asked == [("plain", None)]


def test_a_file_that_changes_between_tries_starts_over(server, tmp_path, pauses):
    assert got(server, "other", tmp_path, Checks()) == "other"
    assert [status for _, status in server.asked][1:] != [None, None]  # a range was asked for, and not given


def test_another_range_than_the_one_asked_for_starts_over(server, tmp_path, pauses):
    assert got(server, "shifted", tmp_path, Checks()) == "shifted"
    assert server.asked[1][1] is not None


def test_wrong_bytes_from_before_cost_one_more_try(server, tmp_path, pauses):
    (tmp_path / "a.bin.part").write_bytes(b"x" * 5000)
    got(server, "plain", tmp_path)
    assert server.asked == [("plain", "bytes=5000-"), ("plain", None)]


@pytest.mark.parametrize("extra", [0, 10])
def test_a_part_that_is_as_long_as_the_file_or_longer(extra, server, tmp_path, pauses):
    (tmp_path / "a.bin.part").write_bytes(CONTENT + b"x" * extra)
    got(server, "plain", tmp_path)
    assert len(server.asked) == 1 + (extra > 0)


REFUSALS = [
    ("gone", RIGHT, "it answers 404"),
    ("html", RIGHT, "it gives a web page instead of the file"),
    ("html", Checks(), "it gives a web page instead of the file"),
    ("disguised", Checks(), "it gives a web page instead of the file"),
    ("wrong", RIGHT, f"instead of {MD5}: not kept"),
    ("short", RIGHT, f"instead of {MD5}: not kept"),
    ("short", Checks(bytes=len(CONTENT)), f"it has 502000 bytes instead of {len(CONTENT)}"),
    ("stuck", RIGHT, f"broke off after 401600 of {len(CONTENT)} bytes, after 4 retries"),
    ("stuck", Checks(), f"broke off after 401600 of {len(CONTENT)} bytes, after 4 retries"),
    ("unsizedcut", RIGHT, f"instead of {MD5}: not kept"),
    ("unsizedcut", Checks(bytes=len(CONTENT)), f"it has 401600 bytes instead of {len(CONTENT)}: not kept"),
    ("unsized", Checks(), "no size, and no checksum is known"),
    ("chunkedcut", Checks(), "the connection broke off"),
    ("patience", RIGHT, "asks to come back in 1440 minutes"),
]


@pytest.mark.parametrize(("behaviour", "checks", "reason"), REFUSALS)
def test_what_is_not_the_file_is_not_kept_and_the_next_address_is_tried(
    behaviour, checks, reason, server, tmp_path, pauses
):
    with pytest.raises(Refused) as caught:
        fetch((server.url(behaviour, "a.bin"),), tmp_path / "a.bin", checks)
    assert reason in str(caught.value)
    assert server.url(behaviour, "a.bin") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.bin").exists()
    assert got(server, f"{behaviour} plain", tmp_path, checks) == "plain"


def test_an_older_file_stays_if_nothing_comes(server, tmp_path, pauses):
    (tmp_path / "a.bin").write_text("older")
    with pytest.raises(Refused):
        fetch((server.url("wrong", "a.bin"), server.url("gone", "a.bin")), tmp_path / "a.bin", RIGHT)
    assert (tmp_path / "a.bin").read_text() == "older"


def test_a_busy_server_is_given_the_time_that_it_asks_for(server, tmp_path, pauses):
    got(server, "busy", tmp_path)
    assert pauses == [7]


def test_a_date_in_the_past_is_no_pause(server, tmp_path, pauses):
    got(server, "busydate", tmp_path)
    assert pauses == [0]


def test_pauses_grow(server, tmp_path, pauses):
    with pytest.raises(Refused):
        fetch((server.url("stuck", "a.bin"),), tmp_path / "a.bin", Checks())
    assert pauses == [1, 2, 4, 8, 16][: len(pauses)]
    assert len(pauses) >= download.RETRIES


def test_a_host_that_is_not_known_is_given_up_at_once(tmp_path, pauses, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(Refused, match="its host is not known: the address is dead, or there is no network"):
        fetch(("http://dead.example/a.bin",), tmp_path / "a.bin", RIGHT)
    assert pauses == []


def test_no_server(server, tmp_path, pauses):
    with pytest.raises(Refused, match=r"refused.*after 4 retries"):
        fetch(("http://127.0.0.1:1/a.bin",), tmp_path / "a.bin", RIGHT)


@pytest.mark.parametrize("address", ["file:///etc/hostname", "ftp://127.0.0.1/a", "hub:spaces/a/b/c"])
def test_other_addresses(address, tmp_path):
    with pytest.raises(Refused, match=address):
        fetch((address,), tmp_path / "a.bin", RIGHT)


def test_room_is_checked_before_anything_is_written(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_500_000))
    got(server, "plain", tmp_path)
    (tmp_path / "a.bin").unlink()
    with pytest.raises(NoRoom, match=r"has 0\.0 GB free and 0\.0 GB are needed: make room there"):
        fetch((server.url("plain", "a.bin"),), tmp_path / "a.bin", RIGHT, room=2.0)
    assert files(tmp_path) == set()


@pytest.mark.parametrize("kind", ["md5", "sha256", "git_sha1"])
def test_checksums(kind, tmp_path):
    (tmp_path / "a").write_bytes(b"what is up, doc?")
    right = {
        "md5": hashlib.md5(b"what is up, doc?").hexdigest(),
        "sha256": hashlib.sha256(b"what is up, doc?").hexdigest(),
        "git_sha1": "bd9dbf5aae1a3862dd1526723246b20206e5fc37",  # the example of git's own handbook
    }[kind]
    assert Checks(**{kind: right}).problem(tmp_path / "a") == ""
    (tmp_path / "a").write_bytes(b"what is up, dog?")
    assert f"its {kind} is " in Checks(**{kind: right}).problem(tmp_path / "a")


PROGRAM = """
import sys
from pathlib import Path
from datasets.download import Checks
from datasets.fetch import fetch
fetch((sys.argv[1],), Path(sys.argv[2]), Checks())
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_and_run_again(end, server, tmp_path, pauses):
    target, part = tmp_path / "slow.bin", tmp_path / "slow.bin.part"
    command = [sys.executable, "-c", PROGRAM, server.url("slow", "slow.bin"), str(target)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size > 100_000) and time.monotonic() < deadline:
            time.sleep(0.01)
        run.send_signal(end)
        assert run.wait(30) != 0
    begun = part.stat().st_size
    assert 100_000 < begun < len(CONTENT)
    assert not target.exists()
    fetch((server.url("slow", "slow.bin"),), target, Checks())
    assert target.read_bytes() == CONTENT
    assert server.asked[-1] == ("slow", f"bytes={begun}-")
    assert files(tmp_path) == {"slow.bin"}
