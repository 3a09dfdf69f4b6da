"""What `scripts.verify` finds of results, predictions and tables that do not agree; and what it lets pass."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_runs import result, write

from dassl.engine.identity import identity_of
from dassl.evaluation import Prediction, read_predictions, write_predictions
from experiments.record import sealed
from experiments.tasks import task_of
from experiments.verification import numbers_of, per_class_of
from prompted_clip.files import sha256_of_file
from scripts import report, verify

NAMES = ["banded", "blotchy", "braided"]


def predictions(hits: Sequence[bool]) -> list[Prediction]:
    """Of as many images of three classes in turn; a miss is taken for the next class."""
    rows = []
    for number, hit in enumerate(hits):
        label = number % 3
        first = (label, (label + 1) % 3) if hit else ((label + 1) % 3, label)
        rows.append(Prediction(f"images/{number}.jpg", label, first[0], first, (3.5, 1.25)))
    return rows


def store(folder: Path, rows: Sequence[Prediction], **changes: Any) -> Path:
    """A run whose result.json is made from predictions, as train.py would write it."""
    numbers = numbers_of(rows)
    settings = {"TRAINER.NAME": "MaPLe", "OPTIM.MAX_EPOCH": 5, "SEED": changes.get("seed", 1)}
    settings |= changes.pop("settings", {})
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    classes = per_class_of(rows)
    content = result(0.0, "dtd", **changes) | {
        "results": {name: numbers[name] for name in ("accuracy", "error_rate", "macro_f1")},
        "total": numbers["total"],
        "correct": numbers["correct"],
        "per_class": [
            {"label": label, "name": NAMES[label], "total": each[0], "correct": each[1]}
            for label, each in classes.items()
        ],
        "classnames": NAMES,
        "identity": identity_of(settings, {"model": "a" * 64}),
        "settings": nested,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(rows, folder / "predictions.csv.gz")
    content["predictions_sha256"] = sha256_of_file(folder / "predictions.csv.gz")
    write(folder, sealed(content))
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Two seeds on base classes, and their report."""
    folder = tmp_path / "output"
    for seed in (1, 2):
        store(folder / f"base/seed{seed}", predictions([n % (4 + seed) > 0 for n in range(60)]), seed=seed)
    assert report.main([str(folder), "--format", "all"]) == 0
    return folder


