"""The index of folders: what it spares, what it notices, and that a wrong one is never trusted."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from dassl.data import folder_index
from dassl.data.folder_index import list_images, list_names, listing, opened, rows_of_folders

NAMES = ["a.jpg", "b b.PNG", "ü.jpeg", "notes.txt", ".hidden.jpg"]
IMAGES = ["a.jpg", "b b.PNG", "ü.jpeg"]


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """Two class folders, last changed an hour ago; an index is kept of however few files."""
    monkeypatch.setattr(folder_index, "LEAST", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for folder in ("one", "two"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for name in NAMES:
            (tmp_path / "data" / folder / name).touch()
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def later(monkeypatch):
    """The clock goes on by an hour, so that the folders' times, which no one can set back, lie behind."""
    clock = time.time_ns
    monkeypatch.setattr(folder_index.time, "time_ns", lambda: clock() + 3_600_000_000_000)


@pytest.fixture
def listed(monkeypatch) -> list[str]:
    """The names of the folders that are listed, as they are."""
    folders: list[str] = []
    scandir = os.scandir

    def record(path):
        if Path(path).name in ("one", "two", "three"):  # and not where the index itself is written
            folders.append(Path(path).name)
        return scandir(path)

    monkeypatch.setattr(folder_index.os, "scandir", record)
    return folders


def look(tree: Path, rebuild: bool = False) -> list[list[str]]:
    with opened(str(tree), rebuild):
        return [list_images(str(tree / folder)) for folder in ("one", "two")]


def place(tree: Path) -> Path:
    return Path(folder_index.places(str(tree))[0])


def test_folders_are_listed_once(tree, listed):
    assert look(tree) == [IMAGES, IMAGES]
    assert listed == ["one", "two"]
    assert look(tree) == look(tree) == [IMAGES, IMAGES]
    assert listed == ["one", "two"]
    assert place(tree) == tree / ".folder_index" / "folders.bin"
    with opened(str(tree)):
        assert sorted(list_names(str(tree / "one"))) == sorted(NAMES)


def test_without_an_index_open_folders_are_listed(tree, listed):
    look(tree)
    del listed[:]
    assert list_images(str(tree / "one")) == IMAGES
    with opened(str(tree / "two")):
        assert list_images(str(tree / "one")) == IMAGES
    assert listed == ["one", "one"]


@pytest.mark.parametrize("change", ["add", "remove", "rename", "replace folder"])
def test_what_changes_is_noticed(tree, listed, change):
    look(tree)
    time.sleep(0.02)  # beyond the grain of a file system's times
    if change == "add":
        (tree / "two" / "c.jpg").touch()
    elif change == "remove":
        (tree / "two" / "a.jpg").unlink()
    elif change == "rename":
        (tree / "two" / "a.jpg").rename(tree / "two" / "z.jpg")
    else:
        (tree / "two").rename(tree.parent / "away")
        (tree / "two").mkdir()
    expected = sorted(
        path.name for path in (tree / "two").iterdir() if path.name in {*IMAGES, "c.jpg", "z.jpg"}
    )
    del listed[:]
    assert look(tree) == [IMAGES, expected]
    assert look(tree) == [IMAGES, expected]
    assert listed == ["two"], "and the others are not listed again"


def test_folder_that_was_put_back_to_its_old_time_is_noticed(tree):
    """As archives do when they are unpacked."""
    look(tree)
    status = os.stat(tree / "two")
    time.sleep(0.02)
    (tree / "two" / "c.jpg").touch()
    os.utime(tree / "two", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert look(tree) == [IMAGES, sorted([*IMAGES, "c.jpg"])]


def test_folder_that_had_just_been_changed_is_listed_again(tree, listed, monkeypatch):
    """The next file could have been added in the same instant."""
    monkeypatch.setattr(
        folder_index.time, "time_ns", lambda: os.stat(tree / "one").st_ctime_ns + 1_000_000_000
    )
    look(tree)
    look(tree)
    assert listed == ["one", "two"] * 2


def test_file_system_without_times_is_not_believed(tree, listed, monkeypatch):
    monkeypatch.setattr(folder_index, "_times", lambda folder: (0, 0))
    look(tree)
    look(tree)
    assert listed == ["one", "two"] * 2


def test_rebuilt_on_demand(tree, listed):
    look(tree)
    before = place(tree).stat().st_mtime_ns
    time.sleep(0.02)
    assert look(tree, rebuild=True) == [IMAGES, IMAGES]
    assert listed == ["one", "two"] * 2
    assert place(tree).stat().st_mtime_ns > before


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:20],
        lambda content: content + b"x",
        lambda content: content.replace(b"a.jpg", b"x.jpg"),
        lambda content: content.replace(b"version 3", b"version 2"),
        lambda content: b"\x80\x04cos\nsystem\n",
    ],
)
def test_damaged_or_other_index_is_made_anew(tree, listed, capsys, damage):
    look(tree)
    whole = place(tree).read_bytes()
    place(tree).write_bytes(damage(whole))
    del listed[:]
    assert look(tree) == [IMAGES, IMAGES]
    assert listed == ["one", "two"]
    assert "is damaged or of another version" in capsys.readouterr().out
    assert look(tree) == [IMAGES, IMAGES]
    assert listed == ["one", "two"]
    assert capsys.readouterr().out == ""


