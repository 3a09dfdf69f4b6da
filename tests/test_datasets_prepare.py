"""`prepare`, on a small dataset of the form of a benchmark, from a server on this machine."""

from __future__ import annotations

import hashlib
import io
import json
import os
import types

import pytest
from served_dtd import ARCHIVE, IMAGES, WHOLE, images_source, jpeg, md5, run, tree
from served_dtd import server as server
from served_dtd import world as world
from test_datasets_prepare_archives import FORMS, tar_bytes

from datasets import arrange, download, prepare, sources


def test_prepare_fetches_lays_out_and_verifies(world, server, tmp_path, capsys):
    assert run("prepare", "dtd", "--root", tmp_path) == 0
    assert tree(tmp_path / "dtd") == WHOLE
    assert (tmp_path / "dtd/images/dotted/dotted 1.jpg").read_bytes() == IMAGES["dotted/dotted 1.jpg"]
    shown = capsys.readouterr().out
    assert "DescribableTextures: 6/3/3 train/val/test images, 3 classes: as it should be" in shown
    record = json.loads((tmp_path / "dtd/prepared.json").read_text())
    assert [part["from"] for part in record["parts"]] == [
        server.url("plain", "dtd.tar.gz"),
        server.url("plain", "split.json"),
    ]
    assert record["parts"][0]["sha256"] == hashlib.sha256(ARCHIVE).hexdigest()
    asked = len(server.asked)
    assert run("prepare", "DescribableTextures", "--root", tmp_path) == 0
    assert len(server.asked) == asked  # nothing is fetched twice


def test_archives_are_kept_if_asked(world, tmp_path):
    assert run("prepare", "dtd", "--root", tmp_path, "--keep-archives") == 0
    assert tree(tmp_path / "dtd/.prepare") == {"dtd.tar.gz"}


def test_a_file_that_was_put_there_by_hand_is_used(world, server, tmp_path):
    (tmp_path / "dtd").mkdir()
    (tmp_path / "dtd/dtd.tar.gz").write_bytes(ARCHIVE)
    assert run("prepare", "dtd", "--root", tmp_path) == 0
    assert tree(tmp_path / "dtd") == {*WHOLE, "dtd.tar.gz"}  # it is the user's: it stays
    assert len(server.asked) == 2  # for the split file


def test_a_damaged_file_put_there_by_hand(world, tmp_path, capsys):
    (tmp_path / "dtd").mkdir()
    (tmp_path / "dtd/dtd.tar.gz").write_bytes(ARCHIVE[:-9])
    assert run("prepare", "dtd", "--root", tmp_path) == 1
    shown = capsys.readouterr().out
    assert f"{tmp_path}/dtd/dtd.tar.gz: its md5 is {md5(ARCHIVE[:-9])} instead of {md5(ARCHIVE)}" in shown
    assert not (tmp_path / "dtd/images").exists()
    assert (tmp_path / "dtd/split_zhou_DescribableTextures.json").exists()  # the rest is done


def test_what_only_a_person_can_get(world, tmp_path, capsys):
    images_source(world).update(addresses=[], by_hand="Register at the authors' page.")
    assert run("prepare", "dtd", "--root", tmp_path) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "still missing" in line]
    assert "by hand only. Register at the authors' page. " in line
    assert f"To go on, put dtd.tar.gz at {tmp_path}/dtd/dtd.tar.gz (md5 {md5(ARCHIVE)}) and run: " in line
    assert line.endswith(f"python -m datasets prepare DescribableTextures --root {tmp_path}")
    (tmp_path / "dtd/dtd.tar.gz").write_bytes(ARCHIVE)
    assert run("prepare", "dtd", "--root", tmp_path) == 0


def test_no_address_works(world, server, tmp_path, capsys):
    images_source(world)["addresses"] = [server.url("html", "dtd.tar.gz"), server.url("gone", "dtd.tar.gz")]
    assert run("prepare", "dtd", "--root", tmp_path) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "still missing" in line]
    assert "gives a web page" in line
    assert "404" in line
    assert f"To go on, put dtd.tar.gz at {tmp_path}/dtd/dtd.tar.gz" in line
    assert not (tmp_path / "dtd/images").exists()


def test_a_second_source_with_another_layout(world, server, tmp_path):
    mirror = FORMS["a.zip"]({f"2750x/{path}": content for path, content in IMAGES.items()})
    server.files["mirror.zip"] = mirror
    images_source(world)["addresses"] = [server.url("gone", "dtd.tar.gz")]
    world["parts"][0]["from"].append(
        {"file": "mirror.zip", "addresses": [server.url("plain", "mirror.zip")], "take": {"2750x": "images"}}
    )
    assert run("prepare", "dtd", "--root", tmp_path) == 0
    assert tree(tmp_path / "dtd") == WHOLE


@pytest.mark.parametrize("name", ["../../../out.jpg", "/tmp/out.jpg"])
def test_an_archive_that_leads_out(name, world, server, tmp_path, capsys):
    content = FORMS["a.tar.gz"]({"dtd/images/a/1.jpg": b"fine", name: b"evil"})
    server.files["dtd.tar.gz"] = content
    images_source(world)["checks"] = {}
    assert run("prepare", "dtd", "--root", tmp_path / "root") == 1
    assert "which leads out of its folder" in capsys.readouterr().out
    assert tree(tmp_path) == {"root/dtd/split_zhou_DescribableTextures.json", "root/dtd/prepared.json"}


