"""The tables of a report: what stands in them, beside published numbers, and what they say of gaps."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from fake_runs import base_to_novel_folder, plan, published_base_to_novel, random_cross_dataset, result, write

from experiments.figures.page import for_report
from experiments.methods import read_methods
from experiments.report.formats import cell_text, markdown, text
from experiments.report.latex import latex
from experiments.report.page import page
from experiments.report.report import Report, make_report
from experiments.report.tables import Section, Table
from experiments.results.benchmarks import ELEVEN
from experiments.results.published import published
from experiments.results.runs import gather


def report_of(folder: Path, seeds: Sequence[int] | None = None) -> Report:
    return make_report(gather([folder], read_methods(), seeds))


def shown(table: Table) -> dict[tuple[str, ...], list[str]]:
    return {row.labels: [cell_text(cell) for cell in row.cells] for row in table.rows}


def tables(section: Section) -> dict[str, Table]:
    return {table.title: table for table in section.tables}


@pytest.fixture(scope="module")
def eleven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods on all datasets, with the published numbers, and half a point more and less."""
    folder = tmp_path_factory.mktemp("eleven")
    published_base_to_novel(folder, {"ZeroshotCLIP": "CLIP", "CoOp": "CoOp", "MaPLe": "MaPLe"})
    return folder


@pytest.fixture
def changeable(eleven: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(eleven, tmp_path / "copy"))


def test_averages_in_both_conventions(eleven: Path) -> None:
    (section,) = report_of(eleven).sections
    assert section.title == "Base to novel, 16 shots"
    average = tables(section)["Average over 11 datasets"]
    assert average.columns == ["base", "new", "HM of the averages (as published)", "mean of the HMs"]
    assert shown(average)["MaPLe",] == ["82.28 ± 0.41", "75.14 ± 0.41", "78.55 ± 0.41", "78.27 ± 0.41"]
    assert list(shown(average)) == [("zero-shot CLIP",), ("CoOp",), ("MaPLe",)]  # as methods.yaml lists them
    assert section.unfinished == []


def test_each_dataset_in_the_papers_order_with_the_best_marked(eleven: Path) -> None:
    (section,) = report_of(eleven).sections
    each = tables(section)["Each dataset"]
    assert list(dict.fromkeys(row.labels[0] for row in each.rows)) == list(ELEVEN.values())
    assert shown(each)["EuroSAT", "MaPLe"] == ["94.07 ± 0.41", "73.23 ± 0.41", "82.35 ± 0.41"]
    best = {(each.rows[row].labels, each.columns[column]) for row, column in each.best()}
    assert (("FGVCAircraft", "zero-shot CLIP"), "new") not in best  # 36.29, the seeds of 35.61 are 0.5 apart
    assert (("EuroSAT", "MaPLe"), "new") in best  # 73.23 against 64.05
    differences = shown(tables(section)["Each dataset: less the best"])
    assert differences["EuroSAT", "MaPLe"] == ["best", "best", "best"]
    assert differences["EuroSAT", "zero-shot CLIP"][1] == "−9.18 [−10.42, −7.94]"  # ± 4.303 · 0.5 / sqrt(3)
    clear = {(row, column) for row, column in each.best() if "[" in cell_text(each.rows[row].cells[column])}
    assert not clear  # the main table stays as it was


def test_beside_the_published(eleven: Path) -> None:
    (section,) = report_of(eleven).sections
    table = tables(section)["Beside the published numbers"]
    row = shown(table)["average of 11", "MaPLe"]
    assert row[:3] == ["82.28 ± 0.41", "82.28", "+0.00 within"]
    assert row[6:] == ["78.55 ± 0.41", "78.55", "+0.00 within"]
    assert len(table.rows) == 3 * 12