def test_dataset_that_cannot_be_written_has_its_index_in_the_cache_folder(tree, listed, monkeypatch):
    atomic_open = folder_index.atomic_open

    def guarded(path, mode):
        if path.startswith(str(tree)):
            raise PermissionError(13, "Permission denied", path)
        return atomic_open(path, mode)

    monkeypatch.setattr(folder_index, "atomic_open", guarded)
    look(tree)
    look(tree)
    assert listed == ["one", "two"]
    assert not place(tree).exists()
    assert len(list((tree.parent / "cache").rglob("*.bin"))) == 1


def test_index_that_can_be_saved_nowhere_is_told(tree, monkeypatch, capsys):
    def denied(path, mode):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(folder_index, "atomic_open", denied)
    assert look(tree) == [IMAGES, IMAGES]
    assert "is not saved, so that its folders are listed each time: [Errno 13]" in capsys.readouterr().out


def test_few_files_have_no_index_and_a_failure_saves_none(tree, monkeypatch):
    def fail_half_way():
        with opened(str(tree)):
            list_images(str(tree / "one"))
            list_images(str(tree / "three"))

    with pytest.raises(FileNotFoundError):
        fail_half_way()
    assert not place(tree).exists()
    monkeypatch.setattr(folder_index, "LEAST", 11)
    look(tree)
    assert not place(tree).exists()


def test_what_another_opening_looked_at_is_kept(tree, listed):
    look(tree)
    (tree / "three").mkdir()
    with opened(str(tree)):
        assert list_names(str(tree / "three")) == []
    look(tree)
    assert listed == ["one", "two", "three"]


def test_index_moves_with_its_folder(tree, listed):
    look(tree)
    tree.rename(tree.parent / "moved")
    assert look(tree.parent / "moved") == [IMAGES, IMAGES]
    assert listed == ["one", "two"]


def test_linked_class_folder(tree):
    (tree / "two").rename(tree.parent / "elsewhere")
    (tree / "two").symlink_to(tree.parent / "elsewhere")
    look(tree)
    time.sleep(0.02)
    (tree.parent / "elsewhere" / "c.jpg").touch()
    assert look(tree) == [IMAGES, sorted([*IMAGES, "c.jpg"])]


def test_rows_of_class_folders(tree):
    (tree / "empty").mkdir()
    classes = [("two", 0, "the second"), ("empty", 1, "none"), ("one", 2, "the first")]
    for _ in range(2):
        with opened(str(tree.parent)):
            rows = rows_of_folders(str(tree), classes)
        assert list(rows) == [
            *((f"two/{name}", 0, "the second") for name in IMAGES),
            *((f"one/{name}", 2, "the first") for name in IMAGES),
        ]
    assert rows.digest() == type(rows).pack(list(rows)).digest()
    assert listing(str(tree / "empty")) == (b"", b"")


@pytest.mark.parametrize(
    "read",
    [
        lambda tree: rows_of_folders(str(tree), [("one", 0, "first")]),
        lambda tree: list_images(str(tree / "one")),
    ],
)
def test_an_image_that_is_a_link_to_nothing_is_not_left_out_silently(tree, read):
    (tree / "one" / "b.jpg").symlink_to(tree / "gone.jpg")
    with pytest.raises(FileNotFoundError, match=r"one/b\.jpg is a link to nothing"), opened(str(tree)):
        read(tree)
    (tree / "gone.jpg").touch()
    with opened(str(tree)):
        assert len(read(tree)) == len(IMAGES) + 1


@pytest.mark.parametrize(
    "table",
    [
        *(b"", b"{", b"7", b"[7]", b"[" * 100_000, b'[["one"]]', b'[["one", 1, 1, 1, 0, 0, 0, 0]]'),
        *(b'[["one", 1, 1, "1", 0, 0, 0]]', b'[["one", 1, 1, 1, 0, 5, 9]]', b'[["one", 1, 1, 1, 2, 1, 0]]'),
        *(b'[["one", 1, 1, 1, null, 0, 0]]', b'[["one", 1, 1, 1, -2, 0, 0]]', b'[["one", 1, 1, 1, 0, 1, 2]]'),
    ],
)
def test_an_index_of_another_form_is_made_anew_whatever_its_checksum(tree, capsys, table):
    assert look(tree) == [IMAGES, IMAGES]
    content = len(table).to_bytes(8, "little") + table + b"\xff/"
    digest = hashlib.sha256(content).digest()
    place(tree).write_bytes(folder_index.MAGIC + digest + content)
    assert look(tree) == [IMAGES, IMAGES]
    assert "is not in its form" in capsys.readouterr().out
    assert look(tree) == [IMAGES, IMAGES]
    assert capsys.readouterr().out == ""