def test_an_archive_without_what_is_wanted(world, server, tmp_path, capsys):
    server.files["dtd.tar.gz"] = FORMS["a.tar.gz"]({"other/1.jpg": b"fine"})
    images_source(world)["checks"] = {}
    assert run("prepare", "dtd", "--root", tmp_path) == 1
    assert "it holds no dtd/images; it holds other" in capsys.readouterr().out
    assert not (tmp_path / "dtd/images").exists()


@pytest.mark.parametrize("when", ["while fetching", "while unpacking", "before moving"])
def test_stopped_by_the_user_and_run_again(when, world, server, tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    place, name = {
        "while fetching": (download, "_receive"),
        "while unpacking": (prepare, "unpack"),
        "before moving": (arrange, "take"),
    }[when]
    with monkeypatch.context() as patch:
        patch.setattr(place, name, stop)
        assert run("prepare", "dtd", "--root", tmp_path) == 130
    assert "The same command goes on from here." in capsys.readouterr().err
    assert not (tmp_path / "dtd/images").exists()
    assert run("verify", "dtd", "--root", tmp_path) == 1
    assert run("prepare", "dtd", "--root", tmp_path) == 0
    assert tree(tmp_path / "dtd") == WHOLE


def test_a_second_run_beside_the_first(world, tmp_path, capsys):
    pytest.importorskip("fcntl")
    (tmp_path / "dtd").mkdir()
    with prepare._alone(tmp_path / "dtd"):
        assert run("prepare", "dtd", "--root", tmp_path) == 1
    assert f"another run is preparing {tmp_path}/dtd; wait for it" in capsys.readouterr().err
    assert run("prepare", "dtd", "--root", tmp_path) == 0


def test_a_full_disk(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10))
    assert run("prepare", "dtd", "--root", tmp_path) == 1
    assert "make room there, or choose another place by --root." in capsys.readouterr().err
    assert not (tmp_path / "dtd/images").exists()


def test_torchvision_s_folder_is_linked(world, server, tmp_path):
    other = tmp_path / "dtd/dtd/images"
    for path, content in IMAGES.items():
        (other / path).parent.mkdir(parents=True, exist_ok=True)
        (other / path).write_bytes(content)
    assert run("prepare", "dtd", "--root", tmp_path) == 0
    assert os.readlink(tmp_path / "dtd/images") == "dtd/images"
    assert len(server.asked) == 2  # for the split file


def test_an_optional_part_may_be_missing(world, server, tmp_path, capsys):
    more = {"file": "labels.mat", "addresses": [server.url("gone", "labels.mat")]}
    world["parts"].append({"gives": ["labels.mat"], "optional": True, "from": [more]})
    assert run("prepare", "dtd", "--root", tmp_path) == 0
    assert "labels.mat: " in capsys.readouterr().out


# ImageNet ---------------------------------------------------------------------------------------------------


def test_imagenet_s_archives_become_folders_of_classes(tmp_path, monkeypatch):
    """Three archives as the authors give them, but of two classes: put there by hand, nothing fetched."""
    scipy_io = pytest.importorskip("scipy.io")
    import numpy as np

    wnids = ("n01440764", "n01443537")
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    synsets = [(1, wnids[1], "goldfish", 0), (2, wnids[0], "tench", 0), (3, "n00000000", "fish", 2)]
    buffer = io.BytesIO()
    scipy_io.savemat(buffer, {"synsets": np.array(synsets, dtype=kinds)})
    data = "ILSVRC2012_devkit_t12/data"
    truth = f"{data}/ILSVRC2012_validation_ground_truth.txt"
    train = {f"{wnid}.tar": tar_bytes({f"{wnid}_{n}.JPEG": jpeg(n) for n in (1, 2)}) for wnid in wnids}
    val = {f"ILSVRC2012_val_0000000{number}.JPEG": jpeg(number) for number in (1, 2, 3)}
    by_hand = {
        "ILSVRC2012_devkit_t12.tar.gz": FORMS["a.tar.gz"](
            {f"{data}/meta.mat": buffer.getvalue(), truth: b"2\n1\n2\n"}
        ),
        "ILSVRC2012_img_train.tar": tar_bytes(train),
        "ILSVRC2012_img_val.tar": tar_bytes(val),
    }
    content = json.loads(sources.SOURCES.read_text(encoding="utf-8"))
    entry = content["datasets"]["ImageNet"]
    entry["parts"] = [part for part in entry["parts"] if "classnames.txt" not in part["gives"]]
    for part in entry["parts"]:
        del part["from"][0]["checks"]
    folder = tmp_path / "imagenet"
    folder.mkdir()
    for name, archive in by_hand.items():
        (folder / name).write_bytes(archive)
    assert prepare.prepare(sources.read_sources(content)["ImageNet"], tmp_path) == []
    assert tree(folder / "images") == {
        *(f"train/{wnid}/{wnid}_{n}.JPEG" for wnid in wnids for n in (1, 2)),
        f"val/{wnids[0]}/ILSVRC2012_val_00000001.JPEG",
        f"val/{wnids[1]}/ILSVRC2012_val_00000002.JPEG",
        f"val/{wnids[0]}/ILSVRC2012_val_00000003.JPEG",
    }
