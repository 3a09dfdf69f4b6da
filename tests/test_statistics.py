"""The numbers of a report: means, standard deviations, both averages of HM, and the noise of seeds."""

from __future__ import annotations

from statistics import fmean, pstdev

import pytest

from experiments.results.published import published
from experiments.results.statistics import (
    Value,
    harmonic,
    harmonic_mean,
    is_within_noise,
    noise,
    over_datasets,
    over_seeds,
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
