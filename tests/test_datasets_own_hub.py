"""`DATASET.NAME hub`: repositories in the hub's own form, read offline; the download is put in place of."""

from __future__ import annotations

import importlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from train import extend_cfg

NAMES = ["zebra", "golden retriever", "Kätzchen"]


def open_hub(root: Path, *options: object) -> Any:
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_list(["DATASET.ROOT", str(root), "SEED", 1, "DATASET.OWN.PATH", "me/animals", *options])
    return DATASET_REGISTRY.get("hub")(cfg)


def image(seed: int, form: str = "PNG") -> bytes:
    pixels = np.random.RandomState(seed).randint(0, 256, (8, 8, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, form)
    return content.getvalue()


class Repository:
    """A folder as `push_to_hub` makes it: parquet files, and features in their metadata or in the README."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pyarrow = importlib.import_module("pyarrow")
        self.parquet = importlib.import_module("pyarrow.parquet")

    def write(self, file: str, labels: list[Any], names: list[str] | None = None, **options: Any) -> None:
        pa = self.pyarrow
        images = [
            {"bytes": image(k, options.get("form", "PNG")), "path": options.get("path")}
            for k in range(len(labels))
        ]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = options.get("column", "label")
        table = pa.table(
            {"image": pa.array(images, kind), column: pa.array(labels), "id": list(range(len(labels)))}
        )
        if names:
            features = {"image": {"_type": "Image"}, column: {"names": names, "_type": "ClassLabel"}}
            table = table.replace_schema_metadata(
                {"huggingface": json.dumps({"info": {"features": features}})}
            )
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        self.parquet.write_table(table, path)

    def card(self, text: str) -> None:
        (self.folder / "README.md").write_text(f"---\n{text}---\n# Animals\n", encoding="utf-8")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """An empty repository, which is what a download from the hub gives."""
    pytest.importorskip("pyarrow", reason="pyarrow, the extra `hub`, is not installed")
    folder = tmp_path / "snapshot"
    folder.mkdir()
    asked = []

    def snapshot_download(repo_id: str, **options: Any) -> str:
        asked.append((repo_id, options["repo_type"], options["revision"]))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    made = Repository(folder)
    made.asked = asked  # type: ignore[attr-defined]
    return made


def files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def refused(root: Path, *options: object, error: type[Exception] = ValueError) -> str:
    with pytest.raises(error) as raised:
        open_hub(root, *options)
    assert [path for path in files(root) if not path.endswith("/hub")] == []
    message = str(raised.value)
    assert "\n" not in message
    return message


def parts(dataset: Any) -> list[int]:
    return [len(part) for part in (dataset.train_x, dataset.val, dataset.test)]


def test_splits_of_the_hub_and_names_in_the_file(repository, tmp_path):
    repository.write("data/train-00000-of-00002.parquet", [0, 1], NAMES)
    repository.write("data/train-00001-of-00002.parquet", [2, 2], NAMES)
    repository.write("data/validation-00000-of-00001.parquet", [1], NAMES)
    repository.write("data/test-00000-of-00001.parquet", [0, 1, 2], NAMES, path="photo 1.JPG", form="JPEG")
    dataset = open_hub(tmp_path / "data")
    assert dataset.classnames == ["Kätzchen", "golden retriever", "zebra"]
    assert parts(dataset) == [4, 1, 3]
    place = tmp_path / "data/hub/me--animals"
    assert sorted(path.name for path in place.iterdir()) == ["images", "photos.csv"]
    (zebra,) = [item for item in dataset.test if item.classname == "zebra"]
    assert Path(zebra.impath).read_bytes() == image(0, "JPEG"), "the hub's bytes, as they are"
    assert zebra.impath == str(place / "images/test/0000000.jpg")
    assert Path(dataset.train_x[0].impath).suffix == ".png"
    assert repository.asked == [("me/animals", "dataset", None)]

    open_hub(tmp_path / "data")
    assert len(repository.asked) == 1, "fetched once"


def test_names_in_the_readme_and_a_single_split(repository, tmp_path):
    repository.write("data/train-00000-of-00001.parquet", [0, 1] * 5 + [-1])  # -1: the hub's "no label"
    repository.card(
        "dataset_info:\n  features:\n  - {name: image, dtype: image}\n  - name: label\n    dtype:\n"
        "      class_label:\n        names: {'1': one, '0': zero}\n"
    )
    dataset = open_hub(tmp_path / "data")
    assert dataset.classnames == ["one", "zero"]
    assert parts(dataset) == [4, 2, 4]
    for item in dataset.train_x:
        assert item.classname == ("one" if int(Path(item.impath).stem) % 2 else "zero")
    assert (tmp_path / "data/hub/me--animals/photos_split_own.json").is_file()


def test_names_in_the_readme_are_those_of_the_subset(repository, tmp_path):
    for name in ("coarse", "fine"):
        repository.write(f"{name}/train-00000-of-00001.parquet", [0, 1] * 5)
    entry = "- config_name: {}\n  features:\n  - {{name: label, dtype: {{class_label: {{names: {}}}}}}}\n"
    repository.card("dataset_info:\n" + entry.format("coarse", ["a", "b"]) + entry.format("fine", ["c", "d"]))
    assert open_hub(tmp_path / "data", "DATASET.OWN.SUBSET", "fine").classnames == ["c", "d"]
    assert open_hub(tmp_path / "data", "DATASET.OWN.SUBSET", "coarse").classnames == ["a", "b"]


def test_validation_tests_where_there_is_no_test(repository, tmp_path, capsys):
    repository.write("default/train/0000.parquet", [0, 1], NAMES)
    repository.write("default/validation/0000.parquet", [1], NAMES)
    assert parts(open_hub(tmp_path / "data", "DATASET.OWN.REVISION", "refs/convert/parquet")) == [2, 0, 1]
    assert "that for validation is taken" in capsys.readouterr().out
    assert repository.asked == [("me/animals", "dataset", "refs/convert/parquet")]
    assert not (tmp_path / "data/hub/me--animals").exists()


def test_subsets_by_the_card_and_by_folders(repository, tmp_path):
    for name in ("big", "small"):
        repository.write(
            f"{name}/train-00000-of-00001.parquet", [0, 0, 1, 1] * (2 if name == "big" else 1), NAMES
        )
    message = refused(tmp_path / "data")
    assert "SUBSET is ''; me/animals has the subsets big, small" in message
    assert sum(parts(open_hub(tmp_path / "data", "DATASET.OWN.SUBSET", "small"))) == 4
    repository.card(
        "configs:\n- config_name: all\n  data_files:\n"
        "  - {split: train, path: big/train-*}\n  - {split: test, path: [small/train-*]}\n"
    )
    assert parts(open_hub(tmp_path / "data")) == [8, 0, 4]


@pytest.mark.parametrize("card", ["configs: none\ndataset_info: [1, {features: x}]\n", "a: [\n", "- list\n"])
def test_a_card_that_is_written_otherwise_is_not_needed(card, repository, tmp_path):
    repository.write("data/train-00000-of-00001.parquet", [0, 0, 1, 1], NAMES)
    repository.card(card)
    assert open_hub(tmp_path / "data").classnames == ["golden retriever", "zebra"]


def test_labels_that_are_words_or_missing(repository, tmp_path, capsys):
    repository.write("train.parquet", ["cat", "dog", None] * 4, column="kind")
    message = refused(tmp_path / "data")
    assert "DATASET.OWN.LABEL_COLUMN is 'label', but me/animals has the columns image, kind, id" in message
    dataset = open_hub(tmp_path / "data", "DATASET.OWN.LABEL_COLUMN", "kind")
    assert dataset.classnames == ["cat", "dog"]
    assert sum(parts(dataset)) == 8
    assert "Left out: 4 images without a label" in capsys.readouterr().out


def test_a_copy_in_a_folder_is_not_fetched(repository, tmp_path):
    repository.write("data/train-00000-of-00001.parquet", [0, 0, 1, 1], NAMES)
    assert open_hub(tmp_path / "data", "DATASET.OWN.PATH", str(repository.folder)).num_classes == 2
    assert repository.asked == []
    (place,) = (tmp_path / "data/hub").iterdir()
    assert place.name.startswith("snapshot--")


def test_each_choice_of_images_has_a_folder_of_its_own(repository, tmp_path):
    """Copies of one name, columns, subsets, and a subset and a revision of one name."""
    copies = {}
    for owner, names in (("a", ["apple", "pear"]), ("b", ["cat", "dog"])):
        copies[owner] = Repository(tmp_path / owner / "food")
        copies[owner].write("data/train-00000-of-00001.parquet", [0, 0, 1, 1], names)
    for owner, names in (("a", ["apple", "pear"]), ("b", ["cat", "dog"])):
        dataset = open_hub(tmp_path / "data", "DATASET.OWN.PATH", str(copies[owner].folder))
        assert dataset.classnames == names
    assert len(os.listdir(tmp_path / "data/hub")) == 2

    file = "x/train-00000-of-00001.parquet"
    repository.write(file, [0, 0, 1, 1], NAMES)
    table = repository.parquet.read_table(repository.folder / file)
    photos = [{"bytes": image(9), "path": None}] * 4
    table = table.append_column("photo", repository.pyarrow.array(photos, table.schema.field("image").type))
    repository.parquet.write_table(table, repository.folder / file)
    for column, expected in (("image", image(0)), ("photo", image(9))):
        dataset = open_hub(tmp_path / "data", "DATASET.OWN.PATH_COLUMN", column)
        first = min(item.impath for part in (dataset.train_x, dataset.test) for item in part)
        assert Path(first).read_bytes() == expected
    open_hub(tmp_path / "data", "DATASET.OWN.PATH_COLUMN", "image", "DATASET.OWN.SUBSET", "x")
    open_hub(tmp_path / "data", "DATASET.OWN.PATH_COLUMN", "image", "DATASET.OWN.REVISION", "x")
    assert len(os.listdir(tmp_path / "data/hub")) == 6


def test_nothing_half_written_is_taken_for_whole(repository, tmp_path, monkeypatch):
    repository.write("data/train-00000-of-00001.parquet", [0, 0, 1, 1], NAMES)
    written = []

    def stop(picture: Any, place: str, number: int, where: str) -> str:
        if number == 2:
            raise KeyboardInterrupt
        Path(place, f"{number}.png").touch()
        written.append(number)
        return ".png"

    with monkeypatch.context() as patched:
        patched.setattr("dassl.data.own_hub._write_image", stop)
        with pytest.raises(KeyboardInterrupt):
            open_hub(tmp_path / "data")
    assert written == [0, 1]
    assert os.listdir(tmp_path / "data/hub") == []
    assert sum(parts(open_hub(tmp_path / "data"))) == 4


def test_repositories_that_cannot_be_read(repository, tmp_path):
    assert "me/animals holds no parquet files" in refused(tmp_path / "data")
    repository.write("data/train-00000-of-00001.parquet", [0, 7], NAMES)
    assert "the label is 7; allowed is 0 to 2" in refused(tmp_path / "data")
    (repository.folder / "data/train-00000-of-00001.parquet").write_bytes(b"<html>")
    assert "train-00000-of-00001.parquet is not readable as parquet" in refused(tmp_path / "data")


def test_settings_are_checked_before_anything_is_fetched(repository, tmp_path):
    assert "DATASET.OWN.TEMPLATE" in refused(tmp_path / "data", "DATASET.OWN.TEMPLATE", "a photo")
    assert "the id of a dataset on the hub" in refused(tmp_path / "data", "DATASET.OWN.PATH", "../else where")
    assert repository.asked == []


def test_a_download_that_fails_is_one_line(repository, tmp_path, monkeypatch):
    def fail(*arguments: Any, **options: Any) -> str:
        raise RuntimeError("404 Client Error.\n\nRepository Not Found")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    message = refused(tmp_path / "data")
    assert (
        "'me/animals' could not be fetched from the hub (404 Client Error. Repository Not Found)" in message
    )


def test_without_pyarrow_there_is_one_line(tmp_path, monkeypatch):
    import_module = importlib.import_module

    def without(name: str) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return import_module(name)

    monkeypatch.setattr("importlib.import_module", without)
    assert "pyarrow, which is not installed: pip install pyarrow" in refused(tmp_path / "data")


def test_damaged_files_and_images(repository, tmp_path):
    """The foot of the file is whole, so that it opens, and its pages are not."""
    file = repository.folder / "data/train-00000-of-00001.parquet"
    repository.write("data/train-00000-of-00001.parquet", [0, 1], NAMES)
    content = file.read_bytes()
    file.write_bytes(content[:4] + bytes(300) + content[304:])
    assert "A parquet file of the dataset is damaged" in refused(tmp_path / "data")
    file.write_bytes(content.replace(b"PNG", b"PMG"))
    assert "me/animals, row 0 is no image that can be read" in refused(tmp_path / "data")