def test_gaps_are_never_averaged_away(changeable: Path) -> None:
    shutil.rmtree(base_to_novel_folder(changeable, "dtd", "CoOp", 3, "new"))
    for seed in (1, 2, 3):
        (base_to_novel_folder(changeable, "eurosat", "MaPLe", seed, "base") / "result.json").unlink()
    (section,) = report_of(changeable).sections
    average, each = (shown(tables(section)[title]) for title in ("Average over 11 datasets", "Each dataset"))
    assert each["DTD", "CoOp"] == ["79.44 ± 0.41", "40.93 ± 0.25 (2/3)", "53.97 ± 0.28 (2/3)"]
    gap = "– (10/11 datasets)"
    assert average["CoOp",] == ["82.69 ± 0.41", gap, gap, gap]
    assert each["EuroSAT", "MaPLe"] == ["missing (0/3)", "73.23 ± 0.41", "missing (0/3)"]
    assert average["MaPLe",] == [gap, "75.14 ± 0.41", gap, gap]
    missing = {(run.method.label, run.dataset, run.role, run.seed) for run in section.unfinished}
    assert missing == {("CoOp", "dtd", "new", 3), *(("MaPLe", "eurosat", "base", seed) for seed in (1, 2, 3))}
    compared = shown(tables(section)["Beside the published numbers"])
    assert compared["DTD", "CoOp"][3:6] == ["40.93 ± 0.25 (2/3)", "41.18", "−0.25 incomplete"]
    assert compared["average of 11", "CoOp"][3:6] == [gap, "63.22", ""]
    best = tables(section)["Each dataset"]
    marked = {best.rows[row].labels for row, _ in best.best()}
    assert ("EuroSAT", "CoOp") in marked


def test_a_dataset_that_one_method_lacks_altogether(tmp_path: Path) -> None:
    for dataset, trainer in (("dtd", "MaPLe"), ("eurosat", "MaPLe"), ("dtd", "CoOp")):
        for classes in ("base", "new"):
            write(tmp_path / dataset / trainer / classes, result(80.0, dataset, classes, trainer=trainer))
    (section,) = report_of(tmp_path, seeds=[1]).sections
    average = shown(tables(section)["Average over 2 datasets"])
    assert average["CoOp",][0] == "– (1/2 datasets)"
    assert average["MaPLe",][0] == "80.00"
    assert ("average of 11", "MaPLe") not in shown(tables(section)["Beside the published numbers"])


def test_accuracy_on_base_and_new_classes_together_is_a_column(tmp_path: Path) -> None:
    """By a plan, or by what the results tell; a dash for what was not tested so."""
    for trainer, roles in (("MaPLe", ("base", "new", "all")), ("CoOp", ("base", "new"))):
        for dataset in ("dtd", "oxford_pets"):
            for classes in roles:
                trained = {"dataset": dataset, "classes": "base", "shots": 16, "seed": 1}
                content = result(60.0, dataset, classes, trainer=trainer, trained_on=trained)
                write(tmp_path / dataset / trainer / classes, content)
    write(tmp_path / "zero", result(44.0, "dtd", "all", trainer="ZeroshotCLIP"))
    section = report_of(tmp_path).sections[0]
    each = tables(section)["Each dataset"]
    assert each.columns == ["base", "new", "HM", "joint"]
    assert shown(each)["DTD", "MaPLe"][3] == "60.00"
    assert shown(each)["DTD", "CoOp"][3] == "–"
    average = shown(tables(section)["Average over 2 datasets"])
    assert (average["MaPLe",][4], average["CoOp",][4]) == ("60.00", "–")
    write(tmp_path / "b", result(50.0, "dtd", "base", trainer="ZeroshotCLIP"))
    assert shown(report_of(tmp_path).sections[0].tables[1])["DTD", "zero-shot CLIP"][3] == "44.00"


def test_averages_without_eurosat_stand_beside(eleven: Path) -> None:
    (section,) = report_of(eleven).sections
    row = shown(tables(section)["Average without EuroSAT, over 10 datasets"])["MaPLe",]
    assert row[:3] == ["81.10 ± 0.41", "75.33 ± 0.41", "78.11 ± 0.41"]


def test_methods_that_know_or_choose_more_are_marked(tmp_path: Path) -> None:
    told = "which half of the classes is asked"
    write(tmp_path / "a", result(80.0, oracle=told, per_dataset=True))
    write(tmp_path / "b", result(79.0, trainer="CoOp", selected_on="val"))
    write(tmp_path / "c", result(70.0, trainer="ZeroshotCLIP"))
    report = report_of(tmp_path)
    (section,) = report.sections
    assert list(shown(section.tables[0])) == [
        ("OxfordPets", "zero-shot CLIP"),
        ("OxfordPets", "CoOp¶"),
        ("OxfordPets", "MaPLe‡§"),
    ]
    for form in (text, markdown, latex, page):
        words = " ".join(form(report).split())
        assert f"The test is told, beside the images: {told} (MaPLe)." in words
        assert "Settings that were chosen for each dataset: MaPLe." in words
        assert "chosen by the accuracy on validation images: CoOp." in words


