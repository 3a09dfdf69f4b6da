"""`prepare`, on a small dataset in the form of a benchmark, from a server on this machine."""

from __future__ import annotations

import errno
import io
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import requests
from filelock import FileLock
from scipy.io import savemat
from served_dtd import ARCHIVE, IMAGES, SPLIT_FILE, WHOLE, jpeg, md5, run, tree
from served_dtd import server as server
from served_dtd import world as world
from test_datasets_prepare_archives import FORMS, tar_bytes
from torchvision.datasets import imagenet

from datasets import prepare, sources

SPLIT_NAME = "split_zhou_DescribableTextures.json"


def images_source(world: dict) -> dict:
    return world["datasets"]["DescribableTextures"]["files"][0]


def still_missing(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "still missing" in line]
    return line


def test_prepare_fetches_lays_out_and_verifies(world, server, tmp_path, capsys):
    assert run("prepare", "dtd", "--root", tmp_path) == 0
    assert tree(tmp_path / "dtd") == WHOLE
    assert (tmp_path / "dtd/images/dotted/dotted 1.jpg").read_bytes() == IMAGES["dotted/dotted 1.jpg"]
    assert "DescribableTextures: 6/3/3 train/val/test images, 3 classes: as it should be" in (
        capsys.readouterr().out
    )
    asked = len(server.asked)
    assert run("prepare", "DescribableTextures", "--root", tmp_path) == 0
    assert len(server.asked) == asked, "nothing is fetched twice"


def test_archives_are_kept_if_asked(world, tmp_path):
    assert run("prepare", "dtd", "--root", tmp_path, "--keep-archives") == 0
    assert tree(tmp_path / "dtd/.prepare") == {"dtd.tar.gz"}


def test_a_file_that_was_put_there_by_hand_is_used(world, server, tmp_path):
    (tmp_path / "dtd").mkdir()
    (tmp_path / "dtd/dtd.tar.gz").write_bytes(ARCHIVE)
    images_source(world)["urls"] = [server.url("gone", "dtd.tar.gz")]
    assert run("prepare", "dtd", "--root", tmp_path) == 0
    assert tree(tmp_path / "dtd") == {*WHOLE, "dtd.tar.gz"}


def test_a_damaged_file_put_there_by_hand(world, tmp_path, capsys):
    (tmp_path / "dtd").mkdir()
    (tmp_path / "dtd/dtd.tar.gz").write_bytes(ARCHIVE[:-9])
    assert run("prepare", "dtd", "--root", tmp_path) == 1
    expected = f"{tmp_path}/dtd/dtd.tar.gz: its md5 is {md5(ARCHIVE[:-9])} instead of {md5(ARCHIVE)}"
    assert expected in capsys.readouterr().out
    assert tree(tmp_path / "dtd") == {"dtd.tar.gz", SPLIT_NAME}, "the rest is done"


def test_a_damaged_archive_of_an_earlier_run_is_fetched_again(world, server, tmp_path):
    (tmp_path / "dtd/.prepare").mkdir(parents=True)
    (tmp_path / "dtd/.prepare/dtd.tar.gz").write_bytes(ARCHIVE[:-9])
    assert run("prepare", "dtd", "--root", tmp_path) == 0
    assert tree(tmp_path / "dtd") == WHOLE


def test_what_only_a_person_can_get(world, tmp_path, capsys):
    images_source(world).update(urls=[], by_hand="Register at the authors' page.")
    assert run("prepare", "dtd", "--root", tmp_path) == 1
    line = still_missing(capsys)
    assert "only by hand. Register at the authors' page. " in line
    assert f"To continue, put dtd.tar.gz (md5:{md5(ARCHIVE)}) into {tmp_path}/dtd and run: " in line
    assert line.endswith(f"python -m datasets prepare DescribableTextures --root {tmp_path}")


def test_no_url_works(world, server, tmp_path, capsys):
    kinds = ("gone", "html", "wrong")
    images_source(world)["urls"] = [server.url(kind, "dtd.tar.gz") for kind in kinds]
    assert run("prepare", "dtd", "--root", tmp_path) == 1
    line = still_missing(capsys)
    assert "404" in line
    assert line.count("does not match the known hash") == 2
    assert tree(tmp_path / "dtd") == {SPLIT_NAME}


