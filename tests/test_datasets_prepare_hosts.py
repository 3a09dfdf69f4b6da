"""`prepare` from Google Drive and from the hub, whose libraries are replaced here."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
from served_dtd import ARCHIVE, CLASSES, IMAGES, WHOLE, images_source, run, tree
from served_dtd import server as server
from served_dtd import world as world

from datasets import arrange


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
