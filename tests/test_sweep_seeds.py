"""`scripts.sweep --seeds-together`: the seeds of a dataset in one process. The runs are stand-ins."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from filelock import FileLock
from test_sweep_queue import FAKE

from experiments.jobs import LOCK_FILE, Job
from experiments.sweeps import queue
from experiments.sweeps.devices import Devices
from experiments.sweeps.protocols import Selection, read_protocol, units
from experiments.sweeps.queue import Queue, Status
from scripts.sweep import main


@pytest.fixture
def fake(tmp_path) -> str:
    """An interpreter that runs the stand-in whatever it is asked to run."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    path.chmod(0o755)
    return str(path)


def jobs_of(*datasets: str) -> list[Job]:
    """MaPLe's trainings and tests of base-to-novel, with three seeds."""
    selection = Selection(methods=["MaPLe"], datasets=list(datasets), root="data")
    found = units(read_protocol("base2new"), selection)
    return list(dict.fromkeys(job for unit in found for job in unit))


def sweep(jobs: list[Job], output: Path, fake: str, watch=None) -> tuple[Status, list[str]]:
    events: list[str] = []

    def changed(status: Status, event: str) -> None:
        events.extend([event] if event else [])
        if watch is not None:
            watch(event)

    runs = Queue(jobs, output, Devices(workers=2), python=fake, seeds_together=True)
    return runs.run(changed), events


def processes(jobs: list[Job], output: Path) -> list[list[str]]:
    """By job, the processes that were started for it."""
    return [(output / job.folder / "starts").read_text().split() for job in jobs]


def test_the_trainings_of_a_dataset_are_one_process_and_the_tests_one_each(tmp_path, fake):
    jobs = jobs_of("dtd", "eurosat")
    status, _ = sweep(jobs, tmp_path / "output", fake)
    assert status.finished == {job.folder for job in jobs}
    assert not status.failed
    for dataset in ("dtd", "eurosat"):
        own = [job for job in jobs if job.planned.dataset == dataset]
        trainings = processes([job for job in own if job.planned.trains], tmp_path / "output")
        tests = processes([job for job in own if not job.planned.trains], tmp_path / "output")
        assert len(trainings) == len(tests) == 3
        assert trainings[0] == trainings[1] == trainings[2]
        assert len({process for (process,) in tests}) == 3


def test_what_comes_to_no_result_together_is_tried_by_itself(tmp_path, fake):
    jobs = [job for job in jobs_of("dtd") if job.planned.trains]
    status, events = sweep(jobs, tmp_path / "halfway", fake)
    assert status.finished == {job.folder for job in jobs}
    assert [len(each) for each in processes(jobs, tmp_path / "halfway")] == [1, 1, 2]
    (told,) = [event for event in events if event.startswith("failed")]
    assert told.endswith(
        "with other seeds: train.py: Seed 3: Loss is infinite or NaN! (it is tried by itself)"
    )


def test_a_seed_that_another_sweep_is_at_is_left_to_it(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(queue, "LOOK_AGAIN", 0.1)
    jobs = [job for job in jobs_of("dtd") if job.planned.trains]
    folder = tmp_path / jobs[1].folder
    folder.mkdir(parents=True)
    lock = FileLock(folder / LOCK_FILE)
    lock.acquire()

    def watch(event: str) -> None:
        if event.startswith("finished"):
            lock.release(force=True)

    status, _ = sweep(jobs, tmp_path, fake, watch)
    assert status.finished == {job.folder for job in jobs}
    first, second, third = processes(jobs, tmp_path)
    assert first == third != second


def test_several_processes_for_one_seed_are_refused(capsys):
    assert main(["base2new", "--datasets", "shapes", "--seeds-together", "--gpus-per-job", "2"]) == 2
    message = capsys.readouterr().err.strip()
    assert "--gpus-per-job 2" in message
    assert "\n" not in message