def test_a_difference_beyond_the_noise(tmp_path: Path) -> None:
    number = published()["base2new"]["MaPLe"]["dtd"]["base"]
    for seed, accuracy in enumerate((number + 2.9, number + 3.0, number + 3.1), 1):
        write(tmp_path / f"base{seed}", result(accuracy, "dtd", "base", seed))
        write(tmp_path / f"new{seed}", result(59.18, "dtd", "new", seed))
    (section,) = report_of(tmp_path).sections
    row = shown(tables(section)["Beside the published numbers"])["DTD", "MaPLe"]
    assert row[:3] == ["83.36 ± 0.08", "80.36", "+3.00 outside"]
    assert row[3:6] == ["59.18 ± 0.00", "59.18", "+0.00 within"]
    (section,) = report_of(tmp_path, seeds=[1]).sections
    assert shown(tables(section)["Beside the published numbers"])["DTD", "MaPLe"][2] == "+2.90 unknown"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"backbone": "RN50"}, "MaPLe, whose backbone is RN50 and not ViT-B/16 (DTD)"),
        ({"total": 600}, "MaPLe, tested on 600 images and not 864 (DTD)"),
        ({"shots": 4}, "MaPLe, trained with 4 shots and not 16 (DTD)"),
    ],
)
def test_unlike_runs_are_not_compared(tmp_path: Path, changes: Mapping, why: str) -> None:
    write(tmp_path / "a", result(80.0, "dtd", "base", **changes))
    (section,) = report_of(tmp_path).sections
    assert "Beside the published numbers" not in tables(section)
    assert f"Not compared with published numbers: {why}." in section.notes


def test_the_embedded_dataset_has_nothing_to_compare_with(tmp_path: Path) -> None:
    write(tmp_path / "a", result(85.0, "shapes", "base", config="shapes", backbone="ViT-Shapes/8"))
    write(tmp_path / "b", result(84.0, "shapes", "new", config="shapes", backbone="ViT-Shapes/8"))
    (section,) = report_of(tmp_path, seeds=[1]).sections
    assert list(tables(section)) == ["Each dataset"]
    assert not any("published" in note and "compared" in note for note in section.notes)


def test_shapes_is_no_part_of_an_average_over_benchmarks(tmp_path: Path) -> None:
    for dataset, accuracy in (("dtd", 60.0), ("eurosat", 70.0), ("shapes", 5.0)):
        for classes in ("base", "new"):
            write(tmp_path / dataset / classes, result(accuracy, dataset, classes))
    (section,) = report_of(tmp_path, seeds=[1]).sections
    assert shown(tables(section)["Average over 2 datasets: DTD, EuroSAT"])["MaPLe",][0] == "65.00"


def test_shapes_is_no_part_of_an_average_over_own_data(tmp_path: Path) -> None:
    for dataset, accuracy in (("birds (folder)", 60.0), ("shapes", 5.0)):
        write(tmp_path / dataset, result(accuracy, dataset, "base"))
    (section,) = report_of(tmp_path, seeds=[1]).sections
    assert list(tables(section))[:1] == ["Each dataset"]


def test_cross_dataset_and_domain_generalisation(tmp_path: Path) -> None:
    random_cross_dataset(tmp_path)
    cross, domains = report_of(tmp_path).sections
    assert cross.title == "Cross-dataset from ImageNet, 16 shots"
    (table, compared) = cross.tables
    assert table.columns[0] == "ImageNet (source)"
    assert table.columns[-2:] == ["average of 10 targets", "average of 9 targets without EuroSAT"]
    assert table.columns[1:-2] == list(ELEVEN.values())[1:]
    values = [float(text.split()[0]) for text in shown(table)["MaPLe",]]
    assert values[-2] == pytest.approx(sum(values[1:-2]) / 10, abs=0.01)
    assert values[-1] == pytest.approx((sum(values[1:-2]) - values[9]) / 9, abs=0.01)
    assert shown(compared)["average of 10 targets", "MaPLe"][1] == "66.30"
    assert domains.title == "Domain generalisation from ImageNet, 16 shots"
    variants = ["ImageNetV2", "ImageNet-Sketch", "ImageNet-A", "ImageNet-R"]
    assert domains.tables[0].columns == ["ImageNet (source)", *variants, "average of 4 targets"]
    assert shown(domains.tables[1])["average of 4 targets", "MaPLe"][1] == "60.27"  # as published: 60.27


def test_few_shot_by_shots_beside_the_published_averages(tmp_path: Path) -> None:
    for shots, number in published()["few_shot"]["MaPLe"].items():
        for dataset in ELEVEN:
            for seed in (1, 2, 3):
                content = result(number + seed - 2, dataset, "all", seed, shots=int(shots))
                write(tmp_path / dataset / shots / str(seed), content)
    (section,) = report_of(tmp_path).sections
    average, without_eurosat, each, compared = section.tables  # one method: no differences
    assert without_eurosat.title == "Average without EuroSAT, over 10 datasets"
    assert average.columns == ["1 shot", "2 shots", "4 shots", "8 shots", "16 shots"]
    assert shown(average)["MaPLe",][0] == "69.27 ± 0.82"
    assert len(each.rows) == 11
    assert shown(compared)["16", "MaPLe"] == ["81.79 ± 0.82", "81.79", "+0.00 within"]


