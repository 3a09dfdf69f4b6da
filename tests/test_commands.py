"""The commands that are installed: `classify` and `share`."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hub_server import HubServer
from huggingface_hub import constants

from prompted_clip.errors import UserError
from trainers import MaPLe, ZeroshotCLIP, load
from trainers.commands import classify, demo, share

NAMES = ["dotted red circle", "dotted blue square", "striped green star"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    ZeroshotCLIP.from_clip("ViT-Shapes/8", NAMES, device="cpu").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory, few_shapes) -> Path:
    """Photos in folders of two classes, written otherwise, and one that lies elsewhere."""
    drawn = few_shapes(tmp_path_factory.mktemp("drawn")) / "shapes"
    found = sorted(drawn.rglob("*.png"))
    folder = tmp_path_factory.mktemp("photos")
    for number, name in enumerate(("Dotted_red circle", "striped_green_star", "elsewhere")):
        (folder / "deep" / name).mkdir(parents=True)
        for path in found[number * 9 : number * 9 + (3 if number < 2 else 1)]:
            shutil.copy(path, folder / "deep" / name / path.name)
    return folder


def lines_of(capsys, *words: object) -> list[str]:
    assert classify.main([str(each) for each in words]) == 0
    return capsys.readouterr().out.splitlines()


def test_each_photo_has_a_line_with_its_best_classes(saved: Path, photos: Path, capsys) -> None:
    lines = lines_of(capsys, saved, photos, "--top", 2)
    expected = load(saved).predict(photos)
    assert len(lines) == 7
    for line, prediction in zip(lines, expected, strict=True):
        best = ", ".join(f"{name} {each:.1%}" for name, each in list(prediction)[:2])
        assert line == f"{prediction.path}: {best}"


def test_photos_in_folders_of_classes_also_give_the_accuracy(saved: Path, photos: Path, capsys) -> None:
    assert classify.main([str(saved), str(photos), "--json"]) == 0
    output = capsys.readouterr()
    rows = [json.loads(line) for line in output.out.splitlines()]
    labelled = [row for row in rows if row["label"]]
    assert {row["label"] for row in labelled} == {NAMES[0], NAMES[2]}
    right = sum(row["classes"][0]["name"] == row["label"] for row in labelled)
    assert output.err.strip() == (
        f"accuracy: {100 * right / 6:.2f}% of 6 photos in folders of classes, 1 without"
    )


def test_the_table_has_the_numbers_of_json(saved: Path, photos: Path, capsys) -> None:
    table = list(csv.DictReader(io.StringIO("\n".join(lines_of(capsys, saved, photos, "--csv", "--top", 2)))))
    rows = [json.loads(line) for line in lines_of(capsys, saved, photos, "--json", "--top", 2)]
    assert list(table[0]) == ["image", "label", "class", "probability", "class_2", "probability_2"]
    for cells, row in zip(table, rows, strict=True):
        assert cells["image"] == row["image"]
        assert [cells["class"], cells["class_2"]] == [each["name"] for each in row["classes"]]
        assert float(cells["probability"]) == pytest.approx(row["classes"][0]["probability"], abs=1e-6)


def test_other_names_and_a_threshold(saved: Path, photos: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "names.txt").write_text("red circle\n\nblue star\n", encoding="utf-8")
    given = lines_of(capsys, saved, photos, "--names", "red circle", "blue star")
    assert given == lines_of(capsys, saved, photos, "--names-from", tmp_path / "names.txt")
    assert all("red circle" in line and "blue star" in line for line in given)
    unsure = lines_of(capsys, saved, photos, "--threshold", 1)
    assert all(line.endswith(": no class is probable enough") for line in unsure)


def test_a_photo_that_cannot_be_read_is_a_line_at_the_end(
    saved: Path, photos: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "broken.jpg").touch()
    assert classify.main([str(saved), str(photos), str(tmp_path / "broken.jpg")]) == 0
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 7
    assert "not read: image" in output.err.splitlines()[-1]
    assert classify.main([str(saved), str(tmp_path / "broken.jpg")]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing", "{photos}"], "nothing is not there"),
        (["{saved}", "nothing.jpg"], "no such image or folder"),
        (["{saved}", "{empty}"], "has no images"),
        (["{empty}", "{photos}"], "neither result.json"),
        (["{saved}", "{photos}", "--names", "dog"], "no 'dog'"),
        (["{saved}", "{photos}", "--names", "red circle", "Red circle"], "same sentence"),
        (["{saved}", "{photos}", "--names-from", "nothing.txt"], "there is no such file"),
        (["{saved}", "{photos}", "--top", "0"], "--top"),
        (["{saved}", "{photos}", "--threshold", "2"], "--threshold"),
        (["{saved}", "{photos}", "--device", "gpu"], "device is 'gpu'"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    saved: Path, photos: Path, tmp_path: Path, capsys, words: list[str], message: str
) -> None:
    places = {"saved": saved, "photos": photos, "empty": tmp_path}
    assert classify.main([word.format(**places) for word in words]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert message in output.err


# --- the page -----------------------------------------------------------------------------------------------


def test_the_page_shows_the_numbers_of_predict_and_where_the_model_looks(saved: Path, photos: Path) -> None:
    model, photo = load(saved), next(photos.rglob("*.png"))
    probabilities, seen = demo.classify(model, str(photo), "\n".join(NAMES), sees=True)
    assert probabilities == dict(model.predict(photo))
    assert seen is not None
    assert seen.size == (256, 256)
    assert len(set(seen.tobytes())) > 50
    others, _ = demo.classify(model, str(photo), " red star \n\nblue star", sees=False)
    assert others == dict(model.predict(photo, ["red star", "blue star"]))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("dog", "no 'dog'"),
        ("a\n" * 1001, "1,001 class names; allowed are 1,000"),
        ("a" * 50_001, "characters"),
    ],
)
def test_the_page_refuses_names_that_cannot_be_meant(
    saved: Path, photos: Path, names: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        demo.classify(load(saved), str(next(photos.rglob("*.png"))), names, sees=True)


def test_without_gradio_the_page_says_how_to_get_it(saved: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert demo.main([str(saved)]) == 2
    assert "pip install gradio" in capsys.readouterr().err
    assert demo.main([str(saved), "--port", "0"]) == 2
    assert "--port 0" in capsys.readouterr().err


def test_names_do_not_become_syntax_of_the_page() -> None:
    assert demo.escaped("<b>*x*</b> [a](b)") == r"&lt;b&gt;\*x\*&lt;/b&gt; \[a\]\(b\)"


# --- the hub ------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A stand-in in the hub's place, with a cache of its own."""
    server = HubServer()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", server.token)
    yield server
    server.stop()


