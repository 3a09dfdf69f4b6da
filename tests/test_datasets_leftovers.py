"""What a killed run left unfinished beside the data is removed by the next; what others make now is not."""

from __future__ import annotations

import os

import pytest
from filelock import FileLock

from dassl.data import splits
from dassl.data.few_shot_dataset import FewShotDataset
from tests.test_datasets_errors import config, draw
from tests.test_datasets_own import draw as draw_photos
from tests.test_datasets_own import open_folder

HEX = "0123456789abcdef" * 2


def shown(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != "lock"}


class Drawn(FewShotDataset):
    dataset_dir, image_dir, split_file = "oxford_pets", "images", "split_zhou_OxfordPets.json"

    def make(self, folder):
        draw(self.place)
        (self.place / "oxford_pets").rename(folder)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(Drawn, "place", tmp_path / "elsewhere", raising=False)


def test_half_made_datasets_of_killed_runs_are_removed(tmp_path):
    root = tmp_path / "root"
    part = root / f"oxford_pets.{HEX}.part"
    (part / "images").mkdir(parents=True)
    (part / "images" / "a.jpg").touch()
    (root / f"{part.name}.lock").touch()
    kept = [root / "oxford_pets.backup.part", root / f"dtd.{HEX}.part"]
    for other in kept:
        other.mkdir()
    Drawn(config(root))
    assert set(root.iterdir()) == {root / "oxford_pets", *kept}


def test_what_another_run_makes_now_stays(tmp_path):
    root = tmp_path / "root"
    part = root / f"oxford_pets.{HEX}.part"
    part.mkdir(parents=True)
    with FileLock(f"{part}.lock"):
        Drawn(config(root))
        assert part.is_dir()


@pytest.mark.parametrize(
    "name",
    [
        f".split_own.json.{HEX}.tmp",
        f"split_own.json.{HEX}.part",
        f".split_own.json.{HEX}.part.{HEX}.tmp",
        f"split_fewshot/.shot_1-seed_1.json.{HEX}.tmp",
    ],
)
def test_unfinished_files_of_killed_runs_are_removed(tmp_path, name):
    for root in ("a", "b"):
        draw_photos(tmp_path / root, {"ant": 4, "bee": 4, "split_fewshot": 0})
    left = tmp_path / "a" / name
    left.write_text("{")
    for root in ("a", "b"):
        open_folder(tmp_path / root, "DATASET.NUM_SHOTS", 1)
    assert shown(tmp_path / "a") == shown(tmp_path / "b")


def test_a_user_s_own_files_stay(tmp_path):
    draw_photos(tmp_path, {"ant": 4, "bee": 4})
    for name in ("split_own.json.part", ".split_own.json.tmp", "split_own.json.old.part"):
        (tmp_path / name).touch()
    open_folder(tmp_path)
    assert {"split_own.json.part", ".split_own.json.tmp", "split_own.json.old.part"} <= shown(tmp_path)


def test_a_split_of_a_faster_run_is_not_replaced(tmp_path):
    path = str(tmp_path / "split.json")
    splits.write_shared_json([1], path, str(tmp_path), replace=False)
    with pytest.raises(FileExistsError):
        splits.write_shared_json([2], path, str(tmp_path), replace=False)
    assert splits.read_json(path) == [1]
    assert sorted(os.listdir(tmp_path)) == [".folder_index", "elsewhere", "split.json"]
