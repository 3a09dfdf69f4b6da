"""Wrong trees of every registered benchmark, and names that are hard to read: what is said of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import benchmark_trees as trees
import numpy as np
import pytest
from benchmark_trees import REGISTERED, WITH_SPLIT_FILE, open_dataset, sizes
from scipy.io import savemat

from dassl.data.datasets import DATASET_REGISTRY
from datasets import catalog


@pytest.fixture(autouse=True)
def three_classes(monkeypatch):
    """ImageNetA and ImageNetR of three classes, as the others here have."""
    monkeypatch.setattr(catalog.ImageNetPart, "n_classes", 3)


def refused(name: str, root: Path, error: type[Exception] | tuple[type[Exception], ...]) -> str:
    """The message of the refusal, which is one line and leaves the folder as it was."""
    before = sorted(root.rglob("*"))
    with pytest.raises(error) as raised:
        open_dataset(name, root, shots=1)
    assert sorted(root.rglob("*")) == before
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("name", REGISTERED)
def test_nothing_there(name, tmp_path):
    dataset = DATASET_REGISTRY.get(name)
    message = refused(name, tmp_path, FileNotFoundError)
    assert f"{name}: no folder {tmp_path}/{dataset.dataset_dir}" in message
    for expected in (dataset.split_file, *getattr(dataset, "own_lists", ())):
        assert expected in message


@pytest.mark.parametrize("name", REGISTERED)
def test_missing_class_folder(name, tmp_path):
    """Or a missing image, where all of them lie in one folder."""
    trees.draw_tree(name, tmp_path)
    dataset = open_dataset(name, tmp_path)  # which saves the split, if there is a split file
    image = Path(dataset.test[-1].impath)
    if image.parent == Path(dataset.image_dir):
        image.unlink()
    else:
        shutil.rmtree(image.parent)
    message = refused(name, tmp_path, (FileNotFoundError, ValueError))
    assert str(Path(dataset.image_dir)) in message
    assert "missing" in message or "holds 2 folders" in message


@pytest.mark.parametrize("name", WITH_SPLIT_FILE)
def test_split_file_of_another_dataset(name, tmp_path):
    folder = trees.draw_tree(name, tmp_path)
    other = {part: [(f"other/{part}.jpg", 0, "other")] for part in ("train", "val", "test")}
    split_path = folder / DATASET_REGISTRY.get(name).split_file
    split_path.write_text(json.dumps(other))
    message = refused(name, tmp_path, FileNotFoundError)
    assert message.startswith(f"{split_path}: 3 of 3 images are missing")
    assert "use the split made for them" in message


def files(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()


def test_any_name_of_a_class_folder(tmp_path):
    """Spaces, braces and letters of all languages; hidden folders and other files do not count."""
    names = ["Crème brûlée", "hot {0} dog", "näyte 1", "寿司"]
    for name in [*names, ".cache"]:
        files(
            tmp_path / "food-101" / "images" / name,
            *(f"{name} {k}.JPG" for k in range(4)),
            "._0.jpg",
            "Thumbs.db",
        )
    dataset = open_dataset("Food101", tmp_path)
    assert dataset.classnames == names
    assert sizes(dataset) == (8, 4, 4)

    images = tmp_path / "food-101" / "images" / names[1]
    (tmp_path / "food-101" / "split_zhou_Food101.json").unlink()
    for image in sorted(images.glob("*.JPG"))[1:]:
        image.unlink()
    assert f"{images} has 1 images of 'hot {{0}} dog', too few" in refused("Food101", tmp_path, ValueError)
    next(images.glob("*.JPG")).unlink()
    assert f"{images} holds no images" in refused("Food101", tmp_path, ValueError)


def test_a_list_in_any_language_but_in_utf_8(tmp_path):
    folder = trees.draw_tree("FGVCAircraft", tmp_path)
    for path in folder.glob("*.txt"):
        path.write_text(path.read_text().replace("Falcon 900", "Éclair 900"), encoding="utf-8")
    assert open_dataset("FGVCAircraft", tmp_path).classnames[-1] == "Éclair 900"
    variants = folder / "variants.txt"
    variants.write_text(variants.read_text(encoding="utf-8"), encoding="latin-1")
    assert refused("FGVCAircraft", tmp_path, ValueError).startswith(str(variants))


def test_cars_without_labels_and_with_wrong_ones(tmp_path):
    """The test annotations of Stanford Cars' development kit have no labels."""
    folder = trees.draw_tree("StanfordCars", tmp_path)
    path = folder / "cars_test_annos_withlabels.mat"
    savemat(
        path, {"annotations": np.array([(1, "00001.jpg")], dtype=[("bbox_x1", object), ("fname", object)])}
    )
    message = refused("StanfordCars", tmp_path, ValueError)
    assert message.startswith(str(path))
    assert "cars_test_annos_withlabels.mat is meant" in message
    savemat(path, {"annotations": np.array([(9, "00001.jpg")], dtype=[("class", object), ("fname", object)])})
    assert "class 9" in refused("StanfordCars", tmp_path, ValueError)


