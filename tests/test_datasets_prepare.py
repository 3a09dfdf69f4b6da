"""`prepare` and `list`, on small datasets of the benchmarks' forms, from a server on this machine."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import FileServer
from PIL import Image
from test_datasets_prepare_archives import FORMS, tar_bytes

from datasets import __main__ as command
from datasets import arrange, download, prepare, sources
from datasets.download import Refused
from datasets.fetch import parse_hub
from datasets.sources import known, registered


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
    monkeypatch.setattr(download, "time", types.SimpleNamespace(sleep=lambda _: None))
    server = FileServer({"dtd.tar.gz": ARCHIVE, "split.json": SPLIT_FILE})
    yield server
    server.stop()


@pytest.fixture
def world(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The entry of DTD, whose sources are the server; what a test changes in it holds."""
    entry = {
        "folder": "dtd",
        "images": "images",
        "split": "split_zhou_DescribableTextures.json",
        "counts": COUNTS,
        "licence": "none",
        "parts": [
            {
                "gives": ["images"],
                "elsewhere": {"images": "dtd/dtd/images"},
                "from": [
                    {
                        "file": "dtd.tar.gz",
                        "checks": {"md5": md5(ARCHIVE)},
                        "addresses": [server.url("plain", "dtd.tar.gz")],
                        "take": {"dtd/images": "images"},
                    }
                ],
            },
            {
                "gives": ["split_zhou_DescribableTextures.json"],
                "from": [
                    {
                        "file": "split_zhou_DescribableTextures.json",
                        "checks": {"md5": md5(SPLIT_FILE)},
                        "addresses": [server.url("gone", "split.json"), server.url("plain", "split.json")],
                    }
                ],
            },
        ],
    }
    content = {"datasets": {"DescribableTextures": entry}}
    for module in (sources, command):
        monkeypatch.setattr(module, "known", lambda: sources.read_sources(content))
    return entry


def images_source(world: dict) -> dict:
    return world["parts"][0]["from"][0]


def run(*arguments: str | Path) -> int:
    return command.main([str(argument) for argument in arguments])


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


WHOLE = {f"images/{path}" for path in IMAGES} | {"split_zhou_DescribableTextures.json", "prepared.json"}


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


# Google Drive and the hub -----------------------------------------------------------------------------------


def drive(monkeypatch, download) -> list[dict]:
    """A gdown whose `download` is the given one; returns what it is called with."""
    calls: list[dict] = []

    class FileURLRetrievalError(Exception):
        pass

    def called(**arguments):
        calls.append(arguments)
        return download(FileURLRetrievalError, **arguments)

    gdown = types.ModuleType("gdown")
    gdown.download = called
    gdown.exceptions = types.SimpleNamespace(FileURLRetrievalError=FileURLRetrievalError)
    monkeypatch.setitem(sys.modules, "gdown", gdown)
    return calls


def writes(content: bytes):
    def download(_, output, **__):
        Path(output).write_bytes(content)
        return output

    return download


def quota(error, **_):
    raise error(
        "Failed to retrieve file url:\n\n\tToo many users have viewed or downloaded this file recently.\n"
        "\tPlease try accessing the file again later."
    )


def test_google_drive(world, tmp_path, monkeypatch):
    images_source(world)["addresses"] = ["gdrive:1a2B"]
    calls = drive(monkeypatch, writes(ARCHIVE))
    assert run("prepare", "dtd", "--root", tmp_path) == 0
    assert tree(tmp_path / "dtd") == WHOLE
    assert [(call["id"], call["resume"]) for call in calls] == [("1a2B", True)]


