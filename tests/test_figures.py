"""Figures of results alone: what stands in the files, on the axes, and in the lines beside."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from figure_checks import assert_written, legend_of, words_of
from helpers import ROOT
from invented_runs import SEEDS, Invented, add_base2new, add_curves, add_few_shot, wobble
from matplotlib.colors import to_rgba

from experiments.figures.base2new import draw_methods
from experiments.figures.curves import draw_curves
from experiments.figures.data import read_runs
from experiments.figures.few_shot import draw_few_shot
from experiments.figures.page import for_report
from experiments.figures.per_class import class_gains, draw_gains, draw_shares
from experiments.figures.style import COLOURS, MARKERS, look, look_of
from experiments.methods import Method, read_methods
from experiments.report.layouts import sections_of
from experiments.results.benchmarks import ELEVEN
from experiments.results.published import published
from scripts.figures import main
from scripts.report import main as report_main

GAINS = {
    "dtd": {"banded": 3, "dotted": -2, "lined": 0, "woven": 5},
    "eurosat": {"forest": 9, "river": 4},
}
VALUES = (1, 3, 5)


@pytest.fixture
def invented(tmp_path: Path) -> Invented:
    return Invented(tmp_path / "output")


class Point(NamedTuple):
    x: float
    y: float
    face: str
    colour: str


def markers(axis) -> list[Point]:
    """The points of each curve, those that are whole first."""
    drawn = [line for line in axis.lines if line.get_marker() in MARKERS and line.get_linestyle() == "None"]
    return [
        Point(x, y, line.get_markerfacecolor(), line.get_color())
        for line in drawn
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]


@pytest.mark.parametrize("protocol", ["depth", "length"])
def test_curves_show_the_mean_of_each_branch_at_each_value(invented, protocol, capsys):
    add_curves(invented, protocol, VALUES, ("dtd", "eurosat"))
    folder = invented.write()
    assert main([protocol, str(folder)]) == 0
    assert_written(folder / "figures", protocol)
    assert capsys.readouterr().out.startswith("Written:")

    figure = draw_curves(read_runs(folder, [protocol]), protocol).figure
    base, new, hm = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["base classes", "new classes", "harmonic mean"]
    assert base.get_ylabel() == "accuracy (%)"
    assert protocol in base.get_xlabel()
    assert list(base.get_xticks()) == list(VALUES)
    assert legend_of(figure) == ["both branches", "text branch", "image branch"]

    drawn = {point.x: point.y for point in markers(base)[: len(VALUES)]}
    wobbles = [
        wobble("both branches", 3, dataset, "base", seed) for dataset in ("dtd", "eurosat") for seed in SEEDS
    ]
    assert drawn[3] == pytest.approx(70 + 4 + 0.6 * 3 + sum(wobbles) / 6)
    first = [markers(axis)[0].y for axis in (base, new, hm)]
    assert first[2] == pytest.approx(2 * first[0] * first[1] / (first[0] + first[1]))
    assert "Average over 2 datasets, 3 seeds" in words_of(figure)
    assert "missing" not in words_of(figure)


def test_a_point_that_lacks_a_seed_is_hollow_and_said(invented, capsys):
    add_curves(invented, "depth", VALUES, ("dtd",))
    gone = "depth/base/dtd/MaPLe/text branch_3/seed2"
    invented.left_out = {gone}
    folder = invented.write()
    assert main(["depth", str(folder)]) == 0
    assert f"1 of 54 runs have no result yet: {folder.resolve() / gone}" in capsys.readouterr().out

    figure = draw_curves(read_runs(folder, ["depth"]), "depth").figure
    assert "1 of 54 runs are missing: hollow points lack seeds" in words_of(figure)
    for axis, hollow in zip(figure.axes, (1, 0, 1), strict=True):
        faces = [point.face for point in markers(axis)]
        assert faces.count("white") == hollow
        assert len(faces) == 9


def test_a_point_that_lacks_a_dataset_is_left_out(invented, capsys):
    add_curves(invented, "depth", VALUES, ("dtd", "eurosat"))
    invented.left_out = {
        job["folder"] for job in invented.jobs if job["dataset"] == "dtd" and job["value"] == 5
    }
    folder = invented.write()
    figure = draw_curves(read_runs(folder, ["depth"]), "depth").figure
    assert {point.x for point in markers(figure.axes[0])} == {1, 3}

    invented.left_out = {job["folder"] for job in invented.jobs if job["dataset"] == "dtd"}
    for folder_of in invented.left_out:
        (folder / folder_of / "result.json").unlink(missing_ok=True)
    capsys.readouterr()
    assert main(["depth", str(folder)]) == 2
    assert "--datasets takes a part of them. There are results on eurosat." in capsys.readouterr().err
    assert main(["depth", str(folder), "--datasets", "eurosat"]) == 0


def test_series_differ_in_grey_print_too():
    looks = [look(number) for number in range(len(COLOURS))]
    assert len({each.colour for each in looks}) == len(COLOURS)
    assert len({each.marker for each in looks}) == len(COLOURS)
    assert all(a.line != b.line for a, b in pairwise(looks))


def test_few_shot_has_a_panel_a_dataset_and_their_average(invented):
    add_few_shot(invented, ("dtd", "eurosat"))
    folder = invented.write()
    assert main(["few-shot", str(folder)]) == 0
    assert_written(folder / "figures", "few_shot")

    runs = read_runs(folder, ["few_shot", "zeroshot"])
    figure = draw_few_shot(runs).figure
    assert [axis.get_title() for axis in figure.axes] == ["average of 2", "DTD", "EuroSAT"]
    average = figure.axes[0]
    assert [label.get_text() for label in average.get_xticklabels()] == ["1", "2", "4", "8", "16"]
    (line,) = [line for line in average.lines if list(line.get_xdata()) == [0, 1]]  # across the panel
    assert line.get_linestyle() == "--"
    assert line.get_ydata()[0] == pytest.approx(60 + (wobble("dtd") + wobble("eurosat")) / 2)
    labels = legend_of(figure)
    assert len(labels) == 3
    assert {"MaPLe", "CoOp"} <= set(labels)


def test_published_averages_stand_beside_runs_of_the_same_datasets_and_backbone(invented):
    add_few_shot(invented, tuple(ELEVEN))
    for result in invented.results.values():
        result["backbone"] = published()["backbone"]
    runs = [
        replace(run, method=replace(run.method, published={"few_shot": run.method.key}))
        for run in read_runs(invented.write(), ["few_shot", "zeroshot"])
    ]
    figure = draw_few_shot(runs).figure
    assert "MaPLe, published" in legend_of(figure)
    curves = [list(line.get_ydata()) for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert list(published()["few_shot"]["MaPLe"].values()) in curves

    fewer = [run for run in runs if run.dataset != "dtd"]
    assert not [label for label in legend_of(draw_few_shot(fewer).figure) if "published" in label]


def test_per_class_shares_are_those_of_the_classes_that_gain(invented):
    add_base2new(invented, GAINS)
    folder = invented.write()
    assert main(["per-class", str(folder)]) == 0
    assert_written(folder / "figures", "per_class")

    axis = draw_shares(read_runs(folder, ["base2new"]), ("MaPLe", "CoCoOp")).figure.axes[0]
    heights = {bars.get_label(): list(map(float, bars.datavalues)) for bars in axis.containers}
    assert heights == {  # the datasets by growing share
        "MaPLe is better": [50, 100],
        "equal": [25, 0],
        "CoCoOp is better": [25, 0],
    }
    assert [label.get_text() for label in axis.get_xticklabels()] == ["DTD (4)", "EuroSAT (2)"]
    assert axis.get_ylabel() == "classes (%)"


def test_per_class_of_one_dataset_has_a_bar_a_class_in_order(invented):
    add_base2new(invented, GAINS)
    folder = invented.write()
    assert main(["per-class", str(folder), "--datasets", "dtd", "--out", str(folder / "here")]) == 0
    assert_written(folder / "here", "per_class_dtd")

    runs = read_runs(folder, ["base2new"])
    axis = draw_gains(runs, ("CoCoOp", "MaPLe"), "dtd").figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["dotted", "lined", "banded", "woven"]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([2, 0, -3, -5])
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first is on top

    new = [run for run in runs if run.role == "new"]
    assert {each.name for each in class_gains(new, ("MaPLe", "CoCoOp"))["dtd"]} == {"lined", "woven"}


def test_of_very_many_classes_both_ends_are_drawn(invented):
    add_base2new(invented, {"sun397": {f"class {number}": number % 29 - 14 for number in range(100)}})
    runs = read_runs(invented.write(), ["base2new"])
    drawn = draw_gains(runs, ("MaPLe", "CoCoOp"), "sun397")
    assert len(drawn.figure.axes[0].patches) == 60
    assert "The 30 classes at each end of 100." in words_of(drawn.figure)


def test_base_to_novel_shows_means_and_seeds(invented, capsys):
    add_base2new(invented, GAINS)
    invented.add("base2new", "VPT", "dtd", "base", 1, 50.0)
    folder = invented.write()
    assert main(["base2new", str(folder)]) == 0
    assert_written(folder / "figures", "base2new")
    assert "deep vision prompting is left out: it lacks runs that others have." in capsys.readouterr().out

    figure = draw_methods(read_runs(folder, ["base2new"])).figure
    base = figure.axes[0]
    assert sorted(label.get_text() for label in base.get_yticklabels()) == ["CoCoOp", "MaPLe"]
    seeds = [line for line in base.lines if line.get_marker() == "|"]
    assert [len(line.get_xdata()) for line in seeds] == [3, 3]


def points_of(figure, marker: str) -> list[list[float]]:
    """The values of a marker in each panel, from top to bottom."""
    return [
        [line.get_xdata()[0] for line in axis.lines if line.get_marker() == marker] for axis in figure.axes
    ]


@pytest.mark.parametrize("datasets", [["dtd"], ["dtd", "eurosat"], ["dtd", "eurosat", "shapes"]])
@pytest.mark.parametrize("left_out", [[], ["new/dtd/MaPLe//seed3"]])
def test_figures_and_tables_show_the_same_numbers(invented, datasets, left_out):
    gains = GAINS | {"shapes": {"circle": 20, "star": 0}}
    add_base2new(invented, {dataset: gains[dataset] for dataset in datasets})
    invented.left_out = {f"base2new/{folder}" for folder in left_out}
    assert invented.left_out <= {job["folder"] for job in invented.jobs}
    runs = read_runs(invented.write(), ["base2new"])
    (section,) = sections_of(runs, "accuracy")
    rows = [[cell and cell.mean for cell in row.cells[:3]] for row in section.tables[0].rows]
    assert len(rows) == 2
    drawn = points_of(draw_methods(runs).figure, "o")
    for panel, column in zip(drawn, zip(*rows, strict=True), strict=True):
        assert panel == [value for value in column if value is not None]


def test_each_number_of_shots_has_a_figure_of_its_own(invented):
    for shots, accuracy in ((16, 70.0), (4, 60.0)):
        for role in ("base", "new"):
            invented.add("base2new", "MaPLe", "dtd", role, 1, accuracy, shots=shots)
    folder = invented.write()
    assert main(["base2new", str(folder)]) == 0
    assert_written(folder / "figures", "base2new_16_shots", "base2new_4_shots")
    of_four = [run for run in read_runs(folder, ["base2new"]) if run.shots == 4]
    assert points_of(draw_methods(of_four).figure, "o") == [[60.0]] * 3


def test_few_shot_with_a_planned_zero_shot_run(invented):
    """The protocol plans zero-shot runs among the trained ones, without shots."""
    add_few_shot(invented, ("dtd",))
    invented.add("few_shot", "ZeroshotCLIP", "dtd", "all", 1, 60.0, shots=0)
    axis = draw_few_shot(read_runs(invented.write(), ["few_shot"])).figure.axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "4", "8", "16"]
    assert min(axis.get_xlim()) > 0.5


def test_a_method_has_one_colour_in_all_figures(invented):
    add_base2new(invented, GAINS)
    add_few_shot(invented, ("dtd",))
    folder = invented.write()
    base2new, few_shot = (read_runs(folder, [protocol]) for protocol in ("base2new", "few_shot"))
    colour = look_of(next(run.method for run in base2new if run.method.key == "MaPLe")).colour
    lines = draw_methods(base2new).figure.axes[0].lines
    assert colour in {line.get_color() for line in lines if line.get_marker() == "o"}
    bars = draw_shares(base2new, ("MaPLe", "CoCoOp")).figure.axes[0].patches
    assert bars[0].get_facecolor() == to_rgba(colour)
    assert colour in {line.get_color() for line in draw_few_shot(few_shot).figure.axes[0].lines}


def test_the_report_gets_all_figures_that_results_give(invented):
    add_base2new(invented, {"dtd": GAINS["dtd"]})
    add_curves(invented, "depth", VALUES, ("dtd",))
    add_few_shot(invented, ("dtd",))
    runs = read_runs(invented.write(), ["base2new", "depth", "few_shot", "zeroshot"])
    figures = for_report(runs)
    assert [figure.title for figure in figures] == [
        "Base to novel, DTD",
        "Gain of each class of DTD",
        "Accuracy over prompt depth, DTD",
        "Few-shot accuracy, DTD",
    ]
    assert all(figure.png.startswith(b"\x89PNG") and figure.caption for figure in figures)
    assert for_report([replace(run, result=None) for run in runs]) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["depth", "{}/nowhere"], "nowhere is not a folder"),
        (["length", "{}"], "holds no run of length; python -m scripts.sweep length makes them."),
        (["per-class", "{}"], "--methods CoCoOp: there is no run of it; there are MaPLe."),
        (["depth", "{}", "--datasets", "pets"], "--datasets pets: there is no run on it; there are dtd."),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(invented, words, message, capsys):
    add_curves(invented, "depth", (1,), ("dtd",))
    invented.add("base2new", "MaPLe", "dtd", "base", 1, 70.0)
    folder = invented.write()
    assert main([word.format(folder) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "figures").exists()


def test_results_alone_are_drawn_without_torch(invented):
    add_curves(invented, "depth", (1, 2), ("dtd",))
    code = "import sys; from scripts.figures import main; code = main(sys.argv[1:])"
    code += "; assert 'torch' not in sys.modules; sys.exit(code)"
    words = ["depth", str(invented.write())]
    subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, check=True)


def test_tables_and_figures_take_the_same_zero_shot_run(invented):
    """One that stands in both protocols, with other accuracies, and one in the other protocol alone."""
    add_few_shot(invented, ("dtd", "eurosat", "shapes"))
    invented.add("few_shot", "ZeroshotCLIP", "dtd", "all", 1, 40.0, shots=0)
    runs = read_runs(invented.write(), ["few_shot", "zeroshot"])
    section = next(each for each in sections_of(runs, "accuracy") if each.protocol == "few_shot")
    average, each = section.tables
    figure = draw_few_shot(runs).figure
    for axis, table in ((figure.axes[0], average), (figure.axes[1], each)):
        row = next(row for row in table.rows if row.labels[-1] == "zero-shot CLIP")
        (line,) = [line for line in axis.lines if list(line.get_xdata()) == [0, 1]]
        assert line.get_ydata()[0] == row.cells[0].mean
    assert average.title == "Average over 2 datasets: DTD, EuroSAT"
    methods = {run.method.key: run.method for run in runs}
    for key in ("MaPLe", "CoOp"):
        row = next(row for row in average.rows if row.labels == (key,))
        colour = look_of(methods[key]).colour
        drawn = [point.y for point in markers(figure.axes[0]) if point.colour == colour]
        assert drawn == [cell.mean for cell in row.cells]


def test_the_footnote_says_how_many_seeds_the_means_are_over(invented):
    add_few_shot(invented, ("dtd",))
    words = words_of(draw_few_shot(read_runs(invented.write(), ["few_shot"])).figure)
    assert "Mean over 3 seeds; bars" in words
    fewer = Invented(invented.folder.parent / "fewer")
    fewer.jobs = [job for job in invented.jobs if job["method"] != "CoOp" or job["seed"] == 1]
    fewer.results = {job["folder"]: invented.results[job["folder"]] for job in fewer.jobs}
    words = words_of(draw_few_shot(read_runs(fewer.write(), ["few_shot"])).figure)
    assert "Mean over 1 to 3 seeds" in words


def test_a_class_gains_over_the_seeds_that_both_methods_have(invented):
    add_base2new(invented, {"dtd": {"banded": 5, "woven": 5}})
    ours, theirs = (f"base2new/base/dtd/{method}//seed3" for method in ("MaPLe", "CoCoOp"))
    invented.results[ours]["per_class"][0]["correct"] = 0
    invented.left_out = {theirs}
    gains = class_gains(read_runs(invented.write(), ["base2new"]), ("MaPLe", "CoCoOp"))
    assert [each.gain for each in gains["dtd"]] == [5, 5]


@pytest.mark.parametrize(
    "classes",
    [5, [5], [{}], [{"name": "a", "total": 0, "correct": 0}], [{"name": "a", "total": 1, "correct": 2}]],
)
def test_a_figure_that_cannot_be_drawn_is_a_warning_of_the_page(invented, classes, capsys):
    add_base2new(invented, GAINS)
    invented.results[next(iter(invented.results))]["per_class"] = classes
    assert report_main([str(invented.write()), "--format", "html"]) == 0
    told = "No figure of the gain of each class"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {told}")
    page = (invented.folder / "report" / "report.html").read_text()
    assert told in page
    assert page.count("data:image/png") == 1


def test_an_average_that_nothing_has_yet_leaves_the_rest_of_the_page(invented):
    add_base2new(invented, GAINS)
    invented.left_out = {job["folder"] for job in invented.jobs if job["dataset"] == "dtd"}
    assert report_main([str(invented.write()), "--format", "html"]) == 0
    assert "No figure of base to novel" in (invented.folder / "report" / "report.html").read_text()


def test_listed_methods_look_different_from_each_other():
    listed = read_methods()
    others = [replace(listed[0], key=f"CLIP (N_CTX {number})") for number in range(99)]
    others += [Method(f"Mine{number}", "mine", "Mine") for number in range(99)]
    looks = {(each.colour, each.marker) for each in map(look_of, listed)}
    assert len(looks) == len(listed)
    assert not looks & {(each.colour, each.marker) for each in map(look_of, others)}
