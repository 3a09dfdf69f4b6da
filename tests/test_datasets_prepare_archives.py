"""Archives: every form is unpacked, and no archive gets out of its folder."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from datasets import archives
from datasets.archives import Unsafe, unpack

TREE = {"set/a b/1.jpg": b"one" * 300, "set/ünï/2.jpg": b"two" * 300, "set/list.txt": b"1\n2\n"}
JUNK = {"__MACOSX/set/._1.jpg": b"", "set/.DS_Store": b"x", "set/a b/._1.jpg": b"x"}


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
    "a.tgz": lambda tree: tar_bytes(tree, "w:gz"),
    "a.tar.bz2": lambda tree: tar_bytes(tree, "w:bz2"),
    "a.tar.xz": lambda tree: tar_bytes(tree, "w:xz"),
    "a.zip": zip_bytes,
}


def read_tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("form", FORMS)
def test_every_form(form, tmp_path):
    (tmp_path / form).write_bytes(FORMS[form]({**TREE, **JUNK}))
    assert unpack(tmp_path / form, tmp_path / "out") == len(TREE)
    assert read_tree(tmp_path / "out") == TREE


@pytest.mark.parametrize("outer", FORMS)
@pytest.mark.parametrize("inner", ["a.tar.gz", "a.zip"])
def test_an_archive_in_an_archive(outer, inner, tmp_path):
    content = {f"box/{inner}": FORMS[inner](TREE), "box/read me": b"hello"}
    (tmp_path / outer).write_bytes(FORMS[outer](content))
    unpack(tmp_path / outer, tmp_path / "out", (inner,))
    assert read_tree(tmp_path / "out" / "box") == {**TREE, "read me": b"hello"}


def test_archives_in_an_archive_each_into_its_folder(tmp_path):
    classes = {f"n0{number}.tar": tar_bytes({f"{number}.JPEG": b"image"}) for number in range(3)}
    (tmp_path / "train.tar").write_bytes(tar_bytes(classes))
    assert unpack(tmp_path / "train.tar", tmp_path / "out", ("n*.tar",), inner_folders=True) == 3
    assert read_tree(tmp_path / "out") == {f"n0{number}/{number}.JPEG": b"image" for number in range(3)}


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("form", ["a.tar", "a.tar.gz", "a.zip"])
@pytest.mark.parametrize(
    "name",
    [
        "../out.txt",
        "set/../../out.txt",
        "/tmp/out.txt",
        "..",
        "C:/out.txt",
        "..\\out.txt",
        "\\\\host\\out.txt",
    ],
)
def test_a_name_that_leads_out(name, form, trusted, tmp_path):
    (tmp_path / form).write_bytes(FORMS[form]({"set/1.jpg": b"fine", name: b"evil"}))
    before = read_tree(tmp_path)
    with pytest.raises(Unsafe, match=r"which leads out of its folder$"):
        unpack(tmp_path / form, tmp_path / "in" / "out", trusted=trusted)
    inside = {f"in/out/{path}" for path in read_tree(tmp_path / "in" / "out")}
    assert set(read_tree(tmp_path)) - set(before) == inside <= {"in/out/set/1.jpg"}


@pytest.mark.parametrize(
    "link",
    [
        member("set/link", type=tarfile.SYMTYPE, linkname="../../secret"),
        member("set/link", type=tarfile.SYMTYPE, linkname="/etc"),
        member("link", type=tarfile.LNKTYPE, linkname="../secret"),
        member("set/pipe", type=tarfile.FIFOTYPE),
        member("set/disk", type=tarfile.BLKTYPE, devmajor=8),
        member("set/terminal", type=tarfile.CHRTYPE, devmajor=1),
    ],
    ids=lambda link: f"{link.type}{link.linkname}",
)
def test_links_out_and_devices(link, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "a.tar").write_bytes(tar_bytes(TREE, extra=[link]))
    with pytest.raises(Unsafe, match=r"a\.tar holds '(set/)?(link|pipe|disk|terminal)'"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink() or path.name == "link"]


def test_a_file_through_a_link(tmp_path):
    links = [member("set/here", type=tarfile.SYMTYPE, linkname=".")]
    (tmp_path / "a.tar").write_bytes(tar_bytes(TREE, extra=links))
    unpack(tmp_path / "a.tar", tmp_path / "out")  # a link within is no harm
    assert (tmp_path / "out/set/here/list.txt").read_bytes() == TREE["set/list.txt"]


def test_a_link_in_a_zip(tmp_path):
    info = zipfile.ZipInfo("set/link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("set/1.jpg", b"fine")
        file.writestr(info, "/etc")
    with pytest.raises(Unsafe, match="'set/link', which is a link or a device"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert read_tree(tmp_path / "out") == {}


@pytest.mark.parametrize("form", ["a.tar.gz", "a.zip"])
def test_a_bomb(form, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "SMALL", 1 << 20)
    (tmp_path / form).write_bytes(FORMS[form]({"fine": b"fine", "zeros": bytes(8 << 20)}))
    assert (tmp_path / form).stat().st_size < 20_000
    with pytest.raises(Unsafe, match="no archive of images does"):
        unpack(tmp_path / form, tmp_path / "out")
    assert "zeros" not in read_tree(tmp_path / "out")


@pytest.mark.parametrize("form", FORMS)
def test_no_room(form, tmp_path, monkeypatch):
    (tmp_path / form).write_bytes(FORMS[form](TREE))
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: type("", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"GB, 0\.0 are free") as caught:
        unpack(tmp_path / form, tmp_path / "out")
    assert caught.value.errno == 28


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_what_is_cut_off_is_not_taken_for_whole(share, form, tmp_path):
    content = FORMS[form]({f"{number}.jpg": bytes([number]) * 2000 for number in range(30)})
    (tmp_path / form).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(Unsafe):
        unpack(tmp_path / form, tmp_path / "out")


def test_a_tar_that_is_cut_off_between_two_files(tmp_path):
    content = tar_bytes({"1.jpg": b"1" * 512, "2.jpg": b"2" * 512})
    (tmp_path / "a.tar").write_bytes(content[:1024])  # the first, whole
    with pytest.raises(Unsafe, match="has no end: it is cut off"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert unpack(tmp_path / "a.tar", tmp_path / "right", trusted=True) == 1


@pytest.mark.parametrize("form", ["a.tar.gz", "a.tar.xz", "a.zip"])
def test_a_flipped_bit(form, tmp_path):
    content = bytearray(FORMS[form]({"1.jpg": bytes(range(256)) * 40}))
    content[len(content) // 2] ^= 4
    (tmp_path / form).write_bytes(content)
    with pytest.raises(Unsafe, match=r"is damaged|holds|cut off"):
        unpack(tmp_path / form, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"<html>Sign in</html>", b"\x1f\x8b and no more", b"PK\x03\x04"])
def test_what_is_no_archive(content, tmp_path):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(Unsafe, match=r"a\.zip is damaged or no archive"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