@pytest.mark.parametrize(
    ("download", "reason"),
    [
        (quota, "Google Drive's quota for this file is used up for today"),
        (writes(b"<!DOCTYPE html><html>Quota exceeded</html>"), "a web page came instead of the file"),
        (lambda *_, **__: None, "no file came"),
        (writes(ARCHIVE[:100]), "its md5 is"),
    ],
)
def test_google_drive_does_not_give_it(download, reason, world, server, tmp_path, monkeypatch, capsys):
    images_source(world)["addresses"] = ["gdrive:1a2B"]
    drive(monkeypatch, download)
    assert run("prepare", "dtd", "--root", tmp_path) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "still missing" in line]
    assert reason in line
    assert f"put dtd.tar.gz at {tmp_path}/dtd/dtd.tar.gz" in line
    assert tree(tmp_path / "dtd") == {"split_zhou_DescribableTextures.json", "prepared.json"}


def test_gdown_is_not_installed(world, tmp_path, monkeypatch, capsys):
    images_source(world)["addresses"] = ["gdrive:1a2B"]
    monkeypatch.setitem(sys.modules, "gdown", None)
    assert run("prepare", "dtd", "--root", tmp_path) == 1
    shown = capsys.readouterr().out
    assert 'Google Drive needs gdown: pip install gdown, or pip install -e ".[download]"' in shown


def test_gdown_takes_what_it_is_given():
    gdown = pytest.importorskip("gdown")
    names = gdown.download.__code__.co_varnames
    assert {"id", "output", "resume"} <= set(names)
    assert issubclass(gdown.exceptions.FileURLRetrievalError, Exception)


def test_a_file_of_the_hub(world, tmp_path, monkeypatch):
    import huggingface_hub

    calls = []

    def hf_hub_download(local_dir, **arguments):
        calls.append(arguments)
        path = Path(local_dir) / arguments["filename"]
        path.parent.mkdir(parents=True)
        path.write_bytes(ARCHIVE)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    images_source(world)["addresses"] = ["hub:datasets/some/one@abc/data/dtd.tar.gz"]
    assert run("prepare", "dtd", "--root", tmp_path) == 0
    assert tree(tmp_path / "dtd") == WHOLE
    assert calls == [
        {"repo_type": "dataset", "repo_id": "some/one", "revision": "abc", "filename": "data/dtd.tar.gz"}
    ]


@pytest.mark.parametrize("status", [401, 404])
def test_the_hub_does_not_give_it(status, world, tmp_path, monkeypatch, capsys):
    from huggingface_hub import errors

    def refuse(**_):
        kind = errors.GatedRepoError if status == 401 else errors.RepositoryNotFoundError
        raise kind.__new__(kind)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    images_source(world)["addresses"] = ["hub:datasets/some/one/dtd.tar.gz"]
    assert run("prepare", "dtd", "--root", tmp_path) == 1
    shown = capsys.readouterr().out
    assert ("run: hf auth login" if status == 401 else "some/one is not there, or is private") in shown