def test_ablation_by_curve_and_value(tmp_path: Path) -> None:
    jobs = []
    for value, (base, new) in {1: (80.0, 60.0), 9: (84.0, 70.0)}.items():
        for role, accuracy in (("base", base), ("new", new)):
            folder = f"depth/{role}/{value}"
            jobs.append(
                {"folder": folder, "role": role, "classes": role, "curve": "text branch", "value": value}
            )
            if (role, value) != ("new", 9):
                write(tmp_path / folder, result(accuracy, classes=role))
    plan(tmp_path, [{"protocol": "depth", **job} for job in jobs], "depth")
    (section,) = report_of(tmp_path).sections
    (table,) = section.tables
    assert table.columns == ["1", "9"]
    assert shown(table) == {
        ("base", "text branch", "MaPLe"): ["80.00", "84.00"],
        ("new", "text branch", "MaPLe"): ["60.00", "missing (0/1)"],
        ("HM", "text branch", "MaPLe"): ["68.57", "missing (0/1)"],
    }


def test_zero_shot_stands_beside_each_number_of_shots(tmp_path: Path) -> None:
    for shots in (4, 16):
        write(tmp_path / str(shots), result(80.0, "dtd", "base", shots=shots))
    write(tmp_path / "zero", result(53.0, "dtd", "base", trainer="ZeroshotCLIP", shots=16))
    for section in report_of(tmp_path).sections:
        assert shown(tables(section)["Each dataset"])["DTD", "zero-shot CLIP"][0] == "53.00"
    assert [section.shots for section in report_of(tmp_path).sections] == [16, 4]


def test_designs_are_compared_by_their_average_alone(tmp_path: Path) -> None:
    for dataset in ELEVEN:
        for classes, accuracy in (("base", 81.72), ("new", 73.81)):
            config = "vit_b16_c2_ep5_batch4_4ctx_language_only"
            content = result(accuracy, dataset, classes, trainer="IVLP", config=config)
            write(tmp_path / dataset / classes, content)
    (section,) = report_of(tmp_path, seeds=[1]).sections
    rows = shown(tables(section)["Beside the published numbers"])
    assert list(rows) == [("average of 11", "deep language prompting")]
    assert rows["average of 11", "deep language prompting"][6:] == ["77.56", "77.56", "+0.00 unknown"]


def test_published_averages_and_reruns_stand_beside_with_their_sources(tmp_path: Path) -> None:
    write(tmp_path / "a", result(80.0, "dtd", trainer="MMRL", config="per_dataset/dtd"))
    report = report_of(tmp_path)
    table = tables(report.sections[0])["Published averages"]
    assert table.columns == ["base", "new", "HM", "backbone", "source"]
    (paper, rerun) = [row for labels, row in shown(table).items() if labels[0].startswith("MMRL")]
    assert paper[:4] == ["85.68", "77.16", "81.20", "ViT-B/16"]
    assert rerun[:4] == ["", "", "80.59", "ViT-B/16"]
    assert [labels[1] for labels in shown(table)] == ["the authors, quoted by others", "re-run by ReBaPL"]
    for form in (text, markdown, latex, page):
        assert "ReBaPL" in form(report)


def test_costs_and_unlike_circumstances(tmp_path: Path) -> None:
    write(tmp_path / "a", result(80.0, seed=1))
    write(tmp_path / "b", result(80.0, seed=2, commit="e" * 40, versions={"torch": "2.14.0"}))
    write(tmp_path / "c", result(80.0, seed=3, commit_is_clean=False))
    report = report_of(tmp_path)
    assert report.costs is not None
    assert shown(report.costs)["MaPLe", "16"] == [
        "3,555,072",
        "82",
        "3",
        "3.00",
        "120",
        "NVIDIA H100 80GB HBM3",
    ]
    notes = "\n".join(report.sections[0].notes)
    assert "The runs differ in their commits: d72648f0d7, eeeeeeeeee." in notes
    assert "The runs differ in their versions of torch: 2.14.0, 2.15.0." in notes
    assert "1 of 3 runs were made with uncommitted changes in the code." in notes
    assert "devices" not in notes


