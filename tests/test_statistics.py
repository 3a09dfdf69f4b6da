"""The numbers of a report: means, standard deviations, both averages of HM, and the noise of seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev

import pytest

from dassl.evaluation import Prediction, write_predictions
from experiments.results.published import published
from experiments.results.statistics import (
    Term,
    Value,
    harmonic,
    harmonic_mean,
    is_within_noise,
    noise,
    over_datasets,
    over_seeds,
    paired,
)


def test_std_is_that_of_the_population() -> None:
    value = over_seeds({1: 71.25, 2: 73.5, 3: 70.0}, wanted=3)
    assert value.mean == pytest.approx(71.583333, abs=1e-6)
    assert value.std == pytest.approx(1.448179, abs=1e-6)  # of the population: numpy.std
    assert over_seeds({1: 71.25}, wanted=1).std is None
    assert over_seeds({}, wanted=3, state="missing").mean is None


def test_hm_is_of_the_means_and_its_std_of_the_seeds_hms() -> None:
    base, new = over_seeds({1: 80.0, 2: 60.0}, 2), over_seeds({1: 40.0, 2: 60.0}, 2)
    value = harmonic(base, new)
    assert value.mean == pytest.approx(2 * 70 * 50 / 120)
    assert value.by_seed == pytest.approx({1: 2 * 80 * 40 / 120, 2: 60.0})
    assert value.std == pytest.approx(pstdev([53.333333, 60.0]), abs=1e-6)


def test_hm_counts_only_seeds_that_have_both() -> None:
    value = harmonic(over_seeds({1: 80.0, 2: 60.0}, 2), over_seeds({1: 40.0}, 2, "failed"))
    assert value.mean == pytest.approx(2 * 80 * 40 / 120)
    assert (len(value.by_seed), value.wanted, value.state) == (1, 2, "failed")
    unplanned = harmonic(over_seeds({1: 60.0, 2: 90.0, 3: 90.0}, 3), over_seeds({1: 60.0}, 1))
    assert unplanned.mean == pytest.approx(60.0)
    assert not unplanned.is_complete
    apart = harmonic(over_seeds({1: 80.0}, 2, "missing"), over_seeds({2: 40.0}, 2, "missing"))
    assert apart.mean is None
    assert harmonic_mean(0.0, 50.0) == 0.0


def test_average_is_only_made_of_complete_datasets() -> None:
    complete, partial = over_seeds({1: 80.0, 2: 90.0}, 2), over_seeds({1: 50.0}, 2, "missing")
    value = over_datasets([complete, partial, None])
    assert value.mean is None
    assert value.lacking == "1/3 datasets"
    assert harmonic(value, complete).lacking == "1/3 datasets"
    assert over_datasets([complete, over_seeds({1: 80.0}, 1)]).lacking == "1/2 datasets"  # other seeds
    both = over_datasets([complete, over_seeds({1: 60.0, 2: 40.0}, 2)])
    assert both.mean == 67.5
    assert both.by_seed == {1: 70.0, 2: 65.0}
    assert both.std == 2.5


def test_both_averages_of_hm_for_maples_published_table() -> None:
    table = {name: row for name, row in published()["base2new"]["MaPLe"].items() if name != "average"}
    assert len(table) == 11
    base, new = (
        over_datasets([Value(row[role], {1: row[role]}, 1) for row in table.values()])
        for role in ("base", "new")
    )
    hms = [harmonic_mean(row["base"], row["new"]) for row in table.values()]
    assert harmonic(base, new).mean == pytest.approx(78.55, abs=0.005)
    assert published()["base2new"]["MaPLe"]["average"]["hm"] == 78.55
    assert fmean(hms) == pytest.approx(78.27, abs=0.005)


@pytest.mark.parametrize("name", ["CLIP", "CoOp", "CoCoOp", "MaPLe", "PromptSRC", "CoPrompt", "PromptKD"])
def test_published_averages_are_those_of_the_published_rows(name: str) -> None:
    table = dict(published()["base2new"][name])
    average = table.pop("average")
    for role in ("base", "new"):
        assert fmean(row[role] for row in table.values()) == pytest.approx(average[role], abs=0.011)
    assert harmonic_mean(average["base"], average["new"]) == pytest.approx(average["hm"], abs=0.011)


# --- errors and paired differences


def of_images(folder: Path, name: str, hits: Sequence[Sequence[int]], images: Sequence[str] = ()) -> Value:
    """An accuracy with stored predictions: of each seed, whether each image was hit."""
    files = {}
    for seed, each in enumerate(hits, 1):
        names = images or [f"{number}.jpg" for number in range(len(each))]
        rows = [Prediction(image, 1, hit) for image, hit in zip(names, each, strict=True)]
        files[seed] = folder / f"{name}{seed}.csv.gz"
        write_predictions(rows, files[seed])
    by_seed = {seed: 100 * fmean(each) for seed, each in enumerate(hits, 1)}
    term = Term(1.0, fmean(by_seed.values()), len(hits[0]), files)
    return over_seeds(by_seed, len(hits), terms={("dtd", "base"): term})


def test_standard_errors_over_images_and_seeds() -> None:
    value = over_seeds({1: 79.0, 2: 80.0, 3: 81.0}, 3, terms={("dtd", "base"): Term(1.0, 80.0, 400)})
    assert value.image_error == pytest.approx(100 * (0.8 * 0.2 / 400) ** 0.5)
    assert value.seed_error == pytest.approx(1 / 3**0.5)
    new = over_seeds({1: 60.0, 2: 60.0, 3: 60.0}, 3, terms={("dtd", "new"): Term(1.0, 60.0, 100)})
    both, moved = harmonic(value, new), harmonic_mean(80.01, 60.0) - harmonic_mean(80.0, 60.0)
    new_moved = harmonic_mean(80.0, 60.01) - harmonic_mean(80.0, 60.0)
    assert both.image_error == pytest.approx(
        100 * ((2.0 * moved) ** 2 + (4.899 * new_moved) ** 2) ** 0.5, rel=1e-3
    )
    other = over_seeds({1: 50.0, 2: 50.0, 3: 50.0}, 3, terms={("sun397", "base"): Term(1.0, 50.0, 100)})
    assert over_datasets([value, other]).image_error == pytest.approx((2.0**2 + 5.0**2) ** 0.5 / 2)
    assert over_seeds({1: 80.0}, 1).image_error is None


def test_one_seed_is_compared_over_its_images(tmp_path: Path) -> None:
    """McNemar's setting: 12 images only ours, 4 only theirs, of 100."""
    ours = of_images(tmp_path, "a", [[1] * 12 + [0] * 4 + [1] * 84])
    theirs = of_images(tmp_path, "b", [[0] * 12 + [1] * 4 + [1] * 84])
    found = paired(ours, theirs)
    assert found is not None
    assert found.points == pytest.approx(8.0)
    variance = (12 + 4 - (12 - 4) ** 2 / 100) / 100**2 * 100 / 99  # Agresti, (11.2), with n - 1
    assert found.half_width == pytest.approx(1.959964 * 100 * variance**0.5, rel=1e-6)
    assert found.is_clear
    same = paired(of_images(tmp_path, "c", [[1] * 3 + [0] * 3 + [1] * 94]), ours)
    assert same is not None
    assert not same.is_clear


