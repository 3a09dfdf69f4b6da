"""Wrong trees, files and settings: one line that names what is wrong, and nothing written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from dassl.data.few_shot_dataset import FewShotDataset
from datasets.catalog import Caltech101, DescribableTextures, OxfordPets

ROWS = {
    "train": [["a 1.jpg", 0, "abyssinian"], ["a 2.jpg", 0, "abyssinian"], ["ü/b.jpg", 1, "bärenhund"]],
    "val": [["a 3.jpg", 0, "abyssinian"]],
    "test": [["a 4.jpg", 0, "abyssinian"], ["ü/c.jpg", 1, "bärenhund"]],
}


def config(root, shots=1, subsample="all", seed=1):
    dataset = SimpleNamespace(ROOT=str(root), NUM_SHOTS=shots, SUBSAMPLE_CLASSES=subsample)
    return SimpleNamespace(SEED=seed, DATASET=dataset)


def draw(folder: Path, content=ROWS) -> Path:
    """A small OxfordPets under `folder`; `content` goes into its split file, the images are those of ROWS."""
    for path, _, _ in (row for part in ROWS.values() for row in part):
        image = folder / "oxford_pets" / "images" / path
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
    split_path = folder / "oxford_pets" / "split_zhou_OxfordPets.json"
    split_path.write_text(content if isinstance(content, str) else json.dumps(content))
    return split_path


def files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if ".folder_index" not in path.parts)  # its lock


def refused(dataset, cfg, folder: Path, error=ValueError) -> str:
    """The message of the refusal, which is one line and leaves the folder as it was."""
    before = files(folder)
    with pytest.raises(error) as raised:
        dataset(cfg)
    assert files(folder) == before
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("subsample", ["all", "base", "new"])
@pytest.mark.parametrize("link", [False, True])
def test_spaces_non_ascii_and_a_linked_root(subsample, link, tmp_path):
    root = tmp_path / "my data ünïcödé"
    draw(root)
    if link:
        (tmp_path / "link").symlink_to(root)
        root = tmp_path / "link"
    dataset = OxfordPets(config(root, subsample=subsample))
    names = {"all": ["abyssinian", "bärenhund"], "base": ["abyssinian"], "new": ["bärenhund"]}
    assert dataset.classnames == names[subsample]
    assert all(os.path.isfile(item.impath) for item in dataset.train_x + dataset.val + dataset.test)


def test_root_that_does_not_exist(tmp_path):
    message = refused(OxfordPets, config(tmp_path / "nowhere"), tmp_path, FileNotFoundError)
    assert f"no folder {tmp_path}/nowhere/oxford_pets" in message
    assert f"DATASET.ROOT is '{tmp_path}/nowhere'" in message
    assert f"{tmp_path}/nowhere/oxford_pets/images" in message
    assert "split_zhou_OxfordPets.json" in message


def test_folder_without_its_image_folder(tmp_path):
    (tmp_path / "caltech-101").mkdir()
    message = refused(Caltech101, config(tmp_path), tmp_path, FileNotFoundError)
    assert f"Caltech101: no folder {tmp_path}/caltech-101/101_ObjectCategories" in message


def test_missing_images_are_counted(tmp_path):
    split_path = draw(tmp_path)
    (tmp_path / "oxford_pets" / "images" / "a 2.jpg").unlink()
    (tmp_path / "oxford_pets" / "images" / "ü" / "c.jpg").unlink()
    message = refused(OxfordPets, config(tmp_path), tmp_path, FileNotFoundError)
    assert (
        f"{split_path}: 2 of 6 images are missing, the first: {tmp_path}/oxford_pets/images/a 2.jpg"
        in message
    )


def test_missing_class_folder(tmp_path):
    draw(tmp_path)
    images = tmp_path / "oxford_pets" / "images"
    (images / "ü").rename(images / "other")
    message = refused(OxfordPets, config(tmp_path), tmp_path, FileNotFoundError)
    assert "2 of 6 images are missing" in message


def test_images_are_not_looked_at_one_by_one(tmp_path, monkeypatch):
    draw(tmp_path)
    looked_at = []
    stat = os.stat
    monkeypatch.setattr(
        os, "stat", lambda path, *args, **kwargs: looked_at.append(path) or stat(path, *args, **kwargs)
    )
    OxfordPets(config(tmp_path))
    assert not [path for path in looked_at if str(path).endswith(".jpg")]


def altered(**parts) -> dict:
    return {**ROWS, **parts}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"train": [', "not readable as JSON"),
        ("", "not readable as JSON"),
        ("[1, 2]", 'expected {"train": [...], "val": [...], "test": [...]}'),
        ({"train": [], "test": []}, 'expected {"train": [...], "val": [...], "test": [...]}'),
        (altered(val={"a": 1}), ": val is dict; expected a list"),
        (altered(val=[["a 1.jpg", 0]]), ": val[0] is ['a 1.jpg', 0]; expected [path, label, class name]"),
        (altered(val=[["a 1.jpg", "0", "abyssinian"]]), "expected [path, label, class name]"),
        (altered(val=[["a 1.jpg", True, "abyssinian"]]), "expected [path, label, class name]"),
        (altered(val=["a 1.jpg"]), "val[0] is 'a 1.jpg'"),
        (altered(train=[]), "train lists no images"),
        (altered(test=[]), "test lists no images"),
        (altered(val=[["a 3.jpg", 0, "siamese"]]), "label 0 is 'abyssinian' and, at a 3.jpg, 'siamese'"),
        (
            altered(val=[["a 3.jpg", 2, "siamese"]]),
            "3 classes, so training labels must be 0 to 2; missing or out of place: [2]",
        ),
        (altered(train=[["a 1.jpg", 1, "bärenhund"]]), "missing or out of place: [0]"),
        (
            {part: [[path, label + 1, name] for path, label, name in rows] for part, rows in ROWS.items()},
            "must be 0 to 1; missing or out of place: [0, 2]",
        ),
    ],
)
def test_wrong_split_files(content, expected, tmp_path):
    split_path = draw(tmp_path, content)
    message = refused(OxfordPets, config(tmp_path), tmp_path)
    assert message.startswith(str(split_path))
    assert expected in message


@pytest.mark.parametrize("shots", [0, -2, 1.5, "4", True, None])
def test_wrong_number_of_shots(shots, tmp_path):
    draw(tmp_path)
    assert f"DATASET.NUM_SHOTS is {shots!r}" in refused(OxfordPets, config(tmp_path, shots), tmp_path)


@pytest.mark.parametrize("subsample", ["novel", "", "Base", None])
def test_wrong_subsample(subsample, tmp_path):
    draw(tmp_path)
    message = refused(OxfordPets, config(tmp_path, subsample=subsample), tmp_path)
    assert message == f"DATASET.SUBSAMPLE_CLASSES is {subsample!r}; allowed are all, base and new."


def test_one_class_has_no_new_classes(tmp_path):
    draw(tmp_path, {part: [row for row in rows if row[1] == 0] for part, rows in ROWS.items()})
    message = refused(OxfordPets, config(tmp_path, shots=-1, subsample="new"), tmp_path)
    assert message == "DATASET.SUBSAMPLE_CLASSES 'new' leaves none of 1 classes; use 'all'."
    assert OxfordPets(config(tmp_path, subsample="base")).num_classes == 1


def test_neither_split_file_nor_annotations(tmp_path):
    draw(tmp_path).unlink()
    message = refused(OxfordPets, config(tmp_path), tmp_path, FileNotFoundError)
    assert f"{tmp_path}/oxford_pets/annotations/trainval.txt" in message


def test_unreadable_annotations(tmp_path):
    draw(tmp_path).unlink()
    (tmp_path / "oxford_pets" / "annotations").mkdir()
    (tmp_path / "oxford_pets" / "annotations" / "trainval.txt").write_text("a_1 1 1 1\na_2 one 1 1\n")
    assert "trainval.txt, line 2 is 'a_2 one 1 1'" in refused(OxfordPets, config(tmp_path), tmp_path)


def test_annotations_of_other_images(tmp_path):
    draw(tmp_path).unlink()
    (tmp_path / "oxford_pets" / "annotations").mkdir()
    for list_file, numbers in (("trainval.txt", range(5)), ("test.txt", range(5, 10))):
        lines = [f"pug_{number} 1 1 1" for number in numbers]
        (tmp_path / "oxford_pets" / "annotations" / list_file).write_text("\n".join(lines))
    message = refused(OxfordPets, config(tmp_path), tmp_path, FileNotFoundError)
    assert f"{tmp_path}/oxford_pets: 10 of 10 images are missing" in message


def test_class_too_small_to_be_split(tmp_path):
    folder = tmp_path / "dtd" / "images" / "banded"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.jpg").touch()
    assert f"{folder} has 3 images of 'banded', too few" in refused(
        DescribableTextures, config(tmp_path), tmp_path
    )
    (folder / "3.jpg").touch()
    assert len(DescribableTextures(config(tmp_path)).test) == 1


def test_no_class_folders(tmp_path):
    (tmp_path / "dtd" / "images").mkdir(parents=True)
    message = refused(DescribableTextures, config(tmp_path), tmp_path)
    assert message == f"{tmp_path}/dtd/images holds no folders; expected one for each class."


def sample(dataset) -> list[str]:
    return [os.path.basename(item.impath) for item in dataset.train_x]


def test_cache_of_another_split_is_drawn_again(tmp_path, capsys):
    split_path = draw(tmp_path)
    assert len(sample(OxfordPets(config(tmp_path, shots=16)))) == 3
    split_path.write_text(json.dumps(altered(train=[ROWS["train"][1], ROWS["train"][2]])))
    capsys.readouterr()
    assert sample(OxfordPets(config(tmp_path, shots=16))) == ["a 2.jpg", "b.jpg"]
    assert "shot_16-seed_1.json was drawn from another split." in capsys.readouterr().out
    assert sample(OxfordPets(config(tmp_path, shots=16))) == ["a 2.jpg", "b.jpg"]
    assert "Loading preprocessed few-shot data" in capsys.readouterr().out


def test_cache_is_bound_to_its_seed_and_shots(tmp_path, capsys):
    draw(tmp_path)
    OxfordPets(config(tmp_path, shots=1))
    folder = tmp_path / "oxford_pets" / "split_fewshot"
    (folder / "shot_1-seed_1.json").rename(folder / "shot_2-seed_1.json")
    assert len(sample(OxfordPets(config(tmp_path, shots=2)))) == 3
    assert "drawn from another split" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"source": 1', "\x80"])
def test_broken_cache_is_drawn_again(content, tmp_path, capsys):
    draw(tmp_path)
    expected = sample(OxfordPets(config(tmp_path)))
    cache = tmp_path / "oxford_pets" / "split_fewshot" / "shot_1-seed_1.json"
    whole = cache.read_text()
    cache.write_bytes(content.encode("latin-1"))
    assert sample(OxfordPets(config(tmp_path))) == expected
    assert "Drawing the few-shot data again" in capsys.readouterr().out
    assert cache.read_text() == whole


def test_cache_moves_with_its_folder(tmp_path, capsys):
    draw(tmp_path / "here")
    expected = sample(OxfordPets(config(tmp_path / "here")))
    (tmp_path / "here").rename(tmp_path / "there")
    capsys.readouterr()
    dataset = OxfordPets(config(tmp_path / "there"))
    assert sample(dataset) == expected
    assert "Loading preprocessed few-shot data" in capsys.readouterr().out
    assert all(item.impath.startswith(f"{tmp_path}/there/") for item in dataset.train_x)


def denied(*args, **kwargs):
    raise PermissionError(13, "Permission denied", "split_fewshot")


def test_read_only_folder(tmp_path, capsys, monkeypatch):
    draw(tmp_path)
    before = files(tmp_path)
    monkeypatch.setattr(os, "makedirs", denied)
    assert len(sample(OxfordPets(config(tmp_path)))) == 2
    assert "Few-shot data not saved: [Errno 13]" in capsys.readouterr().out
    assert files(tmp_path) == before


def test_read_only_folder_without_split_file(tmp_path, capsys, monkeypatch):
    for number in range(10):
        image = tmp_path / "dtd" / "images" / "banded" / f"{number}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
    before = files(tmp_path)
    monkeypatch.setattr(os, "makedirs", denied)
    assert len(DescribableTextures(config(tmp_path)).test) == 3
    assert "Split not saved" in capsys.readouterr().out
    assert files(tmp_path) == before


def test_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    draw(tmp_path)
    before = files(tmp_path)

    def fail_half_way(content):
        yield '{"source": '
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dassl.data.splits._pieces", fail_half_way)
    OxfordPets(config(tmp_path))
    assert [path for path in files(tmp_path) if path not in before] == [
        f"{tmp_path}/oxford_pets/split_fewshot"
    ]
    assert files(tmp_path / "oxford_pets" / "split_fewshot") == []


def test_two_first_runs_agree_on_the_split(tmp_path, monkeypatch):
    """The seeds of a sweep start together on a folder without a split file: the first to save one decides."""
    for number in range(10):
        image = tmp_path / "dtd" / "images" / "banded" / f"{number}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
    faster = []

    class Slower(DescribableTextures):
        def make_split(self, shuffle):
            faster.append(DescribableTextures(config(tmp_path, shots=-1, seed=1)))
            return super().make_split(shuffle)

    slower = Slower(config(tmp_path, shots=-1, seed=2))
    assert [item.impath for item in slower.test] == [item.impath for item in faster[0].test]


class Drawn(FewShotDataset):
    """As a dataset that the project draws itself."""

    dataset_dir, image_dir, split_file = "oxford_pets", "images", "split_zhou_OxfordPets.json"
    drawings = 0

    def make(self, folder):
        type(self).drawings += 1
        draw(Path(folder).parent / "elsewhere")
        (Path(folder).parent / "elsewhere" / "oxford_pets").rename(folder)
        (Path(folder).parent / "elsewhere").rmdir()


class HalfDrawn(FewShotDataset):
    dataset_dir, image_dir, split_file = "drawn", "images", "split.json"

    def make(self, folder):
        (Path(folder) / "images").mkdir(parents=True)
        raise OSError(28, "No space left on device")


def test_what_is_drawn_here_is_made_once(tmp_path):
    assert Drawn(config(tmp_path / "new root", shots=-1)).num_classes == 2
    assert Drawn(config(tmp_path / "new root", shots=-1)).num_classes == 2
    assert Drawn.drawings == 1
    assert os.listdir(tmp_path / "new root") == ["oxford_pets"]


def test_half_a_drawing_is_not_taken_for_whole(tmp_path):
    assert "No space left" in refused(HalfDrawn, config(tmp_path), tmp_path, OSError)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"test": [*ROWS["test"], ROWS["train"][0]]}, "test[2], 'a 1.jpg', is in train[0], too"),
        ({"val": [*ROWS["val"], ROWS["val"][0]]}, "val[1], 'a 3.jpg', is in val[0], too"),
        ({"val": [["./a 1.jpg", 0, "abyssinian"]]}, "val[0], './a 1.jpg', is in train[0], too"),
        ({"val": [["ü/../a 1.jpg", 0, "abyssinian"]]}, "is in train[0], too"),
        ({"val": [["/etc/passwd", 0, "abyssinian"]]}, "val[0], '/etc/passwd', is no path below"),
        ({"val": [["../../x.jpg", 0, "abyssinian"]]}, "is no path below the folder of the images"),
        ({"val": [["ü/../../x.jpg", 0, "abyssinian"]]}, "is no path below the folder of the images"),
        ({"val": [["", 0, "abyssinian"]]}, "is no path below the folder of the images"),
        ({"val": [[".", 0, "abyssinian"]]}, "is no path below the folder of the images"),
        ({"val": [["a\nb.jpg", 0, "abyssinian"]]}, "holds a control character"),
        ({"val": [["caf\udce9.jpg", 0, "abyssinian"]]}, "a byte that is no UTF-8"),
        ({"val": [["nul\0.jpg", 0, "abyssinian"]]}, "holds a control character"),
        ({"val": [["a 3.jpg", 10**4000, "abyssinian"]]}, "missing or out of place"),
        ({"val": [["a 3.jpg", -1, "siamese"]]}, "must be 0 to 2"),
        ({"val": [["x" * 10**5 + ".jpg", 0, "abyssinian"]]}, "1 of 6 images are missing"),
    ],
)
def test_split_files_of_images_elsewhere_or_twice(parts, expected, tmp_path):
    draw(tmp_path, altered(**parts))
    assert expected in refused(OxfordPets, config(tmp_path), tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10**5,
        '{"train": ' * 10**5,
        '{"train": [], "train": [], "val": [], "test": []}',
        '{"train": [[' + "9" * 5000 + ', 0, "a"]], "val": [], "test": []}',
        b"\xff\xfe{}",
        b"\x00",
    ],
    ids=range(6),
)
def test_json_that_cannot_be_meant(text, tmp_path):
    split_path = draw(tmp_path, "{}")
    split_path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert "is not readable as JSON" in refused(OxfordPets, config(tmp_path), tmp_path)


def test_a_split_file_with_a_byte_order_mark(tmp_path):
    split_path = draw(tmp_path)
    split_path.write_bytes(b"\xef\xbb\xbf" + split_path.read_bytes())
    assert OxfordPets(config(tmp_path)).num_classes == 2


@pytest.mark.parametrize(
    ("old", "new"), [("a 2.jpg", "a 4.jpg"), ("abyssinian", "siamese"), ('"drawn"', '"other"')]
)
def test_changed_shots_are_drawn_again(old, new, tmp_path, capsys):
    draw(tmp_path)
    drawn = [item.impath for item in OxfordPets(config(tmp_path)).train_x]
    cache = tmp_path / "oxford_pets" / "split_fewshot" / "shot_1-seed_1.json"
    text = cache.read_text()
    cache.write_text(text.replace(old if old in text else "a 1.jpg", new))
    assert cache.read_text() != text
    assert [item.impath for item in OxfordPets(config(tmp_path)).train_x] == drawn
    assert "Drawing the few-shot data again" in capsys.readouterr().out
    assert cache.read_text() == text