def test_costs_are_of_whole_trainings_at_one_number_of_shots(tmp_path: Path) -> None:
    times = {1: 80.0, 2: 90.0, 3: 12.0, 4: 300.0}
    changes = {3: {"resumed_from_epoch": 4}, 4: {"command": ["train.py", "--seeds", "4", "5", "6"]}}
    for seed, time in times.items():
        content = result(80.0, seed=seed, seconds={"training": time}, **changes.get(seed, {}))
        write(tmp_path / str(seed), content)
    write(tmp_path / "fewer", result(80.0, shots=1, seconds={"training": 20.0}))
    costs = report_of(tmp_path).costs
    assert costs is not None
    assert {labels: cells[1:3] for labels, cells in shown(costs).items()} == {
        ("MaPLe", "1"): ["20", "1"],
        ("MaPLe", "16"): ["85", "2"],
    }
    for seed, time in ((5, 2000.0), (6, 3000.0)):
        write(tmp_path / str(seed), result(80.0, seed=seed, seconds={"training": time}, device="cpu"))
    costs = report_of(tmp_path).costs
    assert costs is not None
    assert [row.cells[1::4] for row in costs.rows] == [
        ["20", "NVIDIA H100 80GB HBM3"],
        ["85", "NVIDIA H100 80GB HBM3"],
        ["2,500", "cpu"],
    ]


def test_methods_trained_on_different_images_are_warned_of(tmp_path: Path) -> None:
    write(tmp_path / "a", result(80.0))
    other = {"dataset": "oxford_pets", "classes": "base", "shots": 16, "seed": 1, "sample_sha256": "f" * 64}
    write(tmp_path / "b", result(70.0, trainer="CoOp", trained_on=other))
    report = report_of(tmp_path)
    (warning,) = report.warnings
    assert warning.startswith("OxfordPets, 16 shots, seed 1: different training images: ")
    assert "ffffffffffffffff by CoOp" in warning
    assert report.samples is not None
    assert len(report.samples.rows) == 2
    write(tmp_path / "b", result(70.0, trainer="CoOp"))
    assert report_of(tmp_path).warnings == []


def test_an_ablation_of_ones_own(tmp_path: Path) -> None:
    curve = {"role": "base", "classes": "base", "curve": "mine", "protocol": "my_depth"}
    plan(tmp_path, [{"folder": str(value), "value": value, **curve} for value in (1, 3)], "my_depth")
    for value in (1, 3):
        write(tmp_path / str(value), result(80.0 + value))
    report = report_of(tmp_path)
    (table,) = report.sections[0].tables
    assert shown(table)["base", "mine", "MaPLe"] == ["81.00", "83.00"]
    assert [figure.title for figure in for_report(report.runs)] == ["Accuracy over my_depth, OxfordPets"]


def test_a_protocol_of_ones_own(tmp_path: Path) -> None:
    plan(tmp_path, [{"folder": "a", "protocol": "mine", "role": "base", "classes": "base"}], "mine")
    write(tmp_path / "a", result(80.0))
    (section,) = report_of(tmp_path).sections
    assert section.title == "mine, 16 shots"
    assert shown(section.tables[0])["OxfordPets", "MaPLe"][0] == "80.00"


def test_calibration_is_a_table_where_results_have_it(tmp_path: Path) -> None:
    fitted = {"ece_after": 2.0, "temperature": 0.75}
    write(tmp_path / "a", result(80.0, seed=1, calibration={"ece": 4.0, **fitted}))
    write(tmp_path / "b", result(80.0, seed=2, calibration={"ece": 6.0}))
    write(tmp_path / "c", result(80.0, classes="new", calibration={"ece": 9.5, "note": "not fitted"}))
    report = report_of(tmp_path)
    assert report.calibration is not None
    assert shown(report.calibration) == {
        ("OxfordPets", "MaPLe", "base", "16"): ["5.00 ± 1.00", "0.75 (1/2)", "2.00 (1/2)"],
        ("OxfordPets", "MaPLe", "new", "16"): ["9.50", "", ""],
    }
    for form in (text, markdown, latex, page):
        words = " ".join(form(report).split())
        assert "expected calibration error" in words
        assert "5.00 ± 1.00" in words or "$5.00 \\pm 1.00$" in words or "5.00 $\\pm$ 1.00" in words
    write(tmp_path / "a", result(80.0, calibration={"ece": "4"}))
    assert "ece is '4'" in report_of(tmp_path).warnings[0]
    for name in "abc":
        write(tmp_path / name, result(80.0, classes="new" if name == "c" else "base", seed=ord(name)))
    assert report_of(tmp_path).calibration is None
