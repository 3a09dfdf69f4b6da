"""Archives: every format is unpacked, and nothing is written outside of the folder."""

from __future__ import annotations

import errno
import io
import random
import tarfile
import zipfile
from pathlib import Path

import pytest

from datasets import archives
from datasets.archives import unpack
from prompted_clip.errors import UserError

TREE = {"set/a b/1.jpg": b"one" * 300, "set/ünï/2.jpg": b"two" * 300, "set/list.txt": b"1\n2\n"}


def member(name: str, size: int = 0, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def tar_bytes(tree: dict[str, bytes], mode: str = "w", extra=()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in tree.items():
            tar.addfile(member(name, len(content)), io.BytesIO(content))
        for info in extra:
            tar.addfile(info)
    return buffer.getvalue()


def zip_bytes(tree: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in tree.items():
            file.writestr(name, content)
    return buffer.getvalue()


FORMS = {
    "a.tar": lambda tree: tar_bytes(tree),
    "a.tar.gz": lambda tree: tar_bytes(tree, "w:gz"),
    "a.tar.bz2": lambda tree: tar_bytes(tree, "w:bz2"),
    "a.tar.xz": lambda tree: tar_bytes(tree, "w:xz"),
    "a.zip": zip_bytes,
}


def read_tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("form", FORMS)
def test_every_format(form, tmp_path):
    (tmp_path / form).write_bytes(FORMS[form](TREE))
    unpack(tmp_path / form, tmp_path / "out")
    assert read_tree(tmp_path / "out") == TREE


@pytest.mark.parametrize("form", ["a.tar", "a.zip"])
@pytest.mark.parametrize("name", ["../out.txt", "set/../../out.txt", "/out.txt"])
def test_nothing_is_written_outside(name, form, tmp_path):
    content = FORMS[form]({"set/1.jpg": b"fine", name: b"evil"})
    (tmp_path / form).write_bytes(content)
    if ".." in name:
        with pytest.raises(UserError, match=r"a\.(tar|zip) is damaged, unsafe or no archive"):
            unpack(tmp_path / form, tmp_path / "in" / "out")
    else:  # the path is taken to start in the folder
        unpack(tmp_path / form, tmp_path / "in" / "out")
    outside = {path for path in read_tree(tmp_path) if not path.startswith("in/out/")}
    assert outside == {form}
    assert not Path("/out.txt").exists()


@pytest.mark.parametrize(
    "link",
    [
        member("set/link", type=tarfile.SYMTYPE, linkname="../../secret"),
        member("set/link", type=tarfile.SYMTYPE, linkname="list.txt"),
        member("set/link", type=tarfile.LNKTYPE, linkname="set/link"),
        member("set/link", type=tarfile.LNKTYPE, linkname="nothing"),
        member("set/link", type=tarfile.SYMTYPE, linkname="/etc"),
        member("link", type=tarfile.LNKTYPE, linkname="../secret"),
        member("set/pipe", type=tarfile.FIFOTYPE),
        member("set/disk", type=tarfile.BLKTYPE, devmajor=8),
    ],
    ids=lambda link: f"{link.type}{link.linkname}",
)
def test_links_out_and_devices(link, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "a.tar").write_bytes(tar_bytes(TREE, extra=[link]))
    with pytest.raises(ValueError, match=r"a\.tar is damaged, unsafe or no archive"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert read_tree(tmp_path / "out") == TREE


def test_a_link_in_a_zip_is_a_plain_file(tmp_path):
    info = zipfile.ZipInfo("set/link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(info, "/etc")
    unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out/set/link").is_symlink()


@pytest.mark.parametrize("form", ["a.tar.gz", "a.zip"])
def test_a_bomb(form, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_SMALL", 1 << 20)
    (tmp_path / form).write_bytes(FORMS[form]({"fine": b"fine", "zeros": bytes(8 << 20)}))
    with pytest.raises(ValueError, match="too much for its size"):
        unpack(tmp_path / form, tmp_path / "out")
    assert "zeros" not in read_tree(tmp_path / "out")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_archive(share, form, tmp_path):
    content = FORMS[form]({f"{number}.jpg": bytes(range(256)) * 40 for number in range(30)})
    (tmp_path / form).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match="is damaged, unsafe or no archive"):
        unpack(tmp_path / form, tmp_path / "out")


def test_what_is_no_archive(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"<html>Sign in</html>")
    with pytest.raises(ValueError, match=r"a\.zip is damaged, unsafe or no archive"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def through_links(up: int) -> bytes:
    """Writes `outside/written` where Python's own filter is left to it (CVE-2025-4517)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        path, step = "", "d" * 247
        for letter in "abcdefghijklmnop":
            tar.addfile(member(f"{path}{step}", type=tarfile.DIRTYPE))
            tar.addfile(member(f"{path}{letter}", type=tarfile.SYMTYPE, linkname=step))
            path += f"{step}/"
        far = f"{'/'.join('abcdefghijklmnop')}/{'l' * 254}"
        tar.addfile(member(far, type=tarfile.SYMTYPE, linkname="../" * 16))
        tar.addfile(member("escape", type=tarfile.SYMTYPE, linkname=f"{far}/{'../' * up}outside"))
        tar.addfile(member("escape/written", 5), io.BytesIO(b"owned"))
    return buffer.getvalue()


@pytest.mark.parametrize("up", range(1, 8))
def test_links_beyond_the_longest_path_lead_nowhere(up, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "a.tar").write_bytes(through_links(up))
    with pytest.raises(UserError, match="no regular file"):
        unpack(tmp_path / "a.tar", tmp_path / "set" / "unpacked")
    assert list((tmp_path / "outside").iterdir()) == []
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]


@pytest.mark.parametrize(
    "info",
    [
        member("set/1.jpg", mtime=2**70),
        member("x" * 300),
        member("/".join(["y" * 200] * 30)),
        member("set/list.txt/below"),
        member("set", 0),
        member("", 0),
        member("..", type=tarfile.DIRTYPE),
        member("sparse", type=tarfile.GNUTYPE_SPARSE),
        member("set/1.jpg", pax_headers={"comment": "z" * (2 << 20)}),
        member("set/1.jpg", pax_headers={"GNU.sparse.map": "x", "GNU.sparse.major": "1"}),
    ],
    ids=range(10),
)
def test_strange_members_are_one_error_or_a_file(info, tmp_path):
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name, content in TREE.items():
            file.addfile(member(name, len(content)), io.BytesIO(content))
        file.addfile(info)
    (tmp_path / "a.tar").write_bytes(tar.getvalue())
    reason = ""
    try:
        unpack(tmp_path / "a.tar", tmp_path / "in" / "out")
    except UserError as error:
        reason = str(error)
    assert "\n" not in reason
    assert len(reason) < 2000
    assert {path for path in read_tree(tmp_path) if not path.startswith("in/out/")} == {"a.tar"}


def test_a_header_is_not_read_as_a_whole(tmp_path):
    """Some kilobytes of tar.gz may say that a name is gigabytes long."""
    info = member("long", 1 << 32, type=tarfile.GNUTYPE_LONGNAME)
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_000))
    with pytest.raises(UserError, match=r"a header of 4,294,967,296 bytes"):
        unpack(tmp_path / "a.tar", tmp_path / "out")


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes(seed, tmp_path):
    rng = random.Random(seed)
    form = rng.choice(list(FORMS))
    content = bytearray(FORMS[form](TREE))
    for _ in range(rng.randrange(1, 20)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    (tmp_path / form).write_bytes(content)
    reason = form
    try:
        unpack(tmp_path / form, tmp_path / "in" / "out")
    except UserError as error:
        reason = str(error)
    assert form in reason
    assert {path for path in read_tree(tmp_path) if not path.startswith("in/out/")} == {form}


def test_a_full_disk_is_no_fault_of_the_archive(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.tar").write_bytes(tar_bytes(TREE))
    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
