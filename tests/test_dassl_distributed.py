"""One test, shared out among processes: each reports what one process alone would report."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from foreign.toy import draw_images, toy_cfg

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase
from dassl.data.samplers import build_sampler
from dassl.engine import TrainerX

# Python 3.12 and later warn where a process with threads forks; starting Python anew takes seconds.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@DATASET_REGISTRY.register(force=True)
class SharedToy(DatasetBase):
    """`NUM_LABELED` images of three classes."""

    def __init__(self, cfg):
        super().__init__(test=draw_images(Path(cfg.DATASET.ROOT), cfg.DATASET.NUM_LABELED, classes=3))


class Brightness(TrainerX):
    """Guesses by the mean of the channels, and is often wrong."""

    def build_model(self):
        pass

    def model_inference(self, input):
        return input.mean((2, 3))


def run(folder: Path, options: list[Any]) -> dict[str, Any]:
    """Tests, and says what the loader and the evaluator gave."""
    cfg = toy_cfg(folder, DATASET__NAME="SharedToy", TEST__PER_CLASS_RESULT=True)
    cfg.DATALOADER.TEST.BATCH_SIZE = 2
    cfg.merge_from_list(options)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        trainer = Brightness(cfg)
        names = [Path(path).name for batch in trainer.test_loader for path in batch["impath"]]
        accuracy = trainer.test()
    lines = printed.getvalue().splitlines()
    return {
        "names": names,
        "same each time": accuracy == trainer.test() == trainer.evaluator.evaluate()["accuracy"],
        "results": dict(trainer.evaluator.evaluate()),
        "total": trainer.evaluator._total,  # after the figures were asked for twice
        "lines": lines[lines.index("Loading evaluator: Classification") :],
    }


TESTS = {
    "seven images": ["DATASET.NUM_LABELED", 7, "TEST.SAVE_PREDICTIONS", True, "TEST.COMPUTE_CMAT", True],
    "one image": ["DATASET.NUM_LABELED", 1, "TEST.SAVE_PREDICTIONS", True],
}
SHARED = ["DATALOADER.TEST.SAMPLER", "DistributedEvalSampler"]


def tell_of_tests(rank: int, meeting: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    told = {name: run(folder / name, [*options, *SHARED]) for name, options in TESTS.items()}
    told["not shared out"] = run(folder / "not shared out", TESTS["one image"])
    (folder / "told.json").write_text(json.dumps(told))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> list[tuple[Path, dict[str, Any]]]:
    """Each of two processes: its folder, and what it says of its tests."""
    folder = tmp_path_factory.mktemp("processes")
    folders = [folder / "first", folder / "second"]
    running = []
    for rank, own in enumerate(folders):
        arguments = (rank, folder / "meeting", own)
        running.append(multiprocessing.get_context("fork").Process(target=tell_of_tests, args=arguments))
        running[-1].start()
    for process in running:
        process.join(timeout=3600)
        process.kill()
    assert [process.exitcode for process in running] == [0, 0]
    return [(own, json.loads((own / "told.json").read_text())) for own in folders]


def without_paths(lines: list[str]) -> list[str]:
    return [re.sub(r"saved to .*", "saved", line) for line in lines]


@pytest.mark.parametrize(("name", "images"), [("seven images", 7), ("one image", 1)])
def test_two_processes_report_what_one_reports(tmp_path, processes, name, images):
    alone = run(tmp_path, TESTS[name])
    (first, one), (second, other) = ((folder / name / "out", told[name]) for folder, told in processes)
    assert list(alone["results"]) == ["accuracy", "error_rate", "macro_f1", "perclass_accuracy"]
    assert one["results"] == other["results"] == alone["results"]
    assert one["total"] == other["total"] == images
    assert one["same each time"]
    assert other["same each time"]
    assert images == 1 or 0 < alone["results"]["accuracy"] < 100
    names = [f"{number:03}.png" for number in range(images)]
    assert (one["names"], other["names"]) == (names[0::2], names[1::2])

    assert without_paths(one["lines"]) == without_paths(alone["lines"])
    assert other["lines"] == [line for line in alone["lines"] if "saved to" not in line]
    assert {path.name for path in first.iterdir()} == {path.name for path in (tmp_path / "out").iterdir()}
    assert not second.exists()  # the first writes for all
    shared, table = (
        [line.rpartition("/")[2] for line in (out / "predictions_test.csv").read_text().splitlines()]
        for out in (first, tmp_path / "out")
    )
    assert shared == table
    assert [line.partition(",")[0] for line in table] == ["impath", *names]


def test_with_another_sampler_nothing_is_gathered(processes):
    for _, told in processes:
        assert told["not shared out"]["names"] == ["000.png"]
        assert "* total: 1" in told["not shared out"]["lines"]


def test_without_processes_it_is_the_sequential_sampler():
    sampler = build_sampler("DistributedEvalSampler", cfg=get_cfg_default(), data_source=list("abcde"))
    assert (list(sampler), len(sampler)) == ([0, 1, 2, 3, 4], 5)


@pytest.mark.parametrize("images", range(8))
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_every_image_comes_once_and_none_twice(monkeypatch, images, processes):
    sampler = build_sampler("DistributedEvalSampler", data_source=[None] * images)
    shares = []
    for process in range(processes):
        monkeypatch.setattr("dassl.data.samplers.get_rank", lambda process=process: process)
        monkeypatch.setattr("dassl.data.samplers.get_world_size", lambda: processes)
        shares.append(list(sampler))
        assert len(sampler) == len(shares[-1])
    assert sorted(chain(*shares)) == list(range(images))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
