"""The sha256 of images, kept beside the data."""

import hashlib
import os
import threading

import pytest

from dassl.data import content
from dassl.data.content import content_sha256


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def files_under(root):
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "_in_memory", {})


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data" / "ant").mkdir(parents=True)
    for name in "ab":
        (tmp_path / "data" / "ant" / f"{name}.jpg").write_text(name)
    for path in (tmp_path / "data").rglob("*.jpg"):
        os.utime(path, (10**9, 10**9))
    return tmp_path / "data"


def settle(monkeypatch):
    monkeypatch.setattr(content, "SETTLED", -(10**18))


def test_each_file_is_read_once_and_known_from_then_on(root, monkeypatch):
    settle(monkeypatch)
    paths = ["ant/a.jpg", str(root / "ant" / "b.jpg")]
    assert content_sha256(paths, str(root), hash_missing=False) == {}
    wanted = {path: sha256(name) for path, name in zip(paths, "ab", strict=True)}
    assert content_sha256(paths, str(root)) == wanted

    monkeypatch.setattr(content, "_hash", None)  # no image is opened any more
    assert content_sha256(paths, str(root)) == wanted
    assert content_sha256(paths, str(root), hash_missing=False) == wanted


def test_a_changed_file_of_the_same_size_and_mtime_is_read_again(root, monkeypatch):
    settle(monkeypatch)  # else it is read again for its youth
    path = root / "ant" / "a.jpg"
    assert content_sha256(["ant/a.jpg"], str(root)) == {"ant/a.jpg": sha256("a")}
    path.write_text("c")
    os.utime(path, (10**9, 10**9))
    assert content_sha256(["ant/a.jpg"], str(root)) == {"ant/a.jpg": sha256("c")}


@pytest.mark.parametrize("damage", [b"", b"\0" * 50, b"[]", "flip"])
def test_damaged_hashes_are_computed_again(root, damage):
    content_sha256(["ant/a.jpg"], str(root))
    file = root / ".folder_index" / "folders_content.json"
    whole = bytearray(file.read_bytes())
    whole[len(whole) - 20] ^= 1
    file.write_bytes(bytes(whole) if damage == "flip" else damage)
    assert content_sha256(["ant/a.jpg"], str(root), hash_missing=False) == {}
    assert content_sha256(["ant/a.jpg"], str(root)) == {"ant/a.jpg": sha256("a")}


@pytest.mark.parametrize(
    "text",
    [
        *("[1]", "7", "{", "[" * 100_000, '{"ant/a.jpg": []}', '{"ant/a.jpg": [1, 1, 1, 1]}'),
        *('{"ant/a.jpg": [1, 1, 1, "1", "x"]}', '{"ant/a.jpg": [1, 1, 1, 1, null]}', '{"ant/a.jpg": 1}'),
    ],
)
def test_what_is_no_list_of_hashes_is_computed_again_whatever_its_checksum(root, text):
    file = root / ".folder_index" / "folders_content.json"
    file.parent.mkdir()
    file.write_text(f"{sha256(text)}\n{text}")
    assert content_sha256(["ant/a.jpg"], str(root)) == {"ant/a.jpg": sha256("a")}


def test_two_roots_with_equal_paths_sizes_and_times_have_their_own(root, tmp_path):
    other = tmp_path / "other"
    (other / "ant").mkdir(parents=True)
    (other / "ant" / "a.jpg").write_text("z")
    os.utime(other / "ant" / "a.jpg", (10**9, 10**9))
    assert content_sha256(["ant/a.jpg"], str(root)) == {"ant/a.jpg": sha256("a")}
    assert content_sha256(["ant/a.jpg"], str(other)) == {"ant/a.jpg": sha256("z")}


def test_what_several_add_at_once_is_all_kept(root, monkeypatch):
    names = [f"{number}.jpg" for number in range(12)]
    for name in names:
        (root / name).write_text(name)
    threads = [threading.Thread(target=content_sha256, args=([name], str(root))) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(content_sha256(names, str(root), hash_missing=False)) == len(names)


def test_where_nothing_can_be_written_they_are_kept_in_memory(root, monkeypatch):
    monkeypatch.setattr(content, "_places", lambda root: ["/dev/null/a.json"])
    before = files_under(root)
    assert content_sha256(["ant/a.jpg"], str(root)) == {"ant/a.jpg": sha256("a")}
    assert content_sha256(["ant/a.jpg"], str(root), hash_missing=False) == {"ant/a.jpg": sha256("a")}
    assert files_under(root) == before


def test_what_is_no_file_is_left_out(root):
    os.mkfifo(root / "pipe.jpg")
    paths = ["", "ant", "pipe.jpg", "in memory", "nul\0", "ant/a.jpg", "ant/a.jpg"]
    assert content_sha256(paths, str(root)) == {"ant/a.jpg": sha256("a")}


def test_names_of_any_bytes(root):
    path = os.fsdecode(os.fsencode(root) + b"/caf\xe9.jpg")
    with open(path, "w") as file:
        file.write("x")
    assert content_sha256([path], str(root)) == {path: sha256("x")}
    assert content_sha256([path], str(root), hash_missing=False) == {path: sha256("x")}