def test_nothing_works_and_nothing_is_left(world, server, tmp_path):
    for file in world["datasets"]["DescribableTextures"]["files"]:
        file["urls"] = [server.url("gone", "dtd.tar.gz")]
    assert run("prepare", "dtd", "--root", tmp_path) == 1
    assert not (tmp_path / "dtd").exists()


@pytest.mark.parametrize("known", [True, False])
def test_a_connection_that_breaks_off_is_tried_again(known, world, server, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "RETRIES", 1)
    images_source(world)["urls"] = [server.url("breaks", "dtd.tar.gz")]
    if not known:
        del images_source(world)["hash"]
    assert run("prepare", "dtd", "--root", tmp_path) == 0
    assert tree(tmp_path / "dtd") == WHOLE
    assert server.asked.count("breaks") == 2


def test_a_web_page_where_no_checksum_is_known(world, server, tmp_path, capsys):
    images_source(world)["urls"] = [server.url("html", "dtd.tar.gz")]
    del images_source(world)["hash"]
    assert run("prepare", "dtd", "--root", tmp_path) == 1
    assert "dtd.tar.gz is damaged, unsafe or no archive" in still_missing(capsys)
    assert tree(tmp_path / "dtd") == {SPLIT_NAME}


def test_the_checksum_that_git_knows(world, server, tmp_path, capsys):
    split = world["datasets"]["DescribableTextures"]["files"][1]
    split["hash"] = "git:" + "0" * 40
    assert run("prepare", "dtd", "--root", tmp_path) == 1
    assert "its git is " in still_missing(capsys)
    blob = tmp_path / "blob"
    blob.write_bytes(b"hello\n")
    assert not sources.checksum_problem(blob, "git:ce013625030ba8dba906f756967f9e9ca394464a")


def test_an_archive_that_leads_out(world, server, tmp_path, capsys):
    server.files["dtd.tar.gz"] = FORMS["a.tar.gz"]({"dtd/images/a/1.jpg": b"fine", "../../../out": b"evil"})
    del images_source(world)["hash"]
    assert run("prepare", "dtd", "--root", tmp_path / "root") == 1
    assert "unsafe" in capsys.readouterr().out
    assert tree(tmp_path) == {f"root/dtd/{SPLIT_NAME}", "root/.dtd.lock"}


def test_an_archive_without_what_is_wanted(world, server, tmp_path, capsys):
    server.files["dtd.tar.gz"] = FORMS["a.tar.gz"]({"other/1.jpg": b"fine"})
    del images_source(world)["hash"]
    assert run("prepare", "dtd", "--root", tmp_path) == 1
    assert "it holds no dtd/images; it holds other" in capsys.readouterr().out
    assert not (tmp_path / "dtd/images").exists()


def test_an_archive_in_an_archive(world, server, tmp_path):
    inner = FORMS["a.tar.gz"]({f"images/{path}": content for path, content in IMAGES.items()})
    server.files["dtd.tar.gz"] = FORMS["a.zip"]({"dtd/images.tar.gz": inner, "__MACOSX/images/._1.jpg": b"x"})
    images_source(world).update(inner="images.tar.gz", take={"images": "images"}, hash="")
    assert run("prepare", "dtd", "--root", tmp_path) == 0
    assert tree(tmp_path / "dtd") == WHOLE


@pytest.mark.parametrize("when", ["download", "unpack", "find"])
def test_stopped_by_the_user_and_run_again(when, world, tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, when, stop)
        assert run("prepare", "dtd", "--root", tmp_path) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "dtd/images").exists()
    assert run("verify", "dtd", "--root", tmp_path) == 1
    assert run("prepare", "dtd", "--root", tmp_path) == 0
    assert tree(tmp_path / "dtd") == WHOLE


def test_a_second_process(world, tmp_path, capsys):
    with FileLock(tmp_path / ".dtd.lock"):
        assert run("prepare", "dtd", "--root", tmp_path) == 1
    assert f"another process is preparing {tmp_path}/dtd; wait for it" in capsys.readouterr().err
    assert run("prepare", "dtd", "--root", tmp_path) == 0


def test_a_full_disk(world, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepare, "unpack", full)
    assert run("prepare", "dtd", "--root", tmp_path) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "dtd/images").exists()


# Google Drive and the hub, whose libraries are replaced here ------------------------------------------------


def hub_with(monkeypatch, files: dict[str, bytes]) -> list[dict]:
    """huggingface_hub, whose repositories all hold `files`; returns what is asked of it."""
    calls: list[dict] = []

    def hf_hub_download(local_dir, **arguments):
        calls.append(arguments)
        path = Path(local_dir) / arguments["filename"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[arguments["filename"]])
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda repo: ["README.md", *files])
    return calls