def test_a_flower_without_a_name(tmp_path):
    folder = trees.draw_tree("OxfordFlowers", tmp_path)
    (folder / "cat_to_name.json").write_text('{"1": "rose", "3": "lily"}')
    message = refused("OxfordFlowers", tmp_path, ValueError)
    assert message == f"{folder}/cat_to_name.json has no name for class 2 of {folder}/imagelabels.mat."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n01440764\n", "line 1 is 'n01440764'"),
        (
            "n03126707 construction crane\nn01440764 tench\nn02012849 crane bird\n",
            "out of order or there twice",
        ),
        ("n01440764 tench\nn01440764 tench\n", "out of order or there twice"),
        ("n01440764 tench\n", "2 are not in classnames.txt, the first: n02012849"),
        ("n01440764 tench\nn02012849 a\nn03126707 b\nn09999999 c\n", "1 are missing, the first: n09999999"),
    ],
)
def test_wrong_class_lists_of_imagenet(text, expected, tmp_path):
    folder = trees.draw_tree("ImageNet", tmp_path)
    (folder / "classnames.txt").write_text(text)
    message = refused("ImageNet", tmp_path, ValueError)
    assert message.startswith(str(folder))
    assert expected in message


def test_half_an_imagenet(tmp_path):
    images = trees.draw_tree("ImageNet", tmp_path) / "images"
    (images / "val" / "n02012849" / "5.JPEG").unlink()
    (images / "val" / "n02012849" / "6.JPEG").unlink()
    assert f"{images}/val/n02012849 holds no images" in refused("ImageNet", tmp_path, ValueError)
    shutil.rmtree(images / "val")
    assert f"no folder {images}/val" in refused("ImageNet", tmp_path, FileNotFoundError)


@pytest.mark.parametrize("name", ["ImageNetA", "ImageNetR"])
def test_other_than_200_classes(name, tmp_path, monkeypatch):
    monkeypatch.undo()
    folder = trees.draw_tree(name, tmp_path)
    message = refused(name, tmp_path, ValueError)
    assert message.startswith(
        f"{folder}/{DATASET_REGISTRY.get(name).image_dir} holds 3 folders, 3 of them in"
    )
    assert "expected are 200" in message


OWN_FILES = [
    (name, path)
    for name, path in [
        ("OxfordPets", "annotations/trainval.txt"),
        ("OxfordPets", "annotations/test.txt"),
        ("StanfordCars", "devkit/cars_meta.mat"),
        ("StanfordCars", "devkit/cars_train_annos.mat"),
        ("StanfordCars", "cars_test_annos_withlabels.mat"),
        ("OxfordFlowers", "imagelabels.mat"),
        ("OxfordFlowers", "cat_to_name.json"),
        ("SUN397", "ClassName.txt"),
        ("SUN397", "Training_01.txt"),
        ("SUN397", "Testing_01.txt"),
        ("UCF101", "ucfTrainTestlist/classInd.txt"),
        ("UCF101", "ucfTrainTestlist/trainlist01.txt"),
        ("UCF101", "ucfTrainTestlist/testlist01.txt"),
    ]
] + [(name, path) for name in REGISTERED for path in getattr(DATASET_REGISTRY.get(name), "own_lists", ())]


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00\x80", b"foo\n", "a folder"])
@pytest.mark.parametrize(("name", "path"), OWN_FILES)
def test_wrong_list_files(name, path, content, tmp_path):
    """Not there, empty, not text, of another form, and a folder in its place."""
    folder = trees.draw_tree(name, tmp_path)
    (folder / path).unlink()
    if content == "a folder":
        (folder / path).mkdir()
    elif content is not None:
        (folder / path).write_bytes(content)
    message = refused(name, tmp_path, (FileNotFoundError, ValueError))
    assert str(folder) in message
    assert Path(path).name in message
