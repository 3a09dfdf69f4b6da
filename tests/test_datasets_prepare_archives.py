"""Archives: every format is unpacked, and nothing is written outside of the folder."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from datasets import archives
from datasets.archives import unpack

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
    if form == "a.tar" and ".." in name:
        with pytest.raises(ValueError, match=r"a\.tar is damaged, unsafe or no archive"):
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