def test_google_drive(world, tmp_path, monkeypatch):
    images_source(world)["urls"] = ["gdrive:1a2B"]
    calls = []

    def download(**arguments):
        calls.append((arguments["id"], arguments["resume"]))
        Path(arguments["output"]).write_bytes(ARCHIVE)

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))
    assert run("prepare", "dtd", "--root", tmp_path) == 0
    assert tree(tmp_path / "dtd") == WHOLE
    assert calls == [("1a2B", True)]


def test_google_drive_refuses(world, tmp_path, monkeypatch, capsys):
    def download(**_):
        raise RuntimeError("Failed to retrieve file url:\n\n\tToo many users have viewed this file recently.")

    images_source(world)["urls"] = ["gdrive:1a2B"]
    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))
    assert run("prepare", "dtd", "--root", tmp_path) == 1
    line = still_missing(capsys)
    assert "Too many users have viewed this file recently" in line
    assert f"put dtd.tar.gz (md5:{md5(ARCHIVE)}) into {tmp_path}/dtd" in line


@pytest.mark.parametrize(("package", "url"), [("gdown", "gdrive:1a2B"), ("pooch", "http://a/b")])
def test_a_package_is_not_installed(package, url, world, tmp_path, monkeypatch, capsys):
    for file in world["datasets"]["DescribableTextures"]["files"]:
        file["urls"] = [url]
    monkeypatch.setitem(sys.modules, package, None)
    assert run("prepare", "dtd", "--root", tmp_path) == 1
    assert f'it needs {package}: pip install -e ".[download]"' in capsys.readouterr().out


def test_gdown_takes_what_it_is_given():
    gdown = pytest.importorskip("gdown")
    assert {"id", "output", "resume"} <= set(gdown.download.__code__.co_varnames)


def test_a_file_of_the_hub(world, tmp_path, monkeypatch):
    calls = hub_with(monkeypatch, {"data/dtd.tar.gz": ARCHIVE})
    images_source(world)["urls"] = ["hub:datasets/some/one@abc/data/dtd.tar.gz"]
    assert run("prepare", "dtd", "--root", tmp_path) == 0
    assert tree(tmp_path / "dtd") == WHOLE
    assert calls == [
        {"repo_type": "dataset", "repo_id": "some/one", "revision": "abc", "filename": "data/dtd.tar.gz"}
    ]


MIRROR = {
    **{f"dtd/images/{path}": content for path, content in IMAGES.items()},
    f"dtd/{SPLIT_NAME}": SPLIT_FILE,
}


def test_the_mirror_gives_what_no_url_does(world, server, tmp_path, monkeypatch, capsys):
    world["mirror"]["repo"] = "some/mirror"
    images_source(world).update(urls=[], by_hand="Log in")
    calls = hub_with(monkeypatch, {"other.zip": b"", "DTD.zip": FORMS["a.zip"](MIRROR)})
    assert run("prepare", "dtd", "--root", tmp_path) == 0
    assert tree(tmp_path / "dtd") == WHOLE
    assert [(call["repo_type"], call["repo_id"], call["filename"]) for call in calls] == [
        ("model", "some/mirror", "DTD.zip")
    ]


def test_the_mirror_is_not_asked_where_the_urls_work(world, tmp_path, monkeypatch):
    world["mirror"]["repo"] = "some/mirror"
    calls = hub_with(monkeypatch, {})
    assert run("prepare", "dtd", "--root", tmp_path) == 0
    assert calls == []


@pytest.mark.parametrize(
    ("files", "hashes", "reason", "images"),
    [
        ({"cars.zip": b""}, {}, "there is no zip called describabletextures or dtd", False),
        ({"dtd.zip": FORMS["a.zip"](MIRROR)}, {"dtd.zip": "md5:" + "0" * 32}, "its md5 is", False),
        ({"dtd.zip": FORMS["a.zip"]({**MIRROR, f"dtd/{SPLIT_NAME}": b"{}"})}, {}, "not as published", True),
    ],
)
def test_the_mirror_does_not_have_it(
    files, hashes, reason, images, world, server, tmp_path, monkeypatch, capsys
):
    world["mirror"].update(repo="some/mirror", hashes=hashes)
    for file in world["datasets"]["DescribableTextures"]["files"]:
        file["urls"] = [server.url("gone", "dtd.tar.gz")]
    hub_with(monkeypatch, files)
    assert run("prepare", "dtd", "--root", tmp_path) == 1
    shown = capsys.readouterr().out
    assert "; mirror some/mirror: " in shown
    assert reason in shown
    assert (tmp_path / "dtd/images").exists() == images
    assert not (tmp_path / "dtd" / SPLIT_NAME).exists()