def change(path: Path, edit: Callable[[Any], None], seals: bool = False) -> None:
    """Edits a JSON file; with `seals`, as somebody does who knows of the checksum."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(sealed(content) if seals else content))


def faults(capsys: pytest.CaptureFixture[str], folder: Path, *flags: str) -> str:
    """What is said of a folder that does not fit."""
    capsys.readouterr()
    assert verify.main([str(folder), *flags]) == 1
    return capsys.readouterr().err


def test_what_agrees_passes_and_is_said_to_show_no_more(output, capsys):
    capsys.readouterr()
    assert verify.main([str(output)]) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 results and 6 files of tables agree with the predictions." in printed
    assert "not checked: calibration, seconds, memory and parameters" in printed
    assert "It does not show that the predictions are a model's" in printed


def test_numbers_are_those_of_the_evaluator(output):
    from sklearn.metrics import accuracy_score, f1_score

    rows = read_predictions(output / "base/seed1/predictions.csv.gz")
    true, guessed = [row.label for row in rows], [row.predicted for row in rows]
    numbers = numbers_of(rows)
    assert numbers["accuracy"] == pytest.approx(100 * accuracy_score(true, guessed))
    assert numbers["macro_f1"] == pytest.approx(100 * f1_score(true, guessed, average="macro"))


@pytest.mark.parametrize("knows", [False, True])
def test_one_changed_prediction_is_found(output, capsys, knows):
    """Also where its checksum was made to fit."""
    path = output / "base/seed2/predictions.csv.gz"
    rows = read_predictions(path)
    wrong = next(number for number, row in enumerate(rows) if row.label != row.predicted)
    first = rows[wrong].classes[::-1]
    rows[wrong] = rows[wrong]._replace(predicted=rows[wrong].label, classes=first)
    write_predictions(rows, path)
    if knows:
        new = sha256_of_file(path)
        change(path.with_name("result.json"), lambda each: each.update(predictions_sha256=new), seals=True)
    said = faults(capsys, output)
    assert f"{path.with_name('result.json')}: correct is 50, predictions.csv.gz gives 51" in said
    assert ("its sha256 is another" in said) is not knows


@pytest.mark.parametrize("seals", [False, True])
@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            lambda each: each["results"].update(accuracy=99.0),
            "accuracy is 99.0, predictions.csv.gz gives 80.0",
        ),
        (lambda each: each["results"].update(macro_f1=99.0), "macro_f1 is 99.0, predictions.csv.gz gives"),
        (lambda each: each.update(total=59), "total is 59, predictions.csv.gz gives 60"),
        (lambda each: each["per_class"][0].update(correct=20), "class 0 has (20, 20) images and hits"),
        (lambda each: each.update(seed=7), "seed is 7, SEED is 1"),
        (lambda each: each["settings"]["OPTIM"].update(MAX_EPOCH=50), "OPTIM.MAX_EPOCH is 5 there, 50 here"),
        (lambda each: each["identity"]["settings"].update({"OPTIM.MAX_EPOCH": 6}), "identity.run is "),
    ],
)
def test_one_changed_number_in_a_result_is_found(output, capsys, edit, says, seals):
    path = output / "base/seed1/result.json"
    change(path, edit, seals)
    said = faults(capsys, output)
    assert str(path) in said
    assert says in said
    assert ("was changed after it was written" in said) is not seals


def test_a_changed_number_that_predictions_do_not_tell_is_found_by_the_checksum(output, capsys):
    path = output / "base/seed1/result.json"
    change(path, lambda each: each.update(learned_parameters=1))
    assert "was changed after it was written" in faults(capsys, output)


def test_a_run_of_other_settings_among_seeds_is_found(output, capsys):
    rows = predictions([n % 7 > 0 for n in range(60)])
    store(output / "base/seed3", rows, seed=3, settings={"OPTIM.MAX_EPOCH": 50})
    assert "seed 3 of MaPLe has other settings than the rest (MAX_EPOCH 50)" in faults(capsys, output)


@pytest.mark.parametrize(
    "name", ["tables.csv", "runs.csv", "report.txt", "report.md", "report.tex", "report.html"]
)
def test_a_table_edited_by_hand_is_found(output, capsys, name):
    path = output / "report" / name
    text = path.read_text()
    found = re.search(r"8\d\.\d\d", text)
    edited = text.replace(found[0], "89.99") if found else text.replace("80.0", "89.9")
    assert edited != text
    path.write_text(edited)
    said = faults(capsys, output)
    assert str(path) in said
    assert "its results give" in said


def test_a_row_that_was_added_is_found(output, capsys):
    path = output / "report/report.txt"
    path.write_text(path.read_text() + "MaPLe  99.99\n")
    assert f"{path}: " in faults(capsys, output)


def test_a_report_of_some_runs_is_made_again_of_those(output, tmp_path, capsys):
    assert report.main([str(output), "--seeds", "2", "--format", "all"]) == 0
    moved = Path(shutil.move(output, tmp_path / "elsewhere"))
    assert verify.main([str(moved)]) == 0


def test_predictions_that_are_gone_are_missed(output, capsys):
    (output / "base/seed1/predictions.csv.gz").unlink()
    assert "predictions.csv.gz is not there" in faults(capsys, output)


def test_results_of_earlier_versions_are_said_to_be_unchecked(tmp_path, capsys):
    write(tmp_path / "a", result(80.0, identity=None))
    assert verify.main([str(tmp_path)]) == 0
    assert "there are no predictions, so its numbers are not checked" in capsys.readouterr().out


@pytest.mark.parametrize(("make", "says"), [(False, "there is no such folder"), (True, "has no result.json")])
def test_a_folder_without_results_is_refused_in_one_line(tmp_path, capsys, make, says):
    if make:
        (tmp_path / "out").mkdir()
    assert verify.main([str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "task"),
    [
        ({}, "base2new/dtd@1"),
        ({"total": 863}, ""),
        (
            {"dataset": "shapes", "dataset_config": "shapes", "total": 1200, "trained_on": None},
            "base2new/shapes@1",
        ),
        ({"classes": "all", "total": 1692}, "base2new/dtd@1"),
        ({"split": "val"}, ""),
        ({"dataset_config": "my_photos"}, ""),
    ],
)
def test_the_task_of_a_result_is_told_by_what_was_tested(changes, task):
    assert task_of(result(80.0, "dtd") | changes) == task


def test_a_result_of_another_task_than_it_says_is_found(output, capsys):
    change(output / "base/seed1/result.json", lambda each: each.update(task="base2new/dtd@1"), seals=True)
    assert "task is 'base2new/dtd@1', what was tested is ''" in faults(capsys, output)


# --- a collection


@pytest.fixture
def offered(output, tmp_path) -> Path:
    """A collection of two submissions with the same method."""
    folder = tmp_path / "results"
    write(folder, {"format": 1}, "collection.json")
    paths = {"command": ["train.py", "--root", "/home/me/data"], "model_dir": "/home/me/seed1"}
    change(output / "base/seed1/result.json", lambda each: each.update(paths), seals=True)
    assert verify.main([str(output), "--collect", str(folder / "mine")]) == 0
    store(folder / "theirs/seed1", predictions([n % 3 > 0 for n in range(60)]))
    return folder


def test_what_is_offered_has_no_paths_and_no_weights(offered):
    names = {path.name for path in (offered / "mine").rglob("*") if path.is_file()}
    assert names == {"result.json", "predictions.csv.gz"}
    text = (offered / "mine/base/seed1/result.json").read_text()
    assert "/home" not in text
    assert json.loads(text)["command"] == ["train.py", "--root", "data"]


def test_the_page_of_a_collection_is_made_from_its_files_and_checked(offered, capsys):
    assert verify.main([str(offered), "--page"]) == 0
    page = (offered / "README.md").read_text()
    assert re.search(r"\| mine +\| MaPLe +\| DTD +\| 2 of ", page)
    assert "MaPLe (mine)" in page
    assert "MaPLe (theirs)" in page
    assert verify.main([str(offered)]) == 0
    (offered / "README.md").write_text(page.replace("66.67", "76.67"))
    assert "README.md: has " in faults(capsys, offered)


def test_what_does_not_fit_is_not_collected(output, tmp_path, capsys):
    change(output / "base/seed1/result.json", lambda each: each.update(total=59))
    faults(capsys, output, "--collect", str(tmp_path / "results/mine"))
    assert not (tmp_path / "results").exists()


# --- predicting again


@pytest.fixture(scope="module")
def trained(tmp_path_factory, few_shapes) -> Path:
    from train import command_line

    root = few_shapes(tmp_path_factory.mktemp("data"))
    output = tmp_path_factory.mktemp("out")
    words = ["--root", str(root), "--seed", "1", "--trainer", "MaPLe"]
    short = ["DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1", "DATASET.SUBSAMPLE_CLASSES"]
    assert command_line([*words, "--output-dir", str(output / "base"), *short, "base"]) == 0
    test = ["--eval-only", "--model-dir", str(output / "base")]
    assert command_line([*words, *test, "--output-dir", str(output / "all"), *short, "all"]) == 0
    return output


def test_images_are_predicted_again_by_the_saved_model(trained, capsys):
    capsys.readouterr()
    assert verify.main([str(trained), "--rerun", "20"]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"20 images predicted again, scores differ by \S+ at most", printed)) == 2
    assert sorted(path.name for path in (trained / "all").glob("*.csv*")) == ["predictions.csv.gz"]


def test_predictions_of_another_model_are_found_by_predicting_again(trained, tmp_path, capsys):
    """All files agree with each other: invented as a whole."""
    folder = Path(shutil.copytree(trained / "base", tmp_path / "base"))
    path = folder / "predictions.csv.gz"
    rows = [row._replace(scores=tuple(score + 1 for score in row.scores)) for row in read_predictions(path)]
    write_predictions(rows, path)
    new = sha256_of_file(path)
    change(folder / "result.json", lambda each: each.update(predictions_sha256=new), seals=True)
    assert verify.main([str(folder)]) == 0
    assert "scores differ by up to 1" in faults(capsys, folder, "--rerun", "5")