def test_a_model_goes_to_the_hub_and_back(hub: HubServer, photos: Path, tmp_path: Path, capsys) -> None:
    model = MaPLe.from_clip("ViT-Shapes/8", NAMES, device="cpu", settings={"TRAINER.MAPLE.PROMPT_DEPTH": 4})
    saved = tmp_path / "saved"
    model.save_pretrained(saved)
    assert share.main([str(saved), "user/maple-shapes", "--private"]) == 0
    assert capsys.readouterr().out == f"{hub.url}/user/maple-shapes\n"
    assert hub.visibility == {"user/maple-shapes": "private"}
    files = hub.repositories["user/maple-shapes"]
    assert files == {path.name: path.read_bytes() for path in saved.iterdir()}
    assert files.keys() == {"README.md", "config.json", "model.safetensors"}
    card = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert card["pipeline_tag"] == "zero-shot-image-classification"

    there = lines_of(capsys, "user/maple-shapes", photos, "--json", "--device", "cpu")
    found = [json.loads(line)["classes"] for line in there]
    expected = [list(prediction) for prediction in model.predict(photos)]
    assert [[(each["name"], each["probability"]) for each in classes] for classes in found] == expected
    hub.stop()
    assert lines_of(capsys, "user/maple-shapes", photos, "--json", "--device", "cpu") == there  # of the cache
    code = classify.main(["user/other", str(photos)])
    assert code == 1, capsys.readouterr().err
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the hub could not be reached" in error


def test_an_upload_replaces_what_the_hub_has(hub: HubServer, saved: Path) -> None:
    model = load(saved)
    assert model.push_to_hub("user/model", classifier=True) == f"{hub.url}/user/model"
    assert "classifier.safetensors" in hub.repositories["user/model"]
    load("user/model").push_to_hub("user/model")
    assert hub.repositories["user/model"].keys() == {"README.md", "config.json", "model.safetensors"}


def test_what_the_hub_refuses_is_one_line(
    hub: HubServer, saved: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    assert share.main([str(saved), "not a name"]) == 2
    assert "allowed is user/name" in capsys.readouterr().err
    assert classify.main(["user/unknown", str(photos)]) == 2
    assert "user/unknown is no folder here, and the hub does not show it" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert share.main([str(saved), "user/model"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "user/model was not uploaded" in error
    assert hub.repositories == {}
