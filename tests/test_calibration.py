"""How far probabilities can be trusted: calibration error, temperature, conformal sets."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dassl.config import get_cfg_default
from dassl.evaluation import Confidences, HeldOut
from prompted_clip.calibration import (
    DIGITS,
    LEAST_TEMPERATURE,
    MOST_SCORES,
    MOST_TEMPERATURE,
    Bin,
    conformal_scores,
    conformal_threshold,
    expected_calibration_error,
    fit_temperature,
    is_at_bound,
    reliability_bins,
)
from prompted_clip.errors import UserError
from train import command_line


def invented(images: int = 500, classes: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, and labels that are drawn by their softmax: calibrated but for the sample."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=generator, dtype=torch.float64) * 2
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return logits, labels


# --- reliability ------------------------------------------------------------------------------------------


def test_the_error_of_a_case_that_is_computed_by_hand() -> None:
    confidences = torch.tensor([0.95, 0.95, 0.55, 0.55, 0.55, 0.3])
    hits = torch.tensor([True, False, True, True, False, False])
    bins = reliability_bins(confidences, hits, bins=2)
    assert bins[0] == pytest.approx((1, 30, 0))
    assert bins[1] == pytest.approx((5, 100 * (0.95 + 0.95 + 3 * 0.55) / 5, 60))
    # 1/6 · |0 − 30| + 5/6 · |60 − 71|
    assert expected_calibration_error(bins) == pytest.approx(5 + 55 / 6)


def test_a_bin_holds_its_upper_bound_and_not_its_lower() -> None:
    edges = torch.linspace(0, 1, 16, dtype=torch.float64)[1:]
    bins = reliability_bins(edges, torch.ones(15))
    assert [each.images for each in bins] == [1] * 15
    above = torch.nextafter(edges[:-1], torch.ones(14, dtype=torch.float64))
    assert [each.images for each in reliability_bins(above, torch.ones(14))] == [0, *[1] * 14]
    assert reliability_bins(above, torch.ones(14))[0] == Bin(0, None, None)


def test_the_error_is_that_of_the_formula_in_numpy() -> None:
    logits, labels = invented()
    confidences, predicted = logits.softmax(dim=1).max(dim=1)
    hits = predicted == labels
    error, edges = 0.0, np.linspace(0, 1, 16)
    for low, high in pairwise(edges):
        chosen = ((confidences > low) & (confidences <= high)).numpy()
        if chosen.any():
            gap = abs(hits.numpy()[chosen].mean() - confidences.numpy()[chosen].mean())
            error += chosen.mean() * gap
    assert expected_calibration_error(reliability_bins(confidences, hits)) == pytest.approx(100 * error)


# --- temperature ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_temperature_has_the_least_nll(factor: float) -> None:
    from sklearn.metrics import log_loss

    logits, labels = invented()
    logits = logits * factor

    def nll(temperature: float) -> float:
        return log_loss(labels, (logits / temperature).softmax(dim=1).numpy(), labels=range(7))

    found = fit_temperature(logits, labels)
    assert nll(found) < min(nll(found * 1.001), nll(found / 1.001))
    # The sample of 500 is what keeps it from `factor`, by which calibrated logits were multiplied.
    assert found == pytest.approx(factor * fit_temperature(logits / factor, labels), rel=1e-6)
    assert not is_at_bound(found)


def test_a_temperature_stays_within_bounds() -> None:
    logits = torch.eye(3)
    assert fit_temperature(logits, torch.tensor([0, 1, 2])) == LEAST_TEMPERATURE  # all right: ever surer
    assert fit_temperature(logits, torch.tensor([1, 2, 0])) == MOST_TEMPERATURE  # all wrong: never sure
    assert is_at_bound(LEAST_TEMPERATURE)
    assert is_at_bound(MOST_TEMPERATURE)


def test_a_masked_class_changes_no_temperature() -> None:
    logits, labels = invented()
    masked = torch.cat([logits, torch.full((len(logits), 1), -math.inf)], dim=1)
    assert fit_temperature(masked, labels) == fit_temperature(logits, labels)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_temperature_of_logits_that_are_not_finite_is_refused(value: float) -> None:
    logits, labels = invented(5)
    logits[2, labels[2]] = value
    with pytest.raises(UserError, match="finite logits; of 5 images, 1 have others"):
        fit_temperature(logits, labels)
    with pytest.raises(UserError, match="of 0 images"):
        fit_temperature(logits[:0], labels[:0])


# --- conformal sets ---------------------------------------------------------------------------------------


def test_the_threshold_is_the_rank_that_the_coverage_takes() -> None:
    scores = [number / 10 for number in range(1, 10)]  # nine
    assert conformal_threshold(scores, 0.5) == 0.5  # the fifth: (9 + 1) · 0.5
    assert conformal_threshold(scores, 0.51) == 0.6
    assert conformal_threshold(scores, 0.9) == 0.9  # the ninth
    assert conformal_threshold(scores, 0.91) == math.inf  # the tenth of nine
    assert conformal_threshold([0.5] * 99, 0.07) == 0.5  # 100 · 0.07 is above 7 in binary
    ranked = [number / 100 for number in range(99)]
    assert conformal_threshold(ranked, 0.07) == ranked[6]


def test_the_threshold_is_the_quantile_of_numpy() -> None:
    scores = conformal_scores(*invented(241))
    for coverage in (0.5, 0.8, 0.9, 0.95):
        level = math.ceil((len(scores) + 1) * coverage) / len(scores)
        assert conformal_threshold(scores, coverage) == np.quantile(scores, level, method="inverted_cdf")


def test_scores_are_one_minus_the_probability_of_the_true_class() -> None:
    logits, labels = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]), torch.tensor([1, 0])
    assert conformal_scores(logits, labels) == pytest.approx([0.25, 0.5], abs=1 / DIGITS)
    assert conformal_scores(logits, labels, 0.5) == pytest.approx([0.1, 0.5], abs=1 / DIGITS)


def test_of_very_many_scores_a_part_is_kept_that_makes_no_set_smaller() -> None:
    for images in (2001, 3777, 12_000):
        logits, labels = invented(images)
        kept = conformal_scores(logits, labels)
        exact = 1 - logits.softmax(dim=1).gather(1, labels[:, None])[:, 0].sort(descending=True).values
        assert len(kept) == MOST_SCORES
        assert kept == sorted(kept)
        for coverage in (0.013, 0.5, 0.9, 0.99, 0.999):
            threshold = conformal_threshold(kept, coverage)
            rank = math.ceil((images + 1) * coverage)
            assert exact[rank - 1] <= threshold <= exact[min(rank + images // 1000, images - 1)] + 1e-5


def test_sets_hold_the_true_class_as_often_as_is_said() -> None:
    """The mean over many splits; that of one scatters by its n."""
    found, splits, images = [], 200, 100
    for seed in range(splits):
        logits, labels = invented(2 * images, seed=seed)
        threshold = conformal_threshold(conformal_scores(logits[:images], labels[:images]), 0.9)
        true = logits[images:].softmax(dim=1).gather(1, labels[images:, None])
        found.append((1 - true <= threshold).double().mean().item())
    # Between coverage and coverage + 1 / (n + 1); five standard errors of the mean over the splits.
    error = 5 * np.std(found) / math.sqrt(splits)
    assert 0.9 - error <= np.mean(found) <= 0.9 + 1 / (images + 1) + error


# --- what a test collects ---------------------------------------------------------------------------------


def test_batches_are_told_as_one() -> None:
    logits, labels = invented(50)
    cfg = get_cfg_default()
    whole, parts = Confidences(cfg, 2.0), Confidences(cfg, 2.0)
    whole.add(logits, labels)
    for start in range(0, 50, 8):
        parts.add(logits[start : start + 8], labels[start : start + 8])
    found = parts.result()
    assert found == whole.result()
    assert found is not None
    assert found["nll"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item())
    assert found["nll_after"] == pytest.approx(torch.nn.functional.cross_entropy(logits / 2, labels).item())
    for suffix, temperature in (("", 1), ("_after", 2)):
        confidences, predicted = (logits / temperature).softmax(dim=1).max(dim=1)
        bins = reliability_bins(confidences, predicted == labels)
        assert found[f"bins{suffix}"] == [pytest.approx(list(each)) for each in bins]
        assert found[f"ece{suffix}"] == pytest.approx(expected_calibration_error(bins))
    json.dumps(found, allow_nan=False)


def test_what_is_no_logits_tells_nothing() -> None:
    logits, labels = invented(4)
    for scores, of in (
        (logits[0], labels[0]),
        (logits.long(), labels),
        ("no", labels),
        (logits, logits[:, 0]),
    ):
        confidences, held_out = Confidences(get_cfg_default()), HeldOut(get_cfg_default())
        for each in (confidences, held_out):
            each.add(logits, labels)
            each.add(scores, of)
        assert confidences.result() is None
        assert held_out.fit() == {"note": "not fitted: the trainer gives no logits (batch class)"}
    assert Confidences(get_cfg_default()).result() is None


def test_a_label_without_a_logit_is_never_right() -> None:
    logits, labels = invented(4)
    confidences, held_out = Confidences(get_cfg_default()), HeldOut(get_cfg_default())
    for each in (confidences, held_out):
        each.add(logits, torch.full_like(labels, 7))
    found = confidences.result()
    assert found is not None
    assert found["nll"] is None
    assert {each[2] for each in found["bins"]} == {None, 0}
    assert "without a logit" in held_out.fit()["note"]


@pytest.mark.parametrize("make", [lambda cfg: Confidences(cfg, 1.5), HeldOut])
def test_shards_of_several_processes_are_told_as_one(make, monkeypatch) -> None:
    """An odd number of images; what the processes send each other is handed on here."""
    logits, labels = invented(31)
    cfg, shards = get_cfg_default(), []

    def told(rank: int, step: int) -> dict[str, Any]:
        collector = make(cfg)
        for image in range(rank, len(labels), 2 * step):
            chosen = slice(image, image + 2 * step, step)
            collector.add(logits[chosen], labels[chosen])
        return collector.result() if isinstance(collector, Confidences) else collector.fit()

    alone = told(0, 1)
    monkeypatch.setattr("dassl.evaluation.confidences.is_sharded", lambda cfg: True)
    monkeypatch.setattr("dassl.evaluation.confidences.gather", lambda own: shards.append(own) or [own])
    for rank in range(2):
        told(rank, 2)
    monkeypatch.setattr("dassl.evaluation.confidences.gather", lambda own: shards)
    found = told(0, 2)
    if "temperature" in alone:  # another order of a sum has other last bits
        alone["temperature"] = pytest.approx(alone["temperature"], rel=1e-9)
    assert found == alone


# --- runs -------------------------------------------------------------------------------------------------


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


CALIBRATE = ("TEST.CALIBRATE", "True")


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def lines_of(folder: Path) -> list[str]:
    """The log from the first test on, without what is written where and what it took."""
    log = (folder / "log.txt").read_text()
    lines = log[log.index("Evaluate on") :].splitlines()
    others = ("Elapsed", "Result is saved", "Predictions are saved", "Calibration")
    return [line for line in lines if not line.startswith(others)]


def test_each_test_records_how_sure_the_model_was(run) -> None:
    result = result_of(run("ZeroshotCLIP"))
    calibration = result["calibration"]
    assert calibration.keys() == {"ece", "bins", "nll"}
    assert sum(count for count, *_ in calibration["bins"]) == result["total"]
    hits = sum(count * (accuracy or 0) for count, _, accuracy in calibration["bins"])
    assert hits / result["total"] == pytest.approx(result["results"]["accuracy"])


@pytest.mark.parametrize("trainer", ["ZeroshotCLIP", "MaPLe"])
def test_a_temperature_changes_no_number_and_no_line_of_the_test(run, trainer: str) -> None:
    plain, calibrated = run(trainer), run(trainer, *CALIBRATE)
    before, after = result_of(plain), result_of(calibrated)
    for field in ("results", "per_class", "identity"):
        assert before[field] == after[field]
    assert lines_of(plain) == lines_of(calibrated)
    for field, value in before["calibration"].items():
        assert after["calibration"][field] == value
    calibration = after["calibration"]
    assert (calibration["fitted_on"], calibration["images"]) == ("val", 24)
    assert len(calibration["conformal_scores"]) == 24
    assert calibration["nll_after"] != calibration["nll"]


def test_val_images_that_chose_the_epoch_are_said(run) -> None:
    calibration = result_of(run("MaPLe", *CALIBRATE, "TEST.FINAL_MODEL", "best_val"))["calibration"]
    assert "have also chosen the epoch" in calibration["note"]
    assert "temperature" in calibration


def test_val_images_that_are_tested_fit_nothing(run) -> None:
    calibration = result_of(run("ZeroshotCLIP", *CALIBRATE, "TEST.SPLIT", "val"))["calibration"]
    assert calibration.keys() == {"ece", "bins", "nll"}


def test_test_images_among_the_val_images_fit_nothing(run, monkeypatch) -> None:
    """As in the reference's ImageNet, whose val images are its test images."""
    from dassl.data.datasets import DatasetBase

    monkeypatch.setattr(DatasetBase, "val", property(lambda self: self.test[:5]))
    calibration = result_of(run("ZeroshotCLIP", *CALIBRATE, "TEST.PER_CLASS_RESULT", "True"))["calibration"]
    assert calibration["note"] == "not fitted: 5 val images are test images, too"
    assert "temperature" not in calibration
