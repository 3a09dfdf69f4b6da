"""Models that know how sure they may be: temperature, conformal sets, what is saved of them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from prompted_clip.calibration import conformal_threshold
from prompted_clip.errors import UserError
from train import command_line
from trainers import MaPLe, ZeroshotCLIP, load
from trainers.commands import classify

CALIBRATE = ("TEST.CALIBRATE", "True")


@pytest.fixture(scope="module")
def root(tmp_path_factory, few_shapes) -> Path:
    return few_shapes(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory):
    """Options → folder of a short run on the base classes; each is made once."""
    made: dict[tuple[str, ...], Path] = {}

    def make(trainer: str, *options: str) -> Path:
        if (trainer, *options) not in made:
            place = tmp_path_factory.mktemp(trainer)
            words = ["--root", str(root), "--trainer", trainer, "--seed", "1", "--output-dir", str(place)]
            words += ["DATASET.SUBSAMPLE_CLASSES", "base", "DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1"]
            words += ["DATALOADER.TRAIN_X.BATCH_SIZE", "8", "USE_CUDA", "False", *options]
            assert command_line(words) == 0
            made[(trainer, *options)] = place
        return made[(trainer, *options)]

    return make


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture
def calibrated(run) -> Any:
    return load(run("MaPLe", *CALIBRATE), device="cpu")


def test_a_model_has_the_temperature_of_its_run(calibrated, run, root: Path) -> None:
    calibration = result_of(run("MaPLe", *CALIBRATE))["calibration"]
    assert calibrated.calibration == calibration
    assert calibrated.temperature == calibration["temperature"] != 1
    photo = next((root / "shapes").rglob("*.png"))
    plain = load(run("MaPLe"), device="cpu")
    image = plain.preprocess(Image.open(photo))[None]
    expected = (plain(image) / calibration["temperature"]).softmax(dim=-1)
    assert torch.equal(calibrated.probabilities(image), expected)
    assert calibrated.predict(photo).name == plain.predict(photo).name


def test_a_saved_model_keeps_its_calibration(calibrated, tmp_path: Path) -> None:
    calibrated.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved", device="cpu")
    assert (again.temperature, again.calibration) == (calibrated.temperature, calibrated.calibration)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.001}, "has the temperature 0.001"),
        ({"temperature": "1"}, "has the temperature 1"),
        ({"conformal_scores": []}, "no list of 1 to 2,000"),
        ({"conformal_scores": [0.5, 0.1]}, "not sorted"),
        ({"conformal_scores": [0.5, float("nan")]}, "not sorted"),
        ({"conformal_scores": [0.5, 1.5]}, "not between 0 and 1"),
        ({"conformal_scores": [True]}, "not between 0 and 1"),
        ({"images": 1}, "24 conformal_scores of 1 images"),
        ({"images": None}, "24 conformal_scores of None images"),
    ],
)
def test_a_calibration_that_cannot_be_meant_is_refused(
    calibrated, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    calibrated.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["calibration"] |= changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_a_saved_model_of_before_has_no_calibration(calibrated, tmp_path: Path) -> None:
    calibrated.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["calibration"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(tmp_path).calibration is None


def test_a_set_holds_what_is_probable_enough(calibrated, root: Path) -> None:
    photos = sorted((root / "shapes").rglob("*.png"))[:6]
    for coverage in (0.5, 0.9, 0.96):
        threshold = conformal_threshold(calibrated.calibration["conformal_scores"], coverage)
        for found in calibrated.predict(photos, coverage=coverage):
            assert list(found.set) == [name for name, each in found if 1 - each <= threshold + 1e-6]
    assert calibrated.predict(photos[0]).set is None
    assert calibrated.predict(photos[0]).names == calibrated.predict(photos[0], coverage=0.5).names


def test_too_few_images_for_a_coverage_give_all_classes_and_say_so(calibrated, root: Path) -> None:
    photo = next((root / "shapes").rglob("*.png"))
    with pytest.warns(UserWarning, match=r"more validation images than the 24 .* allow is 0\.96"):
        found = calibrated.predict(photo, coverage=0.97)
    assert list(found.set) == list(found.names)


def test_a_coverage_takes_a_calibration_of_these_classes(calibrated, run, root: Path) -> None:
    photo = next((root / "shapes").rglob("*.png"))
    names = list(calibrated.classnames)
    with pytest.raises(UserError, match=r"TEST\.CALIBRATE True"):
        load(run("MaPLe"), device="cpu").predict(photo, coverage=0.9)
    with pytest.raises(UserError, match="Of other class names than theirs"):
        calibrated.predict(photo, names[:3], coverage=0.9)
    again = calibrated.predict(photo, names[::-1], coverage=0.9)
    assert set(again.set) == set(calibrated.predict(photo, coverage=0.9).set)
    for wrong in (0, 1, 90, True, "0.9", float("nan")):
        with pytest.raises(UserError, match="allowed are numbers between 0 and 1"):
            calibrated.predict(photo, coverage=wrong)


def test_a_temperature_is_that_of_the_classes_unless_nothing_was_learned(calibrated, run) -> None:
    names = list(calibrated.classnames)
    assert calibrated.with_classnames(names[:3]).temperature == 1
    assert calibrated.with_classnames(names[::-1]).temperature == calibrated.temperature
    by_hand = load(run("MaPLe"), device="cpu")
    by_hand.temperature = 2.0
    assert by_hand.with_classnames(names[:3]).temperature == 2
    zero_shot = load(run("ZeroshotCLIP", *CALIBRATE), device="cpu")
    assert zero_shot.with_classnames(names[:3]).temperature == zero_shot.temperature != 1
    assert zero_shot.with_classnames(names[:3]).calibration is None


def test_the_calibration_of_a_test_is_that_of_the_epoch_that_it_tested(
    run, root: Path, tmp_path: Path
) -> None:
    folder = run("MaPLe", *CALIBRATE)
    assert load(folder, device="cpu", epoch=1).calibration is None
    words = ["--root", root, "--trainer", "MaPLe", "--output-dir", tmp_path / "new", "--eval-only"]
    words += ["--model-dir", folder, "DATASET.SUBSAMPLE_CLASSES", "new", "DATASET.NUM_SHOTS", 1]
    assert command_line([str(each) for each in (*words, "USE_CUDA", False, *CALIBRATE)]) == 0
    tested = load(tmp_path / "new", device="cpu")
    assert tested.calibration == result_of(tmp_path / "new")["calibration"]
    result = result_of(tmp_path / "new")
    result["identity"]["parts"]["tested_model"] = "0" * 64
    (tmp_path / "new" / "result.json").write_text(json.dumps(result))
    assert load(tmp_path / "new", device="cpu").calibration is None


def test_fit_calibrates_where_there_are_val_photos(
    small_dtd: Path, golden_checkpoint, tmp_path: Path
) -> None:
    photos, names = small_dtd / "dtd" / "images", ["banded", "blotchy", "braided", "bubbly"]
    options = {"weights": golden_checkpoint("tiny_public"), "settings": {"TRAINER.MAPLE.PROMPT_DEPTH": 2}}
    model = MaPLe.from_clip("ViT-B/16", names, **options, device="cpu")
    model.fit(photos, shots=2, epochs=1)
    assert model.calibration is not None
    assert model.temperature == model.calibration["temperature"]
    assert model.calibration["images"] >= len(names)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["calibration"] == model.calibration
    model.fit(photos, shots=2, epochs=1, calibrate=False)
    assert (model.temperature, model.calibration) == (1, None)
    (photos / "split_own.json").unlink()
    model.fit(photos, shots=2, epochs=1, settings={"DATASET.OWN.SPLIT": (0.5, 0.0, 0.5)})
    assert (model.temperature, model.calibration) == (1, None)


# --- the command ------------------------------------------------------------------------------------------


def test_classify_prints_the_sets(calibrated, root: Path, tmp_path: Path, capsys) -> None:
    calibrated.save_pretrained(tmp_path / "saved")
    photos = sorted((root / "shapes").rglob("*.png"))[:4]
    expected = [list(each.set) for each in calibrated.predict(photos, coverage=0.9)]
    words = [str(each) for each in (tmp_path / "saved", *photos, "--coverage", 0.9)]
    assert classify.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("; set: ")[2] for line in lines] == [
        ", ".join(each) or "none" for each in expected
    ]
    assert classify.main([*words, "--json"]) == 0
    assert [json.loads(line)["set"] for line in capsys.readouterr().out.splitlines()] == expected
    assert classify.main([*words, "--csv"]) == 0
    rows = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert [json.loads(row["set"]) for row in rows] == expected
    assert classify.main([*words[:-1], "0.999"]) == 0
    assert "each set holds all classes" in capsys.readouterr().err
    assert classify.main([*words, "--names", "red circle"]) == 2
    assert "Of other class names than theirs" in capsys.readouterr().err


def test_classify_says_what_a_coverage_takes(tmp_path: Path, root: Path, capsys) -> None:
    ZeroshotCLIP.from_clip("ViT-Shapes/8", ["red circle", "blue star"]).save_pretrained(tmp_path / "saved")
    photo = next((root / "shapes").rglob("*.png"))
    assert classify.main([str(tmp_path / "saved"), str(photo), "--coverage", "0.9"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "TEST.CALIBRATE True" in output.err