# ImageNet ---------------------------------------------------------------------------------------------------


def test_imagenet_s_archives_become_folders_of_classes(tmp_path, monkeypatch):
    """Archives in the form of the published ones, of two classes, put there by hand; nothing is fetched."""
    wnids = ("n01440764", "n01443537")
    kinds = [
        (name, "O")
        for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    ]
    synsets = [
        (1, wnids[1], "goldfish", "", 0, 0, 0),
        (2, wnids[0], "tench", "", 0, 0, 0),
        (3, "n00000000", "fish", "", 2, 0, 1),
    ]
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": np.array(synsets, dtype=kinds)})
    data = "ILSVRC2012_devkit_t12/data"
    truth = f"{data}/ILSVRC2012_validation_ground_truth.txt"
    train = {f"{wnid}.tar": tar_bytes({f"{wnid}_{n}.JPEG": jpeg(n) for n in (1, 2)}) for wnid in wnids}
    val = {f"ILSVRC2012_val_0000000{number}.JPEG": jpeg(number) for number in (1, 2, 3)}
    by_hand = {
        "devkit": FORMS["a.tar.gz"]({f"{data}/meta.mat": buffer.getvalue(), truth: b"2\n1\n2\n"}),
        "train": tar_bytes(train),
        "val": tar_bytes(val),
    }
    content = json.loads(sources.SOURCES.read_text(encoding="utf-8"))
    entry = content["datasets"]["ImageNet"]
    entry["files"] = [file for file in entry["files"] if file["file"] != "classnames.txt"]
    folder = tmp_path / "imagenet"
    folder.mkdir()
    for part, archive in by_hand.items():
        name, _ = imagenet.ARCHIVE_META[part]
        monkeypatch.setitem(imagenet.ARCHIVE_META, part, (name, md5(archive)))
        (folder / name).write_bytes(archive)
    for file in entry["files"]:
        file["hash"] = ""
    assert prepare.prepare(sources.read_sources(content)["ImageNet"], tmp_path) == []
    assert tree(folder / "images") == {
        *(f"train/{wnid}/{wnid}_{n}.JPEG" for wnid in wnids for n in (1, 2)),
        f"val/{wnids[0]}/ILSVRC2012_val_00000001.JPEG",
        f"val/{wnids[1]}/ILSVRC2012_val_00000002.JPEG",
        f"val/{wnids[0]}/ILSVRC2012_val_00000003.JPEG",
    }


def test_imagenet_s_checksums_are_torchvision_s():
    files = {file.file: file.hash for file in sources.find("ImageNet").files if file.hash}
    names = {name: f"md5:{checksum}" for name, checksum in imagenet.ARCHIVE_META.values()}
    assert files == {name: names[name] for name in files}
    assert len(files) == 2


@pytest.mark.parametrize(
    "target", ["http://host/a", "ftp://host/a", "//host/a", "file:///etc/passwd", "HTTP://host/a"]
)
@pytest.mark.parametrize("start", ["https://first/a", "http://first/a"])
def test_a_redirect_stays_on_https(start, target, tmp_path, monkeypatch):
    asked = []

    def send(self, request, **kwargs):
        asked.append(request.url)
        response = requests.Response()
        response.url, response.request, response.raw = request.url, request, io.BytesIO(b"content")
        response.status_code = 302 if "first" in request.url else 200
        response.headers["location"] = target
        return response

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
    monkeypatch.setattr(prepare, "RETRIES", 0)
    (tmp_path / "x").mkdir()
    safe = target.startswith("//") or (start.startswith("http:") and target.lower().startswith("http:"))
    if safe:
        prepare.download(start, tmp_path / "x" / "a")
        assert (tmp_path / "x" / "a").read_bytes() == b"content"
    else:
        with pytest.raises((RuntimeError, requests.exceptions.InvalidSchema)):
            prepare.download(start, tmp_path / "x" / "a")
        assert asked == [start]
        assert list((tmp_path / "x").iterdir()) == []