def write_parquet(path: Path, ids: list[str], names: tuple[str, ...] = CLASSES) -> None:
    """As the hub's own library writes a dataset of images."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(names), "_type": "ClassLabel"},
        "image_id": {"dtype": "string", "_type": "Value"},
    }
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image), ("label", pa.int64()), ("image_id", pa.string())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = [
        {
            "image": {"bytes": IMAGES[f"{name}.jpg"], "path": f"{name}.jpg"},
            "label": names.index(name.split("/")[0]),
        }
        for name in ids
    ]
    table = pa.Table.from_pylist(
        [{**row, "image_id": name.split("/")[1]} for row, name in zip(rows, ids, strict=True)], schema
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=3)


def test_a_dataset_in_the_hub_s_own_form(world, tmp_path, monkeypatch):
    ids = sorted(path.removesuffix(".jpg") for path in IMAGES)

    def snapshot_download(repo_id, repo_type, allow_patterns, local_dir):
        assert (repo_id, repo_type, allow_patterns) == ("some/textures", "dataset", ["*.parquet"])
        write_parquet(Path(local_dir) / "data/train-00000-of-00002.parquet", ids[:7])
        write_parquet(Path(local_dir) / "data/train-00001-of-00002.parquet", ids[7:])
        return local_dir

    pytest.importorskip("pyarrow")
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    world["parts"][0]["from"] = [
        {
            "file": "textures",
            "addresses": ["parquet:some/textures"],
            "name": "{label_name}/{image_id}.jpg",
            "take": {".": "images"},
        }
    ]
    assert run("prepare", "dtd", "--root", tmp_path) == 0
    assert tree(tmp_path / "dtd") == WHOLE
    for path, content in IMAGES.items():
        assert (tmp_path / "dtd/images" / path).read_bytes() == content  # as they are, not encoded again


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("{label_name}/x.jpg", "two images that would both be banded/x.jpg"),
        ("../{image_id}.jpg", "which leads out of its folder"),
        ("{number}.jpg", "has no column 'number'; it has label, image_id"),
    ],
)
def test_names_of_a_parquet_that_do_not_do(name, reason, tmp_path):
    write_parquet(tmp_path / "a.parquet", ["banded/banded 0", "banded/banded 1"])
    with pytest.raises(ValueError, match=reason):
        arrange.parquet_images([tmp_path / "a.parquet"], name, tmp_path / "out")
    assert len(tree(tmp_path)) <= 2


def test_a_damaged_parquet(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["banded/banded 0"])
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[:-20])
    with pytest.raises(ValueError, match=r"a\.parquet is damaged"):
        arrange.parquet_images([tmp_path / "a.parquet"], "{row}.jpg", tmp_path / "out")


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
    entry["parts"] = [part for part in entry["parts"] if not part.get("optional")]
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


# The project's own list -------------------------------------------------------------------------------------


def test_list_names_everything(tmp_path, capsys):
    assert run("list", "--root", tmp_path) == 0
    shown = capsys.readouterr().out
    for name, own in registered().items():
        assert f"\n{name} " in shown
        assert known()[name].folder == own.dataset_dir
    for words in ("by hand (login): cars_train.tgz", "oxford_pets", "2,944/736/3,669", "1,281,167/-/50,000"):
        assert words in shown


def test_list_says_what_is_there(world, tmp_path, capsys):
    (tmp_path / "dtd/images").mkdir(parents=True)
    run("list", "--root", tmp_path)
    assert "without" in capsys.readouterr().out
    run("prepare", "dtd", "--root", tmp_path)
    run("list", "--root", tmp_path)
    assert "DescribableTextures  yes" in capsys.readouterr().out


@pytest.mark.parametrize("name", known())
def test_every_dataset_is_found_by_its_names(name):
    entry = known()[name]
    for alias in (name, name.upper(), entry.folder, entry.config or name, *entry.also):
        assert sources.find(alias) is entry


@pytest.mark.parametrize("name", known())
def test_every_source_can_be_used(name):
    entry = known()[name]
    places = [place for part in entry.parts for place in part.gives]
    assert len(set(places)) == len(places)
    assert not entry.split or not entry.parts or entry.split in places
    for part in entry.parts:
        assert set(part.elsewhere) <= set(part.gives)
        for source in part.sources:
            assert source.addresses or source.by_hand
            assert set((source.take or {part.gives[0]: part.gives[0]}).values()) == set(part.gives)
            assert not source.arrange or source.arrange in arrange.ARRANGEMENTS
            for address in source.addresses:
                assert address.startswith(("https://", "http://", "gdrive:", "hub:", "parquet:"))
                assert not address.startswith("hub:") or parse_hub(address)
                assert bool(source.name) == address.startswith("parquet:")


def test_an_address_of_the_hub_that_is_none():
    with pytest.raises(Refused, match="is not hub:datasets/OWNER/NAME/FILE"):
        parse_hub("hub:datasets/one/file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("verify", "flowers"), "There is no dataset 'flowers'.*Did you mean OxfordFlowers"),
        (("prepare", "caltech"), "Did you mean Caltech101"),
        (("show", "xyzzy"), "There is no dataset 'xyzzy'; there are ImageNet, "),
        (("show", "shapes", "--out", "sheet.jpg"), r"--out is 'sheet\.jpg'; it must end with \.png"),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path, capsys):
    assert run(*arguments, "--root", tmp_path) == 2
    shown = capsys.readouterr().err
    assert re.search(message, shown)
    assert shown.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
