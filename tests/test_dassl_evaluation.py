"""The evaluator: recorded figures exactly, recorded lines with two decimals."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics

from dassl.config import get_cfg_default
from dassl.evaluation import (
    EVALUATOR_REGISTRY,
    Classification,
    EvaluatorBase,
    FirstClasses,
    Prediction,
    Predictions,
    build_evaluator,
    read_predictions,
    write_predictions,
)

RECORDED = json.loads((Path(__file__).parent / "golden" / "evaluator.json").read_text())


def recorded_predictions(case: dict) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.RandomState(case["numpy_seed"])
    logits = random.standard_normal((case["n"], case["k"])).astype("float32")
    labels = random.randint(0, case["k"] - 1, size=case["n"])
    logits[np.arange(case["n"]), labels] += 1.0
    return torch.from_numpy(logits), torch.from_numpy(labels)


def evaluator_for(case: dict, **options: Any) -> Classification:
    cfg = get_cfg_default()
    cfg.TEST.PER_CLASS_RESULT = case["per_class"]
    for key, value in options.items():
        cfg.TEST[key] = value
    return build_evaluator(cfg, lab2cname={label: f"class {label}" for label in range(case["k"])})


def feed(evaluator: Classification, case: dict) -> None:
    logits, labels = recorded_predictions(case)
    for start in range(0, case["n"], 100):
        evaluator.process(logits[start : start + 100], labels[start : start + 100])


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: str(case["numpy_seed"]))
def test_figures_and_lines_are_the_recorded_ones(case: dict, capsys: pytest.CaptureFixture[str]) -> None:
    evaluator = evaluator_for(case)
    assert capsys.readouterr().out == "Loading evaluator: Classification\n"
    feed(evaluator, case)
    results = evaluator.evaluate()
    assert dict(results) == pytest.approx(case["results"], rel=1e-12)
    assert list(results) == list(case["results"])
    assert all(type(value) is float for value in results.values())
    printed = capsys.readouterr().out
    assert re.search(r"^\* accuracy: \d+\.\d\d%$", printed, re.MULTILINE)
    figure = re.compile(r"\d+\.\d+(?=%)")
    assert figure.sub("", printed) == figure.sub("", case["text"])
    pairs = zip(figure.findall(printed), figure.findall(case["text"]), strict=True)
    assert all(abs(float(ours) - float(recorded)) <= 0.055 for ours, recorded in pairs)


def test_batches_on_a_gpu_are_counted_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Classification):
        pass

    case = {**RECORDED[0], "per_class": True}
    on_cpu, on_gpu = (evaluator_for(case) for _ in range(2))
    own = Own(on_cpu.cfg, lab2cname=on_cpu._lab2cname)
    feed(on_cpu, case)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    feed(on_gpu, case)
    feed(own, case)
    assert on_gpu._total == 0
    assert own._y_pred == on_cpu._y_pred, "a subclass finds each batch counted"
    assert on_gpu.evaluate() == on_gpu.evaluate() == on_cpu.evaluate()
    assert (on_gpu._y_true, on_gpu._y_pred) == (on_cpu._y_true, on_cpu._y_pred)


def test_reset_forgets_all_batches() -> None:
    first, second, _ = RECORDED
    evaluator = evaluator_for({**second, "per_class": True})
    feed(evaluator, first)
    evaluator.reset()
    feed(evaluator, second)
    assert dict(evaluator.evaluate()) == pytest.approx(second["results"], rel=1e-12)


def test_a_subclass_may_reset_what_it_makes_later() -> None:
    class WithFeatures(Classification):
        def __init__(self, cfg: Any, **kwargs: Any) -> None:
            super().__init__(cfg, **kwargs)
            self.features: list[int] = []

        def reset(self) -> None:
            super().reset()
            self.features.clear()

    WithFeatures(get_cfg_default()).reset()


def test_predictions_can_be_had_afterwards() -> None:
    case = RECORDED[0]
    evaluator = evaluator_for(case)
    feed(evaluator, case)
    logits, labels = recorded_predictions(case)
    assert evaluator._y_true == labels.tolist()
    assert evaluator._y_pred == logits.argmax(1).tolist()


def test_the_confusion_matrix_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.TEST.COMPUTE_CMAT = True
    evaluator = build_evaluator(cfg)
    evaluator.process(torch.eye(2)[[0, 0, 1, 1]], torch.tensor([0, 0, 0, 1]))
    evaluator.evaluate()
    matrix = torch.load(tmp_path / "run" / "cmat.pt", weights_only=True)
    assert matrix.tolist() == [[pytest.approx(2 / 3), pytest.approx(1 / 3)], [0, 1]]
    assert f"Confusion matrix is saved to {tmp_path / 'run' / 'cmat.pt'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("guesses", "labels"),
    [([0, 2], [0, 2]), ([0, 0], [0, 0]), ([2, 2], [1, 2]), ([1], [0])],  # classes without an image or a vote
)
def test_the_confusion_matrix_has_a_row_and_a_column_for_each_class(
    guesses: list[int], labels: list[int], tmp_path: Path
) -> None:
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.TEST.COMPUTE_CMAT = True
    evaluator = build_evaluator(cfg, lab2cname={0: "ant", 1: "bee", 2: "cat", 3: "dog"})
    evaluator.process(torch.eye(4)[guesses], torch.tensor(labels))
    evaluator.evaluate()
    matrix = torch.load(tmp_path / "cmat.pt", weights_only=True)
    expected = torch.zeros(4, 4, dtype=matrix.dtype)
    for guess, label in zip(guesses, labels, strict=True):
        expected[label, guess] += 1 / labels.count(label)
    assert matrix.tolist() == expected.tolist()


def test_metrics_are_scikit_learn_s(tmp_path: Path) -> None:
    """Also where a class has no image, or is never predicted."""
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.TEST.COMPUTE_CMAT = True
    evaluator = build_evaluator(cfg)
    drawn = np.random.RandomState(0).randint(0, (5, 7), (200, 2))
    true, predicted = drawn[drawn[:, 0] != 2].T
    evaluator.process(torch.eye(7)[predicted], torch.from_numpy(true))
    own = metrics.f1_score(true, predicted, average="macro", labels=np.unique(true))
    assert evaluator.evaluate()["macro_f1"] == 100 * own
    matrix = metrics.confusion_matrix(true, predicted, labels=range(7), normalize="true")
    assert np.array_equal(torch.load(tmp_path / "cmat.pt", weights_only=True).numpy(), matrix)


def test_errors_are_clear() -> None:
    cfg = get_cfg_default()
    with pytest.raises(ValueError, match="nothing to evaluate"):
        build_evaluator(cfg).evaluate()
    cfg.TEST.EVALUATOR = "Clasification"
    with pytest.raises(ValueError, match="did you mean 'Classification'"):
        build_evaluator(cfg)
    cfg.TEST.EVALUATOR = "Classification"
    cfg.TEST.PER_CLASS_RESULT = True
    with pytest.raises(ValueError, match="class names"):
        build_evaluator(cfg)


def test_a_foreign_evaluator_is_built_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    @EVALUATOR_REGISTRY.register(force=True)
    class CountOnly(EvaluatorBase):
        def __init__(self, cfg: Any, lab2cname: Any = None, **kwargs: Any) -> None:
            super().__init__(cfg)

    cfg = get_cfg_default()
    cfg.TEST.EVALUATOR = "CountOnly"
    cfg.VERBOSE = False
    assert isinstance(build_evaluator(cfg, lab2cname={}), CountOnly)
    assert capsys.readouterr().out == ""
    del EVALUATOR_REGISTRY._obj_map["CountOnly"]


# Predictions in a file


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_predictions_are_a_line_for_each_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = Predictions(get_cfg_default(), {0: "cat", 1: 'dog, "old"'})
    scores = torch.tensor([[0.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 9.0]])
    table.add({"impath": ["a b.jpg", "ä.jpg", "c,d.jpg"]}, scores, torch.tensor([0, 0, 1]))
    table.add({"impath": ["last.jpg"]}, scores[:1], torch.tensor([1]))
    path = tmp_path / "new" / "predictions_test.csv"
    table.write(str(path))
    assert capsys.readouterr().out == f"Predictions are saved to {path}\n"
    assert rows_of(path) == [
        ["impath", "label", "classname", "predicted_label", "predicted_classname"],
        ["a b.jpg", "0", "cat", "1", 'dog, "old"'],
        ["ä.jpg", "0", "cat", "0", "cat"],
        ["c,d.jpg", "1", 'dog, "old"', "2", ""],
        ["last.jpg", "1", 'dog, "old"', "1", 'dog, "old"'],
    ]
    assert os.listdir(path.parent) == [path.name]  # nothing unfinished is left


@pytest.mark.parametrize(
    ("batch", "scores", "message"),
    [
        ({"img": 0}, torch.ones(1, 2), r"TEST.SAVE_PREDICTIONS is True, but the batches have no 'impath'"),
        (torch.ones(1), torch.ones(1, 2), r"the batches have no 'impath'"),
        ({"impath": ["a"]}, torch.ones(1), r"their shapes are \(1,\) and \(1,\). Set the key to False"),
        ({"impath": ["a"]}, {"scores": 0}, r"needs scores \(batch class\).* \(\) and \(1,\)"),
    ],
)
def test_what_cannot_be_a_line_is_refused(batch: Any, scores: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Predictions(get_cfg_default(), {}).add(batch, scores, torch.tensor([0]))


def test_stored_predictions_are_read_as_they_were_written(tmp_path: Path) -> None:
    cfg, scores = get_cfg_default(), torch.linspace(-3, 30, 21).reshape(3, 7).flip(1)
    scores[1, 2] = -torch.inf  # a class that is masked
    found = FirstClasses(cfg)
    found.add({"impath": ["a b.jpg", "=ä.jpg", "c,\nd.jpg"]}, scores, torch.tensor([0, 6, 1]))
    found.add({"impath": ["last.jpg"]}, scores[:1, :3], torch.tensor([2]))
    rows = found.result()
    assert rows is not None
    assert rows[1][:4] == ("=ä.jpg", 6, 0, (0, 1, 3, 4, 5))
    assert (rows[3].predicted, rows[3].classes) == (0, (0, 1, 2))
    write_predictions(rows, tmp_path / "a.csv.gz")
    write_predictions(rows, tmp_path / "b.csv.gz")
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()
    for wrote, read in zip(rows, read_predictions(tmp_path / "a.csv.gz"), strict=True):
        assert read[:4] == wrote[:4]
        assert read.scores == pytest.approx(wrote.scores, rel=1e-5)


def test_predictions_of_earlier_versions_are_read(tmp_path: Path) -> None:
    table = Predictions(get_cfg_default(), {0: "cat", 1: "dog"})
    table.add({"impath": ["a.jpg", "b.jpg"]}, torch.eye(2), torch.tensor([0, 0]))
    table.write(str(tmp_path / "predictions_test.csv"))
    rows = read_predictions(tmp_path / "predictions_test.csv")
    assert rows == [Prediction("a.jpg", 0, 0), Prediction("b.jpg", 0, 1)]


def test_batches_without_paths_or_scores_have_no_stored_predictions() -> None:
    for batch, scores in (({"img": 0}, torch.ones(1, 2)), ({"impath": ["a"]}, {"scores": 0})):
        found = FirstClasses(get_cfg_default())
        found.add({"impath": ["a"]}, torch.ones(1, 2), torch.tensor([0]))
        found.add(batch, scores, torch.tensor([0]))
        assert found.result() is None


@pytest.mark.parametrize("damage", ["cut", "columns", "row"])
def test_damaged_predictions_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "predictions.csv.gz"
    write_predictions([Prediction("a.jpg", 0, 1, (1, 0), (2.0, 1.0))] * 50, path)
    content = gzip.decompress(path.read_bytes())
    changed = {"columns": content.replace(b"label", b"lable", 1), "row": content.replace(b"2 1", b"2", 1)}
    path.write_bytes(path.read_bytes()[:-9] if damage == "cut" else gzip.compress(changed[damage]))
    with pytest.raises(ValueError, match="holds no predictions"):
        read_predictions(path)