def test_images_are_paired_by_name_and_not_by_place(tmp_path: Path) -> None:
    ours = of_images(tmp_path, "a", [[1, 0, 1, 1]], ["a", "b", "c", "d"])
    theirs = of_images(tmp_path, "b", [[1, 1, 0, 1]], ["d", "c", "b", "a"])
    found = paired(ours, theirs)
    assert found is not None
    assert (found.points, found.half_width) == (0.0, 0.0)
    other = of_images(tmp_path, "c", [[1, 1, 0, 1]], ["d", "c", "b", "e"])
    unknown = paired(ours, other)
    assert unknown is not None
    assert unknown.half_width is None


def test_seeds_and_images_are_both_in_the_interval(tmp_path: Path) -> None:
    ours = of_images(tmp_path, "a", [[1] * 8 + [0] * 2, [1] * 6 + [0] * 4, [1] * 7 + [0] * 3])
    theirs = of_images(tmp_path, "b", [[1] * 5 + [0] * 5, [1] * 5 + [0] * 5, [1] * 5 + [0] * 5])
    found = paired(ours, theirs)
    seeds_alone = paired(over_seeds(ours.by_seed, 3), over_seeds(theirs.by_seed, 3))
    assert found is not None
    assert seeds_alone is not None
    assert seeds_alone.half_width == pytest.approx(4.302653 * 10 / 3**0.5)  # differences of 30, 10 and 20
    each = [0.0] * 5 + [100.0, 200 / 3, 100 / 3, 0.0, 0.0]
    over_images = 1.959964 * (sum((x - 20) ** 2 for x in each) / 9 / 10) ** 0.5
    assert found.half_width == pytest.approx((seeds_alone.half_width**2 + over_images**2) ** 0.5, rel=1e-6)


def test_zero_shot_is_the_same_for_all_seeds() -> None:
    found = paired(over_seeds({1: 71.0, 2: 72.0, 3: 73.0}, 3), over_seeds({0: 70.0}, 1))
    assert found is not None
    assert found.points == pytest.approx(2.0)
    assert found.half_width == pytest.approx(4.302653 / 3**0.5)


def test_nothing_is_known_of_one_seed_without_predictions() -> None:
    found = paired(over_seeds({1: 90.0}, 1), over_seeds({1: 70.0}, 1))
    assert found is not None
    assert (found.half_width, found.is_clear) == (None, False)
    assert paired(over_seeds({1: 90.0}, 1), over_seeds({2: 70.0}, 1)) is None


def test_a_dataset_with_ten_seeds_stands_in_an_average_with_those_of_the_others() -> None:
    ten, three = {seed: 50.0 + seed for seed in range(1, 11)}, {1: 80.0, 2: 80.0, 3: 80.0}
    value = over_datasets([over_seeds(ten, 10), over_seeds(three, 3)])
    assert value.by_seed == {1: 65.5, 2: 66.0, 3: 66.5}
    assert over_datasets([over_seeds(ten, 10), over_seeds(ten, 10)]).mean == 55.5
    assert over_datasets([over_seeds(ten, 10), over_seeds({1: 80.0}, 2, "missing")]).mean is None


def test_noise_of_three_seeds() -> None:
    value = over_seeds({1: 69.0, 2: 70.0, 3: 71.0}, 3)
    bound = 4.302653 * 1.0 * (2 / 3) ** 0.5  # t(0.975, 2), s = 1
    assert noise(value) == pytest.approx(bound, abs=1e-5)
    assert is_within_noise(value, 70.0 + bound)
    assert is_within_noise(value, 70.0 - bound)
    assert is_within_noise(value, 70.0 + bound + 0.01) is False


def test_one_seed_cannot_tell_noise() -> None:
    assert is_within_noise(over_seeds({1: 70.0}, 1), 70.0) is None


def test_without_noise_only_rounding_is_allowed() -> None:
    value = over_seeds({1: 69.344, 2: 69.344}, 2)
    assert is_within_noise(value, 69.34)
    assert is_within_noise(value, 69.35) is False
