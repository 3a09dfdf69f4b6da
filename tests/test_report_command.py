"""`python -m scripts.report`: its formats, filters, files and errors."""

from __future__ import annotations

import base64
import csv
import errno
import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_runs import base_to_novel_folder, published_base_to_novel, random_cross_dataset, result, write
from helpers import ROOT

from experiments.methods import read_methods
from experiments.report.formats import csv_of_runs, escaped, markdown, text
from experiments.report.latex import LATEX_SIGNS, latex
from experiments.report.page import PageFigure, page
from experiments.report.report import Report, make_report
from experiments.results.runs import gather
from experiments.sweeps.job import Job
from experiments.sweeps.queue import Status
from prompted_clip.errors import UserError
from scripts import sweep
from scripts.report import main

FILES = {"report.json", "report.txt", "report.md", "report.tex", "runs.csv", "tables.csv", "report.html"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods on all datasets, with one test missing, and MaPLe across datasets."""
    output = tmp_path_factory.mktemp("output")
    published_base_to_novel(output, {"CoOp": "CoOp", "MaPLe": "MaPLe"})
    (base_to_novel_folder(output, "dtd", "CoOp", 3, "new") / "result.json").unlink()
    random_cross_dataset(output)
    return output


def report_of(folder: Path) -> Report:
    return make_report(gather([folder], read_methods()), command="python -m scripts.report <output> & more")


def odd_report(folder: Path) -> Report:
    """Of a method whose name holds signs that formats give a meaning."""
    for seed in (1, 2, 3):
        write(
            folder / str(seed),
            result(80.0 + seed, "dtd", "base", seed, "My_Method", config="50%_of|{x}&<b>$#~^\\*"),
        )
    return report_of(folder)


def test_text_is_printed_and_nothing_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(folder.rglob("*"))
    assert main([str(folder)]) == 0
    printed = capsys.readouterr()
    lines = [" ".join(line.split()) for line in printed.out.splitlines()]
    row = next(line for line in lines if line.startswith("MaPLe 82.28 ± 0.41 [0.29/0.22] 75.14 ± 0.41 ["))
    assert "] 78.55 ± 0.41 [" in row
    assert "DTD CoOp 79.44 ± 0.41 [0.29/1.37] 40.93 ± 0.25 (2/3) 53.97 ± 0.28 (2/3)" in lines
    assert any(line.startswith("CoOp DTD new 3 missing not started") for line in lines)
    assert printed.err == ""
    assert set(folder.rglob("*")) == before


def test_wide_tables_are_printed_in_parts(folder: Path) -> None:
    lines = text(report_of(folder)).splitlines()
    heads = [
        line for line in lines if line.startswith("method ") and ("ImageNet" in line or "UCF101" in line)
    ]
    assert len(heads) == 4  # of ImageNet and its targets in three parts, of ImageNet and its variants in one
    texts = [line for line in lines if str(folder) not in line and not set(line) <= set("- ")]
    assert max(len(line.rstrip()) for line in texts) <= 130


def test_all_files_lie_below_the_first_folder_or_where_out_says(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), "--format", "all", "--out", str(tmp_path / "new" / "out")]) == 0
    assert {file.name for file in (tmp_path / "new" / "out").iterdir()} == FILES
    assert f"Written: {tmp_path / 'new' / 'out' / 'report.html'}" in capsys.readouterr().out
    write(tmp_path / "runs" / "a", result(80.0))
    assert main([str(tmp_path / "runs"), "--format", "html"]) == 0
    assert [file.name for file in (tmp_path / "runs" / "report").glob("*.html")] == ["report.html"]
    assert 'src="data:image/png;base64,' in (tmp_path / "runs" / "report" / "report.html").read_text()


def test_csv_of_runs_holds_all_digits_and_the_gaps(folder: Path, tmp_path: Path) -> None:
    assert main([str(folder), "--format", "csv", "--out", str(tmp_path)]) == 0
    with (tmp_path / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 11 * 2 * 3 + 3 * (11 + 5)
    (missing,) = [row for row in rows if row["state"] != "finished"]
    assert missing["accuracy"] == ""
    assert (missing["method"], missing["dataset"], missing["role"], missing["seed"]) == (
        "CoOp",
        "dtd",
        "new",
        "3",
    )
    accuracies = {row["folder"]: float(row["accuracy"]) for row in rows if row["accuracy"]}
    for run in report_of(folder).runs:
        if run.accuracy is not None:
            assert accuracies[str(run.folder)] == run.accuracy
    with (tmp_path / "tables.csv").open(newline="") as file:
        cells = {
            (row["table"], row["row"], row["column"]): row
            for row in csv.DictReader(file)
            if row["protocol"] == "base2new"
        }
    average = cells["Average over 11 datasets", "MaPLe", "HM of the averages (as published)"]
    assert float(average["mean"]) == pytest.approx(78.54899, abs=1e-5)
    assert (average["seeds"], average["wanted"], average["text"]) == ("3", "3", "78.55 ± 0.41")
    assert cells["Each dataset", "DTD | CoOp", "new"]["seeds"] == "2"


def test_csv_with_commas_and_quotes_is_read_back(tmp_path: Path) -> None:
    write(tmp_path / 'a, "b"', result(80.0, trainer="Mine", config='x, "y"'))
    rows = list(csv.DictReader(io.StringIO(csv_of_runs(report_of(tmp_path)))))
    assert rows[0]["method"] == 'Mine (x, "y")'
    assert rows[0]["folder"] == str(tmp_path / 'a, "b"')


def test_latex_escapes_and_is_balanced(tmp_path: Path) -> None:
    source = latex(odd_report(tmp_path))
    name = r"My\_Method (50\%\_of|\{x\}\&$<$b$>$\$\#\textasciitilde{}\textasciicircum{}\textbackslash{}{*})"
    assert name in source
    code = "\n".join(line for line in source.splitlines() if not line.startswith("%"))
    for opening, closing in (
        ("\\begin{table}", "\\end{table}"),
        ("\\begin{adjustbox}", "\\end{adjustbox}"),
        ("{", "}"),
    ):
        assert code.count(opening) == code.count(closing)
    assert code.isascii()
    for block in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", code, re.DOTALL):
        for line in block[1].splitlines():
            if line.endswith("\\\\"):
                assert len(re.findall(r"(?<!\\)&", line)) == len(block[0]) - 1
    assert escaped("a [b] 5 < 6 −1", LATEX_SIGNS) == "a {[}b{]} 5 $<$ 6 $-$1"


def test_latex_has_booktabs_and_the_best_in_bold(folder: Path) -> None:
    source = latex(report_of(folder))
    for word in ("\\toprule", "\\midrule", "\\bottomrule", "% missing: CoOp, dtd, new, seed 3"):
        assert word in source
    assert "MaPLe & \\textbf{80.36 $\\pm$ 0.41} &" in source
    assert "DTD & CoOp & 79.44 $\\pm$ 0.41 & 40.93 $\\pm$ 0.25 (2/3)" in source


def test_long_latex_tables_are_divided_between_datasets(tmp_path: Path) -> None:
    published_base_to_novel(tmp_path, dict.fromkeys(("CoOp", "MaPLe", "A", "B", "C"), "MaPLe"))
    tables = latex(report_of(tmp_path)).split("\\begin{table}")[1:]
    parts = [table for table in tables if "Each dataset. Part" in table]
    assert [table.count(" \\\\\n") - 1 for table in parts] == [45, 10]
    assert "ImageNet & CoOp" in parts[0]
    assert "EuroSAT & CoOp" in parts[1]


def test_markdown_escapes_what_would_break_a_table(tmp_path: Path) -> None:
    page = markdown(odd_report(tmp_path))
    (row,) = [line for line in page.splitlines() if "82.00 ± 0.82" in line]
    assert "My\\_Method (50%\\_of\\|{x}&amp;&lt;b&gt;\\$\\#\\~^\\\\\\*)" in row
    assert len(re.findall(r"(?<!\\)\|", row)) == 6


class Elements(HTMLParser):
    """Collects elements with their attributes, and text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_page_is_whole_and_needs_nothing_else(folder: Path) -> None:
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (1000).to_bytes(4, "big")
    figure = PageFigure("Gains", "Of each class.", header)
    source = page(report_of(folder), [figure])
    parsed = Elements(source)
    assert parsed.open == []
    assert "http" not in source.replace("http-equiv", "")
    assert not {"script", "link", "iframe"} & {tag for tag, _ in parsed.elements}
    links = [attributes["href"] for tag, attributes in parsed.elements if tag == "a"]
    anchors = {attributes.get("id") for _, attributes in parsed.elements}
    assert len(links) == 6
    assert all(link and link.startswith("#") and link[1:] in anchors for link in links)
    (image,) = [attributes for tag, attributes in parsed.elements if tag == "img"]
    assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == header
    assert (image["alt"], image["width"]) == ("Of each class.", "600")


def test_page_marks_the_best_and_the_gaps_and_tells_how_it_was_made(folder: Path) -> None:
    source = page(report_of(folder))
    errors = "standard error over the seeds: 0.29; standard error over the test images: 1.35"
    assert f'<td class="number best" title="{errors}">80.36 ± 0.41</td>' in source
    assert '<td class="number incomplete first">40.93 ± 0.25 (2/3)</td>' in source
    assert '<td class="label missing first">missing</td>' in source
    assert "179 of 180 runs have a result" in source
    assert re.search(r"<title>Results of CoOp, MaPLe on 15 datasets, 20\d\d-\d\d-\d\d</title>", source)
    assert "python -m scripts.report &lt;output&gt; &amp; more" in source
    assert "d72648f0" * 5 in source
    assert "1111111111111111" in source  # the hash of seed 1's sample


def test_filters(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--protocol base2new --methods MaPLe --datasets dtd --seeds 2 1"
    assert main([str(folder), *flags.split()]) == 0
    printed = capsys.readouterr().out
    assert "Cross-dataset" not in printed
    assert "EuroSAT" not in printed
    row = next(line for line in printed.splitlines() if line.startswith("DTD"))
    values = re.findall(r"([\d.]+ ± [\d.]+) \[0\.\d\d/\d\.\d\d\]", row)
    assert values == ["80.11 ± 0.25", "58.93 ± 0.25", "67.91 ± 0.26"]


def test_macro_f1_instead_of_accuracy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--protocol", "base2new", "--metric", "macro_f1"]) == 0
    printed = capsys.readouterr().out
    assert "81.28 ± 0.41" in printed
    assert "Macro F1 in percent" in printed
    assert "Beside the published numbers" not in printed


def test_a_broken_file_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a", result(80.0))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "result.json").write_text("{")
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr()
    told = f"{tmp_path / 'b' / 'result.json'} is not JSON"
    assert f"- {told}" in printed.out
    assert "80.00" in printed.out
    assert main([str(tmp_path), "--format", "all", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err.startswith(f"warning: {told}")
    for file in FILES - {"runs.csv", "report.json"}:
        assert "is not JSON" in (tmp_path / "out" / file).read_text(), file


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["."], "no runs in ."),
        (["runs", "--methods", "Maple"], "--methods Maple: no such runs; there are MaPLe."),
        (["runs", "--datasets", "dtd"], "--datasets dtd: no such runs; there are oxford_pets."),
        (["runs", "--protocol", "depth"], "--protocol depth: no such runs; there are base2new."),
        (["runs", "other"], "one run has two results"),
    ],
)
def test_errors_in_one_line(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if words[0] == "runs":
        write(Path("runs") / "a", result(80.0))
        write(Path("other") / "a", result(70.0))
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("report: ")
    assert told in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_no_torch_is_needed() -> None:
    code = "import sys, scripts.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_full_disk_leaves_the_report_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a", result(80.0))
    assert main([str(tmp_path), "--format", "all"]) == 0
    before = {file: file.read_bytes() for file in (tmp_path / "report").iterdir()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert main([str(tmp_path), "--format", "all"]) == 1
    assert "No space left" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in (tmp_path / "report").iterdir()} == before


ATTACKS = {
    "device": "gpu\n\\immediate\\write18{touch x}\n\\input{/etc/passwd}",
    "trainer": "=cmd|' /C calc'!A0",
    "config": "\x1b]0;owned\x07\u202e$\\foo{$ [x](javascript:alert(1)) <img src=x>",
    "dataset_config": "@SUM(1)\r\n% \ud800 _name",
    "commit": "\n\\end{document}",
    "backbone": "\u2028\\input{x}",
}


@pytest.mark.parametrize("form", ["text", "markdown", "latex", "csv", "html"])
def test_names_are_no_syntax_of_any_format(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, role in ((1, "base"), (2, "base"), (1, "new")):
        write(tmp_path / "runs" / f"{role}{seed}", result(80.0 + seed, classes=role, seed=seed, **ATTACKS))
    write(tmp_path / "runs" / "other", result(70.0))
    assert main([str(tmp_path / "runs"), "--format", form, "--out", str(tmp_path / "out")]) == 0
    for file in (tmp_path / "out").iterdir():
        words = file.read_bytes().decode()
        assert all(line.replace("\N{NO-BREAK SPACE}", " ").isprintable() for line in words.split("\n"))
        assert "81.50" in words or file.name in ("runs.csv", "report.json")
        if form == "latex":
            ours = (
                "%",
                "\\begin",
                "\\end{t",
                "\\end{a",
                "\\centering",
                "\\caption",
                *("\\toprule", "\\midrule"),
            )
            starts = (*ours, "\\bottomrule")
            assert all(line.startswith(starts) for line in words.splitlines() if line.startswith("\\"))
        if form == "csv":
            cells = [cell for row in csv.reader(io.StringIO(words)) for cell in row]
            assert not [cell for cell in cells if re.match(r"[=+@\t\r]|-(?![\d.]+$)", cell)]
        if form == "markdown":
            assert not re.search(r"(?<!\\)\]\(", words)
            assert "<img" not in words
        if form == "html":
            assert "<img src=x>" not in words
    assert "\x1b" not in capsys.readouterr().out


OWN_PROTOCOL = """
title: my own ablation
datasets: [dtd, eurosat]
train: {role: ROLE, classes: ROLE, folder: "mine/train/{dataset}/{curve}_{value}/seed{seed}"}
axis: width of my prompts (tokens)
values: [3, 1, 2]
curves:
  second: {method: MaPLe, options: [TRAINER.MAPLE.N_CTX]}
  first: {method: MaPLe, options: [TRAINER.MAPLE.PROMPT_DEPTH]}
"""


@pytest.mark.parametrize("role", ["base", "all"])
def test_a_sweep_of_a_protocol_of_ones_own_is_reported(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = tmp_path / "mine.yaml", tmp_path / "output"
    tests = "tests: [{role: new, classes: new, folder: 'mine/test/{dataset}/{curve}_{value}/seed{seed}'}]"
    content = OWN_PROTOCOL.replace("ROLE", role) + (tests if role == "base" else "")
    file.write_text(content)

    def run_here(_: object, jobs: Sequence[Job], folder: Path) -> Status:
        for number, job in enumerate(jobs):
            planned = job.planned
            accuracy = 60 + (planned.value or 0) + number / 100
            write(folder / job.folder, result(accuracy, planned.dataset, planned.classes, planned.seed))
        return Status(jobs, finished={job.folder for job in jobs})

    monkeypatch.setattr(sweep, "run_here", run_here)
    monkeypatch.setattr("experiments.sweeps.preflight.check", lambda *_, **__: None)
    words = [str(file), "--seeds", "1", "2", "--output", str(output)]
    assert sweep.main(words) == 0
    printed = capsys.readouterr().out
    assert "second" in printed
    assert "missing" not in printed
    assert len(re.findall(r"6[1-3]\.\d\d ± ", printed)) >= 2 * 3 * 3
    page_of_sweep = (output / "report" / "report.html").read_text()
    assert f"python -m scripts.sweep {file}" in page_of_sweep
    assert page_of_sweep.count("data:image/png") == 1
    file.unlink()
    assert main([str(output)]) == 0
    assert main([str(output), "--format", "html"]) == 0

    file.write_text(content)
    monkeypatch.setattr("scripts.report.make_report", lambda *_: (_ for _ in ()).throw(UserError("no table")))
    assert sweep.main(words) == 2
    assert "report: no table" in capsys.readouterr().err
