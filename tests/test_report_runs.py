"""Which runs a report finds, in which table each stands, and what it says of those without a result."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_runs import base_to_novel_folder, plan, published_base_to_novel, result, write
from helpers import GOLDEN, ROOT

from experiments.methods import read_methods
from experiments.report.report import make_report
from experiments.results.benchmarks import stem_of
from experiments.results.reference_logs import read_metric
from experiments.results.runs import Run, gather
from experiments.run_folder import locked


def find(folder: Path, seeds: Sequence[int] | None = None) -> list[Run]:
    gathered = gather([folder], read_methods(), seeds)
    assert gathered.warnings == []
    return gathered.runs


def places(runs: Sequence[Run]) -> set[tuple]:
    return {(run.protocol, run.dataset, run.role, run.seed, run.state) for run in runs}


def test_runs_without_a_plan_stand_where_their_own_result_says(tmp_path: Path) -> None:
    write(tmp_path / "a", result(80.0, classes="base", seed=1))
    write(tmp_path / "b", result(70.0, classes="new", seed=2))
    write(tmp_path / "t", result(70.0, "dtd", "all", trained_on="imagenet"))
    write(tmp_path / "v", result(70.0, "imagenet_r", "all", trained_on="imagenet"))
    write(tmp_path / "f", result(60.0, "eurosat", "all", shots=4))
    write(tmp_path / "z", result(80.0, "dtd", classes="new", trainer="ZeroshotCLIP"))
    write(tmp_path / "y", result(80.0, "dtd", classes="all", trainer="ZeroshotCLIP"))
    assert places(find(tmp_path)) == {
        ("base2new", "oxford_pets", "base", 1, "finished"),
        ("base2new", "oxford_pets", "new", 2, "finished"),
        ("cross_dataset", "dtd", "target", 1, "finished"),
        ("domain_generalisation", "imagenet_r", "target", 1, "finished"),
        ("few_shot", "eurosat", "all", 1, "finished"),
        ("base2new", "dtd", "new", 1, "finished"),
        ("zeroshot", "dtd", "all", 1, "finished"),
    }
    assert {run.seed for run in find(tmp_path, seeds=[2]) if not run.method.is_zero_shot} == {2}


def test_weights_whose_checkpoint_does_not_name_their_training(tmp_path: Path) -> None:
    model = "/published/imagenet/seed3"  # the path is not asked
    write(tmp_path / "a", result(80.0, "dtd", "new", trained_on=None, model_dir=model))
    assert places(find(tmp_path)) == {("base2new", "dtd", "new", 1, "finished")}
    write(tmp_path / "b", result(80.0, "dtd", "all", trained_on=None, model_dir=model))
    (warning,) = gather([tmp_path], read_methods()).warnings
    assert "does not say on which dataset the model was trained" in warning


def test_a_run_without_an_entry_is_shown_by_trainer_and_config(tmp_path: Path) -> None:
    write(tmp_path / "a", result(80.0, trainer="MyMethod", config="my_config"))
    assert {run.method.label for run in find(tmp_path)} == {"MyMethod (my_config)"}


def test_states_of_planned_runs(tmp_path: Path) -> None:
    jobs = [
        {"folder": name, "role": "base", "classes": "base", "seed": seed}
        for seed, name in enumerate("abcdef", 1)
    ]
    plan(tmp_path, jobs)
    write(tmp_path / "a", result(80.0, seed=1))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "error.txt").write_text("Traceback\n  ...\nRuntimeError: out of memory\n\n")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "error.txt").write_text("of an attempt before\n")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "log.txt").write_text((GOLDEN / "logs/train_base/seed1/log.txt").read_text()[:9000])
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / ".lock").touch()  # left behind: nobody holds it
    with locked(tmp_path / "c"):
        runs = find(tmp_path)
    assert [(run.seed, run.state) for run in runs] == [
        (1, "finished"),
        (2, "failed"),
        (3, "running"),
        (4, "interrupted"),
        (5, "missing"),
        (6, "missing"),
    ]
    assert runs[1].reason == "RuntimeError: out of memory"
    assert runs[4].folder == tmp_path / "e"


@pytest.mark.parametrize("written", ["\x1b[2J", "\u202e", "\x07"])
def test_what_a_terminal_obeys_is_escaped_in_warnings(tmp_path: Path, written: str) -> None:
    write(tmp_path / "a", result(80.0))
    (tmp_path / f"b{written}").mkdir()
    (tmp_path / f"b{written}" / "error.txt").write_text(f"KeyError: {written}\n")
    report = make_report(gather([tmp_path], read_methods()), "accuracy", "command")
    (warning,) = [warning for warning in report.warnings if "failed" in warning]
    assert warning.isprintable()
    assert "KeyError: \\" in warning


def test_a_planned_result_that_cannot_be_read_has_failed(tmp_path: Path) -> None:
    plan(tmp_path, [{"folder": "a", "role": "base", "classes": "base"}])
    write(tmp_path / "a", result(80.0, classes="new"))
    base, new = find(tmp_path)
    assert (base.state, base.reason) == ("failed", "its result.json cannot be read, or is of another test")
    assert (new.role, new.accuracy) == ("new", 80.0)  # that other test


def test_a_plan_says_what_is_wanted_and_for_what(tmp_path: Path) -> None:
    curve = {"curve": "text branch", "value": 3, "protocol": "depth", "role": "base", "classes": "base"}
    plan(tmp_path, [{"folder": "d", **curve}], protocol="depth")
    plan(
        tmp_path,
        [
            {
                "folder": "a",
                "role": "new",
                "classes": "new",
                "method": "CoOp:mine",
                "config": "mine",
                "trainer": "CoOp",
            }
        ],
    )
    write(tmp_path / "d", result(77.0))
    runs = {run.protocol: run for run in find(tmp_path)}
    assert (runs["depth"].curve, runs["depth"].value, runs["depth"].accuracy) == ("text branch", 3, 77.0)
    assert (runs["base2new"].method.label, runs["base2new"].state) == ("CoOp (mine)", "missing")
    assert len(runs) == 2


def test_a_part_of_a_sweeps_folder_is_read_by_the_sweeps_plans(tmp_path: Path) -> None:
    curve = {"curve": "text branch", "protocol": "depth", "role": "base", "classes": "base"}
    jobs = [{"folder": f"depth/{value}", "value": value, **curve} for value in (1, 3, 5)]
    plan(tmp_path, [*jobs, {**jobs[0], "folder": "elsewhere/1", "value": 1, "seed": 2}], protocol="depth")
    write(tmp_path / "depth" / "1", result(77.0))
    write(tmp_path / "depth" / "3", result(78.0))
    found = {(run.value, run.state) for run in find(tmp_path / "depth")}
    assert found == {(1, "finished"), (3, "finished"), (5, "missing")}


def test_a_run_of_two_plans_stands_in_both(tmp_path: Path) -> None:
    job = {"folder": "a", "classes": "all"}
    plan(tmp_path, [{**job, "role": "source", "dataset": "imagenet", "source": "imagenet"}], "cross_dataset")
    plan(tmp_path, [{**job, "role": "all", "protocol": "few_shot", "dataset": "imagenet"}], "few_shot")
    write(tmp_path / "a", result(70.0, "imagenet", "all"))
    found = {(run.protocol, run.role, run.source) for run in find(tmp_path)}
    assert found == {("cross_dataset", "source", "imagenet"), ("few_shot", "all", "")}


def test_failed_without_a_plan_or_log_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a", result(80.0))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "error.txt").write_text("ValueError: no\n")
    (warning,) = gather([tmp_path], read_methods()).warnings
    assert str(tmp_path / "b") in warning
    assert "ValueError: no" in warning


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is not JSON"),
        ("[]", "none of this project's files"),
        ('{"format": 2}', "format 2"),
        ('{"format": 1, "trainer": "MaPLe", "dataset": "x"}', "lacks results"),
    ],
)
def test_a_broken_file_is_named_and_the_rest_is_reported(tmp_path: Path, content: str, told: str) -> None:
    write(tmp_path / "good", result(80.0))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "result.json").write_text(content)
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "foreign.json").write_text('{"format": 1, "jobs": [{}]}')
    gathered = gather([tmp_path], read_methods(), seeds=[1])
    assert [run.accuracy for run in gathered.runs if run.role == "base"] == [80.0]
    bad, foreign = gathered.warnings
    assert str(tmp_path / "bad" / "result.json") in bad
    assert told in bad
    assert "job 0 lacks folder" in foreign
    assert not any("\n" in warning for warning in gathered.warnings)


def test_values_that_do_not_fit_are_named(tmp_path: Path) -> None:
    write(tmp_path / "good", result(80.0))
    write(tmp_path / "bad", result(80.0, seed=2) | {"results": 3})
    write(tmp_path / "worse", result(80.0, seed=3) | {"results": {"accuracy": "high"}})
    write(tmp_path / "worst", result(80.0, seed=4, learned_parameters="many"))
    warnings = gather([tmp_path], read_methods()).warnings
    assert len(warnings) == 3
    assert all("does not fit" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"split": "val"}, "validation"),
        (
            {
                "classes": "base",
                "trained_on": {"dataset": "oxford_pets", "classes": "all", "shots": 16, "seed": 1},
            },
            "tested on base",
        ),
        (
            {"classes": "new", "trained_on": {"dataset": "dtd", "classes": "base", "shots": 16, "seed": 1}},
            "trained on dtd",
        ),
    ],
)
def test_what_is_in_no_table_is_told(tmp_path: Path, changes: dict, told: str) -> None:
    write(tmp_path / "good", result(80.0))
    write(tmp_path / "other", {**result(75.0), **changes})
    (warning,) = gather([tmp_path], read_methods()).warnings
    assert told in warning


def test_the_same_run_twice(tmp_path: Path) -> None:
    write(tmp_path / "a", result(80.0))
    write(tmp_path / "b", result(80.0))
    assert sum(run.state == "finished" for run in find(tmp_path)) == 1
    assert sum(run.state == "finished" for run in gather([tmp_path, tmp_path / "a"], []).runs) == 1
    write(tmp_path / "b", result(81.5))
    with pytest.raises(ValueError, match="two results") as error:
        find(tmp_path)
    for words in (str(tmp_path / "a"), str(tmp_path / "b"), "80.00", "81.50", "Which one counts?"):
        assert words in str(error.value)


def test_a_test_in_the_folder_of_a_training(tmp_path: Path) -> None:
    write(tmp_path / "a", result(80.0, classes="base"))
    write(tmp_path / "a", result(70.0, classes="new"), "result_test.json")
    assert {(run.role, run.accuracy) for run in find(tmp_path)} == {("base", 80.0), ("new", 70.0)}
    write(
        tmp_path / "a", result(79.9, classes="base"), "result_test.json"
    )  # the training's own result counts
    assert {(run.role, run.accuracy) for run in find(tmp_path)} == {("base", 80.0)}


def test_names_of_all_datasets_lead_to_their_files() -> None:
    for file in (ROOT / "configs" / "datasets").glob("*.yaml"):
        name = re.search(r"NAME: \"(.+)\"", file.read_text())
        assert name is not None
        assert stem_of(name[1]) == file.stem


def test_own_data_are_told_apart_by_their_folder(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        settings = {"DATASET": {"NAME": "folder", "ROOT": f"/data/{name}", "OWN": {"PATH": ""}}}
        write(tmp_path / name, result(80.0, "folder", "all", settings=settings))
    assert {run.dataset for run in find(tmp_path)} == {"cats (folder)", "dogs (folder)"}


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "a", result(80.0))
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "output")
    assert [run.accuracy for run in find(tmp_path / "output", seeds=[1]) if run.role == "base"] == [80.0]


def test_every_result_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published_base_to_novel(tmp_path, {"MaPLe": "MaPLe"})
    opened: list[str] = []
    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **k: opened.append(str(path)) or read_text(path, **k))
    assert len(find(tmp_path)) == 66
    results = [name for name in opened if name.endswith("result.json")]
    assert len(results) == len(set(results)) == 66


def test_errors_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        gather([tmp_path / "nowhere"], [])
    with pytest.raises(ValueError, match="no runs in"):
        gather([tmp_path], [])
    folder = base_to_novel_folder(tmp_path, "dtd", "MaPLe", 1, "base")
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("something else\n")
    with pytest.raises(ValueError, match="holds no configuration"):
        gather([tmp_path], [])


DEEP = "[" * 200_000


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *(
            (": 71.5", f": {value}")
            for value in ("250", "-5", "NaN", "Infinity", '"99.99"', "true", "null", "[]", "1e999")
        ),
        *(
            ('"seed": 2', f'"seed": {value}')
            for value in ("Infinity", "NaN", '"2"', "1e400", "9" * 5000, "9" * 400, "{}")
        ),
        ('"shots": 16', '"shots": -Infinity'),
        ('"device": 3221225472', '"device": Infinity'),
        ('"training": 82.0', '"training": NaN'),
        ('"learned_parameters": 3555072', '"learned_parameters": "many"'),
        ('"trainer": "MaPLe"', '"trainer": ["MaPLe"]'),
        ('"dataset_config": "oxford_pets"', '"dataset_config": {"a": 1}'),
        ('"format": 1', f'"format": {DEEP}'),
        ('"settings": {}', f'"settings": {DEEP}'),
        ('"seconds": {', '"seconds": 5, "else": {'),
    ],
)
def test_a_result_that_cannot_be_is_one_warning(tmp_path: Path, old: str, new: str) -> None:
    write(tmp_path / "good", result(80.0))
    text = json.dumps(result(71.5, seed=2))
    assert old in text
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "result.json").write_text(text.replace(old, new))
    gathered = gather([tmp_path], read_methods())
    assert [run.accuracy for run in gathered.runs] == [80.0]
    (warning,) = gathered.warnings
    assert str(tmp_path / "bad" / "result.json") in warning
    assert len(warning) < 2000
    assert warning.isprintable()


@pytest.mark.parametrize("name", ["result.json", "log.txt", "plans/base2new-1.json", "error.txt"])
def test_a_named_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    write(tmp_path / "good", result(80.0))
    pipe = tmp_path / "bad" / name
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    gathered = gather([tmp_path], read_methods())
    assert [run.accuracy for run in gathered.runs] == [80.0]
    assert len(gathered.warnings) == 1
    with pytest.raises(FileNotFoundError, match="is no file"):
        read_metric(str(pipe))


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    write(tmp_path / "good", result(80.0))
    (tmp_path / "bad").mkdir()
    with (tmp_path / "bad" / "result.json").open("wb") as file:
        file.truncate(2**40)  # takes no room
    (warning,) = gather([tmp_path], read_methods()).warnings
    assert "1,099,511,627,776 bytes" in warning


@pytest.mark.parametrize(
    "job",
    [
        {"shots": float("inf")},
        {"value": float("nan")},
        {"value": "3"},
        {"value": [3]},
        {"folder": "a\0b"},
        {"curve": "x\n\\input{/etc/passwd}"},
    ],
)
def test_a_plan_that_cannot_be_is_one_warning(tmp_path: Path, job: dict) -> None:
    write(tmp_path / "good", result(80.0))
    plan(tmp_path, [{"folder": "a", "role": "base", "classes": "base", **job}])
    gathered = gather([tmp_path], read_methods())
    assert [run.accuracy for run in gathered.runs] == [80.0]
    (warning,) = gathered.warnings
    assert "base2new-1.json: job 0" in warning


def test_a_planned_folder_that_no_file_system_takes_is_missing(tmp_path: Path) -> None:
    plan(tmp_path, [{"folder": "a" * 5000, "role": "base", "classes": "base"}])
    (run,) = find(tmp_path)
    assert (run.state, "too long" in run.reason) == ("missing", True)


def test_a_log_whose_accuracy_cannot_be_is_a_warning(tmp_path: Path) -> None:
    write(tmp_path / "good", result(80.0))
    (tmp_path / "bad").mkdir()
    log = (GOLDEN / "logs/train_base/seed1/log.txt").read_text()
    (tmp_path / "bad" / "log.txt").write_text(re.sub(r"\* accuracy: [\d.]+%", "* accuracy: 250%", log))
    gathered = gather([tmp_path], read_methods())
    assert [run.accuracy for run in gathered.runs] == [80.0]
    (warning,) = gathered.warnings
    assert "accuracy is 250.0" in warning
